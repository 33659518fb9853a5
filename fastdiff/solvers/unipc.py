"""UniPC: a multistep predictor whose corrector reuses the next step's evaluation (Zhao et al. 2023)."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from itertools import pairwise

from ..denoiser import Denoiser, State
from ..errors import check_choice
from ..process import Levels
from ..symbols import Number
from .exponential import PREDICTIONS, Exponential, Past, predicted
from .registry import register

SOLVER_TYPES = ("bh1", "bh2")
ORDERS = (1, 2, 3)


def two_node_moments(step: Exponential, solver_type: str) -> list[Number]:
    """With two values the rule takes half of B(h) for the slope: B = h (bh1) or the weight of the constant (bh2).

    So do the codes of Zhao et al. 2023; at every other order B cancels, and the moments are the exact ones.
    """
    constant = step.moment(0)
    if solver_type == "bh2":
        return [constant, constant / 2]
    return [constant, step.h / 2 * (step.end.alpha if step.predict == "x0" else -step.end.sigma)]


@register(order=3, evaluations="1", stochastic=False, source="Zhao et al. 2023 (UniPC), Algorithms 1 and 2")
def unipc(
    denoise: Denoiser,
    x: State,
    levels: Levels,
    noise: Callable[..., State],
    *,
    predict: str = "x0",
    order: int = 2,
    solver_type: str = "bh2",
    lower_order_final: bool = True,
    disable_corrector: Collection[int] = (),
) -> Iterator[State]:
    """UniP of order 1, 2 or 3 (Zhao et al. 2023, Algorithm 2), and UniC (Algorithm 1) with the evaluation it shares.

    What is evaluated where a step ends corrects that state first, which gains an order; the state yielded is the
    predicted one. Options as in diffusers' UniPCMultistepScheduler (predict="eps" is its predict_x0=False):
    `lower_order_final` lets the order fall to 1 over the last steps, `disable_corrector` are the numbers of the steps
    whose end is not corrected. A step to clean data is of first order (official codes: NaN for bh1 or "eps").
    """
    check_choice("predict", predict, PREDICTIONS)
    check_choice("solver_type", solver_type, SOLVER_TYPES)
    order = int(check_choice("order", order, ORDERS))
    if not isinstance(disable_corrector, Collection) or not all(isinstance(n, int) for n in disable_corrector):
        raise ValueError(f"disable_corrector must be a list of numbers of steps, got {disable_corrector!r}")
    past = Past(order, denoise.store if order > 1 else None)
    used: list[State] = []
    correction: list[Number] = []
    for n, (level, following) in enumerate(pairwise(levels)):
        m = predicted(denoise, x, level, predict)
        x = sum((w * value for w, value in zip(correction, [*used, m])), x)  # UniC
        past.add(level, m)
        step = Exponential(level, following, predict)
        p = min(order, len(past), levels.steps - n if lower_order_final else order) if step.smooth else 1
        used, nodes, two = past.values(p), past.nodes(step, p), two_node_moments(step, solver_type)
        uni_p, correction = step.weights(nodes, two if p == 2 else None), []
        if step.smooth and n not in disable_corrector:
            uni_c = step.weights([*nodes, 1.0], two if p == 1 else None)
            correction = [c - w for c, w in zip(uni_c, [*uni_p, 0.0])]
        x = sum((w * value for w, value in zip(uni_p, used)), step.carry * x)  # UniP
        yield x
