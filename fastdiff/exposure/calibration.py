"""Choosing lambda of epsilon scaling by measurement: a paired search, or (experimental) matched norms of epsilon."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import is_dataclass
from itertools import chain
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from .._version import __version__
from ..errors import check_choice, check_count, check_positive, warn
from ..guidance.term import Contrast, Gradient
from ..sampler import Sampler
from .choice import Calibration, Candidate, Scale
from .norm import match_norms
from .report import short
from .resampling import bootstrap_minimum, held_out_differences, is_below_zero, mean_and_error, student
from .schedules import LinearScale
from .search import minimise

__all__ = ["GRID", "METHODS", "calibrate", "describe"]

METHODS = ("search", "linear", "norm")
GRID = (0.93, 0.95, 0.97, 0.99, 1.0, 1.01, 1.03, 1.05, 1.08, 1.10)
SPREADS = (-0.10, -0.05, -0.02, 0.0, 0.02, 0.05, 0.10)  # lambda of the noisiest step minus that of the cleanest
_AROUND = (-0.02, -0.01, 0.0, 0.01, 0.02)

Draw = Callable[[Sampler, list[int]], Tensor]


class HasScores(Protocol):
    """What a score returns for a set of images; `fastdiff.evaluation.Evaluator` returns such an object."""

    @property
    def frechet(self) -> float: ...
    @property
    def precision(self) -> float: ...
    @property
    def recall(self) -> float: ...


Score = Callable[[Tensor], HasScores]


def calibrate(
    sampler: Sampler,
    score: Score,
    *,
    seeds: Sequence[Sequence[int]] | Sequence[int],
    calibrate: str = "search",
    grid: Sequence[float] = GRID,
    refine: bool = True,
    tolerance: float = 0.0025,
    batch: int = 250,
    labels: Any = "cycle",
    draw: Draw | None = None,
    data: Tensor | None = None,
    data_labels: Any = None,
    norm_seeds: Sequence[int] | None = None,
    strength: float = 1.0,
    clip: float = 0.1,
    progress: bool = False,
) -> Calibration:
    """Choose lambda for this sampler: its solver, steps, guidance, time shift and all else stay as they are.

    "search": one constant, on both sides of 1; every candidate draws the same seeds, so that differences are paired.
    "linear": after that, lambda_i = b + k i, by turns in its slope and in its mean over the steps. "norm": one lambda
    per step that matches the norm of epsilon (`match_norms`); experimental, a diagnostic more than a selector. It is
    refused, with a warning and lambda = 1 chosen, when it scores worse than lambda = 1.

    The lowest mean distance is chosen, even where it is not `distinguishable` from that of lambda = 1. A lower
    distance is often precision bought with recall: look at both.

    Args:
        sampler: the configuration to calibrate; its own epsilon_scale is not looked at. Candidates come from
            `sampler.replace`, so they share its captured graphs.
        score: images [N, ...] -> object with `frechet`, `precision` and `recall`, an `Evaluator` for instance. Lower
            distances are better; called once per candidate and range.
        seeds: two or more ranges of seeds for errors (more ranges, smaller errors of the errors), or one flat range.
        calibrate: "search", "linear" or "norm".
        grid: candidates, three or more; 1 is added.
        refine: golden section between the neighbours of the grid's best.
        tolerance: resolution of lambda there.
        batch: samples drawn at a time.
        labels: "cycle" (seed mod classes), one class, or None, as in `fastdiff.evaluation.generate`.
        draw: `(sampler, seeds) -> images` in place of `generate`, for other conditioning or a decoder; the same seeds
            must give the same noise.
        data, data_labels, norm_seeds, strength, clip: of `match_norms`, for "norm"; the seeds are by default the ones
            that follow the largest of `seeds`.
        progress: show what is being scored.

    Returns:
        The choice with all scores; `Sampler(epsilon_scale=...)` takes it, or its file.

    Raises:
        ValueError, TypeError: a bad argument, before any work; a score without the three numbers.
        FloatingPointError: lambda = 1 gave samples that are not finite.
    """
    check_choice("calibrate", calibrate, METHODS)
    ranges = _ranges(seeds)
    points = _grid(grid)
    check_positive("tolerance", tolerance)
    if sampler.epsilon_scale_mode == "eps" and sampler.prediction.name != "eps":
        raise ValueError(
            f"epsilon_scale_mode='eps' leaves a {sampler.prediction.name!r} prediction as it is, so there is no lambda "
            "to choose; use 'every'"
        )
    if calibrate == "norm" and data is None:
        raise ValueError("data must be given for calibrate='norm': images [N, ...] that the norms are matched to")
    if draw is None:
        draw = _generator(labels, check_count("batch", batch))
    with tqdm(desc="calibrate", unit="range", disable=not progress) as bar:
        scores = _Scores(sampler, score, ranges, draw, bar)
        baseline = scores(1.0)
        if not math.isfinite(baseline.mean):
            raise FloatingPointError(
                "lambda = 1 gives samples or distances that are not finite; nothing to compare with"
            )
        if calibrate == "norm":
            assert data is not None
            first = max(chain.from_iterable(ranges)) + 1
            own = range(first, first + len(data)) if norm_seeds is None else norm_seeds
            matched = match_norms(
                sampler, data, seeds=own, labels=data_labels, strength=strength, clip=clip, batch=batch
            )
            return _judge_schedule(scores, matched.schedule, {"strength": strength, "clip": clip, "norm_seeds": own})
        return _search(scores, calibrate, points, tolerance if refine else None)


class _Scores:
    """Scores candidates on the seed ranges, each once."""

    def __init__(self, sampler: Sampler, score: Score, ranges: list[list[int]], draw: Draw, bar: Any):
        self.sampler, self.score, self.ranges, self.draw, self.bar = sampler, score, ranges, draw, bar
        self.table: dict[Scale, Candidate] = {}

    def __call__(self, scale: Scale) -> Candidate:
        if scale not in self.table:
            sampler = self.sampler.replace(epsilon_scale=list(scale) if isinstance(scale, tuple) else scale)
            rows = [self._one(sampler, seeds) for seeds in self.ranges]
            self.table[scale] = Candidate(scale, *zip(*rows))
            self.bar.set_postfix_str(f"{short(scale)}: {self.table[scale].mean:.4g}")
        return self.table[scale]

    def _one(self, sampler: Sampler, seeds: list[int]) -> tuple[float, float, float]:
        try:
            images = self.draw(sampler, seeds)
        except FloatingPointError:  # a lambda far off can do this
            images = None
        found = (math.inf, math.nan, math.nan) if images is None else _numbers(self.score(images))
        self.bar.update()
        return found if math.isfinite(found[0]) else (math.inf, *found[1:])

    def distances(self, scales: Sequence[Scale]) -> np.ndarray:
        """[scales, ranges]."""
        return np.array([self.table[scale].frechet for scale in scales])

    def calibration(self, method: str, scale: Scale, differences: np.ndarray, **more: Any) -> Calibration:
        mean, error = mean_and_error(differences.tolist())
        below = is_below_zero(mean, error, len(self.ranges))
        table = tuple(sorted(self.table.values(), key=_order))
        configuration = describe(self.sampler) | {"seeds": [_spans(seeds) for seeds in self.ranges]}
        configuration |= {"score": getattr(self.score, "name", type(self.score).__name__), **more.pop("settings", {})}
        return Calibration(method, scale, table, mean, error, below, configuration=configuration, **more)


def _search(scores: _Scores, method: str, grid: list[float], tolerance: float | None) -> Calibration:
    """The constant, and for "linear" its slope, the mean again and the slope once more."""
    constant, edge = minimise(lambda scale: scores(scale).mean, grid, tolerance, 1.0)
    if edge:
        warn(f"lambda = {constant:g} is an end of the grid; a better one may lie beyond")
    best: Scale = constant
    errors: dict[str, float] = {}
    interval = None
    constants: list[float] = [scale for scale in scores.table if isinstance(scale, float)]
    error = bootstrap_minimum(constants, scores.distances(constants))
    if error is not None and not edge:  # at an end of the grid resamples agree for want of a choice
        errors["lambda"] = error
        reach = student(len(scores.ranges) - 1) * error
        interval = (constant - reach, constant + reach)
    if method == "linear":
        best, end, slopes = _slope(scores, constant, tolerance)
        interval, spans = None, [_spread(scores, scale) for scale in slopes]
        errors = {}
        if error is not None and not edge and not end:
            spread_error = bootstrap_minimum(spans, scores.distances(slopes))
            errors = {"mean": error, "k": (spread_error or 0.0) / (scores.sampler.levels.steps - 1)}
        edge = edge or end
    scales = list(scores.table)
    distances, one = scores.distances(scales), scales.index(1.0)
    if len(scores.ranges) > 1:
        differences = held_out_differences(distances, one)
    else:
        differences = scores.distances([best])[0] - distances[one]
    return scores.calibration(method, best, differences, errors=errors, interval=interval, edge=edge)


def _slope(scores: _Scores, mean: float, tolerance: float | None) -> tuple[Scale, bool, list[Scale]]:
    """The best b + k i from a constant on, whether its slope is an end of the grid, and the last line of slopes."""
    last = scores.sampler.levels.steps - 1
    if last < 1:
        raise ValueError("calibrate='linear' needs two or more steps")

    def ramp(middle: float, spread: float) -> Scale:
        k = spread / last
        return LinearScale(k=round(k, 8), b=round(middle - spread / 2, 8)) if spread else middle

    coarse = None if tolerance is None else 2 * tolerance
    spread, edge = minimise(lambda s: scores(ramp(mean, s)).mean, SPREADS, coarse, 0.0)
    if spread:
        around = [round(mean + offset, 6) for offset in _AROUND]
        mean = minimise(lambda m: scores(ramp(m, spread)).mean, around, tolerance, mean).at
        nearby = sorted({round(spread + offset, 6) for offset in _AROUND} | {0.0})
        spread, moved = minimise(lambda s: scores(ramp(mean, s)).mean, nearby, coarse, 0.0)
        edge = edge and moved
    if edge:
        warn(f"a slope of {spread / last:.3g} a step is an end of its grid; a better one may lie beyond")
    line = [scale for scale in scores.table if math.isclose(_middle(scores, scale), mean, abs_tol=1e-6)]
    return ramp(mean, spread), edge, line


def _judge_schedule(scores: _Scores, schedule: Sequence[float], settings: dict[str, Any]) -> Calibration:
    """The schedule, or lambda = 1 with a warning where that scores better."""
    matched = tuple(schedule)
    candidate, baseline = scores(matched), scores(1.0)
    settings["norm_seeds"] = _spans(list(settings["norm_seeds"]))
    refused = not candidate.mean < baseline.mean
    differences = np.subtract(candidate.frechet, baseline.frechet)
    if refused:
        warn(
            f"norm matching was refused: distance {candidate.mean:.4g} against {baseline.mean:.4g} with lambda = 1, "
            "which is kept"
        )
        return scores.calibration("norm", 1.0, np.zeros(len(differences)), refused=True, settings=settings)
    return scores.calibration("norm", matched, differences, settings=settings)


def describe(sampler: Sampler) -> dict[str, Any]:
    """What of a sampler a choice of lambda depends on, as JSON can hold it."""
    return {
        "fastdiff": __version__,
        "torch": torch.__version__,
        "network": _plain(sampler.model),
        "process": type(sampler.process).__name__,
        "prediction": sampler.prediction.name,
        "solver": _plain(sampler.solver),
        "steps": sampler.levels.steps,
        "sigmas": [float(f"{sigma:.6g}") for sigma in sampler.levels.sigmas],
        "options": {name: _plain(value) for name, value in sorted(sampler.options.items())},
        "epsilon_scale_mode": sampler.epsilon_scale_mode,
        "guidance": _plain(list(sampler.guidance)),
        "guidance_scale": _plain(list(sampler.guidance_scale)),
        "clip_denoised": _plain(sampler.clip),
        "dtype": str(sampler.dtype),
    }


def _plain(value: Any) -> Any:
    """A value as JSON holds it: of networks the digest or the type, of functions the name, of terms all they hold."""
    if isinstance(value, (bool, int, float, str)) or value is None:
        return value
    if isinstance(value, (list, tuple)):
        return [_plain(v) for v in value]
    if isinstance(value, (Gradient, Contrast)) or (is_dataclass(value) and not callable(value)):
        held = {name: _plain(v) for name, v in sorted(vars(value).items()) if not name.startswith("_")}
        return {"type": type(value).__name__, **held}
    if isinstance(value, (torch.dtype, torch.device)):
        return str(value)
    metadata = getattr(value, "metadata", None) or {}
    return metadata.get("digest", getattr(value, "__name__", type(value).__name__))


def _generator(labels: Any, batch: int) -> Draw:
    """`generate` with labels that suit every range."""
    from ..evaluation import generate

    if not (labels is None or labels == "cycle" or hasattr(labels, "__index__")):
        raise ValueError(f"labels must be 'cycle', one class or None (draw= for others), got {labels!r}")

    def draw(sampler: Sampler, seeds: list[int]) -> Tensor:
        own = [int(labels)] * len(seeds) if hasattr(labels, "__index__") else labels
        return generate(sampler, seeds, labels=own, batch=batch)

    return draw


def _ranges(seeds: Any) -> list[list[int]]:
    given = list(seeds) if isinstance(seeds, Sequence) else seeds.tolist() if hasattr(seeds, "tolist") else None
    if not given:
        raise ValueError(f"seeds must be ranges of seeds such as [range(0, 1000), range(1000, 2000)], got {seeds!r}")
    nested = [isinstance(part, Sequence) for part in given]
    ranges = [list(part) for part in given] if all(nested) else [given]
    if any(nested) and not all(nested):
        raise ValueError("seeds must be all ranges or all numbers, got both")
    flat = list(chain.from_iterable(ranges))
    if any(isinstance(seed, bool) or not hasattr(seed, "__index__") for seed in flat):
        raise ValueError("seeds must be integers")
    if min(map(len, ranges)) < 2:
        raise ValueError("seeds must have at least two in every range")
    if len(set(flat)) < len(flat):
        raise ValueError("seeds must not come twice, nor in two ranges: errors are those of independent ranges")
    return [[int(seed) for seed in part] for part in ranges]


def _grid(grid: Sequence[float]) -> list[float]:
    points = sorted({check_positive("grid", point) for point in grid} | {1.0})
    if len(points) < 3:
        raise ValueError(f"grid must have two or more lambdas beside 1, got {list(grid)}")
    return points


def _numbers(found: Any) -> tuple[float, float, float]:
    try:
        return float(found.frechet), float(found.precision), float(found.recall)
    except AttributeError as error:
        raise TypeError(f"score must return an object with frechet, precision and recall ({error})") from None


def _middle(scores: _Scores, scale: Scale) -> float:
    """The mean over the steps."""
    if isinstance(scale, LinearScale):
        return scale.b + scale.k * (scores.sampler.levels.steps - 1) / 2
    return float(np.mean(scale))


def _spread(scores: _Scores, scale: Scale) -> float:
    return scale.k * (scores.sampler.levels.steps - 1) if isinstance(scale, LinearScale) else 0.0


def _order(row: Candidate) -> tuple[int, float, float]:
    scale = row.epsilon_scale
    if isinstance(scale, LinearScale):
        return 1, scale.k, scale.b
    return (2, 0.0, 0.0) if isinstance(scale, tuple) else (0, scale, 0.0)


def _spans(seeds: list[int]) -> str:
    """`[0, 1, 2, 9]` as "0-2,9"."""
    spans: list[list[int]] = []
    for seed in seeds:
        if spans and seed == spans[-1][1] + 1:
            spans[-1][1] = seed
        else:
            spans.append([seed, seed])
    return ",".join(f"{a}" if a == b else f"{a}-{b}" for a, b in spans)
