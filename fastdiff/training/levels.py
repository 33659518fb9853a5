"""Which noise level every sample of a batch is trained at.

A draw depends on the generator alone (and on what `update` was told), so every rank draws the levels of the whole
batch and takes its slice. Importance weights keep the expected loss that of uniform steps: the mean over the batch of
weight times loss is an unbiased estimate of the mean loss over all T steps.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from ..errors import check_count, check_finite, check_positive

__all__ = [
    "Antithetic",
    "LevelSampler",
    "LogNormal",
    "LogSNRSteps",
    "LogitNormal",
    "LossSecondMoment",
    "Uniform",
    "UniformLogSNR",
    "UniformTime",
]


class LevelSampler:
    """What draws levels. It has a state only if its draws depend on the losses it has seen."""

    def draw(self, batch: int, generator: torch.Generator | None = None) -> tuple[Tensor, Tensor]:
        """Levels of a whole batch.

        Args:
            batch: samples, at least 0.
            generator: of the CPU; None: torch's own.

        Returns:
            (levels, weights), [batch] each on the CPU: int64 steps in [0, T) with 0 the cleanest, or float64 sigmas or
            times; float32 importance weights of the samples' losses.
        """
        raise NotImplementedError

    def update(self, levels: Tensor, losses: Tensor) -> None:
        """Learns from a batch.

        Args:
            levels: [batch], as drawn: of all ranks and micro-batches, in the order of the batch.
            losses: [batch] their losses without the importance weights, on any device. Those that are NaN or infinite
                are passed over.
        """

    def state(self) -> dict[str, Tensor]:
        """What the draws depend on beside the generator: tensors by name. A copy."""
        return {}

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Takes back what `state` returned.

        Raises:
            ValueError: it is another sampler's.
        """
        own = self.state()
        if state.keys() != own.keys() or any(state[name].shape != own[name].shape for name in own):
            wanted, got = ({name: list(value.shape) for name, value in some.items()} for some in (own, state))
            raise ValueError(f"state must hold tensors {wanted} of {type(self).__name__}, got {got}")


# --- steps of a chain -------------------------------------------------------------------------------------------------


class Uniform(LevelSampler):
    """Independent uniform steps (Ho et al. 2020, algorithm 1).

    Args:
        T: steps of the chain.
    """

    def __init__(self, T: int) -> None:
        self.T = check_count("T", T)

    def draw(self, batch: int, generator: torch.Generator | None = None) -> tuple[Tensor, Tensor]:
        return torch.randint(self.T, (batch,), generator=generator), torch.ones(batch)


class Antithetic(Uniform):
    """Uniform steps in neighbouring pairs t, T - 1 - t, as in DDIM's code (Song et al. 2021).

    An odd batch ends in half a pair. A pair has a clean and a noisy step, so the mean loss of a batch varies less.
    """

    def draw(self, batch: int, generator: torch.Generator | None = None) -> tuple[Tensor, Tensor]:
        t, weights = super().draw((batch + 1) // 2, generator)
        return torch.stack([t, self.T - 1 - t], 1).flatten()[:batch], weights.repeat(2)[:batch]


class _Weighted(LevelSampler):
    """Steps drawn with `probabilities`, and weights that make up for it."""

    def probabilities(self) -> Tensor:
        """Probability p_t of every step, float64 [T]; they sum to 1."""
        raise NotImplementedError

    def draw(self, batch: int, generator: torch.Generator | None = None) -> tuple[Tensor, Tensor]:
        p = self.probabilities()
        ends = p.cumsum(0)
        uniforms = torch.rand(batch, generator=generator, dtype=torch.float64)
        t = torch.searchsorted(ends, uniforms * ends[-1], right=True).clamp_(max=len(p) - 1)
        return t, (1 / (len(p) * p[t])).float()


class LossSecondMoment(_Weighted):
    """p_t in proportion to sqrt(E[L_t^2]), over the latest losses of every step (Nichol & Dhariwal 2021, equation 18).

    Uniform until every step has been seen `history` times. For losses that vary a lot from step to step, as those of
    the variational bound; drawing by them makes its gradient far less noisy.

    Args:
        T: steps of the chain.
        history: losses kept of every step.
        uniform_prob: share of the draws that is uniform, in [0, 1].
    """

    def __init__(self, T: int, history: int = 10, uniform_prob: float = 0.001) -> None:
        self.T, self.history = check_count("T", T), check_count("history", history)
        if not 0 <= check_finite("uniform_prob", uniform_prob) <= 1:
            raise ValueError(f"uniform_prob must be in [0, 1], got {uniform_prob!r}")
        self.uniform_prob = uniform_prob
        self._losses = torch.zeros(self.T, self.history, dtype=torch.float64)  # a ring of every step's latest losses
        self._seen = torch.zeros(self.T, dtype=torch.int64)

    def weights(self) -> Tensor:
        """Relative probability of every step, float64 [T]: ones until every step has its history, then summing to 1."""
        moments = self._losses.square().mean(1).sqrt()
        total = moments.sum()
        if (self._seen < self.history).any() or total == 0:
            return torch.ones(self.T, dtype=torch.float64)
        return moments / total * (1 - self.uniform_prob) + self.uniform_prob / self.T

    def probabilities(self) -> Tensor:
        weights = self.weights()
        return weights / weights.sum()

    def update(self, levels: Tensor, losses: Tensor) -> None:
        levels, losses = levels.detach().cpu(), losses.detach().cpu().double()
        if levels.dtype != torch.int64 or levels.dim() != 1 or losses.shape != levels.shape:
            wanted = "levels and losses must be int64 [batch] and [batch]"
            raise ValueError(f"{wanted}, got {levels.dtype} {list(levels.shape)} and {list(losses.shape)}")
        if len(levels) and not (0 <= int(levels.min()) and int(levels.max()) < self.T):
            raise ValueError(f"levels must be in [0, {self.T}), got {int(levels.min())} to {int(levels.max())}")
        finite = losses.isfinite()
        levels, order = levels[finite].sort(stable=True)
        losses = losses[finite][order]
        counts = levels.bincount(minlength=self.T)
        nth = torch.arange(len(levels)) - (counts.cumsum(0) - counts)[levels]  # among the batch's samples of its step
        slots = (self._seen[levels] + nth) % self.history
        latest = nth >= counts[levels] - self.history  # the others would be overwritten within this batch
        self._losses[levels[latest], slots[latest]] = losses[latest]
        self._seen += counts

    def state(self) -> dict[str, Tensor]:
        return {"losses": self._losses.clone(), "seen": self._seen.clone()}

    def restore(self, state: Mapping[str, Tensor]) -> None:
        super().restore(state)
        self._losses = state["losses"].to("cpu", torch.float64, copy=True)
        self._seen = state["seen"].to("cpu", torch.int64, copy=True)


class LogSNRSteps(_Weighted):
    """Steps as uniform in log SNR as a chain's table allows: p_t in proportion to the range of log SNR about step t.

    The range reaches half way to the neighbours; the first and the last step's ends at the step itself.

    Args:
        alphas_cumprod: alpha_bar of every step, cleanest first, falling within (0, 1); at least two.
    """

    def __init__(self, alphas_cumprod: Sequence[float] | Tensor) -> None:
        abar = torch.as_tensor(alphas_cumprod, dtype=torch.float64).cpu()
        if abar.dim() != 1 or len(abar) < 2 or not ((abar > 0) & (abar < 1)).all() or not (abar.diff() < 0).all():
            raise ValueError(f"alphas_cumprod must fall within (0, 1) over at least two steps, got {alphas_cumprod!r}")
        log_snr = torch.logit(abar)
        edges = torch.cat([log_snr[:1], (log_snr[1:] + log_snr[:-1]) / 2, log_snr[-1:]])
        self._probabilities = -edges.diff() / (log_snr[0] - log_snr[-1])

    def probabilities(self) -> Tensor:
        return self._probabilities


# --- continuous levels ------------------------------------------------------------------------------------------------
# There is no other distribution that these stand in for: they are part of the objective, and every weight is 1.


class LogNormal(LevelSampler):
    """sigma = exp(P_mean + P_std n) with n standard normal (Karras et al. 2022, table 1).

    Args:
        P_mean: mean of ln(sigma).
        P_std: its standard deviation, positive.
    """

    def __init__(self, P_mean: float = -1.2, P_std: float = 1.2) -> None:
        self.P_mean, self.P_std = check_finite("P_mean", P_mean), check_positive("P_std", P_std)

    def draw(self, batch: int, generator: torch.Generator | None = None) -> tuple[Tensor, Tensor]:
        normals = torch.randn(batch, generator=generator, dtype=torch.float64)
        return (self.P_mean + self.P_std * normals).exp(), torch.ones(batch)


class LogitNormal(LevelSampler):
    """Times in (0, 1) whose logit is normal, for flow matching (Esser et al. 2024, equation 19).

    Args:
        mean: of the logit; positive prefers noisy levels.
        std: its standard deviation, positive.
    """

    def __init__(self, mean: float = 0.0, std: float = 1.0) -> None:
        self.mean, self.std = check_finite("mean", mean), check_positive("std", std)

    def draw(self, batch: int, generator: torch.Generator | None = None) -> tuple[Tensor, Tensor]:
        normals = torch.randn(batch, generator=generator, dtype=torch.float64)
        return torch.sigmoid(self.mean + self.std * normals), torch.ones(batch)


class UniformTime(LevelSampler):
    """Times u (end - eps) + eps with u uniform (Song et al. 2021, score SDE).

    Args:
        eps, end: limits, eps below end.
        antithetic: u in neighbouring pairs u, 1 - u.
        stratified: u_i = (u + i / batch) mod 1 with one uniform u for the batch (Kingma et al. 2021, appendix I.1).
    """

    def __init__(
        self, eps: float = 0.0, end: float = 1.0, *, antithetic: bool = False, stratified: bool = False
    ) -> None:
        self.eps, self.end = check_finite("eps", eps), check_finite("end", end)
        if self.eps >= self.end:
            raise ValueError(f"eps must be below end={end}, got {eps}")
        if antithetic and stratified:
            raise ValueError("antithetic and stratified must not both be set, got True and True")
        self.antithetic, self.stratified = antithetic, stratified

    def draw(self, batch: int, generator: torch.Generator | None = None) -> tuple[Tensor, Tensor]:
        options: dict[str, Any] = {"generator": generator, "dtype": torch.float64}
        if self.stratified:
            u = (torch.rand(1, **options) + torch.arange(batch, dtype=torch.float64) / max(batch, 1)) % 1
        elif self.antithetic:
            u = torch.rand((batch + 1) // 2, **options)
            u = torch.stack([u, 1 - u], 1).flatten()[:batch]
        else:
            u = torch.rand(batch, **options)
        return u * (self.end - self.eps) + self.eps, torch.ones(batch)


class UniformLogSNR(UniformTime):
    """Noise levels uniform in log SNR: sigma in VE terms, log-uniform between its limits.

    Args:
        sigma_min, sigma_max: limits, 0 < sigma_min < sigma_max. The flow's time is sigma / (1 + sigma).
        antithetic, stratified: as for `UniformTime`.
    """

    def __init__(
        self, sigma_min: float, sigma_max: float, *, antithetic: bool = False, stratified: bool = False
    ) -> None:
        self.sigma_min = check_positive("sigma_min", sigma_min)
        self.sigma_max = check_positive("sigma_max", sigma_max)
        if sigma_min >= sigma_max:
            raise ValueError(f"sigma_min must be below sigma_max={sigma_max}, got {sigma_min}")
        super().__init__(antithetic=antithetic, stratified=stratified)

    def draw(self, batch: int, generator: torch.Generator | None = None) -> tuple[Tensor, Tensor]:
        u, weights = super().draw(batch, generator)
        return self.sigma_min * (self.sigma_max / self.sigma_min) ** u, weights
