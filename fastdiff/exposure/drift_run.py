"""Runs of a sampler that are listened to: sums over samples, level by level, and no sample kept beyond its batch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from .. import ops
from ..denoiser import Denoiser, Evaluation
from ..engine import TensorEngine, split_variance
from ..prediction import Coefficients, PreviousX
from ..process import Level
from ..sampler import Sampler

__all__ = ["QUANTITIES", "Batch", "Moments", "StepSums", "listen"]

Array = NDArray[np.float64]

QUANTITIES = ("sampling", "applied", "state", "pair", "data", "truth", "error", "noise")
"""Numbers of one sample at one level, in the order of `Moments`.

With x the state while sampling, t = alpha x_0 + sigma z the datum noised, mu the data's mean, D the dimensions:

    sampling, data   |eps| predicted at x and at t
    applied          |eps| at x as the solver used it: scaled, guided, clipped
    state, truth     |x - alpha mu|^2 / D, |t - alpha mu|^2 / D
    pair             |x - alpha x_0|^2 / D
    error            |x_0_hat(t) - x_0|^2 / D
    noise            |z|^2 / D
"""


class Moments:
    """Mean and covariance of rows that come batch by batch (Chan, Golub and LeVeque 1983).

    Attributes:
        count: rows so far; mean: [K]; scatter: [K, K], the sum of products of deviations from the mean.
    """

    def __init__(self, size: int) -> None:
        self.count = 0
        self.mean: Array = np.zeros(size)
        self.scatter: Array = np.zeros((size, size))

    def add(self, rows: Array) -> None:
        """Take in rows [B, K]."""
        count, mean = len(rows), rows.mean(0)
        apart, total = mean - self.mean, self.count + count
        self.scatter += (rows - mean).T @ (rows - mean) + np.outer(apart, apart) * (self.count * count / total)
        self.mean = self.mean + apart * (count / total)
        self.count = total

    @property
    def covariance_of_mean(self) -> Array:
        """[K, K]: what the means would vary by over repetitions; NaN for fewer than two rows."""
        return self.scatter / (self.count * (self.count - 1)) if self.count > 1 else self.scatter * np.nan


class StepSums:
    """What is known of one step's level.

    Attributes:
        moments: of the `QUANTITIES`.
        total: float64, shape of a sample: sum of x - alpha mu over the samples; latent: of z.
        place: mean over the samples of sigma, alpha and the level's time.
        errors: prediction errors eps_hat - z at the probed dimensions, [B, probes] each.
    """

    def __init__(self, total: Tensor) -> None:
        self.moments = Moments(len(QUANTITIES))
        self.total, self.latent = total, torch.zeros_like(total)
        self.place: Array = np.zeros(3)
        self.errors: list[Array] = []

    def add(self, rows: Array, total: Tensor, latent: Tensor, levels: Sequence[Level]) -> None:
        """Take in a batch."""
        self.moments.add(rows)
        self.total += total
        self.latent += latent
        places = np.array([(level.sigma, level.alpha, level.time) for level in levels])
        here = places[0] if (places == places[0]).all() else places.mean(0)  # one level for all stays as it is
        if self.moments.count == len(rows):
            self.place = here
        elif (here != self.place).any():
            self.place = self.place + (here - self.place) * (len(rows) / self.moments.count)


class Batch(NamedTuple):
    """One batch of pairs.

    Attributes:
        data: [B, ...] in the state's dtype; mean: the data's, float64, shape of a sample.
        seeds: int64 [B]; cond: keyword arguments of the model, labels included.
        probes: int64 [P], the flat dimensions whose errors are kept; rows: of how many samples.
    """

    data: Tensor
    mean: Tensor
    seeds: Tensor
    cond: dict[str, Any]
    probes: Tensor
    rows: int


class _Heard(NamedTuple):
    """Of some samples at one level: the level, |eps|, |eps| applied, |x - alpha mu|^2, |x - alpha x_0|^2; the sum."""

    level: Level
    numbers: Tensor  # [B, 4]
    total: Tensor


class _Listening(Sampler):
    """A sampler like another one, run by the solver's own lines, that hears the first evaluation of every step.

    The lines are the readable reference's, so that states and outputs are at hand as tensors of the state's dtype,
    whatever the solver, the prediction, guidance and the network's dtype. A solver that chooses levels sample by
    sample comes here once for each sample.
    """

    def __init__(self, sampler: Sampler, batch: Batch) -> None:
        vars(self).update(vars(sampler), compiled=False, graph="off", _tuned={})
        self._batch = batch
        self._from = self._to = 0
        self.heard: dict[int, list[_Heard]] = {}

    def denoiser(self, engine: Any, levels: Any, upwards: bool = False) -> Denoiser:
        denoise = super().denoiser(engine, levels, upwards)
        heard_all = self._to == len(self._batch.data)  # not finite: the sampler runs again to say where
        if heard_all or not isinstance(engine, TensorEngine):  # or it looks at its plan
            return denoise
        evaluate: Callable[..., Evaluation] = denoise.evaluate
        call: Callable[..., Any] = engine.network
        outputs: list[Tensor] = []  # of the network itself, before guidance has its say
        self._from = self._to

        def calling(*arguments: Any) -> Any:
            found = call(*arguments)
            outputs[:] = found[:1]
            return found

        def listening(x: Tensor, level: Level) -> Evaluation:
            first, step = denoise.evaluations == 0, denoise.step
            found = evaluate(x, level)
            if first:
                self._hear(step, x, level, outputs.pop(), found.x0)
            return found

        engine.network = calling  # type: ignore[assignment, method-assign]
        denoise.evaluate = listening  # type: ignore[method-assign]
        return denoise

    def _hear(self, step: int, x: Tensor, level: Level, output: Tensor, x0: Tensor) -> None:
        self._to = self._from + len(x)
        skip, out, _ = coefficients(self, level, step)
        a, s = level.alpha, level.sigma
        norms = (
            self.squares([x, output], (1 - a * skip) / s, -a * out / s).sqrt(),
            self.squares([x, x0], 1 / s, -a / s).sqrt(),
        )
        self.heard.setdefault(step, []).append(_Heard(level, *self._deviations(x, level, norms)))

    def finish(self, x: Tensor) -> None:
        """The final state, which no evaluation follows: one step more, without predictions."""
        level, nothing = self.levels[-1], torch.full((len(x),), torch.nan, dtype=torch.float64, device=x.device)
        self._from, self._to = 0, len(x)
        numbers, total = self._deviations(x, level, (nothing, nothing))
        self.heard[max(self.heard, default=-1) + 1] = [_Heard(level, numbers, total)]

    def _deviations(self, x: Tensor, level: Level, norms: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        data, mean = self._batch.data[self._from : self._to], self._batch.mean
        state = self.squares([x, mean.expand(x.shape)], 1.0, -level.alpha)
        pair = self.squares([x, data], 1.0, -level.alpha)
        total = x.sum(0, dtype=torch.float64) - len(x) * level.alpha * mean
        return torch.stack([*norms, state / mean.numel(), pair / mean.numel()], 1), total

    def squares(self, inputs: Sequence[Tensor], *row: float) -> Tensor:
        """Per-sample squared norm of one combination of tensors, float64 [B]."""
        table = torch.tensor([row], dtype=torch.float64, device=inputs[0].device)
        return ops.sum_squares(inputs, table, backend=self.backend)


def listen(sampler: Sampler, batch: Batch, sums: list[StepSums]) -> None:
    """Sample one batch, predict once from the data noised to every level that was visited, and add it all to `sums`.

    `sums` grows by what is missing: one entry per step and one for the final state.
    """
    network = sampler.network  # compiled once, if at all, and not by every listener
    ear = _Listening(sampler, batch)
    # What was checked and moved before the first batch is handed over as it is.
    ear.finish(ear(batch.data.shape, seeds=batch.seeds, cond=batch.cond))
    z = ops.normal(batch.seeds, batch.data.shape, 0, torch.float32, sampler.backend)
    noise, latent = ear.squares([z], 1.0) / batch.mean.numel(), z.sum(0, dtype=torch.float64)
    kept = z[: batch.rows].reshape(batch.rows, -1)[:, batch.probes].double() if batch.rows else None
    del z
    for step in sorted(ear.heard):
        heard = ear.heard[step]
        levels = [part.level for part in heard for _ in range(len(part.numbers))]
        while len(sums) <= step:
            sums.append(StepSums(torch.zeros_like(batch.mean)))
        truth, errors = _on_data(sampler, network, batch, levels, step, kept)
        rows = torch.cat([torch.cat([part.numbers for part in heard]), truth, noise[:, None]], 1)
        sums[step].add(rows.cpu().numpy(), torch.stack([part.total for part in heard]).sum(0), latent, levels)
        if errors is not None:
            sums[step].errors.append(errors.cpu().numpy())


def _on_data(
    sampler: Sampler,
    network: Callable[..., Tensor],
    batch: Batch,
    levels: Sequence[Level],
    step: int,
    kept: Tensor | None,
) -> tuple[Tensor, Tensor | None]:
    """|eps|, |t - alpha mu|^2 / D and the error's square / D on data noised to `levels` [B], as [B, 3]; probed errors.

    The noised datum itself is never written but as the network's input: the kernels make its noise, the latent of the
    sample's own seed, while they read the datum.
    """
    data, device, size = batch.data, batch.data.device, batch.mean.numel()
    distinct = list(dict.fromkeys(levels))
    rows = None
    if len(distinct) > 1:
        rows = torch.tensor([distinct.index(level) for level in levels], dtype=torch.int64, device=device)
    alpha, sigma = (np.array([getattr(level, name) for level in distinct]) for name in ("alpha", "sigma"))

    def table(*columns: Any) -> Tensor:
        filled = np.broadcast_arrays(*columns)
        return torch.from_numpy(np.stack(filled, 1).astype(np.float64)).to(device)

    def squares(inputs: Sequence[Tensor], *columns: Any) -> Tensor:
        return ops.sum_squares(
            inputs, table(*columns), rows=rows, seeds=batch.seeds, draws=[0], backend=sampler.backend
        )

    truth = squares([data, batch.mean.expand(data.shape)], alpha, -alpha, sigma) / size
    if not (sigma > 0).all():  # the final state
        nothing = torch.full_like(truth, torch.nan)
        return torch.stack([nothing, truth, nothing], 1), None

    skip, out, scale = np.array([coefficients(sampler, level, step) for level in distinct]).T
    (seen,) = ops.combine(
        [data],
        table(scale * alpha, scale * sigma),
        rows=rows,
        seeds=batch.seeds,
        draws=[0],
        out_dtypes=[sampler.model_dtype],
        backend=sampler.backend,
    )
    times = torch.tensor([sampler.prediction.time(level) for level in levels], dtype=torch.float64)
    output, _ = split_variance(network(seen, times.to(sampler.time_dtype).to(device), **batch.cond), data.shape)
    of_data, of_output = 1 - alpha * skip, -alpha * out / sigma  # eps = (of_data t) / sigma + of_output F
    norm = squares([data, output], of_data * alpha / sigma, of_output, of_data).sqrt()
    error = squares([data, output], skip * alpha - 1, out, skip * sigma) / size
    errors = None
    if kept is not None:
        take = slice(len(kept))
        row = torch.zeros(len(kept), dtype=torch.int64, device=device) if rows is None else rows[take]
        c = table(of_data * alpha / sigma, of_output, of_data - 1)[row]
        known = (values[take].reshape(len(kept), -1) for values in (data, output))
        x0, predicted = (values[:, batch.probes].double() for values in known)
        errors = c[:, 0:1] * x0 + c[:, 1:2] * predicted + c[:, 2:3] * kept
    return torch.stack([norm, truth, error], 1), errors


def coefficients(sampler: Sampler, level: Level, step: int) -> Coefficients:
    """The prediction's linear map at the level a step starts from."""
    if isinstance(sampler.prediction, PreviousX):
        return sampler.prediction.coefficients_between(level, sampler.levels[step + 1])
    return sampler.prediction.coefficients(level)
