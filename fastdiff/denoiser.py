"""What a solver sees of the model: `denoise(x, level)` returns the predicted x_0.

Prediction type, epsilon scaling, guidance, `denoised_fn` and clipping are all applied here, once, with the same
lines for tensors and for symbols. Engines do what is not arithmetic: `TensorEngine` calls the model,
`trace.Recorder` records.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .prediction import Prediction, PreviousX
from .process import Level, Levels

State = Any  # a Tensor, or a trace.Combination while tracing


class Evaluation(NamedTuple):
    """One network evaluation: predicted x_0, the raw output F (mean half) and the handle of the variance half."""

    x0: State
    output: State
    variance: Any


@dataclass
class Denoiser:
    """Callable `denoise(x, level) -> x_0`.

    Attributes:
        engine: `TensorEngine` or `trace.Recorder`.
        epsilon_scale: lambda of each step, noisiest first; the predicted noise is divided by it (ADM-ES, EDM-ES).
        epsilon_scale_mode: "every" evaluation of a step, its "first" only, or only an "eps" prediction.
        guidance_scale: weight of each guidance term: x_0 += w sigma^2 / alpha * gradient.
        clip: (lo, hi) for the predicted x_0, or None.
    """

    engine: Any
    prediction: Prediction
    levels: Levels
    epsilon_scale: Sequence[float]
    epsilon_scale_mode: str = "every"
    guidance_scale: Sequence[float] = ()
    denoised_fn: Callable[[Tensor], Tensor] | None = None
    clip: tuple[float, float] | None = None
    step: int = 0
    evaluations: int = 0
    last_x0: State = None
    first_level: Level | None = None

    def __call__(self, x: State, level: Level) -> State:
        return self.evaluate(x, level).x0

    def evaluate(self, x: State, level: Level) -> Evaluation:
        """Call the model at `level` and return everything it said."""
        if isinstance(self.prediction, PreviousX):
            c_skip, c_out, c_in = self.prediction.coefficients_between(level, self._following(level))
        else:
            c_skip, c_out, c_in = self.prediction.coefficients(level)
        output, variance = self.engine.network(x, c_in, self.prediction.time(level), level)
        x0 = c_skip * x + c_out * output
        scale = self._scale()
        if scale != 1.0:
            u = x / level.alpha
            x0 = u - (u - x0) / scale
        for term, weight in enumerate(self.guidance_scale):
            gradient = self.engine.guide(term, x, level)
            x0 = x0 + (weight * level.sigma**2 / level.alpha) * gradient
        if self.denoised_fn is not None:
            x0 = self.engine.apply(self.denoised_fn, x0)
        if self.clip is not None:
            x0 = self.engine.clip(x0, *self.clip)
        if self.evaluations == 0:
            self.first_level = level
        self.evaluations += 1
        self.last_x0 = x0
        return Evaluation(x0, output, variance)

    def learned_noise(self, evaluation: Evaluation, a: float, b: float) -> State:
        """exp(a v + b) z: the next draw, scaled by the variance half v of the network's output."""
        return self.engine.exp_scale(a, evaluation.variance, b, self.engine.noise())

    def _following(self, level: Level) -> Level:
        """The next level of the run, for predictions that are defined between two."""
        for here, following in pairwise(self.levels):
            if here == level:
                return following
        raise ValueError(
            'prediction="previous_x" is defined between two levels of the chain, and no step starts from sigma '
            f"{level.sigma_ve:.4g}; leave out churn, or use another prediction"
        )

    def _scale(self) -> float:
        if self.epsilon_scale_mode == "first" and self.evaluations:
            return 1.0
        if self.epsilon_scale_mode == "eps" and self.prediction.name != "eps":
            return 1.0
        return float(self.epsilon_scale[min(self.step, len(self.epsilon_scale) - 1)])

    def finish_step(self) -> None:
        """Called by the driver when the solver has yielded."""
        self.step += 1
        self.evaluations = 0


class TensorEngine:
    """Runs a solver on tensors: the readable reference, one small PyTorch operation after the other."""

    def __init__(
        self,
        model: Callable[[Tensor, float], Tensor],
        guides: Sequence[Callable[[Tensor, Level], Tensor]],
        noise: Callable[[int, int], Tensor],
    ):
        self._model, self._guides, self._noise = model, guides, noise
        self.step, self.draw = 0, 0

    def noise(self) -> Tensor:
        """The next draw; draw 0 is the initial latent."""
        self.draw += 1
        return self._noise(self.draw, self.step)

    def network(self, x: Tensor, c_in: float, time: float, level: Level) -> tuple[Tensor, Tensor | None]:
        """F and, if the model has it, the variance half, in the state's dtype."""
        output, variance = split_variance(self._model(c_in * x if c_in != 1.0 else x, time), x.shape)
        return output.to(x.dtype), None if variance is None else variance.to(x.dtype)

    def guide(self, term: int, x: Tensor, level: Level) -> Tensor:
        """Gradient of guidance term `term`."""
        return require_shape("guidance", self._guides[term](x, level), x.shape).to(x.dtype)

    def apply(self, function: Callable[[Tensor], Tensor], x0: Tensor) -> Tensor:
        """function(x_0)."""
        return require_shape("denoised_fn", function(x0), x0.shape).to(x0.dtype)

    def clip(self, x0: Tensor, lo: float, hi: float) -> Tensor:
        """clamp(x_0, lo, hi)."""
        return x0.clamp(lo, hi)

    def exp_scale(self, a: float, variance: Tensor | None, b: float, z: Tensor) -> Tensor:
        """exp(a variance + b) z."""
        return torch.exp(a * require_variance(variance, z.shape) + b) * z


def split_variance(output: Tensor, shape: Sequence[int]) -> tuple[Tensor, Tensor | None]:
    """Split a model's output [B, 2C, ...] into mean and variance halves; [B, C, ...] has no variance half.

    Raises:
        ValueError, TypeError: the output has neither shape, or is no tensor.
    """
    if not isinstance(output, Tensor):
        raise TypeError(f"model must return a tensor, got {type(output).__name__}")
    if output.shape == torch.Size(shape):
        return output, None
    if len(shape) > 1 and output.shape == torch.Size((shape[0], 2 * shape[1], *shape[2:])):
        return output[:, : shape[1]], output[:, shape[1] :]
    raise ValueError(
        f"model must return a tensor of shape {list(shape)} (or twice its channels), got {list(output.shape)}"
    )


def require_shape(name: str, result: Any, shape: Sequence[int]) -> Tensor:
    """What a user's function returned, if it is a tensor of the state's shape (nothing is broadcast)."""
    if not isinstance(result, Tensor) or result.shape != torch.Size(shape):
        came = list(result.shape) if isinstance(result, Tensor) else type(result).__name__
        raise ValueError(f"{name} must return a tensor of shape {list(shape)}, got {came}")
    return result


def require_variance(variance: Tensor | None, shape: Sequence[int]) -> Tensor:
    """The variance half, or one clear error."""
    if variance is None:
        raise ValueError(
            "a learned variance needs a model with a variance head (output [B, 2C, ...]), "
            f"got an output of shape {list(shape)}"
        )
    return variance
