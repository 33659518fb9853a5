"""The trainer of denoisers. A killed run that is resumed ends with the same bits (see `run`)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .. import data as datasets
from ..config import ConfigError, TrainConfig
from ..models.io import save
from ..models.unet import UNet
from .loss import draw_sigma, edm_loss
from .run import Batches, TrainingRun, mix

__all__ = ["Trainer"]


class Trainer(TrainingRun):
    """Trains a `UNet` with the EDM loss and keeps an exponential moving average of its weights.

    Writes to `outdir`: `config.yaml`, `loss.csv`, `checkpoint.safetensors` (to resume from) and, at the end,
    `model.safetensors` (the averaged network, for `fastdiff.models.load`).

    Args:
        config: a checked configuration (`fastdiff.config.load_train_config`).
        outdir: folder to write to; it is created.
        resume: continue from the folder's checkpoint. Without it a folder that holds one is refused.

    Attributes:
        model, ema: the network and its average.
        iteration: iterations done so far.

    Raises:
        FileExistsError: `outdir` holds a checkpoint and `resume` is off.
        ConfigError: the checkpoint was made with another configuration, or there is no CUDA device to use.
        ModelFileError: `resume` is on and the checkpoint is missing or damaged.
        OSError: the folder cannot be written.
    """

    def __init__(self, config: TrainConfig, outdir: str | Path, resume: bool = False) -> None:
        super().__init__(config, outdir, resume)
        self.train_set = datasets.load(config.data, "train")
        self.test_set = datasets.load(config.data, "test")
        self.images = self.train_set.images.to(self.device)
        self.labels = self.train_set.labels.to(self.device)

        channels, size, _ = self.images.shape[1:]
        classes = self.train_set.classes if config.conditional else 0
        architecture: dict[str, Any] = dict(config.as_dict()["model"])
        with torch.random.fork_rng(self.rng_devices()):
            torch.manual_seed(mix(config.seed, "weights", 0))
            try:
                model = UNet(image_size=size, channels=channels, label_dim=classes, **architecture)
            except ValueError as error:
                raise ConfigError(f"model: {error}") from None
        model = model.to(self.device).train()
        first, second = config.betas
        optimizer = torch.optim.Adam(model.parameters(), lr=config.learning_rate, betas=(first, second), fused=True)
        self.batches = Batches(len(self.train_set), config.batch, config.seed)
        self.begin(model, optimizer, resume)

    def loss(self) -> Tensor:
        config, device = self.config, self.device
        chosen = self.batches(self.iteration).to(device)
        images, labels = self.images[chosen], None
        sigma = draw_sigma(config.batch, config.P_mean, config.P_std, device)
        noise = torch.randn_like(images)
        if config.conditional:
            hidden = torch.rand(config.batch, device=device) < config.label_dropout
            labels = self.labels[chosen].masked_fill(hidden, -1)
        with torch.autocast(device.type, torch.bfloat16, enabled=self.amp):
            return edm_loss(self.model, images, sigma, noise, labels, config.sigma_data).mean()

    @torch.no_grad()
    def evaluate(self) -> float:
        """Mean EDM loss of the averaged network on the held-out images, with fixed noise."""
        config, images, labels = self.config, self.test_set.images, self.test_set.labels
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(mix(config.seed, "evaluate", 0))
            sigma = draw_sigma(len(images), config.P_mean, config.P_std)
            noise = torch.randn(images.shape)
        total = 0.0
        for part in torch.arange(len(images)).split(500):
            image, level, epsilon, label = (tensor[part].to(self.device) for tensor in (images, sigma, noise, labels))
            known = label if config.conditional else None
            total += edm_loss(self.ema, image, level, epsilon, known, config.sigma_data).sum().item()
        return total / len(images)

    def finish(self, heldout: float | None) -> Path:
        file = self.outdir / "model.safetensors"
        training = {
            "config": self.config.as_dict(),
            "images": len(self.train_set),
            "torch": torch.__version__,
            "heldout_loss": self.evaluate() if heldout is None else heldout,
        }
        save(file, self.ema, {"prediction": "edm", "sigma_data": self.config.sigma_data, "training": training})
        return file
