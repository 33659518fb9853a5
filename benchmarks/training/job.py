"""The parts of the comparison of remedies: a network trained and its samplers measured, each by one process.

What a part leaves are files, and what is there is not done again: a stopped training goes on from its checkpoint.
"""

from __future__ import annotations

import hashlib
import json
import time
import warnings
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from functools import lru_cache
from pathlib import Path

import torch

import fastdiff
from fastdiff.config import TrainConfig, load_train_config
from fastdiff.data import digits16
from fastdiff.evaluation import Evaluator, Scores
from fastdiff.files import atomic_path
from fastdiff.models import read_metadata
from fastdiff.opening import network_sampler, open_network
from fastdiff.sweep import Cell, Result, Sweep
from fastdiff.training import Trainer

BASELINE = "DDPM"
VARIANTS = {
    BASELINE: (),
    "DDPM-IP 0.1": ("objective.gamma=[0.1]",),
    "DDPM-IP 0.15": ("objective.gamma=[0.15]",),
    "DDPM-GP": ("objective.gradient_penalty=1e-6",),
    "DDPM-WD": ("optimizer=adamw", "weight_decay=1.0"),
    "DDPM-y": ("objective.gamma=[0.1]", "objective.perturbed_target=true"),
}
"""What each network's configuration has beyond the baseline's.

The penalty is about a tenth of the loss: of the baseline, once trained, |dF/dx|_F^2 is 3,300 on average over the steps
(112,000 over the cleanest twenty) and the loss is 0.043. The weight decay is decoupled: over the 1,200 iterations a
weight that no gradient holds shrinks by exp(-1.1).
"""


@dataclass(frozen=True)
class Job:
    """What is trained for how long, and measured on how many samples.

    Attributes:
        seeds: of the trainings; networks of one seed start from the same weights and see the same batches and noise.
        steps: of the ancestral sampler.
        samples: of every cell; the k-th training seed has its own sampling seeds, the same for all variants.
        work: folder of what a stopped job goes on from.
    """

    iterations: int = 1200
    train_batch: int = 128
    seeds: tuple[int, ...] = (0, 1, 2)
    steps: tuple[int, ...] = (5, 10, 20, 100)
    samples: int = 2000
    batch: int = 250
    device: str = "cpu"
    work: str = "runs/training"

    @property
    def folder(self) -> Path:
        """Of this job's files: another one for other settings or versions."""
        settings = {name: value for name, value in asdict(self).items() if name != "work"}
        content = [fastdiff.__version__, torch.__version__, read_metadata("digits_classifier")["digest"], settings]
        text = json.dumps([*content, VARIANTS], sort_keys=True)
        return Path(self.work) / hashlib.sha256(text.encode()).hexdigest()[:12]

    def parts(self) -> list[tuple[str, int]]:
        """(variant, training seed), all variants of one seed after the other: a job cut short has whole seeds."""
        return [(variant, seed) for seed in self.seeds for variant in VARIANTS]

    def outdir(self, variant: str, seed: int) -> Path:
        """The folder of one training."""
        return self.folder / f"{variant.replace(' ', '-').lower()}-{seed}"

    def config(self, variant: str, seed: int) -> TrainConfig:
        """Of one training: the chain of Ho et al. 2020, noise predicted, class-conditional digits."""
        common = {
            "data": "digits16", "objective.name": "ddpm", "iterations": self.iterations, "batch": self.train_batch,
            "seed": seed, "device": self.device, "evaluate_every": self.iterations, "keep": 1,
            "checkpoint_every": max(1, self.iterations // 6),
        }  # fmt: skip
        return load_train_config(None, [*(f"{key}={value}" for key, value in common.items()), *VARIANTS[variant]])

    def trained(self, variant: str, seed: int) -> Path:
        """The file of one network, once it is trained."""
        return self.outdir(variant, seed) / "model.safetensors"

    def cells(self, seed: int) -> list[Cell]:
        """The cells of one network."""
        return [Cell("ddpm", steps, range=self.seeds.index(seed)) for steps in self.steps]

    def sweep(self, variant: str, seed: int) -> Sweep:
        """The sweep over the cells of one trained network."""
        network = open_network(str(self.trained(variant, seed)), torch.device(self.device))
        sampler = network_sampler(network, solver="ddpm", steps=min(self.steps))
        options = {"samples": self.samples, "batch": self.batch}
        return Sweep(sampler, evaluator(self.device), self.cells(seed), self.outdir(variant, seed), **options)

    def results(self) -> dict[tuple[str, int], list[Result]]:
        """Of the networks all of whose cells are finished, by (variant, seed)."""
        found = {}
        for variant, seed in self.parts():
            if self.trained(variant, seed).exists():
                results = self.sweep(variant, seed).results()
                if len(results) == len(self.steps):
                    found[variant, seed] = results
        return found

    def real(self) -> Scores:
        """Of the held-out real images."""
        return evaluator(self.device)(digits16("test").images)

    def seconds(self, parts: Sequence[tuple[str, int]]) -> float:
        """CPU seconds that these networks took, training and sampling."""
        files = [self.outdir(*part) / "seconds.json" for part in parts]
        return float(sum(json.loads(file.read_text()) for file in files if file.exists()))


QUICK = replace(Job(), iterations=30, train_batch=32, seeds=(0, 1), steps=(3, 5), samples=40)
"""A minute in place of an hour, for trying the job itself; what it finds means nothing."""


def run_part(job: Job, variant: str, seed: int) -> float:
    """Trains a network and measures its samplers. Returns CPU seconds."""
    started = time.process_time()
    outdir = job.outdir(variant, seed)
    if not job.trained(variant, seed).exists():
        checkpoints = outdir / "checkpoints"
        resume = checkpoints.is_dir() and any(checkpoints.iterdir())
        Trainer(job.config(variant, seed), outdir, resume=resume).run(progress=False)
    sweep = job.sweep(variant, seed)
    done = sweep.finished
    sweep.run()
    spent = time.process_time() - started
    if not done:
        file = outdir / "seconds.json"
        with atomic_path(file) as temporary:
            temporary.write_text(json.dumps(spent + (json.loads(file.read_text()) if file.exists() else 0.0)))
    return spent


@lru_cache(maxsize=1)
def evaluator(device: str) -> Evaluator:
    """Against the training images, once in a process."""
    return Evaluator(digits16().images, device=device)


def one_thread() -> None:
    """What every process begins with: networks this small run fastest on one thread. The page says what warnings do."""
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore", category=RuntimeWarning)
