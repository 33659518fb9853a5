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
from ..errors import check_choice, check_finite
from ..process import Level, Levels
from .exponential import PREDICTIONS, Exponential, predicted
from .registry import register

SOLVER_TYPES = ("midpoint", "heun")
QUADRATICS = ("exact", "diffusers")
NODES: dict[int, tuple[float, ...]] = {1: (), 2: (1 / 2,), 3: (1 / 3, 2 / 3)}

Place = tuple[float, Level]  # (theta, the level there)


def between(levels: Levels, step: Exponential, thetas: Sequence[float]) -> list[Place]:
    """The levels at lambda_start + theta h and their own thetas, which a process of discrete levels rounds.

    Raises:
        ValueError: the process has no such levels.
    """
    start, end = step.start.sigma_ve, step.end.sigma_ve
    places, before = [], 0.0
    for theta in thetas:
        level = levels.between(start ** (1 - theta) * end**theta)
        own = step.node(level)
        own = theta if abs(own - theta) < 1e-9 else own
        if not before + 1e-6 < own <= 1:
            raise ValueError(
                f"steps must be fewer: the process has no {len(thetas)} levels between sigma / alpha = {start:.6g} and "
                f"{end:.6g}, where this solver evaluates the model (discrete timesteps are rounded to)"
            )
        places.append((own, level))
        before = own
    return places


def stages(denoise: Denoiser, x: State, start: Level, places: Sequence[Place], predict: str) -> list[State]:
    """The model's values at theta = 0 and at each of the places, evaluated where the values before it lead."""
    values = [predicted(denoise, x, start, predict)]
    for k, (theta, level) in enumerate(places):
        inner = Exponential(start, level, predict)
        point = inner(x, values, [0.0, *(before / theta for before, _ in places[:k])])
        values.append(predicted(denoise, point, level, predict))
    return values


def advance(
    step: Exponential,
    x: State,
    values: Sequence[State],
    nodes: Sequence[float],
    solver_type: str = "midpoint",
    quadratic: str = "exact",
) -> State:
    """The mean of x at the end of the step, from the model's values at the nodes."""
    if solver_type == "midpoint" and len(nodes) == 3:
        return step(x, values[::2], nodes[::2])
    moments = [step.moment(k) for k in range(len(nodes))]
    if solver_type == "midpoint" and len(nodes) == 2:
        moments[1] = moments[0] / 2
    if quadratic == "diffusers" and len(nodes) == 3 and step.predict == "x0" and step.eta > 0:
        moments[2] = moments[2] - 2 * step.end.alpha
    return step(x, values, nodes, moments)


@register(order=2, evaluations="order", stochastic=False, source="Hochbruck & Ostermann 2005; Zhang et al. 2023 (RES)")
def exponential_rk(
    denoise: Denoiser,
    x: State,
    levels: Levels,
    noise: Callable[..., State],
    *,
    order: int = 2,
    predict: str = "x0",
    solver_type: str = "heun",
    c2: float | None = None,
) -> Iterator[State]:
    """Explicit exponential Runge-Kutta of order 1, 2 or 3 in lambda, its inner points at theta = c2 (and 2/3).

    "heun" is RES, whose weights phi_k solve the stiff order conditions; "midpoint" is DPM-Solver-2 and -3 ("eps"; Lu et
    al. 2022a, Algorithms 1 and 2) and DPM-Solver++(2S) ("x0"; Lu et al. 2022b, Algorithm 1). c2 is 1/2 at order 2, at
    most 1, and 1/3 at order 3, below 2/3. A step to clean data, or from pure noise ("x0" only), is of order 1.
    """
    check_choice("order", order, NODES)
    check_choice("predict", predict, PREDICTIONS)
    check_choice("solver_type", solver_type, SOLVER_TYPES)
    nodes = NODES[order] if c2 is None else (check_finite("c2", c2), 2 / 3)[: order - 1]
    if c2 is not None and (order == 1 or not 0 < c2 <= 1 or (order == 3 and c2 >= 2 / 3)):
        raise ValueError(f"c2 must be in (0, 1] at order 2, in (0, 2/3) at order 3 and left out at order 1, got {c2}")
    for level, following in pairwise(levels):
        step = Exponential(level, following, predict)
        places = between(levels, step, nodes) if step.smooth else []
        values = stages(denoise, x, level, places, predict)
        x = advance(step, x, values, [0.0, *(theta for theta, _ in places)], solver_type)
        yield x


@register(
    order=2,
    evaluations="1",
    stochastic=False,
    source="Lu et al. 2022a, Algorithms 1-2; 2022b, Algorithm 1; on the grid's own levels as in diffusers",
)
def dpm_singlestep(
    denoise: Denoiser,
    x: State,
    levels: Levels,
    noise: Callable[..., State],
    *,
    predict: str = "x0",
    order: int = 2,
    eta: float = 0.0,
    S_noise: float = 1.0,
    solver_type: str = "midpoint",
    quadratic: str = "exact",
    lower_order_final: bool = False,
) -> Iterator[State]:
    """DPM-Solver ("eps") or DPM-Solver++ ("x0") whose inner points are the grid's: `order` of its steps make one.

    Every level is reached from the first of its group, in the order that its place there allows; with eta > 0 by a draw
    of its own for the whole interval since. A last step to clean data is of order 1, so is one from pure noise ("x0"
    only), and with `lower_order_final` one that would complete a group. quadratic="diffusers" has its wrong sign in the
    last term of order 3, heun, eta > 0.
    """
    check_choice("predict", predict, PREDICTIONS)
    check_choice("order", order, NODES)
    check_choice("solver_type", solver_type, SOLVER_TYPES)
    check_choice("quadratic", quadratic, QUADRATICS)
    check_finite("eta", eta)
    group: list[tuple[Level, State]] = []
    start, first = levels[0], x
    for n, (level, following) in enumerate(pairwise(levels)):
        last = n == levels.steps - 1 and (following.sigma == 0 or (lower_order_final and levels.steps % order == 0))
        if n % order == 0 or last or start.alpha == 0:
            start, first, group = level, x, []
        value = predicted(denoise, x, level, predict)
        if all(level != seen for seen, _ in group):  # a grid may repeat a level
            group.append((level, value))
        step = Exponential(start, following, predict, eta)
        nodes = [0.0, *(step.node(inner) for inner, _ in group[1:])]
        x = advance(step, first, [m for _, m in group], nodes, solver_type, quadratic)
        if step.std > 0:
            x = x + S_noise * step.std * noise(start, following, step.clock)
        yield x
