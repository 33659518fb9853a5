"""The trainer of discriminators for discriminator guidance (Kim et al. 2023). Resumable, as every training run.

Real against generated samples, at VP times whose log signal-to-noise ratio is uniform: the paper's importance sampling.
The generated samples come from a sampler by seed; they are drawn anew by every run and never stored.
"""

from __future__ import annotations

import math
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .. import data as datasets
from ..config import ConfigError, DiscriminatorConfig
from ..data.digits import Images
from ..errors import warn
from ..evaluation.features import eight_bit
from ..evaluation.generate import generate
from ..guidance.vp import BETA_0, BETA_1, tau_of_sigma
from ..models.discriminator import Discriminator
from ..models.io import save
from ..models.unet import UNet
from ..opening import network_sampler, open_network
from ..sampler import Sampler
from .batches import Batches, mix
from .calibration import LN2, Report, assess, balanced_bce, vp_state
from .run import TrainingRun

__all__ = ["DiscriminatorTrainer", "NothingLearntError"]

_LEVELS = 9  # of the report at the end
_DRAWS = 4  # noisy states of each held-out sample


class NothingLearntError(RuntimeError):
    """The held-out cross-entropy never fell below ln 2, as far as its error tells: guidance by it would be noise."""


class DiscriminatorTrainer(TrainingRun):
    """Trains a `Discriminator` with the binary cross-entropy and keeps the average that was best on held-out samples.

    Writes to `outdir`: `config.yaml`, `log.jsonl`, `checkpoints/` and, at the end, `levels.csv` and
    `levels.png` (accuracy and calibration per noise level) and `model.safetensors` (for `fastdiff.models.load`).

    Args:
        config: a checked configuration (`fastdiff.config.load_discriminator_config`).
        outdir: folder to write to; it is created.
        resume: continue from the folder's checkpoint. Without it a folder that holds one is refused.
        sampler: draws the generated samples, in place of the configuration's network, solver and steps.
        real: real samples, in place of the configuration's data.
        discriminator: what is trained, in place of the configuration's start, extractor and model.

    Attributes:
        model, ema: the discriminator and its average.
        best: weights of the best average so far, or None.
        best_loss, best_iteration: its held-out cross-entropy, and when that was.
        report: accuracy and calibration per level, at the end.

    Raises:
        FileExistsError: `outdir` holds a checkpoint and `resume` is off.
        ConfigError: an argument that cannot be used, or the checkpoint was made with another configuration.
        ModelFileError: the checkpoint, the network or the extractor is missing or damaged.
        OSError: the folder cannot be written.
    """

    title = "discriminator"
    free_keys = TrainingRun.free_keys - {"evaluate_every"}  # evaluations decide when a run ends

    def __init__(
        self,
        config: DiscriminatorConfig,
        outdir: str | Path,
        resume: bool = False,
        *,
        sampler: Sampler | None = None,
        real: Images | None = None,
        discriminator: Discriminator | None = None,
    ) -> None:
        super().__init__(config, outdir, resume)
        self.real = datasets.load(config.data, "train") if real is None else real
        self.sampler = self._sampler() if sampler is None else sampler
        if self.sampler.shape is None or tuple(self.sampler.shape) != tuple(self.real.images.shape[1:]):
            wanted, got = list(self.real.images.shape[1:]), self.sampler.shape
            raise ConfigError(f"network must draw samples of the data's shape {wanted}, got {got}")
        self._real_parts = self._split(self.real.images, self.real.labels, "real")
        self._fake_parts: tuple[Images, Images] | None = None
        with torch.random.fork_rng(self.rng_devices()):
            torch.manual_seed(mix(config.seed, "weights", 0))
            model = (self._new() if discriminator is None else discriminator).to(self.device).train()
        self.best: dict[str, Tensor] | None = None
        self.best_loss, self.best_error, self.best_iteration = math.inf, 0.0, 0
        self._error = 0.0  # of the last evaluation
        self.report: Report | None = None
        half = config.batch // 2
        self._batches = (
            Batches(len(self._real_parts[0]), half, config.seed, "real"),
            Batches(config.fakes - self._held_out(config.fakes), half, config.seed, "fake"),
        )
        self.begin(model, self._optimizer, resume, [config.ema])

    def run(self, until: int | None = None, progress: bool = True) -> Path:
        """Draws the generated samples, trains to iteration `until` or until the held-out loss stops falling.

        Args:
            until: iteration to stop at, at most `config.iterations`; the schedule does not depend on it.
            progress: show progress bars.

        Returns:
            The model file, written when the run has ended.

        Raises:
            NothingLearntError: the run has ended, and the held-out cross-entropy never was below ln 2 by two of its
                standard errors. The reports per level are written, no model is.
            FloatingPointError: a generated sample, the loss or a gradient is NaN or infinite.
        """
        self.draw_fakes(progress)
        return super().run(until, progress)

    def draw_fakes(self, progress: bool = False) -> tuple[Images, Images]:
        """(training part, held-out part) of the generated samples: drawn once, rounded to 8 bits as the real ones."""
        if self._fake_parts is None:
            config, known = self.config, self.real.labels
            seeds = range(config.fake_seed, config.fake_seed + config.fakes)
            labels = known[torch.arange(config.fakes) % len(known)]  # in the proportions of the real samples
            asked = labels if getattr(self.sampler.model, "label_dim", 0) else None
            images = generate(self.sampler, seeds, labels=asked, batch=config.fake_batch, progress=progress)
            self._fake_parts = self._split(eight_bit(images), labels, "fake")
        return self._fake_parts

    def loss(self) -> Tensor:
        config, half = self.config, self.config.batch // 2
        parts = (self._real_parts[0], self.draw_fakes()[0])
        chosen = [batches(self.iteration).to(self.device) for batches in self._batches]
        clean = torch.cat([part.images[index] for part, index in zip(parts, chosen)])
        labels = torch.cat([part.labels[index] for part, index in zip(parts, chosen)])
        sigma = torch.cat([self._sigmas(half), self._sigmas(half)])
        y, tau = vp_state(clean, sigma, torch.randn_like(clean))
        target = torch.cat([torch.ones(half), torch.zeros(half)]).to(self.device)
        with torch.autocast(self.device.type, self.amp, enabled=self.amp is not None):
            logit = self.model(y, tau, labels if config.conditional else None)
        losses = F.binary_cross_entropy_with_logits(logit.float(), target, reduction="none")
        return (losses * self._weights(sigma).to(self.device)).mean()

    @torch.no_grad()
    def evaluate(self) -> float:
        """Cross-entropy of the averaged discriminator on the held-out samples, with fixed noise."""
        logits = []
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(mix(self.config.seed, "evaluate", 0))
            for part in (self._real_parts[1], self.draw_fakes()[1]):
                draws = []
                for _ in range(_DRAWS):
                    sigma, noise = self._sigmas(len(part)), torch.randn(part.images.shape)
                    y, tau = vp_state(part.images, sigma, noise)
                    labels = part.labels if self.config.conditional else None
                    draws.append(self._ema_logits(y, tau, labels))
                logits.append(torch.stack(draws, dim=1))
        loss, self._error = balanced_bce(*logits)
        return loss

    def evaluated(self, heldout: float) -> None:
        config = self.config
        if self.iteration % config.evaluate_every and self.iteration != config.iterations:
            return  # where a run was interrupted: the same run without the interruption knows nothing of it
        if heldout < self.best_loss:
            self.best = {name: tensor.clone() for name, tensor in self.weights(self.ema).items()}
            self.best_loss, self.best_error, self.best_iteration = heldout, self._error, self.iteration
        elif config.patience:
            self.stopped = self.iteration - self.best_iteration >= config.patience * config.evaluate_every

    def finish(self, heldout: float | None) -> Path:
        config = self.config
        if self.best is not None:
            self.ema.load_state_dict(self.best, strict=False)
        sigmas = np.geomspace(config.sigma_min, config.sigma_max, _LEVELS).tolist()
        real, fake = self._real_parts[1], self.draw_fakes()[1]
        known = (real.labels, fake.labels) if config.conditional else (None, None)
        self.report = assess(
            self.ema, real.images, fake.images, sigmas, real_labels=known[0], fake_labels=known[1], seed=config.seed
        )
        self.report.save_csv(self.outdir / "levels.csv")
        try:
            self.report.plot(self.outdir / "levels.png")
        except ModuleNotFoundError as error:
            warn(f"levels.png was not drawn: {error}")
        if not self.best_loss + 2 * self.best_error < LN2:
            raise NothingLearntError(
                f"the held-out cross-entropy never fell below ln 2 = {LN2:.4f} by two standard errors (best "
                f"{self.best_loss:.4f} +- {self.best_error:.4f} at iteration {self.best_iteration}), so no model was "
                f"written; see {self.outdir / 'levels.csv'}. start=denoiser, more fakes, a narrower noise range or a "
                "lower learning_rate may help"
            )
        description = {
            "time": "vp",
            "sigma_min": config.sigma_min,
            "sigma_max": config.sigma_max,
            "training": {
                "config": config.as_dict(),
                "network_digest": getattr(self.sampler.model, "metadata", {}).get("digest"),
                "torch": torch.__version__,
                "iteration": self.best_iteration,
                "heldout_loss": self.best_loss,
                "heldout_error": self.best_error,
                "levels": [{k: v for k, v in asdict(level).items() if k != "bins"} for level in self.report.levels],
            },
        }
        file = self.outdir / "model.safetensors"
        save(file, self.ema, description)
        return file

    # -- checkpoints --------------------------------------------------------------------------------------------------

    def extra_tensors(self) -> dict[str, Tensor]:
        best = self.weights(self.ema) if self.best is None else self.best
        return {f"best.{name}": tensor.clone() for name, tensor in best.items()}

    def extra_state(self) -> dict[str, Any]:
        loss = None if self.best is None else self.best_loss
        return {"best": [loss, self.best_error, self.best_iteration], "stopped": self.stopped}

    def restore(self, tensors: dict[str, Tensor], state: dict[str, Any]) -> None:
        loss, self.best_error, self.best_iteration = state["best"]
        self.stopped = state["stopped"]
        if loss is not None:
            self.best_loss = loss
            best = {name: tensor for name, tensor in tensors.items() if name.startswith("best.")}
            self.best = {name.removeprefix("best."): tensor.to(self.device) for name, tensor in best.items()}

    # -- parts --------------------------------------------------------------------------------------------------------

    def _sampler(self) -> Sampler:
        """The sampler of the configured network."""
        config = self.config
        denoiser = open_network(config.network, self.device)
        try:
            return network_sampler(denoiser, solver=config.solver, steps=config.steps)
        except (TypeError, ValueError) as error:
            raise ConfigError(f"solver, steps: {error}") from None

    def _new(self) -> Discriminator:
        """The discriminator that the configuration describes."""
        config, denoiser = self.config, self.sampler.model
        from_denoiser = config.extractor == "denoiser" or (config.extractor == "none" and config.start == "denoiser")
        classes = self.real.classes if config.conditional else 0
        architecture = {name: value for name, value in config.as_dict()["model"].items() if name != "depth"}
        if architecture.pop("dropout"):
            raise ConfigError("model.dropout must be left at 0: dropout is the discriminator's")
        try:
            if from_denoiser:
                if not isinstance(denoiser, UNet):
                    raise ValueError("start=denoiser needs a UNet; use start=scratch")
                own = {"dropout": config.dropout, "hidden": config.hidden, "frozen": config.extractor == "denoiser"}
                return Discriminator.from_denoiser(denoiser, config.conditional, **own)
            channels, size, _ = self.real.images.shape[1:]
            extractor: nn.Module | None = None
            if config.extractor != "none":
                extractor, (channels, size) = self._load_extractor(config.extractor)
            return Discriminator(
                image_size=size,
                channels=channels,
                label_dim=classes,
                hidden=config.hidden,
                dropout=config.dropout,
                extractor=extractor,
                **architecture,
            )
        except ValueError as error:
            raise ConfigError(f"model: {error}") from None

    def _load_extractor(self, file: str) -> tuple[nn.Module, tuple[int, int]]:
        """A TorchScript extractor, and (channels, size) of its features."""
        try:
            extractor = torch.jit.load(file, map_location=self.device)
        except (RuntimeError, ValueError, OSError) as error:
            reason = str(error).strip().splitlines()[0]
            raise ConfigError(f"extractor: {file} is no TorchScript file that can be read ({reason})") from None
        with torch.no_grad():
            features = extractor(self.real.images[:2].to(self.device), torch.full((2,), 0.1, device=self.device))
        if features.dim() != 4 or features.shape[2] != features.shape[3]:
            raise ConfigError(f"extractor: {file} must return square features [B, C, S, S], got {list(features.shape)}")
        return extractor, (features.shape[1], features.shape[2])

    def _optimizer(self, parameters: list[Tensor]) -> torch.optim.Optimizer:
        config = self.config
        first, second = config.betas
        options: dict[str, Any] = {"betas": (first, second), "weight_decay": config.weight_decay, "fused": True}
        return torch.optim.AdamW(parameters, lr=config.learning_rate, **options)

    def _held_out(self, count: int) -> int:
        """How many of `count` samples are held out."""
        held = round(count * self.config.validation)
        if not 2 <= held < count:
            raise ConfigError(f"validation must leave at least 2 of {count} samples on either side, got {held}")
        return held

    def _split(self, images: Tensor, labels: Tensor, purpose: str) -> tuple[Images, Images]:
        """(training part, held-out part) of a set, on the device."""
        held = self._held_out(len(images))
        generator = torch.Generator().manual_seed(mix(self.config.seed, f"split {purpose}", 0))
        order = torch.randperm(len(images), generator=generator)
        classes = self.real.classes
        train, test = (
            Images(images[part].to(self.device), labels[part].to(self.device), classes)
            for part in (order[held:], order[:held])
        )
        return train, test

    def _sigmas(self, count: int) -> Tensor:
        """float32 [count] on the CPU: log-uniform noise levels, one in each of `count` equal parts of the range."""
        place = (torch.randperm(count) + torch.rand(count)) / count
        return self.config.sigma_min * torch.exp(place * math.log(self.config.sigma_max / self.config.sigma_min))

    def _weights(self, sigma: Tensor) -> Tensor:
        """The temporal weight of each noise level, 1 on average."""
        if self.config.temporal_weight == "none":
            return torch.ones_like(sigma)
        # d tau / d ln sigma, by which drawing ln sigma uniformly differs from drawing tau uniformly
        tau = torch.from_numpy(tau_of_sigma(sigma.double().numpy()))
        slope = 2 * sigma.square() / (1 + sigma.square()) / (BETA_0 + (BETA_1 - BETA_0) * tau)
        lo, hi = self.config.sigma_min, self.config.sigma_max
        return (slope * math.log(hi / lo) / float(tau_of_sigma(hi) - tau_of_sigma(lo))).float()

    def _ema_logits(self, y: Tensor, tau: Tensor, labels: Tensor | None) -> Tensor:
        """[B] logits of the averaged discriminator, on the CPU."""
        parts = []
        for part in torch.arange(len(y), device=y.device).split(500):
            parts.append(self.ema(y[part], tau[part], None if labels is None else labels[part]).float().cpu())
        return torch.cat(parts)
