"""Stochastic Runge-Kutta methods: strong order of convergence along given Brownian paths, and what they draw."""

from __future__ import annotations

import math

import pytest
import torch

from fastdiff import VP, Sampler
from tests.tolerances import SMALL_SIGMA

FIRST, LAST, FINE, PATHS = 0.2, 6.2, 256, 300
P, M, S = (torch.tensor(v, dtype=torch.float64) for v in ((0.4, 0.6), (-1.0, 0.8), (0.5, 0.3)))


def denoise(x, sigma):
    """E[x_0 | x] of the mixture sum_k P_k N(M_k, S_k^2)."""
    v = S**2 + sigma.reshape(-1, 1, 1) ** 2
    away = x[..., None] - M
    r = (P.log() - v.log() / 2 - away**2 / (2 * v)).softmax(-1)
    return (r * (M + S**2 / v * away)).sum(-1)


class Paths:
    """Brownian paths W in the time r = 1 / sigma^2, and the integrals of W, known on FINE cells."""

    def __init__(self):
        g = torch.Generator().manual_seed(0)
        self.start, *fine = torch.randn(2 * FINE + 1, PATHS, 1, generator=g, dtype=torch.float64)
        self.h = h = (LAST - FIRST) / FINE
        self.W = math.sqrt(h) * torch.stack(fine[:FINE])
        self.Z = h / 2 * self.W + h * math.sqrt(h / 12) * torch.stack(fine[FINE:])

    def increments(self, steps):
        """(h, of W and its integral over each of `steps` steps)."""
        W = self.W.reshape(steps, -1, PATHS, 1)
        before = W.cumsum(1) - W
        return self.h * FINE / steps, W.sum(1), (before * self.h + self.Z.reshape(W.shape)).sum(1)


def ends(paths, solver, steps, **options):
    """The states at LAST; the draws are what makes the solver's increments those of the paths."""
    h, W, Z = paths.increments(steps)
    sigmas = [(FIRST + n * h) ** -0.5 for n in range(steps + 1)] + [0.0]
    made = Sampler(denoise, process="ve", sigmas=sigmas, solver=solver, dtype=torch.float64, **options)

    def noise(draw, step):
        if solver != "sra1":
            return W[step] / math.sqrt(h)
        both, apart = W[step] / math.sqrt(h / 2), (Z[step] - h / 2 * W[step]) / (h * math.sqrt(h / 24))
        return (both + apart) / 2 if draw % 2 else (both - apart) / 2

    start = paths.start * sigmas[0]
    return made(start.shape, x_init=start, noise=noise, return_trajectory=True)[1][steps]


@pytest.mark.parametrize(
    ("solver", "order", "options"),
    [
        ("predictor_corrector", 1.0, {"predictor": "ancestral_sampling", "corrector": "none"}),  # Euler-Maruyama
        ("srk_heun", 1.0, {}),
        ("sra1", 1.5, {}),
    ],
)
def test_strong_order(solver, order, options):
    paths = Paths()
    exact = ends(paths, "sra1", FINE)
    errors = [(ends(paths, solver, steps, **options) - exact).abs().mean().item() for steps in (8, 32)]
    assert math.log2(errors[0] / errors[1]) / 2 > order - 0.1


@pytest.mark.parametrize(("solver", "draws"), [("srk_heun", 1), ("sra1", 2)])
def test_stages_share_their_draws(solver, draws):
    """The start's draw; then each step's, in the launch before its second stage and in the one after it."""
    plan = Sampler(lambda x, t: 0.5 * x, solver=solver, steps=3).plan()
    shared = [tuple(range(1 + n * draws, 1 + (n + 1) * draws)) for n in range(2)]
    assert [tuple(launch.draws) for launch in plan.launches] == [(0,), shared[0], shared[0], shared[1], shared[1], ()]
    assert max(len(launch.inputs) for launch in plan.launches) <= 3


def test_solvers_of_one_sde_refine_to_one_sample_on_its_brownian_path():
    def samples(solver, steps, **options):
        made = Sampler(
            denoise, solver=solver, steps=steps, sigma_min=0.05, sigma_max=10.0,
            noise="brownian", dtype=torch.float64, compiled=False, **options,
        )  # fmt: skip
        return made((100, 1), seeds=0)

    reference = samples("sra1", 256)
    euler = {"predictor": "reverse_diffusion", "corrector": "none"}
    for solver, options in {"srk_heun": {}, "sra1": {}, "predictor_corrector": euler}.items():
        coarse, fine = ((samples(solver, steps, **options) - reference).abs().mean() for steps in (16, 64))
        assert fine < 0.4 * coarse < 0.15


@pytest.mark.parametrize("solver", ["srk_heun", "sra1"])
def test_routes_agree_on_chains_too(solver):
    """On DDPM's chain the stage inside a step is at the nearest level there is."""
    for process in ("edm", VP.cosine(200)):
        options = {"process": process, "solver": solver, "steps": 12, "dtype": torch.float64}
        one, other = (Sampler(lambda x, t: 0.5 * x, compiled=c, **options)((3, 2), seeds=0) for c in (True, False))
        torch.testing.assert_close(one, other, rtol=SMALL_SIGMA, atol=SMALL_SIGMA)


def test_pure_noise_is_refused():
    with pytest.raises(ValueError, match="process must have alpha > 0 at every level"):
        Sampler(lambda x, t: x, process="flow", solver="srk_heun", steps=3)
