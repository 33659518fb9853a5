"""What a run learns, by the names of its configuration: the loss, the levels it is taken at, what the network needs.

An objective ties together a function of `losses`, a sampler of `levels`, the options that a network of this package
must have for it, and the description from which the trained network is sampled (`fastdiff.opening.network_sampler`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import asdict
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from .. import sde as sdes
from ..config import ConfigError, ObjectiveConfig
from ..errors import check_choice
from ..process import VP
from . import levels as samplers
from . import losses
from .chain import Chain
from .losses.penalty import gradient_penalty
from .perturb import input_perturbation

__all__ = ["Objective", "make_objective"]

_EVERY = ("name", "levels", "gamma", "perturbed_target", "gradient_penalty")  # keys that every objective reads
_PENALTY_DRAW = 1 << 20  # of the noise contract: 0 and 1 are z and xi, the directions of sliced score matching follow


class Objective:
    """A loss and the noise levels it is taken at.

    Args:
        config: what the subclasses read.
        device: of the tables.
        bins: values that an element of the data can have, for the likelihood in the variational bound.
    """

    chooses: tuple[str, ...]  # names of `levels` it can be trained with, its own choice first
    reads: tuple[str, ...] = ()  # keys of the configuration, beside those of every objective

    def __init__(self, config: ObjectiveConfig, device: torch.device, bins: int = 256):
        self.config, self.device, self.bins = config, device, bins
        name = self.chooses[0] if config.levels == "auto" else config.levels
        self.levels = self.level_sampler(check_choice("levels", name, self.chooses))

    def level_sampler(self, name: str) -> samplers.LevelSampler:
        """The sampler of levels of that name."""
        raise NotImplementedError

    def draw(self, batch: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Levels and importance weights of a batch, [batch] each, on the CPU; they depend on the generator only."""
        return self.levels.draw(batch, generator)

    def update(self, levels: Tensor, values: Tensor) -> None:
        """Tells the sampler of levels the losses of a whole batch, before any importance weight."""
        self.levels.update(levels, values)

    def loss(
        self, network: Callable[..., Tensor], x0: Tensor, levels: Tensor, noise: Tensor, cond: Mapping[str, Any]
    ) -> Tensor:
        """The loss of every sample, regulariser included: [B], with the graph of its gradient.

        Args:
            network: `(x, time, **cond) -> output`.
            x0: [B, ...] clean samples.
            levels: [B], from `draw`, on any device.
            noise: int64 [B] seeds, or z itself.
            cond: keyword arguments of the network.
        """
        levels = levels.to(x0.device, non_blocking=True)
        weight = self.config.gradient_penalty
        if not weight:
            return self.sample_loss(network, x0, levels, noise, cond)
        calls: list[tuple[Tensor, Tensor, Tensor]] = []

        def watched(x: Tensor, time: Tensor, **given: Any) -> Tensor:
            output = network(x, time, **given)
            calls.append((x, time, output))
            return output

        value = self.sample_loss(watched, x0, levels, noise, cond)
        penalty = gradient_penalty(network, *calls[0], noise, draw=_PENALTY_DRAW, cond=cond)
        return value + weight * penalty

    def sample_loss(
        self, network: Callable[..., Tensor], x0: Tensor, levels: Tensor, noise: Tensor, cond: Mapping[str, Any]
    ) -> Tensor:
        """The loss of every sample without the gradient penalty: [B]."""
        raise NotImplementedError

    def network_options(self) -> dict[str, Any]:
        """Arguments that a network of `fastdiff.models` needs for this objective."""
        raise NotImplementedError

    def metadata(self) -> dict[str, Any]:
        """How the network's output is read, for its model file; JSON."""
        raise NotImplementedError

    @cached_property
    def perturbation(self) -> dict[str, Any]:
        """Input perturbation of the continuous objectives: one number at every level."""
        gamma = input_perturbation(self.config.gamma, 2)
        if gamma is None:
            if self.config.perturbed_target:
                raise ConfigError("objective.perturbed_target must be false without a gamma, got True")
            return {}
        if len(set(gamma.tolist())) > 1:
            raise ConfigError(f"objective.gamma must be one number for {self.config.name}, got {self.config.gamma}")
        return {"gamma": float(gamma[0]), "perturbed_target": self.config.perturbed_target}


class EDMObjective(Objective):
    """EDM (Karras et al. 2022): `losses.edm_loss` at log-normal noise levels."""

    chooses = ("log_normal", "log_snr")
    reads = ("P_mean", "P_std", "sigma_data")

    def level_sampler(self, name: str) -> samplers.LevelSampler:
        if name == "log_normal":
            return samplers.LogNormal(self.config.P_mean, self.config.P_std)
        return samplers.UniformLogSNR(0.002, 80.0)

    def sample_loss(self, network, x0, levels, noise, cond):  # type: ignore[no-untyped-def]
        return losses.edm_loss(
            network, x0, levels, noise, sigma_data=self.config.sigma_data, cond=cond, **self.perturbation
        )

    def network_options(self) -> dict[str, Any]:
        return {}

    def metadata(self) -> dict[str, Any]:
        return {"prediction": "edm", "sigma_data": self.config.sigma_data}


class DDPMObjective(Objective):
    """The losses of a discrete chain (Ho et al. 2020, Nichol & Dhariwal 2021): `losses.ddpm_loss`."""

    chooses = ("uniform", "antithetic", "loss_second_moment", "log_snr")
    reads = ("prediction", "variance", "loss", "weighting", "betas", "T", "rescale_timesteps")

    def __init__(self, config: ObjectiveConfig, device: torch.device, bins: int = 256):
        makers = {"linear": VP.linear, "cosine": VP.cosine}
        process = makers[check_choice("betas", config.betas, makers)](
            config.T, rescale_timesteps=config.rescale_timesteps
        )
        self.chain = Chain(process, device=device)
        self.gamma = input_perturbation(config.gamma, config.T)
        if config.perturbed_target and self.gamma is None:
            raise ConfigError("objective.perturbed_target must be false without a gamma, got True")
        super().__init__(config, device, bins)

    def level_sampler(self, name: str) -> samplers.LevelSampler:
        T = self.chain.T
        if name == "log_snr":
            return samplers.LogSNRSteps(torch.from_numpy(self.chain.tables.alphas_cumprod))
        kinds = {"uniform": samplers.Uniform, "antithetic": samplers.Antithetic}
        return kinds[name](T) if name in kinds else samplers.LossSecondMoment(T)

    def sample_loss(self, network, x0, levels, noise, cond):  # type: ignore[no-untyped-def]
        config = self.config
        return losses.ddpm_loss(
            network,
            x0,
            levels,
            noise,
            self.chain,
            prediction=config.prediction,
            variance=config.variance,
            loss=config.loss,
            weighting=None if config.weighting == "none" else config.weighting,
            gamma=self.gamma,
            perturbed_target=config.perturbed_target,
            bins=self.bins,
            cond=cond,
        ).loss

    def network_options(self) -> dict[str, Any]:
        return {"learned_variance": self.config.variance.startswith("learned"), "time_scale": 1.0}

    def metadata(self) -> dict[str, Any]:
        config = self.config
        names = ("betas", "T", "rescale_timesteps")
        process = {"name": "vp", **{name: getattr(config, name) for name in names}}
        return {"prediction": config.prediction, "process": process, "variance": config.variance}


class FlowObjective(Objective):
    """Flow matching (Lipman et al. 2023): `losses.flow_loss`."""

    chooses = ("uniform", "antithetic", "logit_normal", "log_snr")

    def level_sampler(self, name: str) -> samplers.LevelSampler:
        if name == "logit_normal":
            return samplers.LogitNormal()
        if name == "log_snr":
            return _FlowTime(0.002, 80.0)
        return samplers.UniformTime(0.0, 1.0, antithetic=name == "antithetic")

    def sample_loss(self, network, x0, levels, noise, cond):  # type: ignore[no-untyped-def]
        return losses.flow_loss(network, x0, levels, noise, cond=cond, **self.perturbation)

    def network_options(self) -> dict[str, Any]:
        return {"time_scale": 1000.0}

    def metadata(self) -> dict[str, Any]:
        return {"prediction": "flow", "process": {"name": "flow"}}


class _FlowTime(samplers.UniformLogSNR):
    """Uniform in log SNR, as times of the flow: t = s / (1 + s)."""

    def draw(self, batch: int, generator: torch.Generator | None = None) -> tuple[Tensor, Tensor]:
        sigma, weights = super().draw(batch, generator)
        return sigma / (1 + sigma), weights


class SDEObjective(Objective):
    """Score matching in continuous time (Song et al. 2021): `losses.sde_loss`."""

    chooses = ("uniform", "antithetic")
    reads = ("sde", "beta_min", "beta_max", "sigma_min", "sigma_max", "N", "likelihood_weighting", "reduce_mean")

    def __init__(self, config: ObjectiveConfig, device: torch.device, bins: int = 256):
        limits = ("sigma_min", "sigma_max") if config.sde == "ve" else ("beta_min", "beta_max")
        self.sde_options = {name: getattr(config, name) for name in (*limits, "N")}
        self.sde = sdes.get_sde(config.sde, **self.sde_options)
        super().__init__(config, device, bins)

    def level_sampler(self, name: str) -> samplers.LevelSampler:
        return samplers.UniformTime(self.sde.training_eps, self.sde.T, antithetic=name == "antithetic")

    def sample_loss(self, network, x0, levels, noise, cond):  # type: ignore[no-untyped-def]
        config = self.config
        return losses.sde_loss(
            network,
            x0,
            levels,
            noise,
            self.sde,
            reduce_mean=config.reduce_mean,
            likelihood_weighting=config.likelihood_weighting,
            cond=cond,
            **self.perturbation,
        )

    def network_options(self) -> dict[str, Any]:
        return _SIGMA_NETWORK if self.sde.name == "ve" else {"time_scale": 1.0}

    def metadata(self) -> dict[str, Any]:
        prediction = "score" if self.sde.name == "ve" else "eps"
        return {"prediction": prediction, "process": {"name": "sde", "sde": self.sde.name, **self.sde_options}}


_SIGMA_NETWORK = {"log_time": True, "scale_by_sigma": True}  # told sigma, its output divided by sigma: a score


class _Ladder(Objective):
    """Objectives on a ladder of noise levels, geometric from sigma_max down to sigma_min; networks are told sigma."""

    chooses = ("uniform", "antithetic")

    def __init__(self, config: ObjectiveConfig, device: torch.device, bins: int = 256):
        ends = math.log(config.sigma_max), math.log(config.sigma_min)
        count = config.N if config.name == "smld" else config.noise_levels
        self.sigmas = torch.linspace(*ends, count, dtype=torch.float64).exp().to(device)
        super().__init__(config, device, bins)

    def level_sampler(self, name: str) -> samplers.LevelSampler:
        return {"uniform": samplers.Uniform, "antithetic": samplers.Antithetic}[name](len(self.sigmas))

    def network_options(self) -> dict[str, Any]:
        return _SIGMA_NETWORK

    def metadata(self) -> dict[str, Any]:
        limits = {name: getattr(self.config, name) for name in ("sigma_min", "sigma_max")}
        return {"prediction": "score", "process": {"name": "ve", **limits}}


class SMLDObjective(_Ladder):
    """score-SDE's loss on a VE chain of N levels: `losses.smld_loss`."""

    reads = ("sigma_min", "sigma_max", "N", "reduce_mean")

    def __init__(self, config: ObjectiveConfig, device: torch.device, bins: int = 256):
        self.sde = sdes.VESDE(config.sigma_min, config.sigma_max, config.N)
        super().__init__(config, device, bins)

    def sample_loss(self, network, x0, levels, noise, cond):  # type: ignore[no-untyped-def]
        def told_sigma(x: Tensor, label: Tensor, **given: Any) -> Tensor:
            return network(x, self.sigmas[label].to(x.dtype), **given)

        return losses.smld_loss(
            told_sigma,
            x0,
            levels,
            noise,
            self.sde,
            reduce_mean=self.config.reduce_mean,
            cond=cond,
            **self.perturbation,
        )


class ChainObjective(Objective):
    """score-SDE's loss on a VP chain of N steps: `losses.sde_ddpm_loss`."""

    chooses = ("uniform", "antithetic")
    reads = ("beta_min", "beta_max", "N", "reduce_mean")

    def __init__(self, config: ObjectiveConfig, device: torch.device, bins: int = 256):
        self.sde_options = {name: getattr(config, name) for name in ("beta_min", "beta_max", "N")}
        self.sde = sdes.VPSDE(**self.sde_options)
        super().__init__(config, device, bins)

    def level_sampler(self, name: str) -> samplers.LevelSampler:
        return {"uniform": samplers.Uniform, "antithetic": samplers.Antithetic}[name](self.sde.N)

    def sample_loss(self, network, x0, levels, noise, cond):  # type: ignore[no-untyped-def]
        return losses.sde_ddpm_loss(
            network, x0, levels, noise, self.sde, reduce_mean=self.config.reduce_mean, cond=cond, **self.perturbation
        )

    def network_options(self) -> dict[str, Any]:
        return {"time_scale": 1.0}

    def metadata(self) -> dict[str, Any]:
        process = {"name": "sde", "sde": "vp", "continuous": False, **self.sde_options}
        return {"prediction": "eps", "process": process}


class DSMObjective(_Ladder):
    """Denoising score matching on NCSN's levels (Song & Ermon 2019): `losses.dsm_loss`."""

    reads = ("sigma_min", "sigma_max", "noise_levels", "anneal_power")

    def sample_loss(self, network, x0, levels, noise, cond):  # type: ignore[no-untyped-def]
        power = self.config.anneal_power
        return losses.dsm_loss(
            network, x0, self.sigmas[levels], noise, anneal_power=power, cond=cond, **self.perturbation
        )


class SSMObjective(_Ladder):
    """Sliced score matching of the perturbed data on NCSN's levels (Song et al. 2019): `losses.ssm_loss`, plain or
    variance-reduced."""

    reads = ("sigma_min", "sigma_max", "noise_levels", "particles")

    def sample_loss(self, network, x0, levels, noise, cond):  # type: ignore[no-untyped-def]
        if self.perturbation:
            raise ConfigError(f"objective.gamma must be 0 for {self.config.name}, got {self.config.gamma}")
        loss = losses.ssm_vr_loss if self.config.name == "ssm_vr" else losses.ssm_loss
        return loss(network, x0, self.sigmas[levels], noise, particles=self.config.particles, cond=cond)


_OBJECTIVES: dict[str, type[Objective]] = {
    "edm": EDMObjective,
    "ddpm": DDPMObjective,
    "flow": FlowObjective,
    "sde": SDEObjective,
    "sde_ddpm": ChainObjective,
    "smld": SMLDObjective,
    "dsm": DSMObjective,
    "ssm": SSMObjective,
    "ssm_vr": SSMObjective,
}


def make_objective(config: ObjectiveConfig, device: torch.device | str = "cpu", bins: int = 256) -> Objective:
    """The objective that a configuration names.

    Args:
        device: where it is used.
        bins: values that an element of the data can have in [-1, 1]; losses of the variational bound need it.

    Raises:
        ConfigError: naming the key, what was wanted and what came; also for a key that this objective does not read.
    """
    try:
        kind = _OBJECTIVES[check_choice("name", config.name, _OBJECTIVES)]
        for key, default in asdict(ObjectiveConfig()).items():
            if key not in (*_EVERY, *kind.reads) and (got := getattr(config, key)) != default:
                raise ValueError(f"{key} must be left at {default!r}: {config.name} does not read it, got {got!r}")
        objective = kind(config, torch.device(device), bins)
        _try(objective)
    except ConfigError:
        raise
    except ValueError as error:
        raise ConfigError(f"objective.{error}") from None
    return objective


def _try(objective: Objective) -> None:
    """Lets the loss refuse what it cannot use, on a sample of one element."""
    twice = objective.network_options().get("learned_variance", False)

    def nothing(x: Tensor, time: Tensor) -> Tensor:
        return 0 * (torch.cat([x, x], 1) if twice else x)

    levels, _ = objective.levels.draw(1, torch.Generator().manual_seed(0))
    sample = torch.zeros(1, 1, 1, 1, device=objective.device)
    objective.loss(nothing, sample, levels, torch.zeros(1, dtype=torch.int64, device=objective.device), {})
