"""How well a discriminator tells real from generated samples at each noise level, and whether its odds are honest."""

from __future__ import annotations

import csv
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from ..errors import check_count, check_positive
from ..files import atomic_path
from ..guidance.vp import tau_of_sigma

__all__ = ["LN2", "LevelReport", "Report", "assess", "balanced_bce", "vp_state"]

LN2 = math.log(2)
"""The cross-entropy of a discriminator that always says one half."""

_BINS = 10
_SHOWN = 0.01  # smallest share of the samples whose bin is drawn


@dataclass(frozen=True)
class LevelReport:
    """One noise level. Real and generated samples count one half each, however many there are.

    Attributes:
        sigma, tau: the level in VE terms, and its VP time.
        bce: binary cross-entropy; ln 2 says nothing has been learnt, more that guidance would mislead.
        bce_error: its standard error over the held-out samples.
        accuracy: fraction on the right side of one half.
        calibration_error: mean |predicted - observed probability of being real|, over 10 bins of the predicted one.
        real, fake: mean predicted probability of the real and of the generated samples.
        bins: (mean predicted probability, observed frequency, share of the samples) of every bin in use.
    """

    sigma: float
    tau: float
    bce: float
    bce_error: float
    accuracy: float
    calibration_error: float
    real: float
    fake: float
    bins: tuple[tuple[float, float, float], ...]


@dataclass(frozen=True)
class Report:
    """The levels of an assessment, in the order in which they were asked for."""

    levels: tuple[LevelReport, ...]

    def save_csv(self, path: str | Path) -> None:
        """One row per level, without the bins.

        Raises:
            OSError: the file cannot be written.
        """
        columns = ("sigma", "tau", "bce", "bce_error", "accuracy", "calibration_error", "real", "fake")
        with atomic_path(path) as temporary, open(temporary, "w", newline="") as file:
            rows = [[f"{getattr(level, name):.6g}" for name in columns] for level in self.levels]
            csv.writer(file, lineterminator="\n").writerows([columns, *rows])

    def plot(self, path: str | Path) -> None:
        """A PNG: cross-entropy and accuracy against the noise level, and predicted against observed probability.

        Raises:
            ModuleNotFoundError: matplotlib is not installed; the message says how to install it.
            OSError: the file cannot be written.
        """
        from ..plots import COLOURS, panels, png

        figure, (losses, rates, reliability) = panels(3, columns=3)
        sigmas = [level.sigma for level in self.levels]
        losses.errorbar(sigmas, [level.bce for level in self.levels], [level.bce_error for level in self.levels])
        losses.axhline(LN2, color="0.5", linestyle="--")
        losses.annotate("ln 2: nothing learnt", (sigmas[0], LN2), (0, 3), textcoords="offset points", color="0.4")
        losses.set(ylabel="held-out cross-entropy")
        for name, colour in (("accuracy", COLOURS[2]), ("calibration_error", COLOURS[0])):
            values = [getattr(level, name) for level in self.levels]
            rates.plot(sigmas, values, "o-", color=colour, label=name.replace("_", " "))
        rates.axhline(0.5, color="0.5", linestyle="--")
        rates.set(ylim=(0, 1))
        rates.legend()
        for ax in (losses, rates):
            ax.set(xscale="log", xlabel=r"noise level $\sigma$")
        reliability.plot([0, 1], [0, 1], color="0.5", linestyle="--")
        step = max(1, (len(self.levels) - 1) // 3)
        for level, colour in zip(self.levels[::step], COLOURS):
            predicted, observed, _ = zip(*[bin for bin in level.bins if bin[2] >= _SHOWN])
            reliability.plot(predicted, observed, "o-", color=colour, label=rf"$\sigma$ = {level.sigma:.2g}")
        reliability.set(xlabel="predicted probability of real", ylabel="observed", xlim=(0, 1), ylim=(0, 1))
        reliability.legend()
        content = png(figure)
        with atomic_path(path) as temporary:
            temporary.write_bytes(content)

    def __str__(self) -> str:
        lines = ["   sigma     BCE  accuracy  calibration error"]
        for level in self.levels:
            row = f"{level.sigma:8.3g}  {level.bce:.4f}  {level.accuracy:8.3f}  {level.calibration_error:17.3f}"
            lines.append(row)
        return "\n".join(lines)


@torch.no_grad()
def assess(
    discriminator: Callable[..., Tensor],
    real: Tensor,
    fake: Tensor,
    sigmas: Sequence[float],
    *,
    real_labels: Tensor | None = None,
    fake_labels: Tensor | None = None,
    batch: int = 500,
    seed: int = 0,
) -> Report:
    """Accuracy and calibration of any discriminator at each of some noise levels, with fixed noise.

    Args:
        discriminator: `(y, tau, labels) -> logit` [B] or [B, 1], of VP-scaled states and VP times (float32).
        real, fake: [N, ...] and [M, ...] clean held-out samples, on the discriminator's device.
        sigmas: noise levels in VE terms.
        real_labels, fake_labels: int64 [N] and [M], or None.
        batch: samples per call.
        seed: of the noise.

    Raises:
        ValueError: no samples, or a bad noise level.
    """
    check_count("batch", batch)
    if not len(real) or not len(fake):
        raise ValueError(f"real and fake must hold samples, got {len(real)} and {len(fake)}")
    levels = []
    for sigma in (check_positive("sigmas", sigma) for sigma in sigmas):
        generator = torch.Generator().manual_seed(seed)
        logits = []
        for samples, labels in ((real, real_labels), (fake, fake_labels)):
            parts = []
            for part in torch.arange(len(samples)).split(batch):
                x = samples[part]
                y, tau = vp_state(x, torch.full((len(x),), sigma), torch.randn(x.shape, generator=generator))
                logit = discriminator(y, tau, None if labels is None else labels[part])
                parts.append(logit.reshape(len(x)).double().cpu())
            logits.append(torch.cat(parts))
        levels.append(_level(sigma, *logits))
    return Report(tuple(levels))


def balanced_bce(real: Tensor, fake: Tensor) -> tuple[float, float]:
    """Cross-entropy with real and generated samples counting one half each, and its standard error over samples.

    Args:
        real, fake: logits [N] and [M], or [N, R] and [M, R] of R states of each sample.
    """
    losses = [F.softplus(part.double()).reshape(len(part), -1).mean(1) for part in (-real, fake)]
    mean = sum(part.mean().item() for part in losses) / 2
    variance = sum(part.var(correction=0).item() / len(part) for part in losses) / 4
    return mean, math.sqrt(variance)


def vp_state(clean: Tensor, sigma: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
    """What a discriminator is given: the VP-scaled state of clean samples at noise levels, and the VP times.

    Args:
        clean: [B, ...].
        sigma: [B] noise levels in VE terms, on any device.
        noise: as `clean`, on any device.

    Returns:
        y = (clean + sigma noise) / sqrt(1 + sigma^2), and tau, float32 [B]; on the device of `clean`.
    """
    level = sigma.to(clean.device).reshape(-1, *[1] * (clean.dim() - 1))
    y = (clean + level * noise.to(clean.device)) / (1 + level.square()).sqrt()
    tau = torch.from_numpy(tau_of_sigma(sigma.double().cpu().numpy()))
    return y, tau.to(clean.device, torch.float32)


def _level(sigma: float, real: Tensor, fake: Tensor) -> LevelReport:
    """The report of one level from float64 logits."""
    bce, error = balanced_bce(real, fake)
    probability = torch.cat([real, fake]).sigmoid()
    weight = torch.cat([torch.full_like(real, 0.5 / len(real)), torch.full_like(fake, 0.5 / len(fake))])
    truth = torch.cat([torch.ones_like(real), torch.zeros_like(fake)])
    place = (probability * _BINS).long().clamp(max=_BINS - 1)

    def total(values: Tensor) -> Tensor:
        return torch.zeros(_BINS, dtype=torch.float64).index_add_(0, place, values * weight)

    share = total(torch.ones_like(probability))
    used = share > 0
    predicted, observed, share = (total(probability) / share)[used], (total(truth) / share)[used], share[used]
    return LevelReport(
        sigma=sigma,
        tau=float(tau_of_sigma(sigma)),
        bce=bce,
        bce_error=error,
        accuracy=float(((real > 0).double().mean() + (fake <= 0).double().mean()) / 2),
        calibration_error=float((share * (predicted - observed).abs()).sum()),
        real=float(real.sigmoid().mean()),
        fake=float(fake.sigmoid().mean()),
        bins=tuple(zip(predicted.tolist(), observed.tolist(), share.tolist())),
    )
