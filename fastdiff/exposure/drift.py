"""Measuring the drift: what a network sees and says while sampling, against truly noised data."""

from __future__ import annotations

import csv
import io
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..arguments import label_tensor
from ..errors import check_count
from ..files import atomic_path
from ..random import seed_tensor
from ..sampler import Sampler
from ..solvers import ddim_inversion
from .drift_run import Batch, StepSums, listen
from .normality import MOST_SAMPLES, Normality, require_scipy, shapiro_wilk

__all__ = ["Drift", "measure_drift"]

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Drift:
    """The drift of one sampler, level by level.

    Every attribute but `samples` is a float64 array with one entry per step, in sampling order (noisiest first), and
    one for the final state, where what needs a prediction is NaN. `x` is the state from which the step's first
    evaluation starts (after churn), `t` = alpha x_0 + sigma z a datum noised to the same level. `*_se` is the standard
    error of the mean over samples; ratio and variance error have smaller ones than their parts, because the two sides
    are paired. Variances are per dimension, averaged over the dimensions.

    Attributes:
        samples: number of pairs of a sample and a noised datum.
        timestep: steps that are left: N at the first level, 1 at the last, 0 for the final state (the papers' axis).
        sigma, alpha, time: of the level, time as in `Level` (means, if samples choose their own levels).
        eps_norm_sampling: mean L2 norm of the network's eps = (x - alpha x_0_hat) / sigma at x, before scaling,
            guidance and clipping: is the network where it was trained?
        eps_norm_data: the same at t, in a single step.
        ratio: eps_norm_sampling / eps_norm_data.
        eps_norm_applied: mean L2 norm of eps at x as the solver used it, after scaling, guidance and clipping.
        variance_sampling, variance_data: Var(x) and Var(t).
        variance_error: Var(x) - Var(t); variance_error_relative: that divided by Var(t).
        delta: the exposure bias delta_t = (sqrt(beta_hat) - sigma)^2 as its authors measure it (Ning et al. 2024,
            "Elucidating the Exposure Bias in Diffusion Models"; their script datasets/exposure_bias_xt.py): beta_hat =
            Var(x - alpha x_0), with x_0 the sample's own datum, is the noise variance while sampling, and sigma^2 the
            one in training (of the latents drawn here): the Frechet distance of two Gaussians around alpha x_0. But a
            run from pure noise knows nothing of x_0: as sigma falls this goes to Var(x) + Var(x_0), for the exact model
            too, and corrections hardly show. Use it to compare with the paper. (They average standard deviations over
            dimensions, here it is variances; they start at x_0 noised to the first level, here it is the prior: alike
            where sigma >> alpha.)
        delta_marginal: (sqrt(Var(x)) - sqrt(Var(t)))^2, the same distance without conditioning on a datum: 0 without
            drift.
        x0_error: e_t, root mean square over samples and dimensions of x_0_hat(t) - x_0: the single-step error.
        shapiro_w, shapiro_passed, shapiro_dimensions: Shapiro-Wilk's W of eps_hat(t) - z, mean over the probed
            dimensions, the fraction of these with p >= 0.05, and their number (0: not tested). The error of x_0 is this
            one times -sigma / alpha, so that W is the same.
    """

    samples: int
    timestep: Array
    sigma: Array
    alpha: Array
    time: Array
    eps_norm_sampling: Array
    eps_norm_sampling_se: Array
    eps_norm_data: Array
    eps_norm_data_se: Array
    ratio: Array
    ratio_se: Array
    eps_norm_applied: Array
    variance_sampling: Array
    variance_data: Array
    variance_error: Array
    variance_error_se: Array
    variance_error_relative: Array
    variance_error_relative_se: Array
    delta: Array
    delta_marginal: Array
    x0_error: Array
    shapiro_w: Array
    shapiro_passed: Array
    shapiro_dimensions: Array

    @property
    def steps(self) -> int:
        return len(self.sigma) - 1

    def columns(self) -> dict[str, Array]:
        """All arrays by name, in the order of the attributes."""
        return {f.name: getattr(self, f.name) for f in fields(self) if f.name != "samples"}

    def csv(self) -> str:
        """The table as CSV: one row per level, `repr` digits, empty where there is no value."""
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(["samples", *self.columns()])
        for row in zip(*self.columns().values()):
            writer.writerow([self.samples, *("" if np.isnan(v) else f"{v:.10g}" for v in row)])
        return text.getvalue()

    def save_csv(self, path: str | os.PathLike[str]) -> None:
        """Write `csv()` to a file, which appears whole or not at all."""
        with atomic_path(path) as temporary:
            temporary.write_text(self.csv(), encoding="utf-8")

    def plot(self, path: str | os.PathLike[str]) -> None:
        """Write the curves as a PNG (`curves.draw`).

        Raises:
            ModuleNotFoundError: matplotlib is not installed; the message says how to install it.
        """
        from .curves import draw

        picture = draw({"": self})
        with atomic_path(path) as temporary:
            temporary.write_bytes(picture)

    def __str__(self) -> str:
        lines = ["    sigma   |eps| sampling    |eps| data   ratio (se)        Var error, % (se)   delta, marginal   W"]
        for i in range(len(self.sigma)):
            v = {name: column[i] for name, column in self.columns().items()}
            lines.append(
                f"{v['sigma']:9.4g}   {v['eps_norm_sampling']:14.4f} {v['eps_norm_data']:13.4f}"
                f"   {v['ratio']:.4f} ({v['ratio_se']:.4f})"
                f"   {100 * v['variance_error_relative']:9.3f} ({100 * v['variance_error_relative_se']:.3f})"
                f"   {v['delta_marginal']:15.3g}   {v['shapiro_w']:.3f}"
            )
        return "\n".join([*lines, f"{self.samples} pairs"])


@torch.no_grad()
def measure_drift(
    sampler: Sampler,
    data: Tensor,
    *,
    seeds: int | Sequence[int] = 0,
    labels: Any = None,
    cond: Mapping[str, Any] | None = None,
    batch: int = 250,
    probe: int = 64,
    progress: bool = False,
) -> Drift:
    """Compare what the network sees and says while sampling with what it sees and says on noised data.

    Pairing: sample j has a seed, a datum and that datum's label. It is drawn with the seed and the label; the datum is
    noised to every level that the run visits with the latent of the same seed. So both sides share the latent's norm
    and the class, and at high noise the difference has a far smaller error than either side (1/10 and less).

    Cost: one sampling run and one more evaluation per step. Memory: one batch, one float64 sample per level, and
    `probe` numbers of up to 1000 samples per level.

    Args:
        sampler: any that samples (not "ddim_inversion"), with its scaling, guidance and churn. It is run by the
            solver's own lines (`compiled=False`), whose states are the compiled run's but for rounding; its graphs stay
            as they are. Of a solver with several evaluations per step the first is measured.
        data: [N, ...] floating, N of at least 2: what the network was trained on, or held-out data, scaled likewise.
        seeds: one per pair; an int s for s, ..., s + N - 1. More seeds than data go round the data again, fewer take
            data at even distances.
        labels: of the data: [N] classes, [N, L] rows, or one class for all; None for a network without.
        cond: further keyword arguments of the model; tensors whose first size is N belong to the data and go with them.
        batch: pairs at once.
        probe: number of dimensions for the Shapiro-Wilk check of the prediction error, chosen once at random; 0 for
            none (the check needs SciPy).
        progress: show a progress bar.

    Raises:
        ValueError, TypeError: a bad argument, before any work.
        ModuleNotFoundError: `probe` without SciPy.
        FloatingPointError: a sample is not finite (unless the sampler's `check` is off).
    """
    if sampler.solver is ddim_inversion:
        raise ValueError("sampler must draw samples, got solver 'ddim_inversion'")
    if not isinstance(data, Tensor) or not data.is_floating_point() or data.ndim == 0 or len(data) < 2:
        came = f"{data.dtype} {list(data.shape)}" if isinstance(data, Tensor) else type(data).__name__
        raise ValueError(f"data must be a floating tensor [N, ...] with N of at least 2, got {came}")
    if sampler.shape is not None and tuple(sampler.shape) != data.shape[1:]:
        raise ValueError(f"data must hold samples of shape {list(sampler.shape)}, got {list(data.shape[1:])}")
    batch, probe = check_count("batch", batch), check_count("probe", probe, 0)
    if probe:
        require_scipy()
    count = len(data) if isinstance(seeds, int) or not hasattr(seeds, "__len__") else len(seeds)
    check_count("the number of seeds", count, 2)
    keys = seed_tensor(seeds, count, sampler.device)
    known = dict(cond or {})
    if labels is not None:
        known["labels"] = label_tensor(labels, len(data), getattr(sampler.model, "label_dim", None), sampler.device)
    chosen = torch.arange(count)
    chosen = chosen * len(data) // count if count <= len(data) else chosen % len(data)

    mean = data.to(torch.float64).mean(0).to(sampler.device)
    used = data[chosen.to(data.device)].to(torch.float64).mean(0).to(sampler.device)
    probes = torch.randperm(mean.numel(), generator=torch.Generator().manual_seed(0))[:probe].sort().values
    sums: list[StepSums] = []
    with _bar(progress, count) as tick:
        for start in range(0, count, batch):
            rows = chosen[start : start + batch]
            pairs = Batch(
                data[rows.to(data.device)].to(sampler.device, sampler.dtype).contiguous(),
                mean,
                keys[start : start + batch],
                {name: _part(value, rows, len(data), sampler.device) for name, value in known.items()},
                probes.to(sampler.device),
                min(len(rows), max(0, MOST_SAMPLES - start)) if probe else 0,
            )
            listen(sampler, pairs, sums)
            tick(len(rows))
    return _drift(sums, used - mean)


def _part(value: Any, rows: Tensor, size: int, device: torch.device) -> Any:
    """The entries of a conditioning tensor that belong to some data."""
    if isinstance(value, Tensor) and value.ndim and len(value) == size:
        return value[rows.to(value.device)].to(device)
    return value


def _bar(show: bool, count: int) -> Any:
    from contextlib import nullcontext

    if not show:
        return nullcontext(lambda n: None)
    from tqdm.auto import tqdm

    class _Bar(tqdm):
        def __enter__(self) -> Any:
            super().__enter__()
            return self.update

    return _Bar(total=count, unit="sample", desc="exposure")


def _drift(sums: Sequence[StepSums], shift: Tensor) -> Drift:
    """The table. `shift` is the mean of the data that were used less that of all."""
    found: dict[str, list[float]] = {f.name: [] for f in fields(Drift) if f.name != "samples"}
    for i, step in enumerate(sums):
        errors = np.concatenate(step.errors) if step.errors else None
        normality = Normality(np.nan, np.nan, 0) if errors is None else shapiro_wilk(errors)
        row = _row(step, shift) | {
            "timestep": len(sums) - 1 - i,
            "shapiro_w": normality.statistic,
            "shapiro_passed": normality.passed,
            "shapiro_dimensions": normality.dimensions,
        }
        for name, values in found.items():
            values.append(float(row[name]))
    return Drift(sums[0].moments.count, **{name: np.array(values) for name, values in found.items()})


def _row(step: StepSums, shift: Tensor) -> dict[str, float]:
    n, cov = step.moments.count, step.moments.covariance_of_mean
    sampling, applied, state, pair, data, truth, error, noise = step.moments.mean
    sigma, alpha, time = step.place
    ratio = sampling / data
    # Every variance is around the mean of its own sample; the two sides share z, and so most of these means' noise.
    off, latent, unbiased = step.total / n, step.latent / n, n / (n - 1)
    variance = (state - _mean_square(off)) * unbiased
    variance_pair = (pair - _mean_square(off - alpha * shift)) * unbiased
    variance_data = (truth - _mean_square(alpha * shift + sigma * latent)) * unbiased
    variance_noise = (noise - _mean_square(latent)) * unbiased
    excess = variance - variance_data
    excess_var = cov[2, 2] + cov[5, 5] - 2 * cov[2, 5]
    relative = excess / variance_data
    relative_var = (excess_var + relative**2 * cov[5, 5] - 2 * relative * (cov[2, 5] - cov[5, 5])) / variance_data**2
    ratio_var = (cov[0, 0] - 2 * ratio * cov[0, 4] + ratio**2 * cov[4, 4]) / data**2
    return {
        "sigma": sigma,
        "alpha": alpha,
        "time": time,
        "eps_norm_sampling": sampling,
        "eps_norm_sampling_se": _root(cov[0, 0]),
        "eps_norm_data": data,
        "eps_norm_data_se": _root(cov[4, 4]),
        "ratio": ratio,
        "ratio_se": _root(ratio_var),
        "eps_norm_applied": applied,
        "variance_sampling": variance,
        "variance_data": variance_data,
        "variance_error": excess,
        "variance_error_se": _root(excess_var),
        "variance_error_relative": relative,
        "variance_error_relative_se": _root(relative_var),
        "delta": (_root(variance_pair) - sigma * _root(variance_noise)) ** 2,
        "delta_marginal": (_root(variance) - _root(variance_data)) ** 2,
        "x0_error": _root(error),
    }


def _mean_square(x: Tensor) -> float:
    return float(x.square().mean())


def _root(value: float) -> float:
    """The square root; 0 of what rounding or sampling noise made negative."""
    return float(np.sqrt(np.maximum(value, 0.0)))
