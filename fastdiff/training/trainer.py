"""A trainer whose runs can be killed and resumed without changing a bit of the result.

Every random draw of iteration `i` comes from a generator seeded by (seed, i), and the order of the data by
(seed, epoch). So a checkpoint holds weights, averaged weights, Adam's moments and the iteration, and nothing
else.
"""

from __future__ import annotations

import copy
import hashlib
import math
import time
from pathlib import Path
from typing import Any

import torch
from omegaconf import OmegaConf
from torch import Tensor
from tqdm import tqdm

from .. import data as datasets
from ..config import ConfigError, TrainConfig
from ..files import atomic_path
from ..models.io import ModelFileError, check_tensors, load_tensors, save, save_tensors
from ..models.unet import UNet
from .log import LossLog
from .loss import draw_sigma, edm_loss

__all__ = ["Trainer"]

_FREE_KEYS = {"device", "log_every", "evaluate_every", "checkpoint_every"}  # may differ when a run is resumed


class Trainer:
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
        self.config = config
        self.outdir = Path(outdir)
        self.checkpoint = self.outdir / "checkpoint.safetensors"
        if self.checkpoint.exists() and not resume:
            raise FileExistsError(f"{self.checkpoint} exists; resume it or choose another folder")
        self.device = _device(config.device)
        self.amp = config.amp == "bfloat16" or (config.amp == "auto" and self.device.type == "cuda")
        self.train_set = datasets.load(config.data, "train")
        self.test_set = datasets.load(config.data, "test")
        self.images = self.train_set.images.to(self.device)
        self.labels = self.train_set.labels.to(self.device)

        channels, size, _ = self.images.shape[1:]
        classes = self.train_set.classes if config.conditional else 0
        architecture: dict[str, Any] = dict(config.as_dict()["model"])
        with torch.random.fork_rng(self._rng_devices()):
            torch.manual_seed(_mix(config.seed, "weights", 0))
            try:
                model = UNet(image_size=size, channels=channels, label_dim=classes, **architecture)
            except ValueError as error:
                raise ConfigError(f"model: {error}") from None
        self.model = model.to(self.device).train()
        self.ema = copy.deepcopy(self.model).eval().requires_grad_(False)
        first, second = config.betas
        self.optimizer = torch.optim.Adam(
            self.model.parameters(), lr=config.learning_rate, betas=(first, second), fused=True
        )
        self.iteration = 0
        self._orders: dict[int, Tensor] = {}
        if resume:
            self._load_checkpoint()
        self.outdir.mkdir(parents=True, exist_ok=True)
        with atomic_path(self.outdir / "config.yaml") as temporary:
            temporary.write_text(OmegaConf.to_yaml(config.as_dict()))
        self.log = LossLog(self.outdir / "loss.csv", keep=self.iteration)

    def run(self, until: int | None = None, progress: bool = True) -> Path:
        """Trains to iteration `until` (default: the configured number) and writes a checkpoint.

        Args:
            until: iteration to stop at, at most `config.iterations`; the schedule does not depend on it.
            progress: show a bar with the loss, images per second and the time left.

        Returns:
            The model file, written when the last iteration is done.

        Raises:
            FloatingPointError: the loss or a gradient is NaN or infinite; the message names the iteration. The last
                checkpoint holds finite weights.
        """
        config = self.config
        end = config.iterations if until is None else min(until, config.iterations)
        heldout: float | None = None
        losses: list[Tensor] = []
        norms: list[Tensor] = []
        clock = time.perf_counter()
        with tqdm(total=end, initial=self.iteration, unit="it", disable=not progress, desc="train") as bar:
            while self.iteration < end:
                loss, norm = self._step()
                losses.append(loss)
                norms.append(norm)
                bar.update()
                done = self.iteration == end
                save_now = done or self.iteration % config.checkpoint_every == 0
                if save_now or self.iteration % config.log_every == 0:
                    mean, norm_mean = self._means(losses, norms)
                    speed = len(losses) * config.batch / (time.perf_counter() - clock)
                    bar.set_postfix({"loss": f"{mean:.4f}", "img/s": round(speed)})
                    heldout = self.evaluate() if done or self.iteration % config.evaluate_every == 0 else None
                    self.log.add(self.iteration, mean, norm_mean, self._rate(), heldout)
                    losses, norms, clock = [], [], time.perf_counter()
                if save_now:
                    self._save_checkpoint()
        file = self.outdir / "model.safetensors"
        if self.iteration == config.iterations:
            training = {
                "config": config.as_dict(),
                "images": len(self.train_set),
                "torch": torch.__version__,
                "heldout_loss": self.evaluate() if heldout is None else heldout,
            }
            save(file, self.ema, {"prediction": "edm", "sigma_data": config.sigma_data, "training": training})
        return file

    @torch.no_grad()
    def evaluate(self) -> float:
        """Mean EDM loss of the averaged network on the held-out images, with fixed noise."""
        config, images, labels = self.config, self.test_set.images, self.test_set.labels
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(_mix(config.seed, "evaluate", 0))
            sigma = draw_sigma(len(images), config.P_mean, config.P_std)
            noise = torch.randn(images.shape)
        total = 0.0
        for part in torch.arange(len(images)).split(500):
            image, level, epsilon, label = (tensor[part].to(self.device) for tensor in (images, sigma, noise, labels))
            known = label if config.conditional else None
            total += edm_loss(self.ema, image, level, epsilon, known, config.sigma_data).sum().item()
        return total / len(images)

    def _step(self) -> tuple[Tensor, Tensor]:
        """One iteration; returns (mean loss, gradient norm) as tensors, so that a GPU is not waited for."""
        config, device = self.config, self.device
        for group in self.optimizer.param_groups:
            group["lr"] = self._rate()
        chosen = self._batch(self.iteration).to(device)
        images, labels = self.images[chosen], None
        with torch.random.fork_rng(self._rng_devices()):
            torch.manual_seed(_mix(config.seed, "iteration", self.iteration))
            sigma = draw_sigma(config.batch, config.P_mean, config.P_std, device)
            noise = torch.randn_like(images)
            if config.conditional:
                hidden = torch.rand(config.batch, device=device) < config.label_dropout
                labels = self.labels[chosen].masked_fill(hidden, -1)
            with torch.autocast(device.type, torch.bfloat16, enabled=self.amp):
                loss = edm_loss(self.model, images, sigma, noise, labels, config.sigma_data).mean()
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(self.model.parameters(), config.grad_clip or math.inf)
        self.optimizer.step()
        decay = min(config.ema, (1 + self.iteration) / (10 + self.iteration))
        with torch.no_grad():
            torch._foreach_lerp_(list(self.ema.parameters()), list(self.model.parameters()), 1 - decay)
        self.iteration += 1
        return loss.detach(), norm.detach()

    def _rate(self) -> float:
        """Learning rate of the next iteration: linear warm-up times a cosine to 0."""
        config = self.config
        warm = min(1.0, (self.iteration + 1) / (config.warmup + 1))
        cosine = 0.5 * (1 + math.cos(math.pi * self.iteration / config.iterations))
        return config.learning_rate * warm * cosine

    def _batch(self, iteration: int) -> Tensor:
        """Indices of an iteration's images: a window of the endless row of shuffled epochs."""
        count, batch = len(self.train_set), self.config.batch
        start = iteration * batch
        epochs = range(start // count, (start + batch - 1) // count + 1)
        known = self._orders
        self._orders = {epoch: known[epoch] if epoch in known else self._order(epoch) for epoch in epochs}
        row = torch.cat(list(self._orders.values()))
        return row[start - epochs[0] * count :][:batch]

    def _order(self, epoch: int) -> Tensor:
        """The shuffled indices of an epoch."""
        generator = torch.Generator().manual_seed(_mix(self.config.seed, "epoch", epoch))
        return torch.randperm(len(self.train_set), generator=generator)

    def _means(self, losses: list[Tensor], norms: list[Tensor]) -> tuple[float, float]:
        """Mean loss and gradient norm since the last row of the log, if all of them are finite."""
        values = torch.stack([torch.stack(losses), torch.stack(norms)])
        bad = (~values.isfinite()).any(0).nonzero()
        if len(bad):
            loss, norm = values[:, bad[0, 0]].tolist()
            iteration = self.iteration - len(losses) + int(bad[0, 0])
            message = f"loss {loss}, gradient norm {norm} at iteration {iteration}; try a lower learning_rate"
            if self.checkpoint.exists():
                message += f" ({self.checkpoint} holds the last finite state)"
            raise FloatingPointError(message)
        mean, norm = values.mean(1).tolist()
        return mean, norm

    def _state(self) -> dict[str, Tensor]:
        """Every tensor a resumed run needs, by name."""
        tensors = {f"model.{name}": tensor for name, tensor in self.model.state_dict().items()}
        tensors |= {f"ema.{name}": tensor for name, tensor in self.ema.state_dict().items()}
        for index, state in self.optimizer.state_dict()["state"].items():
            tensors |= {f"adam.{index}.{name}": tensor for name, tensor in state.items()}
        return tensors

    def _save_checkpoint(self) -> None:
        description = {"config": self.config.as_dict(), "iteration": self.iteration}
        save_tensors(self.checkpoint, self._state(), description)

    def _load_checkpoint(self) -> None:
        tensors, description = load_tensors(self.checkpoint)
        stored, current = description.get("config"), self.config.as_dict()
        if not isinstance(stored, dict) or not isinstance(description.get("iteration"), int):
            raise ModelFileError(f"{self.checkpoint}: not a training checkpoint")
        for key, value in current.items():
            if key not in _FREE_KEYS and (old := stored.get(key)) != value:
                raise ConfigError(f"{key} is {value!r}, but {self.checkpoint} was made with {old!r}")
        parameters = list(self.model.parameters())
        expected = self._state()
        for index, parameter in enumerate(parameters):
            expected |= {f"adam.{index}.exp_avg": parameter, f"adam.{index}.exp_avg_sq": parameter}
            expected[f"adam.{index}.step"] = torch.zeros(())
        check_tensors(self.checkpoint, tensors, expected)

        def part(prefix: str) -> dict[str, Tensor]:
            names = [name for name in tensors if name.startswith(prefix)]
            return {name.removeprefix(prefix): tensors[name] for name in names}

        self.model.load_state_dict(part("model."))
        self.ema.load_state_dict(part("ema."))
        state = self.optimizer.state_dict()
        state["state"] = {index: part(f"adam.{index}.") for index in range(len(parameters))}
        self.optimizer.load_state_dict(state)
        self.iteration = description["iteration"]

    def _rng_devices(self) -> list[torch.device]:
        return [self.device] if self.device.type == "cuda" else []


def _mix(seed: int, purpose: str, count: int) -> int:
    """A 63-bit seed that depends on all three (a CPU generator keeps only the low 32 bits of a seed)."""
    digest = hashlib.blake2b(f"{seed} {purpose} {count}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


def _device(name: str) -> torch.device:
    """The device that a configuration names."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        raise ConfigError(f"device must be auto, cpu or cuda[:index], got {name!r}") from None
    if device.type not in ("cpu", "cuda") or (device.type == "cuda" and not torch.cuda.is_available()):
        raise ConfigError(f"device {name!r} cannot be used here")
    return device
