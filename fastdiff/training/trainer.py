"""The trainer of denoisers, for any objective. A killed run that is resumed ends with the same bits (see `run`)."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..config import ConfigError, TrainConfig
from ..data import DataError, Feed, NoSplitError, Samples, fetch, open_dataset
from ..data.augment import Augment, flip
from ..models.io import save
from .batches import Batches, mix
from .ema import save_snapshots
from .network import build_network
from .objectives import make_objective
from .parallel import unsynchronised
from .perturb import sample_seeds
from .preview import Preview
from .profiles import Power
from .run import TrainingRun

__all__ = ["Trainer"]

_HELD_OUT = 5000  # samples of an evaluation, at most


class Trainer(TrainingRun):
    """Trains a network with the configured objective and keeps averages of its weights.

    Writes to `outdir`: `config.yaml`, `log.jsonl`, `checkpoints/` (to resume from), if asked for pictures in `samples/`
    and the `snapshots/` of power-function averages, and at the end `model.safetensors` (the first average, for
    `fastdiff.models.load`; further ones as `model-0.9999.safetensors`). Under torchrun every process makes a Trainer,
    on a folder that all can read.

    Args:
        config: a checked configuration (`fastdiff.config.load_train_config`).
        outdir: folder to write to; it is created.
        resume: continue from the folder's newest checkpoint, from the beginning if it has none. Without it a folder
            that holds one is refused.
        dry: write nothing; for `try_step`.
        data: samples to train with, in place of the configuration's.
        heldout: samples to measure the held-out loss with; default the test split of the configuration's.

    Attributes:
        model, ema: the network and its first average; `averages` holds all.
        objective: see `fastdiff.training.objectives`.
        data, heldout: the samples.
        iteration: iterations done so far.

    Raises:
        FileExistsError: `outdir` holds a checkpoint and `resume` is off.
        ConfigError: a value that cannot be used, or the checkpoint was made with another configuration.
        DataError: the data cannot be used.
        ModelFileError: no checkpoint can be read, or `init` cannot.
        OSError: the folder cannot be written.
    """

    def __init__(
        self,
        config: TrainConfig,
        outdir: str | Path,
        resume: bool = False,
        *,
        dry: bool = False,
        data: Samples | None = None,
        heldout: Samples | None = None,
    ) -> None:
        super().__init__(config, outdir, resume, dry=dry, parallel=config.parallel)
        if config.batch < self.group.world * config.accumulation:
            least = self.group.world * config.accumulation
            raise ConfigError(f"batch must be at least {least} (processes times accumulation), got {config.batch}")
        if config.objective.name in ("ssm", "ssm_vr"):
            why = f"for {config.objective.name}: it differentiates twice"
            if config.compile:
                raise ConfigError(f"compile must be false {why}")
            if self.group.sharded:
                raise ConfigError(f"parallel must be ddp {why}")
        with self.group.first_goes_ahead():
            self.data = self._open("train") if data is None else data
            self.heldout = heldout if heldout is not None or data is not None else self._test_split()
        self._check_heldout()
        self.data = self.data.to(self.device)
        self.conditional = config.conditional and self.data.classes > 0
        plain = replace(config.objective, levels="auto", gamma=[0.0], perturbed_target=False, gradient_penalty=0.0)
        try:
            bins = getattr(self.data, "bins", 256)
            self.objective = make_objective(config.objective, self.device, bins)
            self._plain = make_objective(plain, self.device, bins)  # held-out losses of any remedy compare
        except ConfigError:
            raise
        except ValueError as error:
            raise ConfigError(f"objective: {error}") from None
        self._adaptive = bool(self.objective.levels.state())
        with torch.random.fork_rng(self.rng_devices()):
            torch.manual_seed(mix(config.seed, "weights", 0))
            classes = self.data.classes if self.conditional else 0
            model: Any = build_network(config, self.data.sample_shape, classes, self.objective).to(self.device).train()
        model.metadata = self.objective.metadata()
        self._told = bool(model.config.get("augment_dim"))  # what is done to a sample
        if config.channels_last:
            model = model.to(memory_format=torch.channels_last)
        self.batches = Batches(len(self.data), config.batch, config.seed)
        share = self.group.share(config.batch)
        self._part = -(-config.batch // (self.group.world * config.accumulation))  # samples that fit at once
        self.feed = Feed(self.data, lambda i: self.batches(i)[share], workers=config.workers, device=self.device)
        self._noise_key = mix(config.seed, "noise", 0)
        self.preview = self._preview() if config.sample_every else None
        self.begin(model, self._optimizer, resume, config.ema, config.posthoc_ema, config.ema_warmup)
        if config.compile:
            self.model.compile()  # in place: the names of its tensors stay
        self.replica = self.group.replicate(_Loss(self.model, self.objective))

    def run(self, until: int | None = None, progress: bool = True) -> Path:
        try:
            return super().run(until, progress)
        finally:
            self.feed.close()

    def backward(self) -> Tensor:
        config, world = self.config, self.group.world
        share = self.group.share(config.batch)
        x0, everywhere, all_weights, seeds, conditions = self._batch(share)
        levels, weights = self._moved(everywhere[share]), self._moved(all_weights[share])
        total = torch.zeros((), device=self.device)
        values: list[Tensor] = []
        parts = torch.arange(len(x0)).tensor_split(config.accumulation)
        for number, indices in enumerate(parts):
            own = slice(int(indices[0]), int(indices[-1]) + 1)
            cond = {name: value[own] for name, value in conditions.items()}
            with torch.random.fork_rng(self.rng_devices()), unsynchronised(self.replica, number + 1 == len(parts)):
                torch.manual_seed(mix(config.seed, f"dropout {self.group.rank} {number}", self.iteration))
                with torch.autocast(self.device.type, self.amp, enabled=self.amp is not None):
                    value = self.replica(x0[own], levels[own], seeds[own], cond)
                # The processes' gradients are averaged, so that this is a part of the mean over the whole batch.
                loss = (value * weights[own]).sum() * (world / config.batch)
                self.scaler.scale(loss).backward()
            total += loss.detach()
            values.append(value.detach())
        if self._adaptive:
            self.objective.update(everywhere, self.group.gather(torch.cat(values), config.batch))
        return self.group.sum(total) / world

    def _batch(self, share: slice) -> tuple[Tensor, Tensor, Tensor, Tensor, dict[str, Tensor]]:
        """A share: samples, levels and weights (of the whole batch, on the CPU), noise seeds, the conditions."""
        config, count = self.config, self.config.batch
        generator = torch.Generator().manual_seed(mix(config.seed, "iteration", self.iteration))
        levels, weights = self.objective.draw(count, generator)
        hidden = torch.rand(count, generator=generator) < config.label_dropout
        x0, labels = self.feed(self.iteration)
        first = self.iteration * count + share.start
        seeds = sample_seeds(self._noise_key, first, share.stop - share.start, self.device)
        cond: dict[str, Tensor] = {}
        if self.conditional:
            cond["labels"] = labels.masked_fill(self._moved(hidden[share]), -1)
        if config.flip:
            x0 = flip(x0, seeds)
        if self._told:
            x0, cond["augment_labels"] = Augment(config.augment)(x0, seeds)
        return x0, levels, weights, seeds, cond

    def _moved(self, tensor: Tensor) -> Tensor:
        """A tensor of the CPU on the device, without waiting for it."""
        if self.device.type == "cuda":
            tensor = tensor.pin_memory()
        return tensor.to(self.device, non_blocking=True)

    @torch.no_grad()
    def evaluate(self) -> float | None:
        """Mean loss of the averaged network on held-out samples, with fixed levels and noise.

        It is the objective's without input perturbation and gradient penalty, at the levels of `levels=auto`.
        """
        if self.heldout is None:
            return None
        count, world = min(len(self.heldout), _HELD_OUT), self.group.world
        generator = torch.Generator().manual_seed(mix(self.config.seed, "evaluate", 0))
        levels, _ = self._plain.draw(count, generator)
        seeds = sample_seeds(mix(self.config.seed, "evaluate", 1), 0, count, self.device)
        # Every process has as many parts as the others, as a sharded network needs; what is too much counts nothing.
        mine = torch.arange(self.group.rank, -(-count // world) * world, world)
        total = torch.zeros((), device=self.device, dtype=torch.float64)
        for indices in mine.split(self._part):
            chosen = indices % count
            x0, labels = fetch(self.heldout, chosen, self.config.workers, self.device)
            cond = {"labels": labels} if self.conditional else {}
            own = seeds[chosen.to(self.device)]
            values = self._plain.loss(self.ema, x0, levels[chosen].to(self.device), own, cond)
            total += values.double()[: int((indices < count).sum())].sum()
        return float(self.group.sum(total)) / count

    def log_fields(self) -> dict[str, Any]:
        return {"bad_samples": len(self.data.bad) or None}

    def periodic(self) -> None:
        config, iteration = self.config, self.iteration
        if config.posthoc_ema and (iteration % config.posthoc_every == 0 or iteration == config.iterations):
            pairs = zip(self.averages.profiles, self.averages.modules)
            wanted = [self.plain(module) if isinstance(kind, Power) else module for kind, module in pairs]
            if self.group.first:
                about = self.objective.metadata()
                save_snapshots(self.outdir / "snapshots", self.averages, iteration, about, modules=wanted)
        if self.preview is not None and iteration % config.sample_every == 0:
            self.preview(self.ema, iteration, self.log if self.group.first else None)

    def finish(self, heldout: float | None) -> Path:
        measured = self.evaluate() if heldout is None else heldout
        training = {
            "config": self.config.as_dict(),
            "samples": len(self.data),
            "torch": torch.__version__,
            "iteration": self.iteration,
            "heldout_loss": measured,
        }
        files = ["model.safetensors", *(f"model-{decay}.safetensors" for decay in self.config.ema[1:])]
        for name, decay, average in zip(files, self.config.ema, self.averages.modules):
            network = self.plain(average)
            if self.group.first:
                save(self.outdir / name, network, {**self.objective.metadata(), "training": {**training, "ema": decay}})
        return self.outdir / files[0]

    def try_step(self) -> dict[str, float]:
        """One iteration, to see that everything fits: `loss`, `grad_norm` and `bytes`, the peak of the memory."""
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.device)
        loss, norm, _ = self._step().tolist()
        if self.device.type == "cuda":
            peak = torch.cuda.max_memory_allocated(self.device)
        else:
            import resource
            import sys

            unit = 1 if sys.platform == "darwin" else 1024
            peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
        return {"loss": loss, "grad_norm": norm, "bytes": peak}

    # -- checkpoints --------------------------------------------------------------------------------------------------

    def extra_tensors(self) -> dict[str, Tensor]:
        return {f"levels.{name}": tensor for name, tensor in self.objective.levels.state().items()}

    def extra_state(self) -> dict[str, Any]:
        return {"samples": len(self.data)}

    def restore(self, tensors: dict[str, Tensor], state: dict[str, Any]) -> None:
        if state["samples"] != len(self.data):
            raise ConfigError(f"data has {len(self.data)} samples, but the checkpoint was made with {state['samples']}")
        self.objective.levels.restore({name.removeprefix("levels."): tensor for name, tensor in tensors.items()})

    # -- parts --------------------------------------------------------------------------------------------------------

    def _open(self, split: str) -> Samples:
        config = self.config
        form: dict[str, Any] = {"size": config.size or None, "channels": config.channels or None}
        try:
            return open_dataset(config.data, split=split, holdout=config.holdout, workers=config.workers, **form)
        except DataError as error:
            raise type(error)(f"data: {error}") from None

    def _test_split(self) -> Samples | None:
        """The held-out samples, if the source has any."""
        try:
            return self._open("test")
        except NoSplitError:
            return None

    def _check_heldout(self) -> None:
        """Refuses held-out samples that the network could not be given, before an evaluation does."""
        if self.heldout is None:
            return
        pairs = [(tuple(own.sample_shape), own.classes) for own in (self.data, self.heldout)]
        if pairs[0][0] != pairs[1][0] or (self.config.conditional and 0 < pairs[0][1] < pairs[1][1]):
            (wanted, got) = (f"shape {list(shape)} and {classes} classes" for shape, classes in pairs)
            raise DataError(f"data: the held-out samples must be of {wanted} as the others, got {got}")

    def _preview(self) -> Preview:
        config = self.config
        reference = {"": None, "train": self.data, "test": self.heldout}[config.reference]
        if config.reference == "test" and reference is None:
            raise ConfigError(f"reference must be train: {config.data} has no test split")
        options: dict[str, Any] = {"batch": self._part, "group": self.group, "device": self.device}
        options["reference"] = reference
        return Preview(self.outdir / "samples", config.samples, **options)

    def _optimizer(self, parameters: list[Tensor]) -> torch.optim.Optimizer:
        config = self.config
        kind = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW}[config.optimizer]
        first, second = config.betas
        options: dict[str, Any] = {"betas": (first, second), "weight_decay": config.weight_decay, "fused": True}
        return kind(parameters, lr=config.learning_rate, **options)


class _Loss(nn.Module):
    """The loss as a module, so that a replica sees one call whatever the objective does with the network."""

    def __init__(self, network: nn.Module, objective: Any) -> None:
        super().__init__()
        self.network, self.objective = network, objective

    def forward(self, x0: Tensor, levels: Tensor, seeds: Tensor, cond: dict[str, Tensor]) -> Tensor:
        value: Tensor = self.objective.loss(self.network, x0, levels, seeds, cond)
        return value
