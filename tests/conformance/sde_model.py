"""The closed-form networks of score_sde's recorded cases: section 2 of the ddpm folder's SPEC.md, kind "sde"."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from .analytic import _vp_mixture, per_sample


class SdeModel:
    """The network of a case, called as model(x, label) -> what score_sde's network of that SDE returns.

    Its moments are its own (section 5), so that they do not come from the library that is tested.
    """

    def __init__(self, description: Mapping[str, Any]):
        if description["kind"] != "sde" or description["sde"] not in ("ve", "vp", "subvp"):
            raise ValueError(f"no rule for the model {description['kind']!r} of the SDE {description.get('sde')!r}")
        self.mixture, self.kind = _vp_mixture(description["mixture"]), description["sde"]
        self.N, self.continuous = int(description["N"]), bool(description["continuous"])
        self.imperfect = bool(description["imperfect"])
        names = ("sigma_min", "sigma_max") if self.kind == "ve" else ("beta_min", "beta_max")
        self.low, self.high = (float(description[name]) for name in names)

    def moments(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """(m, std) at continuous times [B], float64."""
        t = t.double()
        if self.kind == "ve":
            return torch.ones_like(t), self.low * (self.high / self.low) ** t
        m = torch.exp(-(t**2) * (self.high - self.low) / 4 - t * self.low / 2)
        return m, (1 - m**2) if self.kind == "subvp" else (1 - m**2).sqrt()

    def moments_of_label(self, label: Tensor) -> tuple[Tensor, Tensor]:
        """(m, std) of what the network is told."""
        label = label.double()
        if self.kind == "ve":
            if self.continuous:
                return torch.ones_like(label), label
            ascending = torch.linspace(math.log(self.low), math.log(self.high), self.N, dtype=torch.float64).exp()
            return torch.ones_like(label), ascending.flip(0)[label.long()]
        if self.continuous or self.kind == "subvp":
            return self.moments(label / 999)
        betas = torch.linspace(self.low / self.N, self.high / self.N, self.N, dtype=torch.float64)
        abar = (1 - betas).cumprod(0)[label.floor().long()]
        return abar.sqrt(), (1 - abar).sqrt()

    def __call__(self, x: Tensor, label: Tensor) -> Tensor:
        m, std = self.moments_of_label(label)
        score, std = self.mixture.score(x, m, std), per_sample(std, x)
        wave = 0.05 * (3 * x.double()).sin() if self.imperfect else torch.zeros_like(score)
        out = score + wave / std if self.kind == "ve" else -std * score + wave
        return out.to(x.dtype)

    def log_density(self, x: Tensor, t: float) -> Tensor:
        """ln p_t(x) of the mixture in nats, float64 [B]: exact."""
        return mixture_log_density(self.mixture, x, *(moment.item() for moment in self.moments(torch.tensor([t]))))


def mixture_log_density(mixture: Any, x: Tensor, alpha: float, sigma: float) -> Tensor:
    """ln density of alpha x_0 + sigma z at x [B, ...], in nats: float64 [B]."""
    flat = x.double().flatten(1)
    v = alpha**2 * mixture.variance + sigma**2
    distance = (flat[:, None, :] - alpha * mixture.mu).square().sum(-1)
    return (mixture.log_pi - 0.5 * flat.shape[1] * (2 * math.pi * v).log() - 0.5 * distance / v).logsumexp(1)
