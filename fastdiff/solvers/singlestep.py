"""Single-step exponential integrators: DPM-Solver, DPM-Solver++ and RES, with points inside a step or on the grid.

A method is where in a step the model is evaluated (nodes theta, from 0 at its start to 1 at its end, in lambda), each
time at a point made of the evaluations before it, and a rule for the step itself:

    "midpoint"  DPM-Solver's: with one inner node sum_j w_j theta_j is half of sum_j w_j, whatever the weight of the
                integral; with two, only the first and the last value are used
    "heun"      the polynomial through all values is integrated exactly (RES, ETD Runge-Kutta, DPM-Solver's "taylor")
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise

from ..denoiser import Denoiser, State
from ..errors import check_choice, check_count
from ..process import Level, Levels
from .exponential import PREDICTIONS, Exponential, predicted
from .registry import register

RULES = ("midpoint", "heun")
NODES: dict[int, tuple[float, ...]] = {1: (), 2: (1 / 2,), 3: (1 / 3, 2 / 3)}
ALGORITHMS = {"dpmsolver": ("eps", 0.0), "dpmsolver++": ("x0", 0.0), "sde-dpmsolver++": ("x0", 1.0)}

Place = tuple[float, Level]  # (theta, the level there)


def between(levels: Levels, step: Exponential, theta: float) -> Place:
    """The level at lambda_start + theta h and its own theta, which a process of discrete levels rounds.

    Raises:
        ValueError: the process has no level there but the ends of the step.
    """
    start, end = step.start.sigma_ve, step.end.sigma_ve
    level = levels.at_sigma(start ** (1 - theta) * end**theta)
    own = step.node(level)
    if not 1e-6 < own < 1 - 1e-6:
        raise ValueError(
            f"steps must be fewer: the process has no level between sigma / alpha = {start:.6g} and {end:.6g}, where "
            "this solver evaluates the model (a process of discrete timesteps rounds to them)"
        )
    return own, level


def stages(denoise: Denoiser, x: State, start: Level, places: Sequence[Place], predict: str) -> list[State]:
    """The model's values at theta = 0 and at each of the places, evaluated where the values before it lead."""
    values = [predicted(denoise, x, start, predict)]
    for k, (theta, level) in enumerate(places):
        inner = Exponential(start, level, predict)
        point = inner(x, values, [0.0, *(before / theta for before, _ in places[:k])])
        values.append(predicted(denoise, point, level, predict))
    return values


def advance(step: Exponential, x: State, values: Sequence[State], nodes: Sequence[float], rule: str) -> State:
    """The mean of x at the end of the step, from the model's values at the nodes, by the rule."""
    if rule == "heun" or len(nodes) == 1:
        return step(x, values, nodes)
    if len(nodes) == 2:
        return step(x, values, nodes, [step.moment(0), step.moment(0) / 2])
    return step(x, [values[0], values[-1]], [nodes[0], nodes[-1]])


@register(order=2, evaluations="order", stochastic=False, source="Hochbruck & Ostermann 2005; Zhang et al. 2023 (RES)")
def exponential_rk(
    denoise: Denoiser,
    x: State,
    levels: Levels,
    noise: Callable[..., State],
    *,
    order: int = 2,
    predict: str = "x0",
    rule: str = "heun",
    c2: float | None = None,
    c3: float | None = None,
) -> Iterator[State]:
    """Explicit exponential Runge-Kutta of order 1, 2 or 3 in lambda, its inner points at theta = c2 (and c3).

    rule="heun" is RES (the weights phi_k that solve the stiff order conditions); rule="midpoint" is DPM-Solver-2 and -3
    (predict="eps"; Lu et al. 2022a, Algorithms 1 and 2) and DPM-Solver++(2S) (predict="x0"; Lu et al. 2022b, Algorithm
    1). c2 is 1/2 at order 2; c2 and c3 are 1/3 and 2/3 at order 3. A step to clean data is of order 1.
    """
    check_choice("order", order, NODES)
    check_choice("predict", predict, PREDICTIONS)
    check_choice("rule", rule, RULES)
    given = [c for c in (c2, c3) if c is not None]
    nodes = given if given else NODES[order]
    if len(nodes) != order - 1 or any(not a < b for a, b in pairwise([0.0, *nodes, 1.0])) or (c2 is None and given):
        raise ValueError(f"c2 (order 2) and c3 (order 3) must rise between 0 and 1, got {c2} and {c3} at order {order}")
    for level, following in pairwise(levels):
        step = Exponential(level, following, predict)
        places = [between(levels, step, theta) for theta in nodes] if following.sigma > 0 else []
        values = stages(denoise, x, level, places, predict)
        x = advance(step, x, values, [0.0, *(theta for theta, _ in places)], rule)
        yield x


def grouped_orders(steps: int, order: int, lower_order_final: bool, clean: bool) -> list[int]:
    """The order of every step of diffusers' single-step scheduler: 1, 2, .., order again and again.

    The last step is of order 1 if it is to clean data, or with `lower_order_final` if it would complete a group.
    """
    orders = [1 + i % order for i in range(steps)]
    if clean or (lower_order_final and steps % order == 0):
        orders[-1] = 1
    return orders


@register(
    order=2,
    evaluations="1",
    stochastic=False,
    source="Lu et al. 2022a, Algorithms 1-2; Lu et al. 2022b, Algorithm 1; on adjacent grid points as in diffusers",
)
def dpm_solver_singlestep(
    denoise: Denoiser,
    x: State,
    levels: Levels,
    noise: Callable[..., State],
    *,
    order: int = 2,
    algorithm: str = "dpmsolver++",
    rule: str = "midpoint",
    lower_order_final: bool = False,
    S_noise: float = 1.0,
) -> Iterator[State]:
    """DPM-Solver(++) whose inner points are the grid's own: `order` steps of the grid make one of the method.

    Every level is reached from the first of its group, with the order that its place in the group allows, so a state is
    only as good as order 1 at the first level of a group. "sde-dpmsolver++" draws at every level, for the whole
    interval since its group began.

    Args:
        algorithm: "dpmsolver" (noise prediction), "dpmsolver++" (data prediction), "sde-dpmsolver++" (its reverse SDE).
        rule: "midpoint" or "heun".
        lower_order_final: the last step is of order 1 (always if it is to clean data).
    """
    check_choice("order", check_count("order", order), NODES)
    check_choice("rule", rule, RULES)
    predict, eta = ALGORITHMS[check_choice("algorithm", algorithm, ALGORITHMS)]
    orders = grouped_orders(levels.steps, order, lower_order_final, levels[-1].sigma == 0)
    start, first, values, group = levels[0], x, [], []
    for (level, following), place in zip(pairwise(levels), orders):
        if place == 1:
            start, first, values, group = level, x, [], []
        values, group = [*values, predicted(denoise, x, level, predict)], [*group, level]
        step = Exponential(start, following, predict, eta)
        x = advance(step, first, values, [step.node(inner) for inner in group], rule)
        if step.std > 0 and S_noise > 0:
            x = x + (S_noise * step.std) * noise(start, following, eta)
        yield x
