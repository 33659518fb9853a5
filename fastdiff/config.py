"""The configurations of training runs; what is read from files and command lines is checked against them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from .loading import ConfigError, assignment, load_config

__all__ = [
    "ConfigError",
    "DiscriminatorConfig",
    "ModelConfig",
    "ObjectiveConfig",
    "TrainConfig",
    "load_config",
    "load_discriminator_config",
    "load_train_config",
]


_Training = TypeVar("_Training", "TrainConfig", "DiscriminatorConfig")


@dataclass
class ModelConfig:
    """The part of `fastdiff.models.UNet`'s (or `MLP`'s) arguments that data and objective do not decide."""

    width: int = 32
    mults: list[int] = field(default_factory=lambda: [1, 2])
    blocks: int = 1
    attention: list[int] = field(default_factory=lambda: [1])
    heads: int = 2
    embedding: int = 128
    dropout: float = 0.0
    patch: int = 2
    depth: int = 3  # hidden layers, of an MLP; the keys above but width and embedding are a U-Net's


@dataclass
class ObjectiveConfig:
    """What is learnt, and at which noise levels; see `fastdiff.training.objectives`."""

    name: str = "edm"  # edm, ddpm, flow, sde, sde_ddpm, smld, dsm, ssm, ssm_vr
    prediction: str = "eps"  # ddpm: eps, x0, v, previous_x
    variance: str = "fixed_small"  # ddpm: fixed_small, fixed_large, learned, learned_range
    loss: str = "mse"  # ddpm: mse, rescaled_mse, kl, rescaled_kl
    weighting: str = "none"  # ddpm, with mse: none, or L_t (the weights of the variational bound)
    betas: str = "linear"  # ddpm: the noise schedule
    T: int = 1000  # ddpm: steps of the chain
    rescale_timesteps: bool = False  # ddpm: the network is told t * 1000 / T

    sde: str = "vp"  # sde: vp, subvp, ve
    beta_min: float = 0.1  # VP and sub-VP
    beta_max: float = 20.0
    sigma_min: float = 0.01  # VE, and the ladders of smld, dsm, ssm
    sigma_max: float = 50.0
    N: int = 1000  # steps of the discrete chain
    likelihood_weighting: bool = False
    reduce_mean: bool = True  # a sample's loss is the mean over its elements; false: half the sum

    levels: str = "auto"  # auto, uniform, antithetic, loss_second_moment, log_normal, log_snr, logit_normal
    P_mean: float = -1.2  # log_normal: ln(sigma) is normal with this mean ...
    P_std: float = 1.2  # ... and standard deviation (EDM, table 1)
    sigma_data: float = 0.5  # edm

    particles: int = 1  # ssm: projections per sample
    anneal_power: float = 2.0  # dsm: a level's weight is sigma to this power
    noise_levels: int = 10  # dsm, ssm: levels between sigma_max and sigma_min

    gamma: list[float] = field(default_factory=lambda: [0.0])  # input perturbation: a number, or at the cleanest and
    # the noisiest step of a schedule linear in between (Ning et al. 2023)
    perturbed_target: bool = False  # DDPM-y, a negative control: the target holds the perturbation too
    gradient_penalty: float = 0.0  # weight of the squared Frobenius norm of the network's Jacobian

    def check(self) -> None:
        """Refuses numbers out of range; names are the objective's to refuse.

        Raises:
            ConfigError: naming the key, what was wanted and what came.
        """

        def require(ok: bool, key: str, wanted: str) -> None:
            _require(ok, f"objective.{key}", wanted, getattr(self, key))

        for key in ("T", "N", "particles", "noise_levels"):
            require(getattr(self, key) >= 1, key, "at least 1")
        for key in ("P_std", "sigma_data", "beta_min", "sigma_min"):
            require(0 < getattr(self, key) < math.inf, key, "positive and finite")
        for low, high in (("beta_min", "beta_max"), ("sigma_min", "sigma_max")):
            bottom = getattr(self, low)
            require(bottom < getattr(self, high) < math.inf, high, f"above {low} = {bottom} and finite")
        for key in ("P_mean", "anneal_power"):
            require(math.isfinite(getattr(self, key)), key, "finite")
        require(0 <= self.gradient_penalty < math.inf, "gradient_penalty", "at least 0 and finite")
        gamma_ok = len(self.gamma) in (1, 2) and all(0 <= value < math.inf for value in self.gamma)
        require(gamma_ok, "gamma", "a number of at least 0, or two (at the cleanest and the noisiest step)")


@dataclass
class TrainConfig:
    """Everything that decides a training run; the keys of `fastdiff train`."""

    data: str = "digits16"  # what fastdiff.data.open_dataset opens: an embedded set, a folder, .zip, .npz, hf:NAME
    size: int = 0  # crop and resize images to this many pixels a side; 0: leave them as they are
    channels: int = 0  # 1 or 3: convert images to grey or RGB; 0: leave them as they are
    holdout: int = 0  # samples of a source without a test split that are held out
    workers: int = 0  # processes that read samples that do not fit in memory
    conditional: bool = True  # whether the network is given the class, where the data has classes
    label_dropout: float = 0.1  # probability of hiding a sample's class (conditional networks)
    flip: bool = False  # mirror half of the images
    augment: float = 0.0  # probability of each of EDM's augmentations; the network is told them

    network: str = "unet"  # unet, or mlp for points
    model: ModelConfig = field(default_factory=ModelConfig)
    init: str = ""  # a model file that training starts from: its weights and architecture (`model`: only the dropout)
    objective: ObjectiveConfig = field(default_factory=ObjectiveConfig)

    iterations: int = 4000
    batch: int = 128  # samples per iteration, over all ranks
    accumulation: int = 1  # parts in which a rank's share of the batch is computed
    optimizer: str = "adam"  # adam, or adamw
    learning_rate: float = 2e-3
    betas: list[float] = field(default_factory=lambda: [0.9, 0.99])  # Adam's
    weight_decay: float = 0.0  # adam: added to the gradient; adamw: decoupled
    schedule: str = "cosine"  # cosine (to 0), or constant
    warmup: int = 100  # iterations of linear warm-up
    grad_clip: float = 1.0  # largest gradient norm; 0 turns clipping off
    nonfinite_limit: int = (
        10  # updates in a row that are skipped for a gradient that is not finite, before the run ends
    )

    ema: list[float] = field(default_factory=lambda: [0.999])  # largest decays; model.safetensors is the first's
    ema_warmup: bool = True  # whether the decay at iteration i is at most (1 + i) / (10 + i)
    posthoc_ema: list[float] = field(default_factory=list)  # sigma_rel of the power-function averages, as 0.05, 0.1
    posthoc_every: int = 500  # iterations between their snapshots

    seed: int = 0
    device: str = "auto"  # auto: CUDA when there is one, else the CPU
    amp: str = "auto"  # bfloat16, float16 (autocast), none, or auto: bfloat16 with CUDA (on a CPU it is slower)
    channels_last: bool = False
    compile: bool = False  # torch.compile the network
    parallel: str = "ddp"  # under torchrun: ddp, or fsdp (weights, moments and averages in shards)

    log_every: int = 50  # iterations per row of the log
    evaluate_every: int = 500  # iterations between losses of the averaged network on held-out samples
    checkpoint_every: int = 500
    keep: int = 2  # checkpoints that are kept
    sample_every: int = 0  # iterations between grids of samples of the averaged network; 0: none
    samples: int = 64  # samples of a grid
    reference: str = ""  # train or test: with each grid, the Frechet distance of its samples to that split

    def as_dict(self) -> dict[str, Any]:
        """The configuration as nested plain dictionaries."""
        return asdict(self)

    def check(self) -> None:
        """Refuses values that are out of range.

        Raises:
            ConfigError: naming the key, what was wanted and what came.
        """
        _check_run(self)
        self.objective.check()
        for key in ("accumulation", "posthoc_every", "samples"):
            _require(getattr(self, key) >= 1, key, "at least 1", getattr(self, key))
        for key in ("workers", "sample_every", "size", "holdout"):
            _require(getattr(self, key) >= 0, key, "at least 0", getattr(self, key))
        _require(0 <= self.weight_decay < math.inf, "weight_decay", "at least 0 and finite", self.weight_decay)
        _require(0 <= self.label_dropout < 1, "label_dropout", "in [0, 1)", self.label_dropout)
        _require(0 <= self.augment <= 1, "augment", "in [0, 1]", self.augment)
        _require(bool(self.data), "data", "the name of a set, a folder or a file", self.data)
        _require(len(self.ema) > 0, "ema", "at least one decay", self.ema)
        for value in self.posthoc_ema:
            _require(0 < value < 0.28, "posthoc_ema", "between 0 and 0.28", value)
        _require(len(set(self.ema)) == len(self.ema), "ema", "different decays", self.ema)
        names = {f"{value:.3f}" for value in self.posthoc_ema}  # of the snapshots' files
        _require(len(names) == len(self.posthoc_ema), "posthoc_ema", "different to three decimals", self.posthoc_ema)
        _require(self.channels in (0, 1, 3), "channels", "0, 1 or 3", self.channels)
        _choose(self, "network", ("unet", "mlp"))
        _choose(self, "optimizer", ("adam", "adamw"))
        _choose(self, "schedule", ("cosine", "constant"))
        _choose(self, "parallel", ("ddp", "fsdp"))
        _choose(self, "reference", ("", "train", "test"))


@dataclass
class DiscriminatorConfig:
    """Everything that decides a discriminator's training; the keys of `fastdiff train-discriminator`."""

    data: str = "digits16"  # real samples: a name of fastdiff.data.DATASETS
    validation: float = 0.1  # fraction of the real and of the generated samples that is held out

    network: str = "digits"  # the denoiser whose samples are told from real ones: a model file, or digits
    solver: str = "heun"  # the fakes' sampler: a good one, not the few-step one that is to be guided
    steps: int = 18
    fakes: int = 5000  # generated samples; each has the class of a real one
    fake_seed: int = 1_000_000  # of the first; the others count up. Keep it away from seeds that are evaluated
    fake_batch: int = 250

    start: str = "denoiser"  # denoiser: begin as the network's own way down; scratch: as `model`
    extractor: str = "none"  # none; denoiser: its way down, frozen; or a TorchScript file (y, tau) -> [B, C, H, W]
    model: ModelConfig = field(default_factory=ModelConfig)  # of the encoder, unless the denoiser decides it
    conditional: bool = False  # whether the discriminator is given the class
    hidden: int = 128
    dropout: float = 0.1

    sigma_min: float = 0.01  # noise levels (VE) are log-uniform between these: VP times as Kim et al. 2023 draw them
    sigma_max: float = 5.0  # the paper's range is 0.001 to 152; on small data most of it teaches nothing
    temporal_weight: str = "none"  # none: every level counts alike; time: as if VP times were drawn uniformly

    iterations: int = 700  # at most
    patience: int = 3  # evaluations without a lower held-out loss before the run stops; 0: never
    batch: int = 256  # one half real, one half generated
    learning_rate: float = 5e-4
    betas: list[float] = field(default_factory=lambda: [0.9, 0.99])  # AdamW
    weight_decay: float = 1e-2
    warmup: int = 0  # iterations of linear warm-up; a cosine to 0 follows
    grad_clip: float = 1.0  # largest gradient norm; 0 turns clipping off
    nonfinite_limit: int = (
        10  # updates in a row that are skipped for a gradient that is not finite, before the run ends
    )
    ema: float = 0.995  # largest decay; the decay at iteration i is min(ema, (1 + i) / (10 + i))

    seed: int = 0
    device: str = "auto"
    amp: str = "auto"
    log_every: int = 20
    evaluate_every: int = 50  # iterations between losses of the averaged network on the held-out samples
    checkpoint_every: int = 100
    keep: int = 2  # checkpoints that are kept

    def as_dict(self) -> dict[str, Any]:
        """The configuration as nested plain dictionaries."""
        return asdict(self)

    def check(self) -> None:
        """Refuses values that are out of range.

        Raises:
            ConfigError: naming the key, what was wanted and what came.
        """
        _check_run(self)
        for key in ("steps", "fakes", "fake_batch", "hidden"):
            _require(getattr(self, key) >= 1, key, "at least 1", getattr(self, key))
        for key in ("fake_seed", "patience", "weight_decay"):
            _require(0 <= getattr(self, key) < math.inf, key, "at least 0 and finite", getattr(self, key))
        _require(self.batch % 2 == 0, "batch", "even: one half real, one half generated", self.batch)
        _require(0 < self.validation < 1, "validation", "in (0, 1)", self.validation)
        _require(0 <= self.dropout < 1, "dropout", "in [0, 1)", self.dropout)
        _require(0 < self.sigma_min < math.inf, "sigma_min", "positive and finite", self.sigma_min)
        wanted = f"above sigma_min = {self.sigma_min} and finite"
        _require(self.sigma_min < self.sigma_max < math.inf, "sigma_max", wanted, self.sigma_max)
        _choose(self, "start", ("denoiser", "scratch"))
        _choose(self, "temporal_weight", ("none", "time"))


def _check_run(config: TrainConfig | DiscriminatorConfig) -> None:
    """The checks of the keys that every training run has."""
    for key in ("iterations", "batch", "log_every", "evaluate_every", "checkpoint_every", "keep", "nonfinite_limit"):
        _require(getattr(config, key) >= 1, key, "at least 1", getattr(config, key))
    for key in ("warmup", "grad_clip", "seed"):
        _require(getattr(config, key) >= 0, key, "at least 0", getattr(config, key))
    _require(0 < config.learning_rate < math.inf, "learning_rate", "positive and finite", config.learning_rate)
    for decay in config.ema if isinstance(config.ema, list) else [config.ema]:
        _require(0 <= decay < 1, "ema", "in [0, 1)", decay)
    betas_ok = len(config.betas) == 2 and all(0 <= beta < 1 for beta in config.betas)
    _require(betas_ok, "betas", "two numbers in [0, 1)", config.betas)
    _choose(config, "amp", ("auto", "bfloat16", "float16", "none"))


def _require(ok: bool, key: str, wanted: str, got: Any) -> None:
    if not ok:
        raise ConfigError(f"{key} must be {wanted}, got {got!r}")


def _choose(config: Any, key: str, choices: Sequence[str]) -> None:
    names = [choice or "empty" for choice in choices]
    _require(getattr(config, key) in choices, key, f"{', '.join(names[:-1])} or {names[-1]}", getattr(config, key))


_LISTS = ("ema", "posthoc_ema", "objective.gamma")


def load_train_config(
    file: str | Path | None = None, overrides: Sequence[str] = (), preset: Mapping[str, Any] | None = None
) -> TrainConfig:
    """Defaults, then `preset`, then the YAML `file`, then `key=value` overrides (nested: `model.width=64`).

    Raises:
        ConfigError: the file cannot be read, a key is unknown (the message names the nearest known one), a
            value has the wrong type or is out of range.
    """
    return _checked(load_config(TrainConfig, file, map(assignment, overrides), _LISTS, preset))


def load_discriminator_config(file: str | Path | None = None, overrides: Sequence[str] = ()) -> DiscriminatorConfig:
    """As `load_train_config`, for a discriminator's training.

    Raises:
        ConfigError: see `load_train_config`.
    """
    return _checked(load_config(DiscriminatorConfig, file, map(assignment, overrides)))


def _checked(config: _Training) -> _Training:
    config.check()
    return config
