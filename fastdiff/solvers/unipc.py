"""UniPC: a multistep predictor whose corrector reuses the next step's evaluation (Zhao et al. 2023)."""

from __future__ import annotations

import math
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

    Zhao et al. 2023, Sec. 3.4 and Appendix F; in every other order B cancels, and the moments are the exact ones.
    """
    constant = step.moment(0)
    if solver_type == "bh2":
        return [constant, constant / 2]
    return [constant, step.h / 2 * (step.end.alpha if step.predict == "x0" else -step.end.sigma)]


@register(order=2, evaluations="1", stochastic=False, source="Zhao et al. 2023 (UniPC), Algorithms 5-8")
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
    """UniP of order 1, 2 or 3 and UniC on top, which corrects the start of a step by what is evaluated there.

    The state yielded is the predicted one. Options as in diffusers' UniPCMultistepScheduler (predict="eps" is its
    predict_x0=False): `lower_order_final` lets the order fall to 1 over the last steps, `disable_corrector` are the
    numbers of the steps whose end is not corrected. A step to clean data is of first order (official codes: NaN).
    """
    check_choice("predict", predict, PREDICTIONS)
    check_choice("order", order, ORDERS)
    check_choice("solver_type", solver_type, SOLVER_TYPES)
    past, unfinished = Past(order), None
    for n, (level, following) in enumerate(pairwise(levels)):
        m = predicted(denoise, x, level, predict)
        if unfinished is not None:
            known, weight = unfinished
            x = known + weight * m  # UniC
        past.add(level, m)
        step = Exponential(level, following, predict)
        p = min(order, len(past), levels.steps - n if lower_order_final else order)
        smooth = 0 < step.h < math.inf
        values, nodes = past.values(p if smooth else 1), past.nodes(step, p if smooth else 1)
        moments = two_node_moments(step, solver_type)
        start, x = x, step(x, values, nodes, moments if len(nodes) == 2 else None)  # UniP
        unfinished = None
        if smooth and n not in disable_corrector:
            *weights, last = step.weights([*nodes, 1.0], moments if len(nodes) == 1 else None)
            unfinished = denoise.store(sum((w * m for w, m in zip(weights, values)), step.carry * start)), last
        yield x
