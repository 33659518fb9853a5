"""Noise of one Brownian path per sample: its law in closed form, its bits, and what samplers make of it."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
import torch

from fastdiff import Sampler, ops
from fastdiff.brownian import CELLS, DRAWS, FIRST_DRAW, increment
from fastdiff.ops import native
from tests.tolerances import BROWNIAN_WEIGHTS, ROUNDING

ETAS = [1.0, 0.5, 0.0, -1.0, 0.01, 2.0, -0.3]
BACKENDS = ["reference", *(["cpu"] if native.available("cpu") else [])]


def sigma(position: float) -> float:
    """The level that is so many cells from the noisy end."""
    return 2.0 ** (16 - position / 2048)


def duration(i: float, j: float, eta: float) -> float:
    """tau(j) - tau(i) in units of tau's rate halfway, from logarithms: no difference of large numbers."""
    octaves = (j - i) / 2048
    rate = eta * octaves * math.log(2)
    middle = math.exp(2 * eta * math.log(2) * ((i + j) / 2 / 2048 - 16))
    return middle * octaves * (math.sinh(rate) / rate if rate else 1.0)


def weights(i: float, j: float, eta: float) -> dict[int, float]:
    return dict(zip(*increment(sigma(i), sigma(j), eta)))


def covariance(a: dict[int, float], b: dict[int, float]) -> float:
    return math.fsum(weight * b.get(draw, 0.0) for draw, weight in a.items())


def intervals(generator: torch.Generator, spread: int) -> tuple[float, float, float, float]:
    """Two intervals that begin and end in four of so many cells, anywhere or at their boundaries."""
    first = int(torch.randint(0, CELLS - spread + 1, (1,), generator=generator))
    inside = torch.rand(4, generator=generator, dtype=torch.float64) * torch.randint(0, 2, (4,), generator=generator)
    i, j, k, l = (first + torch.randperm(spread, generator=generator)[:4] + inside).tolist()  # noqa: E741
    return min(i, j), max(i, j), min(k, l), max(k, l)


# ----------------------------------------------------------------------------------------------------------------------
# The weights
# ----------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("eta", ETAS)
@pytest.mark.parametrize("spread", [4, 40, 3000, CELLS])
def test_increments_have_the_covariance_of_brownian_motion(spread, eta):
    generator = torch.Generator().manual_seed(spread)
    for _ in range(60):
        i, j, k, l = intervals(generator, spread)  # noqa: E741
        a, b = weights(i, j, eta), weights(k, l, eta)
        first, last = max(i, k), min(j, l)
        shared = duration(first, last, eta) if first < last else 0.0
        want = shared / math.sqrt(duration(i, j, eta) * duration(k, l, eta))
        assert covariance(a, b) == pytest.approx(want, abs=BROWNIAN_WEIGHTS)
        assert covariance(a, a) == pytest.approx(1.0, abs=BROWNIAN_WEIGHTS)
        assert len(a) <= 35 and all(FIRST_DRAW <= draw < FIRST_DRAW + DRAWS for draw in a) and list(a) == sorted(a)


@pytest.mark.parametrize("eta", ETAS)
def test_increments_add_up(eta):
    whole_cells = [(0, CELLS // 2, CELLS), (20_000, 20_001, 20_002)]
    for i, j, k in [*whole_cells, (20_000.4, 20_001.1, 20_002), (9000.25, 31_111.5, 52_345.75)]:
        parts = [(weights(a, b, eta), math.sqrt(duration(a, b, eta))) for a, b in ((i, j), (j, k))]
        whole, root = weights(i, k, eta), math.sqrt(duration(i, k, eta))
        for draw in set().union(whole, *(part for part, _ in parts)):
            total = sum(part.get(draw, 0.0) * std for part, std in parts)
            assert total / root == pytest.approx(whole.get(draw, 0.0), abs=BROWNIAN_WEIGHTS)


def test_the_ends_of_the_range_stand_for_pure_noise_and_data():
    assert increment(math.inf, 0.0) == ([FIRST_DRAW], [pytest.approx(1.0)])
    assert increment(math.inf, 1.0) == increment(2.0**16, 1.0)
    assert increment(1.0, 0.0) == increment(1.0, 2.0**-16)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((1.0, 1.0), "2^-11 octave"),
        ((0.9999, 0.9998), "different cells of 2^-11 octave"),
        ((1.0, 2.0), "from sigma 1 to 2"),
        ((1e5, 1.0), "start must be a sigma from 2^-16 to 2^16"),
        ((1.0, 1e-5), "end must be a sigma"),
        ((1.0, math.nan), "end must be a sigma"),
        ((1.0, 0.5, 9.0), "eta must be from -8 to 8"),
        ((1.0, 0.5, math.inf), "eta must be finite"),
        (("one", 0.5), "start must be one level for all samples"),
    ],
)
def test_refusals(arguments, message):
    with pytest.raises(ValueError) as error:
        increment(*arguments)
    assert message in str(error.value)


# ----------------------------------------------------------------------------------------------------------------------
# The noise
# ----------------------------------------------------------------------------------------------------------------------


def noise(intervals, seeds, elements, backend):
    """Several increments of each sample in one launch: [M] of float32 [B, elements]."""
    made = [weights(i, j, 1.0) for i, j in intervals]
    draws = sorted(set().union(*made))
    table = torch.tensor([[one.get(draw, 0.0) for one in made for draw in draws]])
    out = [torch.empty(len(seeds), elements) for _ in made]
    ops.combine([], table, seeds=torch.tensor(seeds), draws=draws, out=out, backend=backend)
    return out


def test_statistics():
    """Moments to order 4 and correlations, 5 sigma each."""
    cut = [30_000.5, 31_000, 31_500.1, 40_000]
    pairs = [(cut[0], cut[1]), (cut[1], cut[3]), (cut[0], cut[2])]
    z = torch.stack(noise(pairs, list(range(64)), 4096, BACKENDS[-1])).double().reshape(3, -1)
    n = z.shape[1]
    for order, moment, spread in [(1, 0.0, 1.0), (2, 1.0, 2.0), (3, 0.0, 15.0), (4, 3.0, 96.0)]:
        assert ((z**order).mean(1) - moment).abs().max() < 5 * math.sqrt(spread / n)
    shared = duration(cut[0], cut[1], 1.0) / math.sqrt(duration(*pairs[0], 1.0) * duration(*pairs[2], 1.0))
    overlap = duration(cut[1], cut[2], 1.0) / math.sqrt(duration(*pairs[1], 1.0) * duration(*pairs[2], 1.0))
    for a, b, want in [(0, 1, 0.0), (0, 2, shared), (1, 2, overlap)]:
        assert abs((z[a] * z[b]).mean() - want) < 5 * math.sqrt((1 + want**2) / n)
    neighbours, samples = z[0].reshape(64, 4096), z[0].reshape(64, 4096).roll(1, 0)
    assert abs((neighbours[:, 1:] * neighbours[:, :-1]).mean()) < 5 / math.sqrt(n)
    assert abs((neighbours * samples).mean()) < 5 / math.sqrt(n)


def test_a_samples_noise_is_its_own_whatever_the_batch_and_the_backend():
    pairs = [(30_000, 31_000), (30_500.5, 52_003.25)]
    wanted = noise(pairs, [5, -3, 2**62], 1031, "reference")
    for backend in BACKENDS:
        together = noise(pairs, [2**62, 7, 5, -3], 1031, backend)
        assert all(a.equal(b[[2, 3, 0]]) for a, b in zip(wanted, together))
        assert all(a[1:2].equal(b) for a, b in zip(wanted, noise(pairs, [-3], 1031, backend)))


# ----------------------------------------------------------------------------------------------------------------------
# Samplers
# ----------------------------------------------------------------------------------------------------------------------

FINE = torch.logspace(math.log10(40), -2, 257, dtype=torch.float64).tolist()
ANCESTRAL = ["euler_ancestral", "dpmpp_sde", "dpmpp_2m_sde", "dpmpp_3m_sde"]


def gaussian(x, t):
    """The denoiser of data from N(0, 1/4)."""
    return x / (1 + 4 * t.view(-1, 1) ** 2)


def run(solver, every, model=gaussian, **options):
    """Sixteen samples by every so manieth of the fine levels."""
    options = {"noise": "brownian", "dtype": torch.float64} | options
    return Sampler(model, solver=solver, sigmas=[*FINE[:-1:every], FINE[-1]], **options)((16, 7), seeds=11)


def difference(a, b):
    return float((a - b).square().mean().sqrt())


@pytest.mark.parametrize("solver", ANCESTRAL)
def test_where_the_solver_is_exact_steps_change_nothing(solver):
    """Data at one point: the state is the path itself, x / sigma^2 = x_0 / sigma_0^2 + W, at every step count."""

    def at_one(x, t):
        return torch.ones_like(x)

    coarse, fine, finest = (run(solver, every, at_one) for every in (64, 16, 4))
    assert max(difference(coarse, finest), difference(fine, finest)) < 10 * BROWNIAN_WEIGHTS
    assert difference(run(solver, 4, at_one, noise="independent"), finest) > 1e-3


@pytest.mark.parametrize("solver", ["euler_ancestral", "dpmpp_sde", "dpmpp_2m_sde"])
def test_more_steps_refine_a_sample(solver):
    """Differences from the finest run fall with the steps; with independent noise every run is another sample."""
    finest = run(solver, 1)
    errors = [difference(run(solver, every), finest) for every in (32, 16, 8, 4)]
    assert all(a > 1.4 * b for a, b in pairwise(errors)), errors
    independent = [run(solver, every, noise="independent") for every in (8, 4)]
    assert difference(*independent) > 5 * errors[-2]


def test_dpm_adaptive_follows_the_path():
    """Tolerances choose the steps; the path is the same for all of them."""

    def adaptive(tolerance, **options):
        chosen = {"eta": 1.0, "norm": "batch", "rtol": tolerance, "atol": tolerance / 10}
        return run("dpm_adaptive", 1, **chosen, **options)

    finest = run("euler_ancestral", 1)
    errors = [difference(adaptive(tolerance), finest) for tolerance in (0.05, 0.0005)]
    assert errors[0] > 2.5 * errors[1], errors
    assert difference(adaptive(0.0005, noise="independent"), finest) > 5 * errors[1]
    assert difference(adaptive(0.05), adaptive(0.05, compiled=False)) < 100 * BROWNIAN_WEIGHTS


@pytest.mark.parametrize("solver", ANCESTRAL)
def test_one_launch_per_evaluation_and_the_same_bits_on_every_backend(solver):
    def samplers(**options):
        return Sampler(gaussian, solver=solver, steps=4, noise="brownian", **options)

    plan = samplers().plan()
    assert len(plan.launches) <= plan.evaluations + 1
    assert all(len(launch.draws) <= 35 for launch in plan.launches)
    assert "W (" in str(plan)
    wanted = samplers(backend="reference")((3, 5), seeds=[4, 9, 2])
    for backend in BACKENDS:
        sampler = samplers(backend=backend)
        assert sampler((3, 5), seeds=[4, 9, 2]).equal(wanted)
        assert torch.cat([sampler((2, 5), seeds=[2, 4]), sampler((1, 5), seeds=[9])])[[1, 2, 0]].equal(wanted)
    plain = samplers(compiled=False)((3, 5), seeds=[4, 9, 2])
    assert (plain - wanted).abs().max() < 100 * ROUNDING[torch.float32]


def test_noise_of_no_interval_is_an_ordinary_draw():
    churned = {"solver": "heun", "steps": 6, "S_churn": 4.0}
    a, b = (Sampler(gaussian, noise=noise, **churned)((2, 5), seeds=0) for noise in ("brownian", "independent"))
    assert a.equal(b)


def test_refusals_of_samplers():
    with pytest.raises(ValueError, match="noise must be one of independent, brownian, got 'pink'"):
        Sampler(gaussian, noise="pink")
    sampler = Sampler(gaussian, solver="euler_ancestral", steps=4, noise="brownian")
    for given in ({"noise": lambda draw, step: torch.zeros(2, 5)}, {"generator": torch.Generator()}):
        with pytest.raises(ValueError, match="left out of calls of a sampler with noise='brownian'"):
            sampler((2, 5), **given)
    with pytest.raises(ValueError, match="make fewer steps"):
        Sampler(gaussian, solver="euler_ancestral", sigmas=[0.9999, 0.9998, 0.0], noise="brownian")
    with pytest.raises(ValueError, match="norm must be 'batch' with noise='brownian'"):
        Sampler(gaussian, solver="dpm_adaptive", sigmas=FINE, noise="brownian", eta=1.0)((2, 5), seeds=0)
