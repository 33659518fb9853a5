"""Orders of convergence of all registered solvers, measured against closed forms.

Solvers of the probability flow: the state at the end on a Gaussian mixture, whose flow keeps quantiles. Solvers that
draw: mean and standard deviation at the end on Gaussian data, without sampling error. One doubling of the steps.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch

from fastdiff.solvers import FACTS, SOLVERS, Driver
from tests.tolerances import ORDER

from .closed_form import FIRST, Mixture, Run, chain, moments, sigmas, times

MIXTURE = Mixture()
MEAN, STD = 0.3, 0.5
GAUSSIAN = Mixture(p=(1.0,), m=(MEAN,), s=(STD,))
POINTS = FIRST * torch.linspace(-1.8, 1.8, 13, dtype=torch.float64)[None]


def thirds(denoise: Any, steps: int, **options: Any) -> Run:
    """All steps but the last of 3 evaluations, the last one of 2."""
    return sigmas(denoise, steps, evaluations=3 * steps - 1, **options)


Place = Callable[..., Run]
PLACES: dict[str, Place] = {
    **dict.fromkeys(("ddpm", "f_pndm", "pndm", "s_pndm", "time_shift"), chain),
    "dpm_fast": thirds,
    "predictor_corrector": times,
}
"""Solvers that do not run on plain noise levels."""

STEPS: dict[Place | str, tuple[int, int]] = {
    sigmas: (48, 96),
    chain: (40, 80),
    times: (48, 96),
    thirds: (24, 48),
    "dpmpp_3m_sde": (256, 512),  # with fewer, what it does in third order shows
}

NOT_BY_DEFAULT: dict[str, str] = {
    "ald": "more levels leave the error of its Langevin steps as it is",
    "dpm_adaptive": "finds its steps from tolerances, and is tested against them",
    "dpm_fast": "steps of orders 3, 2 and 1 in one run; measured where the last one is of order 2",
    "langevin": "stays at one noise level; its error is that of the step size (tests/solvers/test_langevin.py)",
    "mala": "stays at one noise level, and accepts or rejects (tests/solvers/test_langevin.py)",
    "ode": "finds its steps from tolerances, and is tested against them",
    "predictor_corrector": "the corrector's error does not vanish; measured without it",
}
"""Why a solver's facts give no order that could be measured at its default options."""

NEEDED: dict[str, dict[str, Any]] = {"time_shift": {"window": 0}}
"""Options without which a solver does not solve the flow: a shift follows the variance of a sample's elements."""

FLOW: list[tuple[str, dict[str, Any], int]] = [
    ("deis", {"order": 2}, 2),
    ("dpm_fast", {}, 3),
    ("dpm_multistep", {"order": 1}, 1),
    ("dpm_multistep", {"order": 2, "predict": "eps"}, 2),
    ("dpm_multistep", {"order": 2, "solver_type": "heun"}, 2),
    ("dpm_multistep", {"order": 3}, 2),  # as published
    ("dpm_multistep", {"order": 3, "quadratic": "exact"}, 3),
    ("dpm_singlestep", {"order": 2, "predict": "eps"}, 2),
    ("dpm_singlestep", {"order": 3}, 3),
    ("dpm_singlestep", {"order": 3, "predict": "eps"}, 3),
    ("dpmpp_2m_sde", {"eta": 0.0}, 2),
    ("dpmpp_3m_sde", {"eta": 0.0, "quadratic": "exact"}, 3),
    ("dpmpp_sde", {"eta": 0.0}, 2),
    ("edm_design_space", {"alpha": 0.5}, 2),
    ("edm_design_space", {"order": 1}, 1),
    ("exponential_rk", {"order": 2, "predict": "eps", "solver_type": "midpoint"}, 2),
    ("exponential_rk", {"order": 3}, 3),
    ("exponential_rk", {"order": 3, "predict": "eps", "solver_type": "midpoint"}, 3),
    ("lms", {"order": 2}, 2),
    ("lms", {"order": 3}, 3),
    ("pndm", {"start": "heun"}, 2),
    ("predictor_corrector", {"corrector": "none", "probability_flow": True}, 1),
    ("unipc", {"order": 1}, 2),
    ("unipc", {"order": 2, "predict": "eps", "solver_type": "bh1"}, 3),
    ("unipc", {"order": 3, "lower_order_final": False}, 4),
]
"""Options with which other orders, or other rules of the same, are measured."""

MOMENTS: list[tuple[str, dict[str, Any], int]] = [
    ("ddim", {"eta": 1.0}, 1),
    ("ddpm", {"variance": "fixed_large"}, 1),
    ("dpm_multistep", {"eta": 1.0, "order": 1}, 1),
    ("dpm_multistep", {"eta": 1.0, "predict": "eps"}, 2),
    ("dpm_singlestep", {"eta": 1.0}, 1),
    ("dpmpp_2m_sde", {"eta": 0.5, "solver_type": "heun"}, 2),
    ("euler", {"S_churn": 5.0}, 1),
    ("heun", {"S_churn": 5.0}, 2),
    *(
        ("predictor_corrector", {"corrector": "none", "predictor": predictor}, 1)
        for predictor in ("reverse_diffusion", "ancestral_sampling", "euler_maruyama")
    ),
]
"""The same for moments."""


def registered(stochastic: bool) -> list[tuple[str, dict[str, Any], int]]:
    """All solvers whose facts say an order."""
    found = ((name, facts) for name, facts in FACTS.items() if facts.stochastic is stochastic)
    return [(name, NEEDED.get(name, {}), facts.order) for name, facts in found if facts.order is not None]


def named(case: tuple[str, dict[str, Any], int]) -> str:
    name, options, _ = case
    return "-".join([name, *(f"{key}={value}" for key, value in options.items())])


def measured(name: str, options: dict[str, Any], data: Mixture, error: Callable[[Run], float]) -> float:
    """log2 of by how much twice as many steps reduce an error."""
    place = PLACES.get(name, sigmas)
    coarse, fine = (
        error(place(data.denoise, steps, solver=name, **options)) for steps in STEPS.get(name, STEPS[place])
    )
    return math.log2(coarse / fine)


def flow_error(run: Run) -> float:
    """Root mean square over POINTS, which the flow takes to where the run starts."""
    start, end = (level.sigma_ve for level in run.ends)
    at_start, at_end = (MIXTURE.flow(POINTS, FIRST, s) for s in (start, end))
    return float((run(at_start) - at_end).square().mean().sqrt())


def moment_error(run: Run, brownian: bool = False) -> float:
    """Of mean and standard deviation together."""
    start, end = (math.hypot(STD, level.sigma_ve) for level in run.ends)
    mean, std = moments(run, MEAN, start, brownian)
    return math.hypot(mean - MEAN, std - end)


UPWARDS = [
    (
        name,
        {**options, "lower_order_final": False} if name == "unipc" else options,
        order,
    )  # no step to clean data there
    for name, options, order in registered(stochastic=False)
    if name != "ddim_inversion"  # which only goes there
]


@pytest.mark.parametrize("case", [*registered(stochastic=False), *FLOW], ids=named)
def test_order_on_the_flow(case):
    name, options, order = case
    assert measured(name, options, MIXTURE, flow_error) == pytest.approx(order, abs=ORDER)


@pytest.mark.parametrize("case", UPWARDS, ids=named)
def test_order_upwards(case):
    """The flow from data to noise, by `Sampler.encode`."""
    name, options, order = case

    def error(run: Run) -> float:
        first, last = run.ends
        u = MIXTURE.flow(POINTS, FIRST, last.sigma_ve)
        wanted = MIXTURE.flow(u, last.sigma_ve, first.sigma_ve)
        return float((run.sampler.encode(u) / first.alpha - wanted).square().mean().sqrt())

    bent = {"upwards": True} if PLACES.get(name, sigmas) is sigmas else {}
    assert measured(name, {**options, **bent}, MIXTURE, error) == pytest.approx(order, abs=ORDER)


@pytest.mark.parametrize("case", [*registered(stochastic=True), *MOMENTS], ids=named)
def test_weak_order_on_moments(case):
    name, options, order = case
    assert measured(name, options, GAUSSIAN, moment_error) == pytest.approx(order, abs=ORDER)


def test_one_brownian_path_makes_dpmpp_sde_second_order():
    """Its two draws of a step are of intervals that overlap: what they share belongs to both."""
    error = partial(moment_error, brownian=True)
    assert measured("dpmpp_sde", {}, GAUSSIAN, error) == pytest.approx(2, abs=ORDER)


def test_every_solver_is_measured_or_excused():
    """A reason is for a solver that is there, and that says no order of itself."""
    without = {name for name, facts in FACTS.items() if facts.order is None}
    assert set(NOT_BY_DEFAULT) == without
    assert {name for name, solver in SOLVERS.items() if isinstance(solver, Driver)} <= without
