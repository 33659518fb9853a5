"""The page of the exposure job: what helped, what did not, and by how many standard errors."""

from __future__ import annotations

import csv
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.exposure.job import Job
from fastdiff.evaluation import Scores
from fastdiff.exposure.choice import Calibration
from fastdiff.exposure.resampling import is_below_zero, mean_and_error, student
from fastdiff.models import read_metadata
from fastdiff.sweep import Cell, Result

ES, GPP, SEDM = "EDM-ES", "EDM-G++", "SEDM-G++"

GOALS = [  # solver, steps, method, largest ratio to EDM, as earlier measurements on these digits led to expect
    ("euler", 13, ES, 0.90),
    ("euler", 13, SEDM, 0.85),
    ("heun", 5, ES, 0.70),
]


@dataclass(frozen=True)
class Ratio:
    """Mean and standard error over the ranges of a distance divided by another on the same seeds."""

    mean: float
    error: float | None
    count: int

    @property
    def below(self) -> float | None:
        """How many standard errors it lies below 1."""
        return (1 - self.mean) / self.error if self.error else None

    @property
    def verdict(self) -> str:
        """By Student's t, two-sided at 5 %."""
        if is_below_zero(self.mean - 1, self.error, self.count):
            return "better"
        return "worse" if is_below_zero(1 - self.mean, self.error, self.count) else "not told apart"

    def __str__(self) -> str:
        return f"{self.mean:.3f}" + ("" if self.error is None else f" ± {self.error:.3f}")


class Found:
    """The results by cell, and the rows that the tables show."""

    def __init__(self, job: Job, results: Sequence[Result]):
        self.job, self.results = job, list(results)
        self.by_cell = {result.cell: result for result in results}

    def methods(self, solver: str, steps: int) -> Iterator[tuple[str, Cell]]:
        """(method, setting) of a sampler's rows: the chosen lambda, every weight."""
        chosen = self.job.chosen(solver, steps)
        yield "EDM", Cell(solver, steps)
        if chosen != 1:
            yield ES, Cell(solver, steps, epsilon_scale=chosen)
        for weight in self.job.weights:
            yield GPP, Cell(solver, steps, w_1st=weight)
        for weight in self.job.weights if chosen != 1 else ():
            yield SEDM, Cell(solver, steps, w_1st=weight, epsilon_scale=chosen)

    def ranges(self, setting: Cell) -> list[Result]:
        return [result for result in self.results if result.cell.setting == setting]

    def ratio(self, setting: Cell, to: Cell) -> Ratio | None:
        """None where a range is missing or was not finite."""
        pairs = list(zip(self.ranges(setting), self.ranges(to)))
        values = [a.frechet / b.frechet for a, b in pairs if a.frechet is not None and b.frechet]
        if not values or len(values) != self.job.ranges:
            return None
        return Ratio(*mean_and_error(values), len(values))


def page(job: Job, results: Sequence[Result], real: Scores, account: dict[str, Any]) -> str:
    """The Markdown page; `real` are the scores of held-out real images."""
    found = Found(job, results)
    parts = [_head(job, real, account), _summary(found), _goals(found)]
    parts += [_sampler(found, solver, steps) for solver in job.solvers for steps in job.steps]
    parts += [_beyond(found), _discriminator(job), _pictures(job, results)]
    return "\n\n".join(part for part in parts if part) + "\n"


def _head(job: Job, real: Scores, account: dict[str, Any]) -> str:
    clock, cpu, packages = account["clock"] / 60, account["cpu"] / 60, account["packages"]
    stopped = "" if account["runs"] <= 1 else f" (in {account['runs']} runs)"
    others = job.calibration_ranges * job.calibration_samples
    return f"""# Corrections of exposure bias on the shipped digits

Written by `make exposure` (`python -m benchmarks.exposure`): {clock:.0f} minutes{stopped} and {cpu:.0f} \
minutes of CPU time in {account["workers"]} processes of one thread each (device {job.device}, \
{account["device"]["name"]}, torch {packages["torch"]}).

* Class-conditional digits, every class equally often. The distance is the Frechet distance between {job.samples} \
samples and the 4,000 training images in the shipped classifier's 64 features.
* {real.samples} held-out real images have distance {real.frechet:.3f}, precision {real.precision:.3f} and recall \
{real.recall:.3f}. What lies below that distance is nearer to the training images' mean and covariance than real \
images are, not better than real.
* Every number is a mean over {job.ranges} ranges of seeds with its standard error. All methods draw the same seeds; \
the ratio is the mean over the ranges of the distance divided by EDM's on the same seeds.
* lambda was chosen for each sampler by `fastdiff.exposure.calibrate` on {others} other seeds, without guidance. \
The weights are the thesis's 1.67, and 1; earlier trials of Euler 13 had shown that both help there.
* "Better" and "worse" are by Student's t, two-sided at 5 %, which with {job.ranges} ranges asks for \
{student(job.ranges - 1):.1f} standard errors.
* A lower distance can be precision bought with recall: look at both. From so few samples all distances come out too \
large by about the same amount, so the ratios are nearer to 1 than they would be with more."""


def _summary(found: Found) -> str:
    """One line a solver and method: how often it was better, worse, neither, and by how much."""
    job = found.job
    kinds = [(ES, 0.0), *((name, weight) for name in (GPP, SEDM) for weight in job.weights)]
    lines = ["## What helped", "", "| | method | better | worse | not told apart | ratio to EDM | errors below 1 |"]
    lines.append("|---|---|---|---|---|---|---|")
    for solver in job.solvers:
        for name, weight in kinds:
            cells = [pair for steps in job.steps for pair in found.methods(solver, steps)]
            chosen = [cell for method, cell in cells if (method, cell.w_1st) == (name, weight)]
            ratios = [ratio for cell in chosen if (ratio := found.ratio(cell, cell.baseline)) is not None]
            if not ratios:
                continue
            verdicts = [ratio.verdict for ratio in ratios]
            counts = [str(verdicts.count(verdict)) for verdict in ("better", "worse", "not told apart")]
            means, errors = [ratio.mean for ratio in ratios], [ratio.below or 0.0 for ratio in ratios]
            spans = [f"{min(means):.2f} to {max(means):.2f}", f"{min(errors):.1f} to {max(errors):.1f}"]
            lines.append(f"| {' | '.join([solver.capitalize(), _named(name, weight), *counts, *spans])} |")
    steps = ", ".join(map(str, job.steps))
    return "\n".join([*lines, "", f"Of {len(job.steps)} samplers each, with {steps} steps."])


def _goals(found: Found) -> str:
    lines = ["### What was expected", ""]
    for solver, steps, name, limit in GOALS:
        cells = (
            [cell for method, cell in found.methods(solver, steps) if method == name]
            if _has(found, solver, steps)
            else []
        )
        for cell in cells:
            ratio = found.ratio(cell, cell.baseline)
            if ratio is not None:
                sentence = "as expected" if ratio.mean <= limit else "NOT as expected"
                label = f"{solver.capitalize()} {steps}, {_named(name, cell.w_1st)}"
                lines.append(f"* {label}: at most {limit:.2f} of EDM; {ratio} was measured, {sentence}.")
    return "\n".join(lines) if len(lines) > 2 else ""


def _sampler(found: Found, solver: str, steps: int) -> str:
    rows = [(name, cell, found.ranges(cell)) for name, cell in found.methods(solver, steps)]
    rows = [row for row in rows if row[2]]
    title = f"## {solver.capitalize()}, {steps} steps, {rows[0][2][0].nfe} evaluations"
    lines = [
        title, "", _calibrated(found, solver, steps), "",
        "| | lambda | w_1st | distance | precision | recall | ratio to EDM | errors below 1 | |",
        "|---|---|---|---|---|---|---|---|---|",
    ]  # fmt: skip
    for name, cell, ranges in rows:
        columns = [[getattr(r, score) for r in ranges] for score in ("frechet", "precision", "recall")]
        scores = ["not finite" if None in column else _with_error(*mean_and_error(column)) for column in columns]
        ratio = found.ratio(cell, cell.baseline) if cell != cell.baseline else None
        below = "" if ratio is None or ratio.below is None else f"{ratio.below:.1f}"
        end = [str(ratio), below, ratio.verdict] if ratio is not None else ["", "", ""]
        weight = f"{cell.w_1st:g}" if cell.guided else ""
        lines.append(f"| {' | '.join([name, f'{cell.epsilon_scale:g}', weight, *scores, *end])} |")
    return "\n".join(lines)


def _calibrated(found: Found, solver: str, steps: int) -> str:
    calibration = Calibration.load(found.job.calibration(solver, steps))
    text = f"lambda {found.job.chosen(solver, steps):g}"
    error = calibration.errors.get("lambda")
    if calibration.edge:
        text += ", the end of its grid"
    elif error is not None:
        text += f" ± {error:.2g} (bootstrap)"
    if calibration.distinguishable is False:
        ranges = found.job.calibration_ranges
        text += f"; the calibration's {ranges} ranges alone do not tell it from 1, "
        text += f"which takes {student(ranges - 1):.1f} standard errors"
    return text + "."


def _beyond(found: Found) -> str:
    """What the discriminator adds to epsilon scaling."""
    lines = []
    for solver in found.job.solvers:
        for steps in found.job.steps:
            for name, cell in found.methods(solver, steps):
                ratio = (
                    found.ratio(cell, Cell(solver, steps, epsilon_scale=cell.epsilon_scale)) if name == SEDM else None
                )
                if ratio is not None:
                    below = "" if ratio.below is None else f"{ratio.below:.1f}"
                    label = f"{solver.capitalize()} {steps}"
                    lines.append(f"| {label} | {cell.w_1st:g} | {ratio} | {below} | {ratio.verdict} |")
    if not lines:
        return ""
    head = ["## SEDM-G++ against EDM-ES: what the discriminator adds", "", "| | w_1st | ratio | errors below 1 | |"]
    return "\n".join([*head, "|---|---|---|---|---|", *lines])


def _discriminator(job: Job) -> str:
    if job.refusal.exists():
        return f"## The discriminator\n\nNone: {job.refusal.read_text().strip()}"
    if not job.discriminator.exists():
        return ""
    training = read_metadata(job.discriminator)["training"]
    loss = f"{training['heldout_loss']:.4f} ± {training['heldout_error']:.4f}"
    lines = [
        "## The discriminator", "",
        f"{job.fakes} samples of 18 Heun steps against the training images, from the denoiser's encoder: held-out "
        f"cross-entropy {loss} (ln 2 = 0.6931 is no skill) at iteration {training['iteration']}.", "",
        "| sigma | cross-entropy | accuracy | calibration error |", "|---|---|---|---|",
    ]  # fmt: skip
    levels = job.discriminator.parent / "levels.csv"
    for level in csv.DictReader(levels.read_text().splitlines()):
        bce, error = float(level["bce"]), float(level["bce_error"])
        accuracy, calibration = float(level["accuracy"]), float(level["calibration_error"])
        lines.append(f"| {float(level['sigma']):.3g} | {bce:.4f} ± {error:.4f} | {accuracy:.3f} | {calibration:.3f} |")
    return "\n".join(lines)


def _pictures(job: Job, results: Sequence[Result]) -> str:
    names = [f"{kind}_{solver}.png" for solver in job.solvers for kind in ("lambda", "weight")]
    if not any(result.cell.guided for result in results):
        names = [name for name in names if name.startswith("lambda")]
    else:
        names.append("discriminator.png")
    return "## Plots\n\n" + "\n\n".join(f"![{Path(name).stem.replace('_', ', ')}]({name})" for name in names)


def _has(found: Found, solver: str, steps: int) -> bool:
    return solver in found.job.solvers and steps in found.job.steps


def _named(name: str, weight: float) -> str:
    return f"{name}, w {weight:g}" if weight else name


def _with_error(value: float, error: float | None) -> str:
    return f"{value:.3f}" + ("" if error is None else f" ± {error:.3f}")
