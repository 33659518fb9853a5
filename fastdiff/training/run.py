"""What every training run shares: the loop, its log, its checkpoints. A killed run resumes to the same bits.

Every random draw of iteration `i` comes from a generator seeded by (seed, i), and the order of the data by
(seed, epoch). So a checkpoint holds weights, averaged weights, Adam's moments and the iteration, and nothing
else.
"""

from __future__ import annotations

import copy
import errno
import hashlib
import math
import time
from pathlib import Path
from typing import Any

import torch
from omegaconf import OmegaConf
from torch import Tensor, nn
from tqdm import tqdm

from ..config import ConfigError, DiscriminatorConfig, TrainConfig
from ..files import atomic_path
from ..models.io import ModelFileError, check_tensors, load_tensors, save_tensors
from ..opening import open_device
from .log import LossLog

__all__ = ["Batches", "TrainingRun", "mix"]

_FREE_KEYS = {"device", "log_every", "evaluate_every", "checkpoint_every"}  # may differ when a run is resumed


class TrainingRun:
    """Trains `model`, keeps an exponential moving average of its weights, and can be resumed.

    A subclass gives `begin` a model and an optimizer, and says what a step, an evaluation and the end are.

    Attributes:
        model, ema: the network and its average.
        iteration: iterations done so far.
        stopped: whether the run has ended before its last iteration.
    """

    model: nn.Module
    ema: nn.Module
    title = "train"
    free_keys = _FREE_KEYS

    def __init__(self, config: TrainConfig | DiscriminatorConfig, outdir: str | Path, resume: bool) -> None:
        self.config: Any = config
        self.outdir = Path(outdir)
        if self.outdir.exists() and not self.outdir.is_dir():
            raise NotADirectoryError(errno.ENOTDIR, "not a folder", str(outdir))
        self.checkpoint = self.outdir / "checkpoint.safetensors"
        if self.checkpoint.exists() and not resume:
            raise FileExistsError(f"{self.checkpoint} exists; resume it or choose another folder")
        try:
            self.device = open_device(config.device)
        except ValueError as error:
            raise ConfigError(f"device {error}") from None
        self.amp = config.amp == "bfloat16" or (config.amp == "auto" and self.device.type == "cuda")
        self.iteration = 0
        self.stopped = False

    def begin(self, model: nn.Module, optimizer: torch.optim.Optimizer, resume: bool) -> None:
        """Sets model, average and optimizer, reads the checkpoint if it is to be resumed, and opens the folder."""
        self.model = model
        kept: nn.Module | None = getattr(model, "extractor", None)  # frozen, so that one is enough
        self.ema = copy.deepcopy(model, {} if kept is None else {id(kept): kept}).eval().requires_grad_(False)
        self.optimizer = optimizer
        if resume:
            self._load_checkpoint()
        self.outdir.mkdir(parents=True, exist_ok=True)
        with atomic_path(self.outdir / "config.yaml") as temporary:
            temporary.write_text(OmegaConf.to_yaml(self.config.as_dict()))
        self.log = LossLog(self.outdir / "loss.csv", keep=self.iteration)

    def loss(self) -> Tensor:
        """The mean loss of an iteration's batch, with the gradients' graph."""
        raise NotImplementedError

    def evaluate(self) -> float:
        """The loss of the averaged network on held-out samples, with fixed noise."""
        raise NotImplementedError

    def finish(self, heldout: float | None) -> Path:
        """Writes the model file, given the last held-out loss if it has just been measured."""
        raise NotImplementedError

    def evaluated(self, heldout: float) -> None:
        """Called after every evaluation; may set `stopped`."""

    def run(self, until: int | None = None, progress: bool = True) -> Path:
        """Trains to iteration `until` (default: the configured number) and writes a checkpoint.

        Args:
            until: iteration to stop at, at most `config.iterations`; the schedule does not depend on it.
            progress: show a bar with the loss, images per second and the time left.

        Returns:
            The model file, written when the run has ended.

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
        with tqdm(total=end, initial=self.iteration, unit="it", disable=not progress, desc=self.title) as bar:
            while self.iteration < end and not self.stopped:
                loss, norm = self._step()
                losses.append(loss)
                norms.append(norm)
                bar.update()
                done = self.iteration == end
                evaluate_now = done or self.iteration % config.evaluate_every == 0
                save_now = done or self.iteration % config.checkpoint_every == 0
                if save_now or evaluate_now or self.iteration % config.log_every == 0:
                    mean, norm_mean = self._means(losses, norms)
                    speed = len(losses) * config.batch / (time.perf_counter() - clock)
                    bar.set_postfix({"loss": f"{mean:.4f}", "img/s": round(speed)})
                    heldout = self.evaluate() if evaluate_now else None
                    self.log.add(self.iteration, mean, norm_mean, self._rate(), heldout)
                    if heldout is not None:
                        self.evaluated(heldout)
                    losses, norms, clock = [], [], time.perf_counter()
                if save_now or self.stopped:
                    self._save_checkpoint()
        if self.stopped or self.iteration == config.iterations:
            return self.finish(heldout)
        return self.outdir / "model.safetensors"

    def _step(self) -> tuple[Tensor, Tensor]:
        """One iteration; returns (mean loss, gradient norm) as tensors, so that a GPU is not waited for."""
        config = self.config
        for group in self.optimizer.param_groups:
            group["lr"] = self._rate()
        with torch.random.fork_rng(self.rng_devices()):
            torch.manual_seed(mix(config.seed, "iteration", self.iteration))
            loss = self.loss()
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        parameters = self.trained(self.model)
        norm = torch.nn.utils.clip_grad_norm_(parameters, config.grad_clip or math.inf)
        self.optimizer.step()
        decay = min(config.ema, (1 + self.iteration) / (10 + self.iteration))
        with torch.no_grad():
            torch._foreach_lerp_(self.trained(self.ema), parameters, 1 - decay)
        self.iteration += 1
        return loss.detach(), norm.detach()

    @staticmethod
    def trained(model: nn.Module) -> list[Tensor]:
        """The parameters that are trained: all but a frozen extractor's."""
        return [p for name, p in model.named_parameters() if not name.startswith("extractor.")]

    @staticmethod
    def weights(model: nn.Module) -> dict[str, Tensor]:
        """The tensors that training changes, by name."""
        return {name: tensor for name, tensor in model.state_dict().items() if not name.startswith("extractor.")}

    def _rate(self) -> float:
        """Learning rate of the next iteration: linear warm-up times a cosine to 0."""
        config = self.config
        warm = min(1.0, (self.iteration + 1) / (config.warmup + 1))
        cosine = 0.5 * (1 + math.cos(math.pi * self.iteration / config.iterations))
        return config.learning_rate * warm * cosine

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

    # -- checkpoints --------------------------------------------------------------------------------------------------

    def extra_tensors(self) -> dict[str, Tensor]:
        """What a resumed run needs beside the network, its average and Adam's moments."""
        return {}

    def extra_state(self) -> dict[str, Any]:
        """What it needs beside tensors; JSON."""
        return {}

    def restore(self, tensors: dict[str, Tensor], state: dict[str, Any]) -> None:
        """Takes back `extra_tensors` and `extra_state`."""

    def _state(self) -> dict[str, Tensor]:
        """Every tensor a resumed run needs, by name."""
        tensors = {f"model.{name}": tensor for name, tensor in self.weights(self.model).items()}
        tensors |= {f"ema.{name}": tensor for name, tensor in self.weights(self.ema).items()}
        for index, state in self.optimizer.state_dict()["state"].items():
            tensors |= {f"adam.{index}.{name}": tensor for name, tensor in state.items()}
        return tensors | self.extra_tensors()

    def _save_checkpoint(self) -> None:
        description = {"config": self.config.as_dict(), "iteration": self.iteration, **self.extra_state()}
        save_tensors(self.checkpoint, self._state(), description)

    def _load_checkpoint(self) -> None:
        tensors, description = load_tensors(self.checkpoint)
        stored, current = description.get("config"), self.config.as_dict()
        state = self.extra_state()
        if not isinstance(stored, dict) or not isinstance(description.get("iteration"), int):
            raise ModelFileError(f"{self.checkpoint}: not a training checkpoint")
        for key, value in current.items():
            if key not in self.free_keys and (old := stored.get(key)) != value:
                raise ConfigError(f"{key} is {value!r}, but {self.checkpoint} was made with {old!r}")
        if state.keys() - description.keys():
            raise ModelFileError(f"{self.checkpoint}: not a checkpoint of this kind of training")
        parameters = self.trained(self.model)
        expected = self._state()
        for index, parameter in enumerate(parameters):
            expected |= {f"adam.{index}.exp_avg": parameter, f"adam.{index}.exp_avg_sq": parameter}
            expected[f"adam.{index}.step"] = torch.zeros(())
        check_tensors(self.checkpoint, tensors, expected)

        def part(prefix: str) -> dict[str, Tensor]:
            names = [name for name in tensors if name.startswith(prefix)]
            return {name.removeprefix(prefix): tensors[name] for name in names}

        # Not strict, as a frozen extractor is not in the file: names and shapes have just been checked.
        self.model.load_state_dict(part("model."), strict=False)
        self.ema.load_state_dict(part("ema."), strict=False)
        moments = self.optimizer.state_dict()
        moments["state"] = {index: part(f"adam.{index}.") for index in range(len(parameters))}
        self.optimizer.load_state_dict(moments)
        self.iteration = description["iteration"]
        self.restore(tensors, {key: description[key] for key in state})

    def rng_devices(self) -> list[torch.device]:
        """The devices, beside the CPU, whose generators a draw changes."""
        return [self.device] if self.device.type == "cuda" else []


class Batches:
    """The indices of each iteration's samples: windows of an endless row of shuffled epochs.

    Args:
        count: number of samples.
        batch: samples per iteration.
        seed, purpose: of the shuffles.
    """

    def __init__(self, count: int, batch: int, seed: int, purpose: str = "epoch") -> None:
        self.count, self.batch, self.seed, self.purpose = count, batch, seed, purpose
        self._orders: dict[int, Tensor] = {}

    def __call__(self, iteration: int) -> Tensor:
        """int64 [batch]."""
        start = iteration * self.batch
        epochs = range(start // self.count, (start + self.batch - 1) // self.count + 1)
        known = self._orders
        self._orders = {epoch: known[epoch] if epoch in known else self._order(epoch) for epoch in epochs}
        row = torch.cat(list(self._orders.values()))
        return row[start - epochs[0] * self.count :][: self.batch]

    def _order(self, epoch: int) -> Tensor:
        """The shuffled indices of an epoch."""
        generator = torch.Generator().manual_seed(mix(self.seed, self.purpose, epoch))
        return torch.randperm(self.count, generator=generator)


def mix(seed: int, purpose: str, count: int) -> int:
    """A 63-bit seed that depends on all three (a CPU generator keeps only the low 32 bits of a seed)."""
    digest = hashlib.blake2b(f"{seed} {purpose} {count}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1
