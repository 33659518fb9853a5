"""Noise levels and betas: limits, closed forms, published rules, refusals."""

from __future__ import annotations

import math

import numpy as np
import pytest

from fastdiff import EDM, VE, VP, schedules
from fastdiff.process import GaussianTables


@pytest.mark.parametrize("name", ["karras", "exponential", "polyexponential", "ve", "vp_limits"])
@pytest.mark.parametrize("n", [1, 2, 3, 18])
def test_grids_start_and_end_at_their_limits(name, n):
    grid = getattr(schedules, name)(n, 0.02, 50.0)
    assert grid.shape == (n + 1,) and grid.dtype == np.float64 and grid[-1] == 0
    assert (np.diff(grid) < 0).all()
    assert grid[0] == pytest.approx(50.0, rel=1e-9)
    if n > 1:
        assert grid[-2] == pytest.approx(0.02, rel=1e-9)


def test_karras_middle_level():
    """Karras et al., Eq. 5 by hand: rho = 1 is linear; the middle of three default levels halves s^(1/7)."""
    assert schedules.karras(3, 1.0, 3.0, rho=1.0).tolist() == pytest.approx([3.0, 2.0, 1.0, 0.0])
    middle = ((80 ** (1 / 7) + 0.002 ** (1 / 7)) / 2) ** 7
    assert schedules.karras(3)[1] == pytest.approx(middle)


def test_the_vp_grid_is_ddpms_limit():
    """sigma_vp(1) of the default betas is the published upper limit 152."""
    assert schedules.vp(2)[0] == pytest.approx(152.2, abs=0.1)


def test_iddpm_keeps_published_levels():
    grid = schedules.iddpm(20)
    assert len(grid) == 21 and 70 < grid[0] <= 81 and 0.002 <= grid[-2] < 0.02
    rounded = schedules.iddpm(20, float32_table=True)
    assert 0 < np.abs(rounded[:-1] / grid[:-1] - 1).max() < 1e-3


def test_iddpm_rounds_indices_half_to_even():
    """46 levels lie inside the limits, so index i of 11 is round(4.5 i): 31.5 is 32."""
    levels = schedules.iddpm(46, 0.1, 20.0, M=50, C_1=1e-4)
    assert len(set(levels.tolist())) == 47
    chosen = schedules.iddpm(11, 0.1, 20.0, M=50, C_1=1e-4)
    assert chosen[:-1].tolist() == levels[[0, 4, 9, 14, 18, 22, 27, 32, 36, 40, 45]].tolist()


@pytest.mark.parametrize(("name", "middle"), [("beta_quantiles", 25.01), ("laplace", 1.0)])
def test_quantile_grids_end_at_their_limits(name, middle):
    """Symmetric distributions have their centre in the middle: of sigma (beta), of log sigma (Laplace at 0)."""
    pytest.importorskip("scipy")
    grid = getattr(schedules, name)(9, 0.02, 50.0)
    assert len(grid) == 10 and grid[-1] == 0 and (np.diff(grid) < 0).all()
    assert grid[[0, -2]].tolist() == pytest.approx([50.0, 0.02], rel=1e-9)
    if name == "laplace":
        grid = schedules.laplace(9, 0.02, 50.0, mu=0.5 * math.log(50 * 0.02), scale=2.0)
    assert grid[4] == pytest.approx(middle)
    assert EDM().levels(5, name.removesuffix("_quantiles")).steps == 5


def test_laplace_quantiles_by_hand():
    """F(x) = 1 - exp(-x / scale) / 2 above mu: half the probability between mu and the limit takes log 2 of a scale."""
    grid = schedules.laplace(5, math.exp(-40.0), math.exp(40.0), scale=0.5)
    assert np.log(grid[[1, 3]]).tolist() == pytest.approx([0.5 * math.log(2), -0.5 * math.log(2)])
    assert grid[0] == pytest.approx(math.exp(40.0)) and np.isfinite(schedules.laplace(4, 1e-9, 1e9, scale=0.1)).all()


def test_aligned_steps():
    assert schedules.align_your_steps(10).tolist() == pytest.approx([*schedules.ALIGNED["sd"][:-1], 0.0], rel=1e-14)
    twice = schedules.align_your_steps(20, "sdxl")
    assert len(twice) == 21 and twice[::2][:-1].tolist() == pytest.approx(schedules.ALIGNED["sdxl"][:-1])
    assert twice[1] == pytest.approx(math.sqrt(twice[0] * twice[2]))
    with pytest.raises(ValueError, match="table"):
        schedules.align_your_steps(10, "sd3")


def test_betas_of_sigmoid_and_laplace():
    sigmoid, laplace = schedules.sigmoid_betas(1000), schedules.laplace_betas(1000)
    assert sigmoid[-1] == 0.999 and ((sigmoid > 0) & (sigmoid <= 0.999)).all()
    abar = np.cumprod(1 - sigmoid)
    assert abar[499] == pytest.approx(0.5) and abar[0] == pytest.approx(1, abs=1e-3)  # odd around its middle
    abar = np.cumprod(1 - laplace)
    assert ((laplace > 0) & (laplace <= 0.999)).all()
    t = 0.25 + 0.0005
    assert np.log(abar[250] / (1 - abar[250])) == pytest.approx(-0.5 * math.log(2 * t))
    with pytest.raises(ValueError, match="start"):
        schedules.sigmoid_betas(10, 1.0, 1.0)


def test_zero_terminal_snr():
    """Lin et al. 2024, Algorithm 1: the first step keeps its level, the last one is pure noise; what is in between is
    shifted linearly in sqrt(alpha_bar)."""
    before = VP.linear().alphas_cumprod ** 0.5
    process = VP(schedules.zero_terminal_snr(schedules.linear_betas()))
    after = process.alphas_cumprod**0.5
    assert after[-1] == 0 and process.betas[-1] == 1 and after[0] == pytest.approx(before[0])
    slope = np.diff(after) / np.diff(before)
    assert np.allclose(slope, slope[0])
    with np.errstate(all="raise"):
        assert GaussianTables(process.alphas_cumprod).sqrt_recip_alphas_cumprod[-1] == math.inf
        assert process.level_at_sigma(3.0).time > 0
    with pytest.raises(ValueError, match="betas"):
        schedules.zero_terminal_snr([0.1])


def test_ddim_subsequences():
    """The DDIM repository: 15 uniform steps are 16; 10 start at 900; quadratic ones are dense at the clean end."""
    assert len(schedules.ddim_subsequence(1000, 15)) == 16
    assert schedules.ddim_subsequence(1000, 10) == list(range(0, 1000, 100))
    quad = schedules.ddim_subsequence(1000, 10, "quad")
    assert quad[:3] == [0, 9, 39] and quad[-1] in (799, 800) and schedules.ddim_subsequence(1000, 50, "quad")[1] == 0
    for arguments, name in (((10, 11), "n"), ((10, 5, "cubic"), "kind")):
        with pytest.raises(ValueError, match=name):
            schedules.ddim_subsequence(*arguments)


@pytest.mark.parametrize(("T", "sections"), [(1000, "60x"), (1000, "ddim60"), (10, "11"), (1000, "ddim1"), (10, "0")])
def test_respacing_refusals(T, sections):
    with pytest.raises(ValueError, match="steps"):
        schedules.space_timesteps(T, sections)


def test_respacing_keeps_both_ends_of_every_section():
    kept = schedules.space_timesteps(300, [10, 15, 20])
    assert len(kept) == 45
    assert {0, 99, 100, 199, 200, 299} <= set(kept)
    assert schedules.space_timesteps(1000, "ddim50")[:3] == [0, 20, 40]
    assert schedules.space_timesteps(50, "") == list(range(50))


def test_betas():
    assert schedules.linear_betas(1000)[[0, -1]].tolist() == pytest.approx([1e-4, 0.02])
    cosine = schedules.cosine_betas(1000)
    assert cosine[-1] == 0.999 and (cosine[:-1] < 0.999).all()
    assert np.cumprod(1 - cosine)[-1] == pytest.approx(2.4e-9, rel=0.05)
    with pytest.raises(ValueError, match="name must be one of"):
        schedules.betas("lineer")


def test_posterior_tables_satisfy_bayes_rule():
    """q(x_(i-1) | x_i, x_0) has the precision and mean of the product of two Gaussians (Ho et al., Eqs. 6-7)."""
    q = GaussianTables(VP.cosine(50).alphas_cumprod)
    i = np.arange(1, 50)
    beta, prev = q.betas[i], q.alphas_cumprod_prev[i]
    precision = (1 - beta) / beta + 1 / (1 - prev)
    assert np.allclose(q.posterior_variance[i], 1 / precision, rtol=1e-10)
    assert np.allclose(q.posterior_mean_coef1[i], np.sqrt(prev) / (1 - prev) / precision, rtol=1e-10)
    assert np.allclose(q.posterior_mean_coef2[i], np.sqrt(1 - beta) / beta / precision, rtol=1e-10)


def test_explicit_steps_have_their_own_alpha_bar():
    """That of a respaced chain is rebuilt from its betas, and rounds: by 4e-9 of it where it is 2e-9."""
    process, steps = VP.cosine(1000), [999, 666, 333, 0]
    own = np.sqrt(process.alphas_cumprod[steps]).tolist()
    assert [level.alpha for level in process.levels_at(steps)] == [*own, 1.0]
    assert process.levels("4")[0].alpha == pytest.approx(own[0], rel=1e-8)


def test_levels():
    levels = EDM().levels(5)
    assert levels.steps == 5 and levels[-1].sigma == 0 and levels[0].time == pytest.approx(80)
    vp = VP.linear(1000).levels("ddim10")
    assert [level.time for level in vp[:-1]] == [900.0 - 100 * i for i in range(10)]
    assert all(math.isclose(level.alpha**2 + level.sigma**2, 1) for level in vp)
    assert VP.linear(200, rescale_timesteps=True).levels(200)[0].time == pytest.approx(995.0)
    halves = EDM(round_sigma=lambda s: round(2 * s) / 2 or 0.5).levels(4)
    assert all(level.sigma % 0.5 == 0 for level in halves)


@pytest.mark.parametrize(
    ("make", "argument"),
    [
        (lambda: EDM(sigma_min=-1), "sigma_min"),
        (lambda: EDM(sigma_min=float("nan")), "sigma_min"),
        (lambda: VE(sigma_min=5, sigma_max=1), "sigma_min"),
        (lambda: EDM().levels(0), "steps"),
        (lambda: EDM().levels(1), "steps"),
        (lambda: EDM().levels("ddim10"), "steps"),
        (lambda: EDM().levels(10, "cosine"), "schedule"),
        (lambda: EDM().levels(10, rho=0.0), "rho"),
        (lambda: EDM().levels(10, sigma_max=float("inf")), "sigma_max"),
        (lambda: EDM().levels_at([1.0, 2.0]), "sigmas"),
        (lambda: EDM().levels_at([1.0, -2.0]), "sigmas"),
        (lambda: EDM().levels_at([float("nan"), 0.0]), "sigmas"),
        (lambda: EDM().levels_at([1.0]), "sigmas"),
        (lambda: VP([0.1, 1.5]), "betas"),
        (lambda: VP.linear(0), "T"),
        (lambda: VP.linear(50).levels(51), "steps"),
        (lambda: VP.linear(50).levels(5, "karras"), "schedule"),
        (lambda: VP.linear(50).levels_at([3, 3]), "timesteps"),
        (lambda: VP.linear(50).levels_at([50, 3]), "timesteps"),
        (lambda: VP.linear(50).levels_at([2.5]), "timesteps"),
    ],
)
def test_refusals_name_the_argument(make, argument):
    with pytest.raises(ValueError, match=argument):
        make()
