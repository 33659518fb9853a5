"""EDM-G++ and SEDM-G++ as plain loops over tensors, independent of the library (edm/SPEC.md, sections 4, 8 and 9).

The tests hold the library against them on configurations that nobody recorded, and the negative controls are
reproduced by them.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any, NamedTuple

import torch
from torch import Tensor

BETA_0, BETA_1, CLIP = 0.1, 20.0, 1e-5
OFF = 1e7  # the log ratio of samples that are not guided


class Boost(NamedTuple):
    """The constants of boosting, as the official code has them."""

    period: int = 5
    churn: float = 4.0
    noise: float = 1.0
    factor_period: int = 2
    factor: float = 2.0


@dataclass
class Record:
    """What the reference records, in the order of the calls."""

    states: list[Tensor] = field(default_factory=list)
    sigma_hat: list[Tensor] = field(default_factory=list)
    call_x: list[Tensor] = field(default_factory=list)
    call_sigma: list[Tensor] = field(default_factory=list)
    call_denoised: list[Tensor] = field(default_factory=list)
    dg_x: list[Tensor] = field(default_factory=list)
    dg_sigma: list[Tensor] = field(default_factory=list)
    dg_order: list[int] = field(default_factory=list)
    dg_active: list[bool] = field(default_factory=list)
    dg_guidance: list[Tensor] = field(default_factory=list)
    dg_log_ratio: list[Tensor] = field(default_factory=list)
    disc_tau: list[Tensor] = field(default_factory=list)
    disc_prob: list[Tensor] = field(default_factory=list)

    def arrays(self) -> dict[str, Tensor]:
        """Stacked; what was never recorded is left out."""
        found = {name: values for name, values in vars(self).items() if values}
        return {
            name: torch.stack(values) if isinstance(values[0], Tensor) else torch.tensor(values, dtype=torch.int64)
            for name, values in found.items()
        }


def vp_time(sigma: Tensor) -> tuple[Tensor, Tensor]:
    """(tau, m) of VE levels: the time of the linear VP SDE with that much noise, and its signal 1 / sqrt(1 + s^2)."""
    d = BETA_1 - BETA_0
    tau = (-BETA_0 + (BETA_0**2 + 2 * d * (1 + sigma**2).log()).sqrt()) / d
    return tau, (-(tau**2) * d / 4 - tau * BETA_0 / 2).exp()


def cosine_time(m: Tensor) -> Tensor:
    """The time of the cosine schedule with signal m."""
    q = 0.008
    f0 = math.cos(q / (1 + q) * math.pi / 2) ** 2
    return (1 + q) * (2 / math.pi) * (math.sqrt(f0) * m).acos() - q


def column(values: Tensor, like: Tensor) -> Tensor:
    return values.reshape(-1, *(1,) * (like.ndim - 1))


def log_ratio_gradient(
    discriminator: Callable[..., Tensor],
    x: Tensor,
    sigma: Tensor,
    record: Record,
    *,
    labels: Tensor | None,
    time_min: float,
    time_max: float,
    cosine: bool,
    per_sample: bool,
    as_is: bool = False,
) -> tuple[Tensor, Tensor]:
    """g and the log ratio of section 4; `per_sample`: the window is each sample's own, not the whole batch's."""
    tau, m = vp_time(sigma)
    record.dg_x.append(x)
    record.dg_sigma.append(sigma)
    inside = (tau <= time_max) & (tau >= time_min)
    if not per_sample:
        inside = ((tau.min() <= time_max) & (tau.min() >= time_min)).expand(len(x))
    record.dg_active.append(bool(inside.any()))
    g, ratio = torch.zeros_like(x), torch.full_like(sigma, OFF)
    if bool(inside.any()):
        y = column(m, x) * x
        y = (y.float() if as_is else y).detach().requires_grad_()
        t = cosine_time(m) if cosine else tau
        with torch.enable_grad():
            probability = discriminator(y, t, labels).double().sigmoid()
            p = probability.clamp(CLIP, 1 - CLIP)
            found = (p / (1 - p)).log()
            (gradient,) = torch.autograd.grad(found.sum(), y)
        record.disc_tau.append(t)
        record.disc_prob.append(probability.detach())
        whole = -column(sigma**2 * m, x) * gradient
        whole = whole.float().to(x.dtype) if as_is else whole
        g = torch.where(column(inside, x), whole, g)
        ratio = torch.where(inside, found.detach(), ratio)
    record.dg_guidance.append(g)
    record.dg_log_ratio.append(ratio)
    return g, ratio


def sedm_gpp(
    denoise: Callable[..., Tensor],
    discriminator: Callable[..., Tensor],
    latents: Tensor,
    sigmas: list[float],
    noise: Callable[[int], Tensor],
    *,
    w_1st: float | list[float] = 2.0,
    w_2nd: float = 0.0,
    boosting: Boost | None = None,
    S_churn: float = 0.0,
    S_min: float = 0.0,
    S_max: float = math.inf,
    S_noise: float = 1.0,
    time_min: float = 0.01,
    time_max: float = 1.0,
    eps_scaler: float = 1.0,
    kappa: float = 0.0,
    use_euler: bool = False,
    scale_guidance: bool = False,
    labels: Tensor | None = None,
    cosine: bool = False,
    per_sample: bool = False,
    as_is: bool = False,
    round_sigma: Callable[[float], float] = float,
) -> dict[str, Tensor]:
    """Sections 8 (lambda = 1) and 9: everything the reference records, and `final`.

    Args:
        sigmas: the grid with its trailing 0.
        noise: (step) -> the draw of that step.
        scale_guidance: the other reading of SEDM-G++ (family sedm_b): lambda divides the guided slope.
        per_sample: the window is each sample's own.
        as_is: with the reference's float32 casts.
        round_sigma: of the network, applied to churned levels.
    """
    record, steps, ratio = Record(), len(sigmas) - 1, torch.full((len(latents),), math.inf, dtype=latents.dtype)
    window = {"time_min": time_min, "time_max": time_max, "cosine": cosine, "per_sample": per_sample, "as_is": as_is}
    given: dict[str, Any] = {} if labels is None else {"labels": labels}

    def slope(x: Tensor, sigma: Tensor, weight: float, scale: float, order: int, boosted: float = 1.0) -> Tensor:
        nonlocal ratio
        d = denoise(x, sigma, **given)
        record.call_x.append(x)
        record.call_sigma.append(sigma)
        record.call_denoised.append(d)
        d = (x - d) / column(sigma, x)
        g = torch.zeros_like(x)
        if weight != 0:
            g, found = log_ratio_gradient(discriminator, x, sigma, record, labels=labels, **window)
            record.dg_order.append(order)
            if order == 1:
                ratio = found
            else:  # the reference does not return the second one
                record.dg_log_ratio[-1] = torch.full_like(found, math.nan)
            if boosted != 1:
                g = torch.where(column(ratio < 0, x), boosted * g, g)
        g = weight * g / column(sigma, x)
        return (d + g) / scale if scale_guidance else d / scale + g

    weight = w_1st if isinstance(w_1st, list) else [w_1st] * steps
    x = latents * sigmas[0]
    for i, (now, following) in enumerate(pairwise(sigmas)):
        record.states.append(x)
        scale = eps_scaler + kappa * i
        flagged = (ratio < 0) if boosting and i % boosting.period == 0 else torch.zeros_like(ratio, dtype=torch.bool)
        churn, loud = torch.full_like(ratio, S_churn), torch.full_like(ratio, S_noise)
        if boosting:
            churn, loud = churn.masked_fill(flagged, boosting.churn), loud.masked_fill(flagged, boosting.noise)
        loud = loud.float().to(x.dtype) if as_is else loud
        gamma = (churn / steps).clamp(max=math.sqrt(2) - 1) * (S_min <= now <= S_max)
        hat = torch.tensor([round_sigma(s) for s in (now * (1 + gamma)).tolist()], dtype=ratio.dtype)
        added = torch.where(gamma > 0, hat**2 - now**2, torch.zeros_like(hat)).clamp(min=0).sqrt()
        z = noise(i) if bool((gamma > 0).any()) else torch.zeros_like(x)
        x_hat = x + column(added * loud, x) * z
        record.sigma_hat.append(hat)
        boosted = boosting.factor if boosting and i % boosting.factor_period == 0 else 1.0
        d = slope(x_hat, hat, weight[i], scale, 1, boosted)
        h = column(following - hat, x)
        x = x_hat + h * d
        if i < steps - 1 and not use_euler:
            d_prime = slope(x, torch.full_like(hat, following), w_2nd, scale, 2)
            x = x_hat + h * (d + d_prime) / 2
    record.states.append(x)
    return {**record.arrays(), "final": x}
