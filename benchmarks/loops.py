"""The loops fastdiff is compared with: the papers' formulas in plain PyTorch, and other libraries where installed.

Each takes a network callable, levels and a noise source, and returns the sample. `noise(k)` is the k-th draw of the
batch, 0 the initial latent: torch.randn when timed, fastdiff's own normals when results are compared.
"""

from __future__ import annotations

import importlib
import importlib.util
import math
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from fastdiff.process import Level, Levels

Network = Callable[[Tensor, Tensor], Tensor]
Noise = Callable[[int], Tensor]
Guide = Callable[[Tensor, Level], Tensor]


def missing(module: str) -> str:
    """Why a library cannot take part; empty if it can be imported."""
    if importlib.util.find_spec(module) is None:
        return f"{module} is not installed"
    try:
        importlib.import_module(module)
    except Exception as error:  # an installed package that does not import must not end the run
        return f"{module} does not import: {type(error).__name__}: {error}"
    return ""


def edm_heun(network: Network, levels: Levels, noise: Noise, guide: Guide | None = None, weight: float = 0.0) -> Tensor:
    """EDM's Algorithm 2 as its authors' program runs it: float64 state, levels on the device.

    S_churn is 0, and as there it is looked up on the device at every step (a synchronisation), and a normal is drawn
    and multiplied by 0. With a guide, weight sigma^2 gradient is added to every evaluation of D.
    """
    latents = noise(0)
    times = torch.tensor(levels.sigmas, dtype=torch.float64, device=latents.device)
    x = latents.double() * times[0]
    for i, (t, t_next) in enumerate(pairwise(times)):
        gamma = min(0.0, math.sqrt(2) - 1) if 0 <= t <= math.inf else 0
        t_hat = t + gamma * t
        x_hat = x + (t_hat**2 - t**2).sqrt() * torch.randn_like(x)
        d = (x_hat - _guided(network, x_hat, t_hat, guide, weight, levels[i])) / t_hat
        x = x_hat + (t_next - t_hat) * d
        if i < levels.steps - 1:
            d_prime = (x - _guided(network, x, t_next, guide, weight, levels[i + 1])) / t_next
            x = x_hat + (t_next - t_hat) * (0.5 * d + 0.5 * d_prime)
    return x


def _guided(network: Network, x: Tensor, t: Tensor, guide: Guide | None, weight: float, level: Level) -> Tensor:
    denoised = network(x.float(), t.float().expand(len(x))).double()
    return denoised if guide is None else denoised + weight * t**2 * guide(x, level).double()


def lean_heun(
    network: Network, levels: Levels, noise: Noise, guide: Guide | None = None, weight: float = 0.0
) -> Tensor:
    """The same update with everything eager PyTorch can leave out: float32, levels on the host, no draw."""
    x = noise(0) * levels[0].sigma
    fills = [torch.full((len(x),), level.sigma, device=x.device) for level in levels]

    def slope(x: Tensor, i: int) -> Tensor:
        denoised = network(x, fills[i])
        if guide is not None:
            denoised = denoised + weight * levels[i].sigma ** 2 * guide(x, levels[i])
        return (x - denoised) / levels[i].sigma

    for i, (level, following) in enumerate(pairwise(levels)):
        d = slope(x, i)
        trial = x + (following.sigma - level.sigma) * d
        if following.sigma:
            d = 0.5 * d + 0.5 * slope(trial, i + 1)
            trial = x + (following.sigma - level.sigma) * d
        x = trial
    return x


def ddpm(network: Network, levels: Levels, noise: Noise, clip: float = 1.0) -> Tensor:
    """Ho et al. 2020, Algorithm 2 with a clipped x_0 and the posterior's variance, coefficients on the host."""
    x, draw = noise(0), 0
    for level, following in pairwise(levels):
        abar, previous = level.alpha**2, following.alpha**2
        beta = 1 - abar / previous
        t = torch.full((len(x),), int(level.time), device=x.device)
        x0 = ((x - level.sigma * network(x, t)) / level.alpha).clamp(-clip, clip)
        x = beta * math.sqrt(previous) / (1 - abar) * x0 + (1 - previous) * math.sqrt(1 - beta) / (1 - abar) * x
        if following.sigma:
            draw += 1
            x = x + math.sqrt(beta * (1 - previous) / (1 - abar)) * noise(draw)
    return x


def ddim(network: Network, levels: Levels, noise: Noise, clip: float = 1.0) -> Tensor:
    """Song et al. 2021, Eq. 12 with eta = 0; eps follows the clipped x_0."""
    x = noise(0)
    for level, following in pairwise(levels):
        t = torch.full((len(x),), int(level.time), device=x.device)
        x0 = ((x - level.sigma * network(x, t)) / level.alpha).clamp(-clip, clip)
        x = following.alpha * x0 + following.sigma * ((x - level.alpha * x0) / level.sigma)
    return x


# -- other libraries --------------------------------------------------------------------------------------------------


def k_diffusion_heun(network: Network, levels: Levels, noise: Noise) -> Tensor:
    """k-diffusion's sample_heun on the same levels."""
    from k_diffusion.sampling import sample_heun

    x = noise(0) * levels[0].sigma
    sigmas = torch.tensor(levels.sigmas, dtype=torch.float32, device=x.device)
    return sample_heun(network, x, sigmas, disable=True)


def diffusers_policy(kind: str, trained: int, levels: Levels, device: torch.device) -> Callable[..., Tensor]:
    """diffusers' DDPM or DDIM scheduler of a cosine chain of `trained` steps, as Diffusion Policy configures it.

    Returns:
        loop(network, noise, generator): noise(0) is the latent; DDPM's draws come from the generator.
    """
    import diffusers

    chain = {"num_train_timesteps": trained, "beta_schedule": "squaredcos_cap_v2", "prediction_type": "epsilon"}
    timesteps = [int(level.time) for level in levels if level.sigma]
    if kind == "ddpm":
        scheduler = diffusers.DDPMScheduler(**chain, clip_sample=True, variance_type="fixed_small")
        scheduler.set_timesteps(timesteps=timesteps, device=device)
    else:
        scheduler = diffusers.DDIMScheduler(**chain, clip_sample=True, set_alpha_to_one=True)
        scheduler.set_timesteps(len(timesteps), device=device)
    options: dict[str, Any] = {"use_clipped_model_output": True} if kind == "ddim" else {}

    def loop(network: Network, noise: Noise, generator: torch.Generator | None = None) -> Tensor:
        x = noise(0)
        for t in scheduler.timesteps:
            output = network(x, t.expand(len(x)))
            x = scheduler.step(output, t, x, generator=generator, **options).prev_sample
        return x

    return loop


def diffusers_heun(network: Network, levels: Levels, noise: Noise) -> Tensor:
    """diffusers' HeunDiscreteScheduler with its own Karras grid: as many evaluations, slightly other levels.

    The scheduler takes eps, which the loop derives from D; that is what a user of an EDM network has to do.
    """
    import diffusers

    latents = noise(0)
    scheduler = diffusers.HeunDiscreteScheduler(use_karras_sigmas=True)
    scheduler.set_timesteps(levels.steps, device=latents.device)
    x = latents * scheduler.sigmas[0]
    for i, t in enumerate(scheduler.timesteps):
        sigma = scheduler.sigmas[i]
        eps = (x - network(x, sigma.expand(len(x)))) / sigma
        x = scheduler.step(eps, t, x).prev_sample
    return x
