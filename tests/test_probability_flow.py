"""Solver "ode": closed-form flows by every method, what is done at the ends, observers, encoding, refusals."""

from __future__ import annotations

import math
import sys

import pytest
import torch

from fastdiff import EDM, VP, Sampler
from fastdiff.continuous import Flow, SDEProcess
from fastdiff.interpolating import InterpolatingVP
from fastdiff.sde import VESDE, VPSDE, subVPSDE
from tests.tolerances import LOG_DENSITY, LOG_DENSITY_MIXTURE

pytest.importorskip("torchdiffeq")

F64 = {"dtype": torch.float64}
METHODS = ["dopri5", "dopri8", "bosh3", "fehlberg2", "adaptive_heun", "RK45"]
POINTS = torch.linspace(-2, 2, 9, dtype=torch.float64)[:, None]
TIGHT = {"rtol": 1e-8, "atol": 1e-8}


def on_edm(gaussian, **options):
    return Sampler(gaussian.denoise, solver="ode", **{"sigmas": [20.0, 0.5], **TIGHT, **options}, **F64)


@pytest.mark.parametrize("method", METHODS)
def test_every_method_meets_its_tolerance(method, gaussian):
    tolerance = 1e-8 if method in ("dopri5", "dopri8", "RK45") else 1e-4
    sampler = on_edm(gaussian, method=method, rtol=tolerance, atol=tolerance)
    x = 20 * POINTS
    got = sampler(x.shape, x_init=x)
    factor = 1000 if method == "fehlberg2" else 100  # it divides its error by 512
    assert torch.allclose(got, gaussian.ode(x, 20.0, 0.5), rtol=0, atol=factor * tolerance)


@pytest.mark.parametrize(
    ("process", "grid"),
    [
        (SDEProcess(VPSDE()), {"timesteps": [1.0, 0.3]}),
        (SDEProcess(subVPSDE()), {"timesteps": [1.0, 0.3]}),
        (SDEProcess(VESDE()), {"timesteps": [1.0, 0.5]}),
        (Flow(), {"timesteps": [0.95, 0.3]}),
        (InterpolatingVP(VP.linear().betas), {"sigmas": [20.0, 0.5]}),
    ],
    ids=["vp", "subvp", "ve", "flow", "interpolating"],
)
def test_every_process_has_the_gaussians_flow(process, grid, gaussian):
    """In time or in log sigma, the map from the first level to the last is the same in VE terms."""
    asked = []

    class Spy(type(process)):
        def _seen(self, level):
            asked[:] = [level]
            return level

        def level(self, *arguments):
            return self._seen(super().level(*arguments))

        def level_between(self, sigma_ve):
            return self._seen(super().level_between(sigma_ve))

    def model(x, t):
        return gaussian.denoise(x / asked[0].alpha, torch.full(x.shape[:1], asked[0].sigma_ve, dtype=x.dtype))

    spied = object.__new__(Spy)
    vars(spied).update(vars(process))
    sampler = Sampler(model, process=spied, prediction="x0", solver="ode", final="none", **grid, **TIGHT, **F64)
    first, last = sampler.levels[0], [level for level in sampler.levels if level.sigma > 0][-1]
    u = first.sigma_ve * POINTS
    got = sampler(u.shape, x_init=first.alpha * u) / last.alpha
    exact = gaussian.ode(u, first.sigma_ve, last.sigma_ve)
    assert torch.allclose(got, exact, rtol=LOG_DENSITY_MIXTURE, atol=LOG_DENSITY_MIXTURE)


def test_a_flow_starts_from_pure_noise():
    """Straight paths to the points 2 z: x = t z + (1 - t) 2 z has the velocity -z, whatever t."""
    z = POINTS

    def model(x, t):
        return -x / (2 - t.reshape(-1, 1))

    options = {"process": "flow", "prediction": "flow", "steps": 3, "final": "none", **TIGHT}
    sampler = Sampler(model, solver="ode", **options, **F64)
    last = sampler.levels[-2]
    got = sampler(z.shape, x_init=z)
    assert torch.allclose(got, (2 - last.sigma) * z, atol=LOG_DENSITY)


@pytest.mark.parametrize("steps", [2, 5])
def test_the_last_step_is_x0_or_the_chains_or_none(steps, gaussian):
    sde = VESDE()

    def model(x, t):
        return gaussian.denoise(x, t)

    def last(final):
        options = {"process": SDEProcess(sde), "prediction": "x0", "steps": steps}
        return Sampler(model, solver="ode", final=final, **options, **F64)(POINTS.shape, x_init=50 * POINTS)

    t = torch.full((len(POINTS),), sde.eps, dtype=torch.float64)
    noisy, sigma = last("none"), sde.sigma(t)
    denoised = gaussian.denoise(noisy, sigma)
    assert torch.equal(last("x0"), denoised)
    chain = noisy + sde.discretize(t)[1][:, None] ** 2 * (denoised - noisy) / sigma[:, None] ** 2
    assert torch.allclose(last("reverse_diffusion"), chain, rtol=1e-12)


def test_observers_look_at_the_levels_without_changing_the_result(gaussian):
    grid = [20.0, 7.0, 2.0, 0.5, 0.0]
    x, seen = 20 * POINTS, []
    for method in ("RK45", "dopri5"):
        sampler = on_edm(gaussian, sigmas=grid, method=method)
        final, states = sampler(x.shape, x_init=x, callback=seen.append, return_trajectory=True)
        assert torch.allclose(sampler(x.shape, x_init=x), final, rtol=LOG_DENSITY)
        for sigma, state in zip(grid[:-1], states):
            assert torch.allclose(state, gaussian.ode(x, 20.0, sigma), atol=LOG_DENSITY_MIXTURE)
    assert [info.level.sigma_ve for info in seen] == [*grid[:-1], *grid[:-1]]
    assert [info.step for info in seen] == [0, 1, 2, 3] * 2
    assert torch.equal(seen[3].denoised, seen[3].x)


def test_encoding_is_the_way_back(gaussian):
    sampler = on_edm(gaussian)
    data = gaussian.ode(20 * POINTS, 20.0, 0.5)
    assert torch.allclose(sampler.encode(data), 20 * POINTS, atol=LOG_DENSITY_MIXTURE)


def test_a_sample_shares_its_steps_within_the_tolerance(gaussian):
    sampler = on_edm(gaussian)
    together = sampler((5, 3), seeds=[1, 2, 3, 4, 5])
    alone = sampler((1, 3), seeds=3)
    assert torch.allclose(alone[0], together[2], atol=LOG_DENSITY)


def test_float32_states_and_epsilon_scaling(gaussian):
    def finals(**options):
        return Sampler(gaussian.denoise, solver="ode", sigmas=[20.0, 0.5], **options)((4, 3), seeds=1)

    single, double = finals(), finals(dtype=torch.float64)
    assert single.dtype == torch.float32
    assert torch.allclose(single.double(), double, atol=1e-3)
    assert not torch.allclose(finals(epsilon_scale=1.05, **F64), double, atol=1e-3)


def test_an_empty_batch_and_one_level(gaussian):
    assert on_edm(gaussian)((0, 3), seeds=[]).shape == (0, 3)
    x = 20 * POINTS
    once = Sampler(gaussian.denoise, process=SDEProcess(VESDE()), prediction="x0", solver="ode", timesteps=[0.5], **F64)
    sigma = torch.full((len(x),), once.levels[0].sigma, dtype=torch.float64)
    assert torch.equal(once(x.shape, x_init=x), gaussian.denoise(x, sigma))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"method": "rk4"}, "method must be one of dopri5"),
        ({"final": "mean"}, "final must be one of x0"),
        ({"final": "reverse_diffusion"}, "final must be 'x0' or 'none'"),
        ({"rtol": 0.0}, "rtol must be positive"),
        ({"process": VP.linear(), "steps": 10}, "process must have a level at every sigma"),
        ({"steps": 3, "epsilon_scale": [1.0, 1.1, 1.2]}, "epsilon_scale must be one number"),
    ],
)
def test_refusals(options, message):
    sampler = Sampler(lambda x, t: x, prediction="x0", solver="ode", **options)
    with pytest.raises(ValueError, match=message):
        sampler((2, 3), seeds=0)


@pytest.mark.parametrize(("method", "library"), [("RK45", "scipy"), ("dopri5", "torchdiffeq")])
def test_a_missing_library_is_named(method, library, gaussian, monkeypatch):
    for name in [name for name in sys.modules if name.split(".")[0] == library]:
        monkeypatch.setitem(sys.modules, name, None)
    monkeypatch.setitem(sys.modules, library, None)
    with pytest.raises(ModuleNotFoundError, match=f"need {library} for method '{method}': pip install"):
        on_edm(gaussian, method=method)((2, 3), seeds=0)


@pytest.mark.parametrize("method", ["RK45", "dopri5"])
def test_a_velocity_that_is_not_finite_is_named(method):
    sampler = Sampler(lambda x, t: x * math.nan, solver="ode", sigmas=[20.0, 0.5], process=EDM(), method=method)
    with pytest.raises(FloatingPointError, match="velocity of the probability flow is not finite at sigma 20"):
        sampler((2, 3), seeds=0)
