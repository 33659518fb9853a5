"""Processes, densities and networks whose guidance is known in closed form, and one guided prediction."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import fastdiff
from fastdiff import Sampler
from fastdiff.guidance import vp
from fastdiff.ops import native

ROUTES = {
    "readable": {"compiled": False},
    "reference": {"backend": "reference"},
    "cpu": {"backend": "cpu"},
}
ROUTE_PARAMS = [
    pytest.param(
        name, marks=pytest.mark.skipif(name == "cpu" and not native.available("cpu"), reason=native.reason("cpu"))
    )
    for name in ROUTES
]
SHAPES = [(5, 6), (4, 3, 4, 4), (3, 2, 2, 3, 2)]


def column(values: Tensor, like: Tensor) -> Tensor:
    """[B] as [B, 1, ...] of `like`'s rank."""
    return values.reshape(-1, *(1,) * (like.ndim - 1)).to(like.dtype)


@dataclass(frozen=True)
class Setting:
    """A process and one of its noise levels: `at` is sigma, or the timestep of a VP process."""

    process: Any
    at: float

    @property
    def options(self) -> dict[str, Any]:
        """Of a sampler whose one step returns the predicted x_0."""
        if isinstance(self.process, fastdiff.VP):
            return {"process": self.process, "timesteps": [int(self.at)], "solver": "ddim"}
        return {"process": self.process, "sigmas": [self.at, 0.0], "solver": "euler"}

    @property
    def level(self) -> Any:
        return Sampler(nothing, prediction="x0", **self.options).levels[0]


SETTINGS = {
    "edm": Setting(fastdiff.EDM(), 1.7),
    "ve": Setting(fastdiff.VE(), 12.0),
    "vp": Setting(fastdiff.VP.linear(1000), 400),
    "vp cosine": Setting(fastdiff.VP.cosine(100), 31),
}


def nothing(x: Tensor, t: Tensor, **cond: Any) -> Tensor:
    """A network that predicts x_0 = 0."""
    return torch.zeros_like(x)


def predicted(setting: Setting, x: Tensor, guidance: Any, route: str = "reference", **options: Any) -> Tensor:
    """The guided x_0 at the state x, by a sampler's one step from there to no noise."""
    call = {name: options.pop(name) for name in ("labels", "cond") if name in options}
    arguments = {"model": nothing, "prediction": "x0", "dtype": x.dtype, **setting.options, **options}
    seen: list[Tensor] = []
    sampler = Sampler(guidance=guidance, **ROUTES[route], **arguments)
    final = sampler(x.shape, x_init=x, callback=lambda info: seen.append(info.denoised), **call)
    torch.testing.assert_close(final, seen[0], rtol=1e-4, atol=1e-4 * float(x.abs().max()))
    return seen[0]


def pushed(setting: Setting, gradient: Tensor) -> Tensor:
    """What a gradient adds to the predicted x_0."""
    return setting.level.sigma**2 / setting.level.alpha * gradient


def states(setting: Setting, shape: tuple[int, ...], dtype: torch.dtype = torch.float64, seed: int = 0) -> Tensor:
    """Plausible states at the level."""
    z = torch.randn(2, *shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return (setting.level.alpha * 0.6 * z[0] + setting.level.sigma * z[1]).to(dtype)


@dataclass(frozen=True)
class Gaussian:
    """Data N(mean, std^2) in every dimension; a model of it in any process, called like a network of x_0."""

    mean: float
    std: float
    process: Any = None

    def log_density(self, u: Tensor, sigma: Tensor) -> Tensor:
        """log N(u; mean, std^2 + sigma^2) [B], in VE terms."""
        v = self.std**2 + sigma**2
        d = (u - self.mean).flatten(1)
        return -0.5 * d.square().sum(1) / v - 0.5 * d.shape[1] * v.log()

    def __call__(self, x: Tensor, t: Tensor, **cond: Any) -> Tensor:
        """E[x_0 | x]; t is sigma, or the timestep of a VP process."""
        if isinstance(self.process, fastdiff.VP):
            abar = torch.as_tensor(self.process.alphas_cumprod)[t.long()]
            alpha, sigma = column(abar.sqrt(), x), column((1 - abar).sqrt(), x)
        else:
            alpha, sigma = 1.0, column(t, x)
        v = alpha**2 * self.std**2 + sigma**2
        return self.mean + alpha * self.std**2 / v * (x - alpha * self.mean)


@dataclass(frozen=True)
class DensityRatio:
    """The exact discriminator between two Gaussians under noise: discriminator(y, tau, labels) -> logit."""

    real: Gaussian
    model: Gaussian

    def __call__(self, y: Tensor, tau: Tensor, labels: Any = None) -> Tensor:
        sigma = torch.as_tensor(vp.sigma_of_tau(tau.numpy()))
        u = y * column((1 + sigma**2).sqrt(), y)
        return self.real.log_density(u, sigma) - self.model.log_density(u, sigma)


class Judge(nn.Module):
    """A small differentiable discriminator of samples with `size` numbers, in float64; `shift` moves its logit."""

    def __init__(self, size: int, seed: int = 0, shift: float = 0.0, classes: int = 0, gain: float = 1.0):
        super().__init__()
        random = torch.Generator().manual_seed(seed)
        draw = lambda *shape: torch.randn(*shape, generator=random, dtype=torch.float64) / size**0.5  # noqa: E731
        self.first, self.second = nn.Parameter(gain * draw(size)), nn.Parameter(0.1 * gain * draw(size))
        self.classes = nn.Parameter(gain * draw(classes, size)) if classes else None
        self.shift = nn.Parameter(torch.tensor(shift, dtype=torch.float64))

    def forward(self, y: Tensor, tau: Tensor, labels: Tensor | None = None) -> Tensor:
        flat, tau = y.double().flatten(1), tau.double()
        logit = (1 - 0.5 * tau) * (flat.tanh() @ self.first) + flat.square() @ self.second - self.shift
        if self.classes is not None and labels is not None:
            logit = logit + (self.classes[labels] * flat).sum(1)
        return logit


@dataclass(frozen=True)
class Classes:
    """Data of three classes, each a Gaussian, called like a network of x_0: of its class with `labels`, else of all."""

    process: Any = None
    means: tuple[float, ...] = (-0.8, 0.1, 0.7)
    stds: tuple[float, ...] = (0.3, 0.5, 0.4)

    def level(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """(alpha, sigma) [B] of what a network of this process is told."""
        if isinstance(self.process, fastdiff.VP):
            abar = torch.as_tensor(self.process.alphas_cumprod)[t.long()]
            return abar.sqrt(), (1 - abar).sqrt()
        return torch.ones_like(t, dtype=torch.float64), t.double()

    def of_all(self) -> list[Gaussian]:
        return [Gaussian(mean, std, self.process) for mean, std in zip(self.means, self.stds)]

    def log_odds(self, u: Tensor, sigma: Tensor) -> Tensor:
        """log p(u | class) [B, 3] in VE terms; the classes are equally likely."""
        return torch.stack([g.log_density(u, sigma) for g in self.of_all()], 1)

    def classifier(self, x: Tensor, t: Tensor) -> Tensor:
        """Logits of a state of the process at the time its networks are told."""
        alpha, sigma = self.level(t)
        return self.log_odds(x / column(alpha, x), sigma / alpha)

    def classifier_of_vp(self, y: Tensor, tau: Tensor) -> Tensor:
        """Logits of a state in VP terms at its VP time."""
        sigma = torch.as_tensor(vp.sigma_of_tau(tau.numpy()))
        return self.log_odds(y * column((1 + sigma**2).sqrt(), y), sigma)

    def __call__(self, x: Tensor, t: Tensor, labels: Tensor | None = None, **cond: Any) -> Tensor:
        each = torch.stack([g(x, t) for g in self.of_all()], 1)
        weights = self.classifier(x, t).softmax(1) if labels is None else nn.functional.one_hot(labels, 3).double()
        return (weights.reshape(*weights.shape, *(1,) * (x.ndim - 1)) * each).sum(1)
