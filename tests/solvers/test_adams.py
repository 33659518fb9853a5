"""Adams-Bashforth methods: LMS, iPNDM, PNDM and DEIS."""

from __future__ import annotations

import math
from itertools import pairwise

import numpy as np
import pytest
import torch
from numpy.polynomial import Polynomial

from fastdiff import VP, Sampler
from fastdiff.process import CLEAN, Level, Levels
from fastdiff.solvers.adams import adams, extrapolated
from tests.tolerances import CLOSED_FORM

F64 = {"dtype": torch.float64}
SIGMAS = [10.0, 6.0, 3.0, 1.5, 0.5, 0.2, 0.0]
START = torch.linspace(-1.5, 1.5, 12, dtype=torch.float64).reshape(2, 6)


def network(x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
    return 0.3 * torch.sin(3 * x) + 0.4 * x


def timed(x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
    return network(x, t) + 0.1 * torch.cos(0.3 * t.double()).reshape(-1, 1)


class Given(VP):
    """A chain whose runs visit given levels."""

    def __init__(self, levels: list[Level]):
        super().__init__([0.02] * 100, rescale_timesteps=True)
        self._given = levels

    def levels(self, steps=None, schedule=None, **options):
        return Levels(self._given, self)


def angles(steps: int) -> list[Level]:
    """From pure noise to clean data by equal angles."""
    inner = [math.pi / 2 * (1 - i / steps) for i in range(1, steps)]
    return [Level(0.0, 1.0, 1.0), *(Level(math.cos(a), math.sin(a), a) for a in inner), CLEAN]


def run(solver: str, x: torch.Tensor = START, compiled: bool = True, **options) -> torch.Tensor:
    return Sampler(network, solver=solver, compiled=compiled, **F64, **options)(x.shape, x_init=x)


def close(a: torch.Tensor, b: torch.Tensor) -> bool:
    return bool((a - b).abs().max() <= CLOSED_FORM * b.abs().max())


# --- the core ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("n", [1, 2, 3, 4, 6])
def test_a_polynomial_is_integrated_exactly(n):
    polynomial = Polynomial(np.random.default_rng(n).normal(size=n))
    nodes = [0.0, *np.linspace(0.3, 2.0, n - 1)]
    exact = polynomial.integ()(-0.7) - polynomial.integ()(0.0)
    assert adams([polynomial(node) for node in nodes], nodes, -0.7) == pytest.approx(exact, rel=1e-11)


def test_equal_steps_have_the_coefficients_of_the_textbooks():
    tables = [[1], [3 / 2, -1 / 2], [23 / 12, -16 / 12, 5 / 12], [55 / 24, -59 / 24, 37 / 24, -9 / 24]]
    for table in tables:
        units = torch.eye(len(table), dtype=torch.float64)
        assert extrapolated(list(units)).tolist() == pytest.approx(table, rel=1e-13)


# --- LMS --------------------------------------------------------------------------------------------------------------


def test_order_one_is_euler_s_method():
    euler = run("euler", 10 * START, sigmas=SIGMAS)
    assert close(run("lms", 10 * START, sigmas=SIGMAS, order=1), euler)
    assert close(run("deis", 10 * START, sigmas=SIGMAS, order=1), euler)
    assert close(run("ipndm", 10 * START, sigmas=SIGMAS, order=1), euler)


@pytest.mark.parametrize("solver", ["lms", "deis"])
def test_a_level_that_is_there_twice_changes_nothing(solver):
    """iDDPM's rounded grids repeat levels; k-diffusion's LMS divides 0 by 0 there."""
    repeated = [10.0, 10.0, 6.0, 3.0, 3.0, 3.0, 1.5, 0.5, 0.2, 0.0]
    twice = run(solver, 10 * START, steps=9, schedule=lambda n, **_: repeated)
    assert close(twice, run(solver, 10 * START, sigmas=SIGMAS))


def test_lms_is_exact_where_the_slope_is_a_polynomial():
    """x_0 = u - s d(s) with a cubic d: the ODE's solution is its integral once four values are known."""
    d = Polynomial([0.3, -0.2, 0.05, 0.01])
    sigmas = [1.0, 0.9, 0.8, 0.7, 0.5, 0.2, 0.1]

    def model(x, s):
        return x - s[0].item() * d(s[0].item())

    _, states = Sampler(model, solver="lms", sigmas=sigmas, **F64)((2, 6), x_init=START, return_trajectory=True)
    for n, (s, t) in list(enumerate(pairwise(sigmas)))[3:]:
        assert close(states[n + 1] - states[n], torch.full_like(START, d.integ()(t) - d.integ()(s)))


def test_deis_is_exact_where_the_noise_is_a_polynomial_in_log_sigma():
    eps = Polynomial([0.3, -0.2, 0.05])
    sigmas = [1.0, 0.8, 0.5, 0.3, 0.1, 0.0]

    def model(x, s):
        return x - s[0].item() * eps(s[0].log().item())

    _, states = Sampler(model, solver="deis", sigmas=sigmas, **F64)((2, 6), x_init=START, return_trajectory=True)
    nodes, weights = np.polynomial.legendre.leggauss(24)
    for n, (s, t) in list(enumerate(pairwise(sigmas)))[2:-1]:
        rho = (s + t) / 2 + (t - s) / 2 * nodes
        integral = (t - s) / 2 * (weights * eps(np.log(rho))).sum()
        assert close(states[n + 1] - states[n], torch.full_like(START, integral))
    assert close(states[-1], model(states[-2], torch.tensor([0.1], dtype=torch.float64))), "the last step gives x_0"


@pytest.mark.parametrize("solver", ["lms", "deis", "pndm"])
def test_pure_noise_is_refused(solver):
    with pytest.raises(ValueError, match=rf"alpha > 0 at every level for solver '{solver}'"):
        Sampler(network, process="flow", solver=solver, steps=8)


@pytest.mark.parametrize("order", [0, 1.5, "4"])
def test_an_order_that_is_no_count_is_refused(order):
    with pytest.raises(ValueError, match=r"order must be (an integer of at least 1|a number)"):
        Sampler(network, solver="lms", order=order)


# --- iPNDM ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("compiled", [True, False])
def test_ipndm_starts_from_pure_noise(compiled):
    """There x_0 is the network's; diffusers takes 0, and so does blind=True."""
    options = {"process": Given(angles(4)), "prediction": "v", "compiled": compiled}
    first = angles(4)[1]
    for blind, x0 in ((False, -network(START, START)), (True, torch.zeros_like(START))):
        sampler = Sampler(network, solver="ipndm", blind=blind, **options, **F64)
        _, states = sampler(START.shape, x_init=START, return_trajectory=True)
        assert close(states[1], first.alpha * x0 + first.sigma * START)
        assert states.isfinite().all()


def test_ipndm_extrapolates_as_if_steps_were_equal():
    sigmas = SIGMAS[:4]
    sampler = Sampler(network, solver="ipndm", sigmas=sigmas, **F64)
    _, states = sampler(START.shape, x_init=10 * START, return_trajectory=True)
    eps = [(x - network(x, START)) / s for x, s in zip(states, sigmas)]
    slopes = [eps[0], (3 * eps[1] - eps[0]) / 2, (23 * eps[2] - 16 * eps[1] + 5 * eps[0]) / 12]
    for n, (s, t) in enumerate(pairwise(sigmas)):
        assert close(states[n + 1] - states[n], (t - s) * slopes[n])


# --- PNDM -------------------------------------------------------------------------------------------------------------

CHAIN = {"process": VP.linear(100), "prediction": "eps"}


def test_without_a_shift_pndm_is_f_pndm_and_begins_as_s_pndm():
    grid = {"timesteps": [90, 74, 58, 42, 26, 10]}
    assert close(run("pndm", **CHAIN, **grid), run("f_pndm", **CHAIN, **grid))
    heun, s_pndm = (
        Sampler(network, solver=solver, **options, **CHAIN, **grid, **F64)((2, 6), x_init=START, return_trajectory=True)
        for solver, options in (("pndm", {"start": "heun"}), ("s_pndm", {}))
    )
    assert close(heun[1][:3], s_pndm[1][:3])
    assert not close(heun[1][3], s_pndm[1][3])


def diffusers_pndm(process: VP, times: list[int], stride: int, v: bool, prk: bool) -> torch.Tensor:
    """What diffusers' PNDMScheduler does with a network of eps or v, call by call: in the way of its `step_prk` and
    `step_plms`, of which each call has a time that the network is told, and one transfer."""

    def transfer(x, out, t, to):
        a, b = process.level(t), process.level(to) if to >= 0 else CLEAN
        eps = a.alpha * out + a.sigma * x if v else out
        return b.alpha * (x - a.sigma * eps) / a.alpha + b.sigma * eps

    def ask(x, t):
        return timed(x, torch.tensor([float(t)]))

    x, outs = START, []
    for n, t in enumerate(times):
        out = ask(x, t)
        outs.append(out)
        half, following = stride // 2, times[n + 1] if n + 1 < len(times) else -1
        if prk and n < 3:
            second = ask(transfer(x, out, t, t - half), following + half)
            third = ask(transfer(x, second, t, following + half), following + half)
            fourth = ask(transfer(x, third, t, following), following)
            x = transfer(x, out / 6 + second / 3 + third / 3 + fourth / 6, t, following)
        elif n == 0:
            second = ask(transfer(x, out, t, t - stride), following)
            x = transfer(x, (out + second) / 2, following + stride, following)
        else:
            mean = {2: [3 / 2, -1 / 2], 3: [23 / 12, -16 / 12, 5 / 12]}
            weights = mean.get(len(outs), [55 / 24, -59 / 24, 37 / 24, -9 / 24])
            x = transfer(x, sum(w * o for w, o in zip(weights, outs[::-1])), t, t - stride)
    return x


@pytest.mark.parametrize("prk", [True, False])
@pytest.mark.parametrize("v", [True, False])
@pytest.mark.parametrize(
    ("times", "stride"),
    [
        ([80, 60, 40, 20, 0], 20),  # leading
        ([88, 77, 66, 55, 44, 33, 22, 11, 0], 11),  # leading, an odd stride
        ([99, 79, 59, 40, 20, 0], 16),  # linspace: longer than the stride that the transfers take
    ],
)
def test_pndm_with_a_stride_is_diffusers_scheduler(times, stride, v, prk):
    process = VP.linear(100)
    options = {"start": "runge_kutta" if prk else "heun", "history": "output" if v else "eps", "stride": stride}
    options |= {"process": process, "prediction": "v" if v else "eps", "timesteps": times}
    wanted = diffusers_pndm(process, times, stride, v, prk)
    for compiled in (True, False):
        sampler = Sampler(timed, solver="pndm", compiled=compiled, **options, **F64)
        assert close(sampler(START.shape, x_init=START), wanted)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"steps": 3}, "steps must be an integer of at least 4, got 3"),
        ({"start": "euler"}, "start must be one of runge_kutta, heun, got 'euler'"),
        ({"history": "x0"}, "history must be one of eps, output, got 'x0'"),
        ({"stride": 2.5}, "stride must be an integer of at least 0, got 2.5"),
        ({"process": "edm", "prediction": "x0"}, "process must be a VP, .* got EDM"),
        ({"process": "edm", "prediction": "x0", "start": "heun", "stride": 4}, "process must be a VP, .* got EDM"),
    ],
)
def test_what_pndm_refuses(options, message):
    with pytest.raises(ValueError, match=message):
        Sampler(network, solver="pndm", **{**CHAIN, "steps": 8, **options})


def test_heun_start_needs_no_timesteps():
    assert run("pndm", 10 * START, start="heun", sigmas=SIGMAS).isfinite().all()
    assert close(run("pndm", 10 * START, start="heun", sigmas=[10.0, 0.0]), network(10 * START, START))


def test_a_stride_only_leads_to_less_noise():
    sampler = Sampler(network, solver="pndm", stride=20, **{**CHAIN, "timesteps": [80, 60, 40, 20, 0]}, **F64)
    with pytest.raises(ValueError, match="stride must be 0 to go towards more noise, got 20"):
        sampler.encode(START)
