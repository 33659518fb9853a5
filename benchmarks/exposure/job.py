"""The parts of the exposure job: each is done by one process, leaves files, and is skipped where they are there."""

from __future__ import annotations

import hashlib
import json
import time
import warnings
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch

import fastdiff
from fastdiff.config import load_discriminator_config
from fastdiff.data import digits16
from fastdiff.evaluation import Evaluator, Scores
from fastdiff.exposure.calibration import calibrate
from fastdiff.exposure.choice import Calibration
from fastdiff.models import load, read_metadata
from fastdiff.sweep import Cell, Result, Sweep
from fastdiff.training import DiscriminatorTrainer, NothingLearntError

CALIBRATION_SEEDS = 2_000_000  # the sweep's begin at 0, the discriminator's fakes at 1,000,000


@dataclass(frozen=True)
class Job:
    """What is compared, on how many samples.

    Attributes:
        samples, ranges: of every cell of the sweep.
        calibration_samples, calibration_ranges: lambda is chosen on these, which the sweep does not use.
        grid: of the search for lambda.
        scales: lambdas that are swept beside the chosen one and 1.
        weights: w_1st of discriminator guidance.
        fakes, iterations: of the discriminator's training.
        device: of all parts.
        work: folder of what a stopped job goes on from.
    """

    solvers: tuple[str, ...] = ("euler", "heun")
    steps: tuple[int, ...] = (5, 9, 13, 18)
    samples: int = 750
    ranges: int = 3
    calibration_samples: int = 400
    calibration_ranges: int = 2
    grid: tuple[float, ...] = (0.93, 0.95, 0.97, 0.985, 1.0, 1.03, 1.06, 1.10)
    scales: tuple[float, ...] = (0.97, 1.03)
    weights: tuple[float, ...] = (1.0, 1.67)
    fakes: int = 5000
    iterations: int = 700
    batch: int = 250
    device: str = "cpu"
    work: str = "runs/exposure"

    @property
    def folder(self) -> Path:
        """Of this job's files: another one for other settings, networks or versions."""
        digests = [read_metadata(name)["digest"] for name in ("digits", "digits_classifier")]
        settings = {k: v for k, v in asdict(self).items() if k != "work"}
        text = json.dumps([fastdiff.__version__, torch.__version__, digests, settings], sort_keys=True)
        return Path(self.work) / hashlib.sha256(text.encode()).hexdigest()[:12]

    @property
    def discriminator(self) -> Path:
        """The discriminator's file, once it is trained."""
        return self.folder / "discriminator" / "model.safetensors"

    @property
    def refusal(self) -> Path:
        """Says why there is no discriminator, if its training refused to write one."""
        return self.folder / "discriminator" / "refused.txt"

    def calibration(self, solver: str, steps: int) -> Path:
        """The file of the lambda that was chosen for one sampler."""
        return self.folder / f"lambda_{solver}_{steps}.json"

    def samplers(self) -> list[tuple[str, int]]:
        """(solver, steps), the dearest first."""
        pairs = [(solver, steps) for solver in self.solvers for steps in self.steps]
        return sorted(pairs, key=lambda pair: -pair[1] * (2 if pair[0] == "heun" else 1))

    def chosen(self, solver: str, steps: int) -> float:
        """The calibrated lambda, to four digits."""
        scale = Calibration.load(self.calibration(solver, steps)).epsilon_scale
        assert isinstance(scale, float)
        return round(scale, 4)

    def cells(self, solver: str, steps: int, guided: bool) -> list[Cell]:
        """A sampler's part of the grid, once its lambda is chosen: without guidance, or with it."""
        chosen = self.chosen(solver, steps)
        scales = sorted({1.0, chosen} if guided else {*self.scales, 1.0, chosen})
        weights = self.weights if guided else (0.0,)
        return [
            Cell(solver, steps, w_1st=weight, epsilon_scale=scale, range=r)
            for weight in weights
            for scale in scales
            for r in range(self.ranges)
        ]

    def sweep(self, cells: Sequence[Cell]) -> Sweep:
        """The sweep over some of the cells."""
        network, evaluator = _tools(self.device)
        discriminator = load(self.discriminator, self.device) if any(cell.guided for cell in cells) else None
        options: dict[str, Any] = {"samples": self.samples, "batch": self.batch, "discriminator": discriminator}
        return Sweep(_sampler(network), evaluator, cells, self.folder, **options)

    def real(self) -> Scores:
        """Of held-out real images, as many as a range has (there are 1,000)."""
        return _tools(self.device)[1](digits16("test").images[: self.samples])

    def results(self) -> list[Result]:
        """Of everything, in the order of the tables."""
        pairs = [(solver, steps) for solver in self.solvers for steps in self.steps]
        kinds = (False, True) if self.discriminator.exists() else (False,)
        return self.sweep([cell for pair in pairs for guided in kinds for cell in self.cells(*pair, guided)]).results()


QUICK = replace(
    Job(), samples=40, ranges=2, steps=(5, 9), calibration_samples=40, grid=(0.97, 1.0, 1.03), weights=(1.0,),
    fakes=200, iterations=60,
)  # fmt: skip
"""A few minutes in place of thirty, for trying the job itself; what it finds means nothing."""


def train(job: Job) -> float:
    """The discriminator: conditional fakes of 18 Heun steps, from the denoiser's own encoder. Returns CPU seconds."""
    started = time.process_time()
    if not job.discriminator.exists() and not job.refusal.exists():
        overrides = [f"fakes={job.fakes}", f"iterations={job.iterations}", f"device={job.device}"]
        config = load_discriminator_config(None, overrides)
        trainer = DiscriminatorTrainer(config, job.discriminator.parent, resume=_resumable(job))
        try:
            trainer.run(progress=False)
        except NothingLearntError as error:
            job.refusal.write_text(f"{error}\n")
    return time.process_time() - started


def choose(job: Job, solver: str, steps: int) -> float:
    """One sampler's lambda, by a paired search without guidance. Returns CPU seconds."""
    started = time.process_time()
    file = job.calibration(solver, steps)
    if not file.exists():
        network, evaluator = _tools(job.device)
        count = job.calibration_samples
        firsts = range(CALIBRATION_SEEDS, CALIBRATION_SEEDS + count * job.calibration_ranges, count)
        seeds = [range(first, first + count) for first in firsts]
        sampler = _sampler(network).replace(solver=solver, steps=steps)
        found = calibrate(sampler, evaluator, seeds=seeds, grid=job.grid, tolerance=0.01, batch=job.batch)
        file.parent.mkdir(parents=True, exist_ok=True)
        found.save(file)
    return time.process_time() - started


def measure(job: Job, solver: str, steps: int, guided: bool) -> float:
    """A sampler's cells, without guidance or with it. Returns CPU seconds."""
    started = time.process_time()
    job.sweep(job.cells(solver, steps, guided)).run()
    return time.process_time() - started


def one_thread() -> None:
    """What every process begins with: networks this small run fastest on one thread. The page says what warnings do."""
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore", category=RuntimeWarning)
    warnings.filterwarnings("ignore", message=".*sklearn.utils.parallel.delayed")


def _resumable(job: Job) -> bool:
    return (job.discriminator.parent / "checkpoints").exists()


@lru_cache(maxsize=1)
def _tools(device: str) -> tuple[Any, Evaluator]:
    """The network and the evaluator, once in a process."""
    return load("digits", device), Evaluator(digits16().images)


def _sampler(network: Any) -> fastdiff.Sampler:
    prediction = fastdiff.EDMPrediction(network.metadata["sigma_data"])
    return fastdiff.Sampler(network, process=fastdiff.EDM(), prediction=prediction)
