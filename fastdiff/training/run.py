"""What every training run shares: the loop, the update, the guard, the log. A killed run resumes to the same bits.

Every random draw of iteration `i` comes from generators and noise seeds decided by (seed, i), and the order of the data
by (seed, epoch). So a checkpoint holds weights, averages, Adam's moments, the iteration, what else has a memory (the
loss scale, a sampler of levels), and no generator's state.
"""

from __future__ import annotations

import errno
import math
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from omegaconf import OmegaConf
from torch import Tensor, nn
from torch.nn.utils import clip_grads_with_norm_, get_total_norm
from tqdm import tqdm

from ..config import ConfigError, DiscriminatorConfig, TrainConfig
from ..files import atomic_path, remove_temporaries
from ..models.io import ModelFileError, check_tensors
from .batches import mix
from .checkpoint import Checkpoint, Checkpoints
from .ema import Averages, drop_snapshots
from .log import Log
from .parallel import Group, local, part, whole
from .rate import learning_rate

__all__ = ["TrainingRun"]

# May differ when a run is resumed: where and how often things happen, and when a run is given up; then what changes
# results by rounding (and by other dropout masks) only.
_FREE_KEYS = {"device", "log_every", "evaluate_every", "checkpoint_every", "keep", "workers", "sample_every", "samples"}
_FREE_KEYS |= {"reference", "nonfinite_limit", "accumulation", "channels_last", "compile", "parallel"}


class TrainingRun:
    """Trains `model`, keeps averages of its weights, and can be resumed.

    A subclass gives `begin` a model and an optimizer, and says what the loss, an evaluation and the end are.

    Args:
        config: checked.
        outdir: folder to write to.
        resume: continue from the folder's newest checkpoint that can be read; from the beginning if it has none.
        dry: write nothing.
        parallel: see `Group`.

    Attributes:
        model: the network. ema: its first average.
        averages: all of them.
        iteration: iterations done so far.
        skipped: how many of them left the weights as they were, as a gradient was not finite.
        stopped: whether the run has ended before its last iteration.
    """

    model: nn.Module
    averages: Averages
    title = "train"
    free_keys = _FREE_KEYS

    def __init__(
        self,
        config: TrainConfig | DiscriminatorConfig,
        outdir: str | Path,
        resume: bool,
        *,
        dry: bool = False,
        parallel: str = "none",
    ) -> None:
        self.config: Any = config
        self.outdir, self.dry = Path(outdir), dry
        if self.outdir.exists() and not self.outdir.is_dir():
            raise NotADirectoryError(errno.ENOTDIR, "not a folder", str(outdir))
        self.checkpoints = Checkpoints(self.outdir / "checkpoints", config.keep)
        if self.checkpoints.folders() and not resume and not dry:
            raise FileExistsError(f"{self.checkpoints.folder} holds a run; resume it or choose another folder")
        self.group = Group(config.device, parallel)
        self.device = self.group.device
        name = ("bfloat16" if self.device.type == "cuda" else "none") if config.amp == "auto" else config.amp
        self.amp: torch.dtype | None = {"none": None, "bfloat16": torch.bfloat16, "float16": torch.float16}[name]
        if self.amp == torch.float16 and self.group.sharded:
            raise ConfigError("amp must be bfloat16 or none with parallel=fsdp, got float16")
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=self.amp == torch.float16)
        self.iteration = self.skipped = 0
        self._row = 0  # updates skipped in a row
        self.stopped = False

    def begin(
        self,
        model: nn.Module,
        make_optimizer: Callable[[list[Tensor]], torch.optim.Optimizer],
        resume: bool,
        decays: Sequence[float],
        sigma_rels: Sequence[float] = (),
        warmup: bool = True,
    ) -> None:
        """Sets model, averages and optimizer, reads the checkpoint if it is to be resumed, and opens the folder."""
        self.architecture = type(model)
        duplicate = self.group.duplicate if self.group.sharded else None
        self.averages = Averages(model, decays, sigma_rels, warmup=warmup, duplicate=duplicate)
        self.model = self.group.shard(model)
        self._parameters = self.trained(self.model)
        self._local = [local(parameter) for parameter in self._parameters]  # themselves, if they are not sharded
        self.optimizer = make_optimizer(self._local)
        if resume:
            self._load_checkpoint()
        if self.dry or not self.group.first:
            return
        self.outdir.mkdir(parents=True, exist_ok=True)
        self.checkpoints.clean()
        drop_snapshots(self.outdir / "snapshots", after=self.iteration)
        for folder in (self.outdir, self.outdir / "snapshots", self.outdir / "samples"):
            remove_temporaries(folder)
        with atomic_path(self.outdir / "config.yaml") as temporary:
            temporary.write_text(OmegaConf.to_yaml(self.config.as_dict()))
        self.log = Log(self.outdir / "log.jsonl", keep=self.iteration)

    @property
    def ema(self) -> nn.Module:
        return self.averages.modules[0]

    def loss(self) -> Tensor:
        """The mean loss of an iteration's batch, with the gradients' graph."""
        raise NotImplementedError

    def evaluate(self) -> float | None:
        """The loss of the averaged network on held-out samples, with fixed noise; None where there are none."""
        raise NotImplementedError

    def finish(self, heldout: float | None) -> Path:
        """Writes the model file, given the last held-out loss if it has just been measured."""
        raise NotImplementedError

    def evaluated(self, heldout: float) -> None:
        """Called after every evaluation; may set `stopped`."""

    def log_fields(self) -> dict[str, Any]:
        """What else a row of the log has."""
        return {}

    def periodic(self) -> None:
        """Called after every iteration, when it has been logged and before it is stored."""

    def run(self, until: int | None = None, progress: bool = True) -> Path:
        """Trains to iteration `until` (default: the configured number) and writes a checkpoint.

        Args:
            until: iteration to stop at, at most `config.iterations`; the schedule does not depend on it.
            progress: show a bar with the loss, images per second and the time left.

        Returns:
            The model file, written when the run has ended.

        Raises:
            FloatingPointError: the gradients of `nonfinite_limit` iterations in a row were not finite; the message
                names the iteration and the last checkpoint. Such iterations leave weights, moments and averages alone.
        """
        config = self.config
        end = config.iterations if until is None else min(until, config.iterations)
        heldout: float | None = None
        window: list[Tensor] = []
        clock = time.perf_counter()
        show = progress and self.group.first
        with tqdm(total=end, initial=self.iteration, unit="it", disable=not show, desc=self.title) as bar:
            while self.iteration < end and not self.stopped:
                window.append(self._step())
                bar.update()
                done = self.iteration == end
                evaluate_now = done or self.iteration % config.evaluate_every == 0
                save_now = done or self.iteration % config.checkpoint_every == 0
                heldout = None
                if save_now or evaluate_now or self.iteration % config.log_every == 0:
                    loss, norm = self._means(window)
                    speed = len(window) * config.batch / (time.perf_counter() - clock)
                    bar.set_postfix({"loss": f"{loss:.4f}", "img/s": round(speed)})
                    heldout = self.evaluate() if evaluate_now else None
                    self._log(loss=loss, grad_norm=norm, heldout_loss=heldout, images_per_second=round(speed, 1))
                    if heldout is not None:
                        self.evaluated(heldout)
                    window = []
                self.periodic()
                if save_now or self.stopped:
                    self._save_checkpoint()
                if not window:
                    clock = time.perf_counter()
        if self.stopped or self.iteration == config.iterations:
            return self.finish(heldout)
        return self.outdir / "model.safetensors"

    def _log(self, **fields: Any) -> None:
        fields |= {"learning_rate": self._rate(), "skipped": self.skipped, **self.log_fields()}
        if self.scaler.is_enabled():
            fields["loss_scale"] = self.scaler.get_scale()
        if self.group.first:
            self.log.add(self.iteration, **fields)

    def _step(self) -> Tensor:
        """One iteration; returns [3]: mean loss, gradient norm, whether it was skipped. No GPU is waited for."""
        for group in self.optimizer.param_groups:
            group["lr"] = self._rate()
        for parameter in self._parameters:
            parameter.grad = None
        loss = self.backward()
        for parameter, own in zip(self._parameters, self._local):
            if own is not parameter and parameter.grad is not None:
                own.grad = local(parameter.grad)
        self.scaler.unscale_(self.optimizer)
        gradients = [parameter.grad for parameter in self._local if parameter.grad is not None]
        norm = get_total_norm(gradients)
        if self.group.sharded:
            norm = self.group.sum(norm.square()).sqrt()
        if self.config.grad_clip:
            clip_grads_with_norm_(self._local, self.config.grad_clip, norm)
        skip = 1 - (loss.isfinite() & norm.isfinite()).float()
        # Read by the fused kernel itself; moments and their step count stay too.
        self.optimizer.found_inf = skip  # type: ignore[attr-defined]
        self.optimizer.step()
        self.scaler.update()
        self.averages.update(self.model, self.iteration, found_inf=skip)
        self.iteration += 1
        return torch.stack([loss.float(), norm.float(), skip])

    def backward(self) -> Tensor:
        """Leaves the gradients of the iteration's mean loss, times the loss scale, and returns that loss."""
        with torch.random.fork_rng(self.rng_devices()):
            torch.manual_seed(mix(self.config.seed, "iteration", self.iteration))
            loss = self.loss()
        self.scaler.scale(loss).backward()
        return loss.detach()

    @staticmethod
    def trained(model: nn.Module) -> list[Tensor]:
        """The parameters that are trained: all but a frozen extractor's."""
        return [p for name, p in model.named_parameters() if not name.startswith("extractor.")]

    @staticmethod
    def weights(model: nn.Module) -> dict[str, Tensor]:
        """The tensors that training changes, by name."""
        return {name: tensor for name, tensor in model.state_dict().items() if not name.startswith("extractor.")}

    def _rate(self) -> float:
        return learning_rate(self.config, self.iteration)

    def _means(self, window: list[Tensor]) -> tuple[float, float]:
        """Mean loss and gradient norm of the iterations since the last row of the log that were not skipped."""
        values = torch.stack(window).tolist()
        for number, (loss, norm, skip) in enumerate(values, start=self.iteration - len(window)):
            self.skipped += int(skip)
            self._row = self._row + 1 if skip else 0
            if self._row >= self.config.nonfinite_limit:
                saved = self.checkpoints.folders()
                where = f"; {saved[-1]} is the last checkpoint" if saved else ""
                raise FloatingPointError(
                    f"loss {loss}, gradient norm {norm} at iteration {number}, the last of {self._row} in a row that "
                    f"are not finite; try a lower learning_rate in a new run{where}"
                )
        used = [(loss, norm) for loss, norm, skip in values if not skip]
        loss, norm = (sum(column) / len(used) for column in zip(*used)) if used else (math.nan, math.nan)
        return loss, norm

    # -- checkpoints --------------------------------------------------------------------------------------------------

    def extra_tensors(self) -> dict[str, Tensor]:
        """What a resumed run needs beside the network, its averages and Adam's moments."""
        return {}

    def extra_state(self) -> dict[str, Any]:
        """What it needs beside tensors; JSON."""
        return {}

    def restore(self, tensors: dict[str, Tensor], state: dict[str, Any]) -> None:
        """Takes back `extra_tensors` and `extra_state`."""

    def _state(self) -> dict[str, Tensor]:
        """Every tensor a resumed run needs but Adam's moments, by name."""
        tensors = {f"model.{name}": tensor for name, tensor in self.weights(self.model).items()}
        tensors |= {f"ema.{name}": tensor for name, tensor in self.averages.state().items()}
        return tensors | self.extra_tensors()

    def _save_checkpoint(self) -> None:
        named = [(name, tensor, None) for name, tensor in self._state().items()]
        for index, moments in self.optimizer.state_dict()["state"].items():
            like = self._parameters[index]
            named += [(f"adam.{index}.{name}", value, like) for name, value in moments.items()]
        tensors: dict[str, Tensor] = {}
        for name, tensor, like in named:
            gathered = whole(tensor, like)  # by every process, one tensor at a time: all of them may not fit
            if self.group.first:
                tensors[name] = gathered.cpu()
        state = {"config": self.config.as_dict(), "skipped": [self.skipped, self._row], **self.extra_state()}
        if self.scaler.is_enabled():
            state["scaler"] = self.scaler.state_dict()
        if self.group.first:
            self.checkpoints.save(self.iteration, tensors, state)

    def _load_checkpoint(self) -> None:
        found = self.checkpoints.newest() if self.group.first else None
        folder = self.group.agree(None if found is None else found.folder)
        if folder is not None:
            self._take(found or self.checkpoints.read(folder))

    @torch.no_grad()
    def _take(self, checkpoint: Checkpoint) -> None:
        folder, tensors, state = checkpoint.folder, checkpoint.tensors, checkpoint.state
        constant = getattr(self.config, "schedule", "cosine") == "constant"  # such a run may go on for longer
        checkpoint.check_config(self.config, self.free_keys | ({"iterations"} if constant else set()))
        if self.extra_state().keys() - state.keys() or "skipped" not in state:
            raise ModelFileError(f"{folder}: not a checkpoint of this kind of training")
        own = self._state()
        expected: dict[str, Any] = dict(own)
        for index, parameter in enumerate(self._parameters):
            expected |= {f"adam.{index}.exp_avg": parameter, f"adam.{index}.exp_avg_sq": parameter}
            expected[f"adam.{index}.step"] = torch.zeros(())
        check_tensors(folder, tensors, expected)

        extra = self.extra_tensors()
        for name, tensor in own.items():
            if name not in extra:
                local(tensor).copy_(part(tensors[name], tensor))
        moments = self.optimizer.state_dict()
        for index, parameter in enumerate(self._parameters):
            like = local(parameter)  # in its memory format too: the fused kernel reads both in the order of the memory
            moments["state"][index] = {
                name: torch.empty_like(like).copy_(part(tensors[f"adam.{index}.{name}"], parameter))
                for name in ("exp_avg", "exp_avg_sq")
            }
            moments["state"][index]["step"] = tensors[f"adam.{index}.step"]
        self.optimizer.load_state_dict(moments)
        if self.scaler.is_enabled() and "scaler" in state:
            self.scaler.load_state_dict(state["scaler"])
        self.iteration = state["iteration"]
        self.skipped, self._row = state["skipped"]
        self.restore({name: tensors[name] for name in extra}, state)

    def plain(self, network: nn.Module) -> nn.Module:
        """`network`, or a whole copy on the CPU of one that is sharded. Every process must ask."""
        if not self.group.sharded:
            return network
        tensors = {name: whole(tensor).cpu() for name, tensor in network.state_dict().items()}
        with torch.random.fork_rng(devices=[]):
            copy: Any = self.architecture(**network.config)  # type: ignore[arg-type]
        copy.load_state_dict(tensors)
        return copy.eval().requires_grad_(False)

    def rng_devices(self) -> list[torch.device]:
        """The devices, beside the CPU, whose generators a draw changes."""
        return [self.device] if self.device.type == "cuda" else []
