"""Likelihoods by the probability-flow ODE: of a score function and its SDE, and of any model that a Sampler takes."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from ..arguments import conditioning
from ..engine import require_shape, split_variance
from ..errors import check_finite, check_positive
from ..prediction import Prediction, PreviousX, get_prediction
from ..process import VE, VP, Level, Process, get_process
from ..sde import SDE
from .integration import Solved, integrate

__all__ = ["Likelihood", "nll_network", "nll_ode"]

_FINEST = 1e-3  # of processes with levels down to 0


class Likelihood(NamedTuple):
    """Log-densities of B samples.

    Attributes:
        logp: ln density in nats: float64 [B], the mean over the probes.
        bpd: -logp / (D ln 2) + offset, in bits per dimension: float64 [B].
        probe_error: standard error of `bpd` over the probes: float64 [B]; NaN with one probe, 0 where exact.
        z: [B, ...] the states at the end of the ODE, in the data's dtype.
        nfe: evaluations of the network by the solver, for the whole batch (each with a backward pass per probe).
    """

    logp: Tensor
    bpd: Tensor
    probe_error: Tensor
    z: Tensor
    nfe: int


def nll_ode(
    score_fn: Callable[..., Tensor],
    x: Tensor,
    sde: SDE,
    *,
    eps: float = 1e-5,
    labels: Any = None,
    cond: Mapping[str, Any] | None = None,
    offset: float = 0.0,
    **options: Any,
) -> Likelihood:
    """Log-density of the states x at time `eps` of an SDE, from the score (score_sde's likelihood).

    Args:
        score_fn: called as score_fn(x, t [B], **cond) with x in the data's dtype and t in float64; differentiable in x.
            `fastdiff.sde.score_fn` makes it of a network.
        x: [B, ...] float32 or float64, dequantised (see `dequantise`).
        sde: its drift, diffusion and prior.
        eps: the time the data are taken to be at.
        labels, cond: as in a call of a `Sampler`.
        offset: added to the bits per dimension: log2(1 / width of a level). 0 leaves those of the density; for images
            dequantised as (k + u) / 256 it is 8, and 7 once they are scaled to [-1, 1] (score_sde's figures).
        options: of the integration, see below.

    Integration (`nll_network` has the same options):
        probe: "rademacher", "gaussian" or "exact" (D backward passes per evaluation).
        probes: Hutchinson probes per sample, each with an integral of its own.
        seeds: probe k of a sample is draw k + 1 of its seed (a Rademacher one its sign), in any batch; an int s is s,
            s+1, ...; None takes fresh ones from PyTorch's generator.
        hutchinson: the probes themselves, [B, ...] or [probes, B, ...], in place of seeds.
        method: one of torchdiffeq's adaptive methods ("dopri5", "dopri8", "bosh3", "fehlberg2", "adaptive_heun"); with
            `steps` one of its fixed ones ("rk4", "heun3", "midpoint", "euler") with that many equal steps; or "RK45",
            scipy's, whose error is one root mean square over the whole batch: score_sde's solver, and its nfe.
        rtol, atol: of the adaptive methods. The batch shares its steps, and a step is taken when every sample is within
            tolerance: the root mean square over its elements, and each of its integrals of the divergence. So a sample
            that is solved in another batch differs, but by no more than the tolerances let it; with a fixed method
            it does not differ but for the network's rounding.

    Raises:
        ValueError, TypeError: a bad argument, before any work.
        FloatingPointError: the velocity is not finite; names the time.
        ModuleNotFoundError: torchdiffeq is not installed.
    """
    check_finite("offset", offset)
    check_positive("eps", eps)
    if eps >= sde.T:
        raise ValueError(f"eps must be below the SDE's T={sde.T}, got {eps}")
    batch = len(_checked_data(x))
    kwargs = conditioning(cond, labels, batch, None, x.device)

    def velocity(y: Tensor, t: float) -> Tensor:
        time = torch.full((batch,), t, dtype=torch.float64, device=y.device)
        drift, diffusion = float(sde.drift(time[:1])), float(sde.diffusion(time[:1]))
        score = require_shape("score_fn", score_fn(y, time, **kwargs), y.shape)
        return drift * y - 0.5 * diffusion**2 * score

    solved = integrate(velocity, x, (eps, sde.T), **options)
    return _result(solved, sde.prior_logp(solved.z), x, offset)


def nll_network(
    model: Callable[..., Tensor],
    x: Tensor,
    *,
    process: str | Process = "edm",
    prediction: str | Prediction = "x0",
    sigma_min: float | None = None,
    sigma_max: float | None = None,
    labels: Any = None,
    cond: Mapping[str, Any] | None = None,
    offset: float = 0.0,
    **options: Any,
) -> Likelihood:
    """Log-density of data under any model that `fastdiff.Sampler` takes, by its probability-flow ODE.

    In VE terms, u = x_t / alpha with noise sigma: du / d ln sigma = u - x_0(u, sigma) (Karras et al. 2022, Eq. 4). The
    data are taken as u at `sigma_min`; at `sigma_max` the prior is what the process's samplers start from. The velocity
    is computed on tensors and not by a plan, because gradients must flow through all of it for the divergence.

    Args:
        model: as a `Sampler`'s; differentiable in x. On a VP process it is asked between timesteps, at the time
            interpolated in ln sigma, so its time must be a number and not an index.
        x: [B, ...] float32 or float64, dequantised (see `dequantise`).
        process, prediction: as a `Sampler`'s.
        sigma_min, sigma_max: noise levels in VE terms; default: the process's. A low sigma_min tells more of the data
            and asks more of the network, which must know it.
        labels, cond: as in a call of a `Sampler`.
        offset: see `nll_ode`.
        options: probe, probes, seeds, hutchinson, method, steps, rtol, atol: see `nll_ode`.

    Raises:
        ValueError, TypeError, FloatingPointError, ModuleNotFoundError: see `nll_ode`.
    """
    check_finite("offset", offset)
    path, predicts = _Path(get_process(process), sigma_min, sigma_max), get_prediction(prediction)
    if isinstance(predicts, PreviousX):
        raise ValueError(
            f"prediction must say x_0 at every level for the ODE (nll_bound takes others), got {predicts.name!r}"
        )
    batch = len(_checked_data(x))
    kwargs = conditioning(cond, labels, batch, getattr(model, "label_dim", None), x.device)

    def velocity(u: Tensor, log_sigma: float) -> Tensor:
        level = path.level(math.exp(log_sigma))
        c = predicts.coefficients(level)
        time = torch.full((batch,), float(predicts.time(level)), dtype=u.dtype, device=u.device)
        output, _ = split_variance(model(level.alpha * c.c_in * u, time, **kwargs), u.shape)
        return (1 - level.alpha * c.c_skip) * u - c.c_out * output.to(u.dtype)

    solved = integrate(velocity, x, (math.log(path.sigma_min), math.log(path.sigma_max)), **options)
    last = path.level(path.sigma_max)
    flat, variance = solved.z.flatten(1), (path.process.prior_std(last) / last.alpha) ** 2
    prior = -0.5 * (flat.shape[1] * math.log(2 * math.pi * variance) + flat.square().sum(1) / variance)
    return _result(solved._replace(z=solved.z * last.alpha), prior, x, offset)


class _Path:
    """The levels of a process as a continuous function of the noise in VE terms, and where they begin and end."""

    def __init__(self, process: Process, sigma_min: float | None, sigma_max: float | None):
        self.process = process
        low, high = self._limits()
        self.sigma_min = check_positive("sigma_min", low if sigma_min is None else sigma_min)
        self.sigma_max = check_positive("sigma_max", high if sigma_max is None else sigma_max)
        if not self.sigma_min < self.sigma_max:
            raise ValueError(f"sigma_min must be below sigma_max={self.sigma_max}, got {self.sigma_min}")
        if isinstance(process, VP) and not low <= self.sigma_min < self.sigma_max <= high:
            raise ValueError(
                f"sigma_min and sigma_max must be within the process's {low:.6g} to {high:.6g}, "
                f"got {self.sigma_min} and {self.sigma_max}"
            )

    def _limits(self) -> tuple[float, float]:
        process = self.process
        if isinstance(process, VP):
            sigmas = np.sqrt(1 / process.alphas_cumprod - 1)
            self._log_sigmas = np.log(sigmas)
            return float(sigmas[0]), float(sigmas[-1])
        if isinstance(process, VE):
            return process.sigma_min, process.sigma_max
        noisy = [level for level in process.levels(1000) if 0 < level.sigma_ve < math.inf]
        return max(noisy[-1].sigma_ve, _FINEST), noisy[0].sigma_ve

    def level(self, sigma: float) -> Level:
        if not isinstance(self.process, VP):
            return self.process.level_at_sigma(sigma)
        t = float(np.interp(math.log(sigma), self._log_sigmas, np.arange(self.process.T)))
        return self.process.level(t, 1 / (1 + sigma**2))._replace(time=self._time(t))

    def _time(self, t: float) -> float:
        assert isinstance(self.process, VP)
        return t * 1000 / self.process.T if self.process.rescale_timesteps else t


def _checked_data(x: Any) -> Tensor:
    if not isinstance(x, Tensor) or x.dtype not in (torch.float32, torch.float64) or x.ndim < 2:
        raise ValueError(f"x must be a float32 or float64 tensor [B, ...], got {getattr(x, 'dtype', type(x).__name__)}")
    if not bool(x.isfinite().all()):
        raise ValueError("x must be finite")
    return x


def _result(solved: Solved, prior: Tensor, x: Tensor, offset: float) -> Likelihood:
    bits = math.log(2) * max(1, x[:1].numel())
    each = prior[:, None] + solved.divergence  # [B, K]
    count = each.shape[1]
    error = torch.zeros_like(prior)
    if not solved.exact:
        many = count > 1 and len(x) > 0
        error = each.std(1) / (bits * math.sqrt(count)) if many else error.fill_(math.nan)
    bpd = -each.mean(1) / bits + offset
    return Likelihood(each.mean(1), bpd, error, solved.z.to(x.dtype), solved.nfe)
