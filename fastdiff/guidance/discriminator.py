"""Discriminator guidance: the score plus the gradient of a discriminator's log density ratio (Kim et al. 2023)."""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..errors import check_choice, check_count, check_finite, check_positive
from ..ops import DTYPES
from ..symbols import Chosen, Number, each
from .autograd import gradient_of, ordinary
from .term import Gradient, GradientCall, Position, Weight, checked_weight, weight_at
from .vp import cosine_time, input_scale, tau_of_sigma

LOG_RATIO = "log_ratio"
OUTSIDE = 1e7  # the log ratio of samples outside the time window: those are not boosted


@dataclass(frozen=True)
class Boosting:
    """More guidance for samples that the discriminator takes for fakes (log ratio below 0): EDM-G++ on CIFAR-10.

    Args:
        period: in steps 0, period, 2 period, ... such samples are churned with `churn` and `noise` in place of S_churn
            and S_noise. The first step has no log ratio yet.
        churn, noise: S_churn and S_noise for them; the cap and the window of S_churn apply.
        factor_period, factor: in steps 0, factor_period, ... the gradient of such samples is multiplied by `factor`.
    """

    period: int = 5
    churn: float = 4.0
    noise: float = 1.0
    factor_period: int = 2
    factor: float = 2.0

    def __post_init__(self) -> None:
        check_count("period", self.period)
        check_count("factor_period", self.factor_period)
        for name in ("churn", "noise", "factor"):
            if check_finite(name, getattr(self, name)) < 0:
                raise ValueError(f"{name} must be at least 0, got {getattr(self, name)}")

    @staticmethod
    def select(memory: dict[str, Tensor], _: Tensor) -> Tensor:
        """1 for the samples that are boosted, else 0: int64 [B]."""
        return (memory[LOG_RATIO] < 0).to(torch.int64)


@dataclass(frozen=True)
class _How:
    """What a discriminator's gradient depends on beside numbers."""

    output: str
    clip: float
    window: tuple[float, float] | None
    remember: bool
    factor: float


class DiscriminatorGuidance(Gradient):
    """EDM-G++'s correction: the score plus w grad log(d / (1 - d)), d the probability that a state is real.

    Kim et al. 2023, "Refining generative process with discriminator guidance in score-based diffusion models", Eq. 8.
    For every solver and process and for samples of any rank: the discriminator sees y = x_ve / sqrt(1 + s^2), the state
    in VP terms, and the VP time tau of its noise level s. Composes with epsilon scaling (SEDM-G++), which does not
    scale it.

    Args:
        discriminator: (y, tau, labels) -> logit [B] or [B, 1]; y [B, ...], tau [B] in [0, 1], labels those of the call
            or None.
        w_1st: weight in the first evaluation of a step: a number, a list with one for each step, or a function of the
            level. 2 in the paper's unconditional runs, 1 in its conditional ones.
        w_2nd: weight in later evaluations of a step (Heun's second slope).
        time: "vp", or "cosine": what discriminators for 64x64 images were trained with.
        time_min, time_max: window of the VP time outside which nothing is added; 0.01 is s = 0.0447.
        batch_window: one sample below the window switches the whole batch off, as in the official code, instead of
            every sample for itself. They differ only where boosting gives samples levels of their own.
        clip: the probability is clamped to [clip, 1 - clip]; there the gradient is exactly 0.
        output: what the discriminator returns, a "logit" or a "probability".
        boosting: a `Boosting`, or None.
        dtype: of y; None is the state's.

    Raises:
        ValueError, TypeError: an argument that cannot be used.
    """

    def __init__(
        self,
        discriminator: Callable[..., Tensor],
        w_1st: Weight = 2.0,
        w_2nd: Weight = 0.0,
        *,
        time: str = "vp",
        time_min: float = 0.01,
        time_max: float = 1.0,
        batch_window: bool = False,
        clip: float = 1e-5,
        output: str = "logit",
        boosting: Boosting | None = None,
        dtype: torch.dtype | None = None,
    ):
        if not callable(discriminator):
            raise TypeError(f"discriminator must be callable (y, tau, labels) -> logit, got {discriminator!r}")
        if boosting is not None and not isinstance(boosting, Boosting):
            raise TypeError(f"boosting must be a fastdiff.guidance.Boosting or None, got {boosting!r}")
        self.called = discriminator
        self.w_1st, self.w_2nd = checked_weight("w_1st", w_1st), checked_weight("w_2nd", w_2nd)
        self.time = check_choice("time", time, ("vp", "cosine"))
        self.time_min, self.time_max = check_finite("time_min", time_min), check_finite("time_max", time_max)
        if not self.time_min < self.time_max:
            raise ValueError(f"time_min must be below time_max={time_max}, got {time_min}")
        if not 0 < check_positive("clip", clip) < 0.5:
            raise ValueError(f"clip must be between 0 and 0.5, got {clip}")
        self.clip, self.batch_window, self.boosting = clip, bool(batch_window), boosting
        self.dtype = check_choice("dtype", dtype, (None, *DTYPES))
        self.output = check_choice("output", output, ("logit", "probability"))

    def call(self, at: Position) -> GradientCall | None:
        first = at.order == 0
        weight = weight_at("w_1st", self.w_1st, at) if first else weight_at("w_2nd", self.w_2nd, at)
        s = at.level.sigma_ve
        tau = tau_of_sigma(s)
        inside = [self.time_min <= t <= self.time_max for t in each(tau)]
        if not any(each(weight)) or not any(inside):
            return None
        switch: Number = 1.0 if all(inside) else Chosen([float(yes) for yes in inside], tau.rows)
        window = None
        if self.batch_window and isinstance(switch, Chosen):
            window, switch = (self.time_min, self.time_max), tau
        told = (tau if self.time == "vp" else cosine_time(s), switch)
        boost = self.boosting if first else None
        factor = boost.factor if boost is not None and at.step % boost.factor_period == 0 else 1.0
        how = _How(self.output, self.clip, window, boost is not None, factor)
        return GradientCall(weight, input_scale(at.level), told, how)

    def start(self, batch: int, device: torch.device, dtype: torch.dtype) -> dict[str, Tensor]:
        if self.boosting is None:
            return {}
        return {LOG_RATIO: torch.full((batch,), math.inf, device=device, dtype=dtype)}

    def log_ratio(self, y: Tensor, tau: Tensor, labels: Any = None) -> Tensor:
        """log d / (1 - d) of states in VP terms, clamped: [B]."""
        return _log_ratio(self.called, self.output, self.clip, y, tau, labels)

    def gradient(
        self, y: Tensor, told: Sequence[Tensor], how: Hashable, memory: dict[str, Tensor], cond: dict[str, Any]
    ) -> Tensor:
        assert isinstance(how, _How)
        with torch.inference_mode(False):
            tau, inside = (number.to(torch.promote_types(y.dtype, torch.float32)) for number in map(ordinary, told))
            if how.window is not None:  # the official rule: the smallest time of the batch decides for all
                official = (told[1] >= how.window[0]).all() & (told[1] <= how.window[1]).any()
                inside = official.to(tau.dtype).expand_as(tau)

        def potential(leaf: Tensor) -> Tensor:
            labels = ordinary(cond.get("labels"))
            ratio = _log_ratio(self.called, how.output, how.clip, leaf, tau, labels)
            factor = inside.to(ratio.dtype)
            if how.remember:
                memory[LOG_RATIO] = torch.where(inside > 0, ratio.detach(), OUTSIDE)
                factor = factor * torch.where(memory[LOG_RATIO] < 0, how.factor, 1.0).to(ratio.dtype)
            return factor * ratio

        return gradient_of(potential, y, self.called)


def _log_ratio(
    discriminator: Callable[..., Tensor], output: str, clip: float, y: Tensor, tau: Tensor, labels: Any
) -> Tensor:
    out = discriminator(y, tau, labels)
    if not isinstance(out, Tensor) or out.shape not in (y.shape[:1], (*y.shape[:1], 1)):
        came = list(out.shape) if isinstance(out, Tensor) else type(out).__name__
        raise ValueError(f"discriminator must return one {output} per sample, [{len(y)}] or [{len(y)}, 1], got {came}")
    out = out.reshape(-1).to(torch.promote_types(out.dtype, torch.float32))  # in bfloat16 1 - clip is 1
    if output == "probability":
        p = out.clamp(clip, 1 - clip)
        return torch.log(p / (1 - p))
    limit = math.log1p(-clip) - math.log(clip)
    return out.clamp(-limit, limit)
