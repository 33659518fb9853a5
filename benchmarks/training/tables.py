"""The page of the comparison of remedies: every number, its error over the training seeds, and what held."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from benchmarks.system import describe
from benchmarks.tables import markdown
from benchmarks.training.job import BASELINE, VARIANTS, Job
from fastdiff.errors import warn
from fastdiff.evaluation import Scores
from fastdiff.exposure.resampling import is_below_zero, mean_and_error, student
from fastdiff.files import atomic_path
from fastdiff.models import read_metadata
from fastdiff.plots import COLOURS, panels, png

SCORES = ("frechet", "precision", "recall")
REMEDIES = tuple(variant for variant in VARIANTS if variant != BASELINE)


@dataclass(frozen=True)
class Row:
    """One network at one number of steps."""

    variant: str
    seed: int
    steps: int
    frechet: float | None
    precision: float | None
    recall: float | None
    heldout_loss: float


@dataclass(frozen=True)
class Against:
    """A remedy against the baseline at one number of steps, over the training seeds.

    Attributes:
        difference, error: mean and standard error of its distance minus the baseline's of the same seed.
        ratio, ratio_error: of its distance divided by the baseline's.
        count: seeds.
    """

    difference: float
    error: float | None
    ratio: float
    ratio_error: float | None
    count: int

    @property
    def verdict(self) -> str:
        """By Student's t on the differences, two-sided at 5 %."""
        if is_below_zero(self.difference, self.error, self.count):
            return "better"
        return "worse" if is_below_zero(-self.difference, self.error, self.count) else "not told apart"


class Table:
    """The rows by variant, seed and steps."""

    def __init__(self, rows: Iterable[Row]):
        self.rows = list(rows)
        self._by_key = {(row.variant, row.seed, row.steps): row for row in self.rows}
        self.seeds = sorted({row.seed for row in self.rows})
        self.steps = sorted({row.steps for row in self.rows})

    def values(self, variant: str, steps: int, name: str) -> list[float]:
        """A score of all seeds that have it."""
        rows = [self._by_key.get((variant, seed, steps)) for seed in self.seeds]
        return [value for row in rows if row is not None and (value := getattr(row, name)) is not None]

    def against(self, variant: str, steps: int) -> Against | None:
        """None without a seed in which both were measured."""
        pairs = []
        for seed in self.seeds:
            own, base = (self._by_key.get((name, seed, steps)) for name in (variant, BASELINE))
            if own is not None and base is not None and own.frechet is not None and base.frechet:
                pairs.append((own.frechet, base.frechet))
        if not pairs:
            return None
        difference = mean_and_error([own - base for own, base in pairs])
        return Against(*difference, *mean_and_error([own / base for own, base in pairs]), len(pairs))

    @property
    def digest(self) -> str:
        """Of all numbers: a text about them says which it was written for."""
        content = json.dumps([vars(row) for row in self.rows], sort_keys=True)
        return hashlib.sha256(content.encode()).hexdigest()[:12]


def read(job: Job) -> Table:
    """What the job has finished."""
    rows = []
    for (variant, seed), results in job.results().items():
        loss = read_metadata(job.trained(variant, seed))["training"]["heldout_loss"]
        for result in results:
            scores = (getattr(result, name) for name in SCORES)
            rows.append(Row(variant, seed, result.cell.steps, *scores, loss))
    return Table(rows)


def write(job: Job, out: Path, workers: int) -> str:
    """The page, the numbers and the plot in `out`; returns the page.

    `reading.md` in `out`, if it was written for these numbers, becomes a section of the page.
    """
    table = read(job)
    system = describe(torch.device(job.device))
    account = {"seconds": job.seconds(job.parts()), "workers": workers, **system}
    out.mkdir(parents=True, exist_ok=True)
    text = page(job, table, job.real(), account, reading(out / "reading.md", table.digest))
    numbers = {"digest": table.digest, "rows": [vars(row) for row in table.rows]}
    contents = {"results.json": (json.dumps(numbers, indent=1) + "\n").encode(), "README.md": text.encode()}
    try:
        contents["distance.png"] = picture(table)
    except ModuleNotFoundError as error:
        warn(f"the plot was not drawn: {error}")
    for name, content in contents.items():
        with atomic_path(out / name) as temporary:
            temporary.write_bytes(content)
    return text


def reading(file: Path, digest: str) -> str:
    """The text of `file` if its first line is `<!-- digest -->`, else nothing: it was written for other numbers."""
    if not file.exists():
        return ""
    first, _, rest = file.read_text(encoding="utf-8").partition("\n")
    return rest.strip() if first.strip() == f"<!-- {digest} -->" else ""


def page(job: Job, table: Table, real: Scores, account: dict[str, Any], text: str = "") -> str:
    """The Markdown page; `real` are the scores of held-out real images, `text` is a reading of the numbers."""
    parts = [_head(job, table, real, account), _held(table), f"## Reading\n\n{text}" if text else ""]
    parts += [_distances(table), _differences(table), _others(table), "![distance against steps](distance.png)"]
    return "\n\n".join(part for part in parts if part) + "\n"


def _head(job: Job, table: Table, real: Scores, account: dict[str, Any]) -> str:
    least = student(len(table.seeds) - 1) if len(table.seeds) > 1 else float("inf")
    comparisons = len(REMEDIES) * len(table.steps)
    options = "\n".join(f"| {variant} | {_code(changes)} |" for variant, changes in VARIANTS.items())
    return f"""# Remedies of exposure bias at training time, on the shipped digits

Written by `make training` (`python -m benchmarks.training`): {account["seconds"] / 60:.0f} minutes of CPU time in \
{account["workers"]} processes of one thread each (device {job.device}, {account["device"]["name"]}, torch \
{account["packages"]["torch"]}).

* Class-conditional digits of 16 x 16, DDPM's chain (linear betas, T = 1000), the noise predicted, \
{job.iterations:,} iterations of {job.train_batch} images each, Adam, averaged weights (0.999 with warm-up): a small \
budget, {job.iterations * job.train_batch / 4000:.0f} passes over the 4,000 training images.
* Seeds {", ".join(map(str, table.seeds))}: networks of one seed start from the same weights and see the same batches, \
steps and noise, and their samples have the same seeds. Other training seeds have other sampling seeds.
* Samples are ancestral, with the variance of the posterior and x_0 clipped. The distance is the Frechet distance \
between {job.samples:,} samples, every class equally often, and the training images in the shipped classifier's 64 \
features. {real.samples:,} held-out real images have distance {real.frechet:.3f}, precision {real.precision:.3f} and \
recall {real.recall:.3f}.
* Every number is a mean over the training seeds with its standard error. "Better" and "worse" are by Student's t on \
the paired differences, two-sided at 5 %, which with {len(table.seeds)} seeds asks for {least:.1f} standard errors; of \
{comparisons} comparisons without any effect, one would be called either on average.

| | configuration, beyond the baseline's |
|---|---|
{options}

DDPM-IP is input perturbation (Ning et al. 2023) with the target eps; DDPM-y, the negative control, has the perturbed \
noise as its target. The strengths of GP and WD were set beforehand, not searched: the penalty is about a tenth of the \
baseline's loss, and a weight that no gradient holds shrinks by exp(-1.1) over the run."""


def _code(changes: Sequence[str]) -> str:
    return ", ".join(f"`{change}`" for change in changes) or "none"


def _held(table: Table) -> str:
    """How often each remedy was better, and what is said of it in the paper against what was found."""
    rows, verdicts = [], {}
    for variant in REMEDIES:
        found = [against for steps in table.steps if (against := table.against(variant, steps)) is not None]
        verdicts[variant] = [against.verdict for against in found]
        if found:
            counts = [verdicts[variant].count(verdict) for verdict in ("better", "worse", "not told apart")]
            ratios = [against.ratio for against in found]
            rows.append((variant, *counts, f"{min(ratios):.3f} to {max(ratios):.3f}"))
    shown = markdown(("", "better", "worse", "not told apart", "ratio to DDPM, mean of the seeds"), rows)
    claims = []
    for variant in REMEDIES:
        if not verdicts[variant]:
            continue
        if variant.startswith("DDPM-IP"):
            claim, held = "lowers the distance at every number of steps", set(verdicts[variant]) == {"better"}
        elif variant == "DDPM-y":
            claim, held = "helps at no number of steps", "better" not in verdicts[variant]
        else:
            continue
        claims.append(f"* {variant} {claim}: {'held' if held else 'did NOT hold'}.")
    return "\n\n".join(["## What held", shown, "\n".join(["Expected from the paper:", "", *claims])])


def _distances(table: Table) -> str:
    head = ("", *(f"{steps} steps" for steps in table.steps))
    rows = [(variant, *(_mean(table.values(variant, n, "frechet")) for n in table.steps)) for variant in VARIANTS]
    return f"## Frechet distance\n\n{markdown(head, rows)}"


def _differences(table: Table) -> str:
    def cell(variant: str, steps: int) -> str:
        found = table.against(variant, steps)
        return "" if found is None else f"{_plus_minus(found.difference, found.error)}, {found.verdict}"

    head = ("", *(f"{steps} steps" for steps in table.steps))
    rows = [(variant, *(cell(variant, steps) for steps in table.steps)) for variant in REMEDIES]
    return f"## Distance minus DDPM's of the same seed\n\n{markdown(head, rows)}"


def _others(table: Table) -> str:
    """Precision and recall, and the loss, which is measured without any remedy."""
    head = ("", *(f"{steps} steps" for steps in table.steps), "held-out loss")
    rows = []
    for variant in VARIANTS:
        pairs = [
            " / ".join(_mean(table.values(variant, n, name), 3) for name in ("precision", "recall"))
            for n in table.steps
        ]
        rows.append((variant, *pairs, _mean(table.values(variant, table.steps[0], "heldout_loss"), 5)))
    return f"## Precision / recall, and the plain loss on held-out images\n\n{markdown(head, rows)}"


def _mean(values: Sequence[float], digits: int = 3) -> str:
    return _plus_minus(*mean_and_error(values), digits) if values else "not finite"


def _plus_minus(value: float, error: float | None, digits: int = 3) -> str:
    return f"{value:.{digits}f}" + ("" if error is None else f" ± {error:.{digits}f}")


def picture(table: Table) -> bytes:
    """Distance against steps, and its ratio to DDPM's of the same seed, with standard errors over the seeds."""
    figure, (left, right) = panels(2, 2, 5.4, 4.0)
    count = len(VARIANTS)

    def line(ax: Any, at: int, variant: str, pick: Callable[[int], tuple[float, float | None] | None]) -> None:
        points = [(steps, found) for steps in table.steps if (found := pick(steps)) is not None]
        x = [steps * 1.03 ** (at - (count - 1) / 2) for steps, _ in points]  # side by side, not on top of each other
        y, errors = [value for _, (value, _) in points], [error or 0.0 for _, (_, error) in points]
        ax.errorbar(x, y, errors, color=COLOURS[at], label=variant, marker="o", markersize=4, linewidth=1.2, capsize=2)

    for at, variant in enumerate(VARIANTS):
        line(
            left, at, variant, lambda n, v=variant: mean_and_error(d) if (d := table.values(v, n, "frechet")) else None
        )
        if variant != BASELINE:
            line(
                right,
                at,
                variant,
                lambda n, v=variant: (a.ratio, a.ratio_error) if (a := table.against(v, n)) else None,
            )
    right.axhline(1.0, color=COLOURS[0], linewidth=1.2)
    left.set_yscale("log")
    left.set_ylabel("Frechet distance")
    right.set_ylabel("distance / DDPM's of the same seed")
    for ax in (left, right):
        ax.set_xscale("log")
        ax.set_xticks(table.steps, [str(steps) for steps in table.steps])
        ax.minorticks_off()
        ax.set_xlabel("ancestral steps")
    low, high = left.get_ylim()
    ticks = [tick for power in (0.1, 1, 10, 100) for n in (1, 2, 3, 5) if low < (tick := n * power) < high]
    left.set_yticks(ticks, [f"{tick:g}" for tick in ticks])
    left.legend(fontsize=8, frameon=False)
    return png(figure)
