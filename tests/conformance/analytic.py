"""The closed-form networks of the recorded cases, in float64 whatever the dtype of the state.

Denoisers of Gaussian mixtures, a discriminator and a classifier. Formulas: sections 3 and 4 of the edm folder's SPEC.md
and section 2 of the ddpm folder's.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import cache
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .cases import ROOT, Case


class Mixture:
    """p(x_0) = sum_k pi_k N(mu_k, s_k^2 I). Arguments: mu [K, ...], s [K], pi [K]."""

    def __init__(self, mu: np.ndarray, s: np.ndarray, pi: np.ndarray):
        self.mu = torch.as_tensor(mu, dtype=torch.float64).flatten(1)
        self.variance = torch.as_tensor(s, dtype=torch.float64).square()
        self.log_pi = torch.as_tensor(pi, dtype=torch.float64).log()

    def denoise(self, x: Tensor, alpha: Tensor, sigma: Tensor, allowed: Tensor | None = None) -> Tensor:
        """E[x_0 | x = alpha x_0 + sigma z], float64 [B, ...]; alpha, sigma [B]; allowed: bool [B, K]."""
        weight, offset, v = self._posterior(x, alpha, sigma, allowed)
        shrink = alpha.double()[:, None] * self.variance / v
        return (weight[:, :, None] * (self.mu + shrink[:, :, None] * offset)).sum(1).reshape(x.shape)

    def score(self, x: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
        """grad log p of alpha x_0 + sigma z at x, float64 [B, ...]; precise for a small sigma, too."""
        weight, offset, v = self._posterior(x, alpha, sigma, None)
        return -((weight / v)[:, :, None] * offset).sum(1).reshape(x.shape)

    def _posterior(
        self, x: Tensor, alpha: Tensor, sigma: Tensor, allowed: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Of every component: its probability given x [B, K], x - alpha mu [B, K, D], and its variance [B, K]."""
        flat, alpha, sigma = x.double().flatten(1), alpha.double()[:, None], sigma.double()[:, None]
        v = alpha**2 * self.variance + sigma**2
        offset = flat[:, None, :] - alpha[:, :, None] * self.mu
        log_weight = self.log_pi - 0.5 * flat.shape[1] * v.log() - 0.5 * offset.square().sum(-1) / v
        if allowed is not None:
            log_weight = log_weight.masked_fill(~allowed, -torch.inf)
        return log_weight.softmax(1), offset, v


def per_sample(values: Tensor, like: Tensor) -> Tensor:
    """[B] as [B, 1, ...] of `like`'s rank, float64."""
    return values.double().reshape(-1, *(1,) * (like.ndim - 1))


@cache
def _edm_parameters() -> dict[str, np.ndarray]:
    with np.load(ROOT / "edm" / "models.npz") as archive:
        return {name: archive[name] for name in archive.files}


@cache
def _edm_description() -> dict[str, Any]:
    return json.loads((ROOT / "edm" / "model.json").read_text(encoding="utf-8"))["sets"]


class Denoiser:
    """D(x; sigma) of a mixture set, called as model(x, sigma, labels=None); `kind` as in a case's `model.kind`."""

    KINDS = ("gmm", "gmm_bad", "gmm_cond", "gmm_cond_bad", "gmm_round")

    def __init__(self, mixture_set: str, kind: str):
        if kind not in self.KINDS:
            raise ValueError(f"no rule for the model kind {kind!r}")
        parameters = _edm_parameters()
        self.mixture = Mixture(*(parameters[f"{mixture_set}/{name}"] for name in ("mu", "s", "pi")))
        self.label_mask = torch.as_tensor(parameters[f"{mixture_set}/label_mask"]) > 0
        self.conditional, self.perturbed = "cond" in kind, kind.endswith("bad")
        self.sigma_min, self.sigma_max, self.table = 0.0, float("inf"), None
        if kind == "gmm_round":
            limits = _edm_description()[mixture_set]["gmm_round"]
            self.sigma_min, self.sigma_max = float(limits["sigma_min"]), float(limits["sigma_max"])
            self.table = parameters[f"{mixture_set}/round_table"]

    @classmethod
    def of(cls, case: Case) -> Denoiser:
        return cls(case.model["set"], case.model["kind"])

    def __call__(self, x: Tensor, sigma: Tensor, labels: Tensor | None = None) -> Tensor:
        allowed = None
        if self.conditional and labels is not None:
            allowed = self.label_mask[labels.argmax(1)] | (labels == 0).all(1, keepdim=True)
        out = self.mixture.denoise(x, torch.ones_like(sigma), sigma, allowed)
        if self.perturbed:
            level = per_sample(sigma, x)
            out = out + 0.05 * level / (1 + level) * (3 * x.double()).sin()
        return out.to(x.dtype)

    def round_sigma(self, sigma: float) -> float:
        """The nearest level the network knows; ties go to the lower index of its table."""
        return sigma if self.table is None else float(self.table[np.abs(self.table - sigma).argmin()])


class Discriminator:
    """The log odds that a VP-scaled y at time t is real, called as discriminator(y, t, labels=None) -> logit [B].

    `kind` as in a case's `discriminator.kind`: "sat" is so steep that its probability is clipped, "neg" takes most
    samples for fakes, "cond" looks at the labels, one-hot [B, L]. Differentiable with respect to y.
    """

    KINDS = ("base", "sat", "neg", "cond")

    def __init__(self, mixture_set: str, kind: str):
        if kind not in self.KINDS:
            raise ValueError(f"no rule for the discriminator kind {kind!r}")
        parameters = {name: torch.as_tensor(_edm_parameters()[f"{mixture_set}/{name}"]) for name in ("W1", "W2", "V")}
        self.w1, self.w2, self.v = parameters["W1"], parameters["W2"], parameters["V"]
        self.bias, neg = (float(_edm_parameters()[f"{mixture_set}/{name}"]) for name in ("b", "neg_shift"))
        self.scale = float(_edm_description()[mixture_set]["sat_scale"]) if kind == "sat" else 1.0
        self.shift, self.conditional = neg if kind == "neg" else 0.0, kind == "cond"

    def __call__(self, y: Tensor, t: Tensor, labels: Tensor | None = None) -> Tensor:
        state, t = y.double(), t.double()
        logit = (1 - 0.5 * t) * (self.w1 * state.tanh()).flatten(1).sum(1)
        logit = logit + 0.1 * (self.w2 * state.square()).flatten(1).sum(1) + self.bias
        if self.conditional:
            if labels is None:
                raise ValueError("this discriminator needs labels")
            logit = logit + ((labels.double() @ self.v.flatten(1)) * state.flatten(1)).sum(
                1
            )  # a row of zeros: no label
        return self.scale * logit - self.shift


@cache
def _vp_mixture(name: str) -> Mixture:
    description = json.loads((ROOT / "ddpm" / "model.json").read_text(encoding="utf-8"))
    if description["name"] != name:
        raise ValueError(f"the ddpm folder holds the mixture {description['name']!r}, not {name!r}")
    with np.load(ROOT / "ddpm" / "model.npz") as archive:
        return Mixture(archive["mu"], archive["s"], archive["pi"])


@cache
def _alpha_bar_tables() -> dict[str, np.ndarray]:
    with np.load(ROOT / "ddpm" / "abar_tables.npz") as archive:
        return {name: archive[name] for name in archive.files}


class DiscreteModel:
    """A network of a discrete VP process (`vp_discrete`), called as model(x, t).

    Its output has the shape of x, or twice the channels with a variance head (`extra`). Labels change nothing.
    """

    def __init__(self, description: Mapping[str, Any]):
        if description["kind"] != "vp_discrete":
            raise ValueError(f"no rule for the model kind {description['kind']!r}")
        if description["target"] not in ("eps", "x0", "xprev", "v"):
            raise ValueError(f"no rule for the model target {description['target']!r}")
        if description["extra"] not in (None, "range", "logvar"):
            raise ValueError(f"no rule for the variance head {description['extra']!r}")
        self.mixture = _vp_mixture(description["mixture"])
        self.table = torch.as_tensor(_alpha_bar_tables()[description["abar_table"]], dtype=torch.float64)
        self.scale = float(description["t_to_index_scale"])
        self.target, self.extra = description["target"], description["extra"]
        self.imperfect = bool(description["imperfect"])

    def alpha_bar(self, t: Tensor) -> Tensor:
        """The table at a possibly fractional index, linearly interpolated."""
        u = (t.double() * self.scale).clamp(0, len(self.table) - 1)
        low = u.floor().long()
        high = (low + 1).clamp(max=len(self.table) - 1)
        return self.table[low] + (u - low) * (self.table[high] - self.table[low])

    def __call__(self, x: Tensor, t: Tensor, labels: Tensor | None = None) -> Tensor:
        abar = self.alpha_bar(t)
        alpha, sigma = abar.sqrt(), (1 - abar).sqrt()
        state, x0 = x.double(), self.mixture.denoise(x, alpha, sigma)
        alpha, sigma = per_sample(alpha, x), per_sample(sigma, x)
        eps = (state - alpha * x0) / sigma
        out = {"eps": eps, "x0": x0, "xprev": 0.9 * state + 0.1 * x0, "v": alpha * eps - sigma * x0}[self.target]
        if self.imperfect:
            out = out + 0.05 * (3 * state).sin()
        if self.extra:
            mean = state.mean(tuple(range(1, x.ndim)), keepdim=True)
            head = (0.9 * (state.roll(-1, 1) - mean)).tanh()
            out = torch.cat([out, head if self.extra == "range" else head - 3.0], 1)
        return out.to(x.dtype)


class Classifier:
    """guided-diffusion's toy classifier, called as classifier(x, t) -> logits [B, K]; differentiable in x."""

    def __init__(self) -> None:
        with np.load(ROOT / "ddpm" / "model.npz") as archive:
            self.w = torch.as_tensor(archive["classifier_W"], dtype=torch.float64)

    def __call__(self, x: Tensor, t: Tensor) -> Tensor:
        return x.double().flatten(1) @ self.w.T / (1 + t.double()[:, None] / 1000)
