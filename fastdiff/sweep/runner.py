"""Running cells: each is sampled, scored and written to a file of its own, named by what decides it."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, is_dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from .._version import __version__
from ..errors import check_count
from ..evaluation import generate
from ..exposure.calibration import Score
from ..files import atomic_path
from ..guidance import DiscriminatorGuidance
from ..sampler import Sampler
from ..solvers import Driver, get_solver
from .cells import Cell, share

__all__ = ["Result", "Sweep", "digest_of"]

GUIDED_COST = 2.2  # of an evaluation with a discriminator's gradient, in evaluations without


@dataclass(frozen=True)
class Result:
    """A finished cell.

    Attributes:
        nfe: evaluations of the denoiser per sample.
        seeds: first seed and number of seeds.
        frechet, precision, recall: None where the samples were not finite.
        key: of the cell's file.
    """

    cell: Cell
    nfe: int
    seeds: tuple[int, int]
    frechet: float | None
    precision: float | None
    recall: float | None
    key: str


class Sweep:
    """The cells of a grid and the folder of those that are finished.

    Args:
        sampler: gives everything that the cells do not: network, process, prediction, device. It knows the shape of a
            sample; its own solver, steps, epsilon_scale and guidance are not looked at.
        score: images [N, ...] -> object with `frechet`, `precision` and `recall`, an `Evaluator` for instance.
        cells: what to run, see `grid`.
        folder: finished cells are `cells/KEY.json` in it; made when the first is finished.
        discriminator: `(y, tau, labels) -> logit`, for cells with a weight.
        guidance: further arguments of `DiscriminatorGuidance`, apart from its weights.
        samples: of a cell; range r is the seeds `first_seed + r * samples` and following.
        first_seed: of range 0.
        labels: as for `fastdiff.evaluation.generate`, "cycle" or None.
        batch: samples drawn at a time.
        identity: names of what hashes cannot be computed of, JSON: replaces `digest_of` of "network", "discriminator"
            or "score".

    Raises:
        ValueError, TypeError: a bad argument, or a cell that the sampler cannot be built for; before any work.
    """

    def __init__(
        self,
        sampler: Sampler,
        score: Score,
        cells: Sequence[Cell],
        folder: str | Path,
        *,
        discriminator: Callable[..., Tensor] | None = None,
        guidance: Mapping[str, Any] | None = None,
        samples: int = 1000,
        first_seed: int = 0,
        labels: str | None = "cycle",
        batch: int = 250,
        identity: Mapping[str, Any] | None = None,
    ):
        self.sampler, self.score, self.folder = sampler, score, Path(folder)
        self.cells = list(dict.fromkeys(cells))
        self.samples, self.batch = check_count("samples", samples, 2), check_count("batch", batch)
        self.first_seed, self.labels = check_count("first_seed", first_seed, 0), labels
        if sampler.shape is None:
            raise ValueError("sampler must know the shape of a sample: give Sampler(shape=...)")
        if discriminator is None and any(cell.guided for cell in self.cells):
            raise ValueError("discriminator must be given, because cells have weights of discriminator guidance")
        self._discriminator, self._guidance = discriminator, dict(guidance or {})
        self._terms: dict[tuple[float, float], DiscriminatorGuidance] = {}
        self._counts: dict[tuple[str, int], int] = {}
        named = dict(identity or {})
        self._identity = {
            "network": named.pop("network", None) or digest_of("network", sampler.model),
            "score": named.pop("score", None) or digest_of("score", score),
        }
        self._guide = None
        if discriminator is not None:
            self._guide = named.pop("discriminator", None) or digest_of("discriminator", discriminator)
        if sampler.denoised_fn is not None:
            self._identity["denoised_fn"] = named.pop("denoised_fn", None) or digest_of(
                "denoised_fn", sampler.denoised_fn
            )
        self._identity |= named
        self._settings: dict[Cell, tuple[dict[str, Any], int]] = {}
        self._keys = {cell: self._key(cell) for cell in self.cells}  # builds every sampler once: what cannot be, shows

    def run(
        self, rank: int = 0, world: int = 1, report: Callable[[int, int, Result], None] | None = None
    ) -> list[Result]:
        """Run what is not finished of this process's share of the cells.

        Args:
            rank, world: which of how many processes this is; each needs the same cells, and sees the same folder.
            report: called with (finished, of how many, result) after every cell.

        Returns:
            The share's results.

        Raises:
            OSError: a cell's file cannot be written.
        """
        mine = share(self.cells, self.cost, rank, world)
        results = []
        sampler, made = None, None
        for number, cell in enumerate(mine):
            result = self.result(cell)
            if result is None:
                if made != cell.setting:
                    sampler, made = self.build(cell), cell.setting
                assert sampler is not None
                result = self._measure(cell, sampler)
            results.append(result)
            if report is not None:
                report(number + 1, len(mine), result)
        return results

    def build(self, cell: Cell) -> Sampler:
        """The cell's sampler, on the graphs of the sweep's own: lambda and weights are numbers to a graph."""
        changes: dict[str, Any] = {
            "solver": cell.solver, "steps": cell.steps, "epsilon_scale": cell.epsilon_scale,
            "guidance": None, "guidance_scale": 1.0,
        }  # fmt: skip
        if cell.S_churn or "S_churn" in self.sampler.options:
            changes["S_churn"] = cell.S_churn
        if cell.guided and self._discriminator is not None:
            scale = cell.w_1st if cell.w_1st else cell.w_2nd
            weights = cell.w_1st / scale, cell.w_2nd / scale
            if weights not in self._terms:
                options = {"w_1st": weights[0], "w_2nd": weights[1], **self._guidance}
                self._terms[weights] = DiscriminatorGuidance(self._discriminator, **options)
            changes |= {"guidance": self._terms[weights], "guidance_scale": scale}
        return self.sampler.replace(**changes)

    def cost(self, cell: Cell) -> float:
        """About what a cell takes, in evaluations of the denoiser per sample."""
        evaluations = self._evaluations(cell.solver, cell.steps)
        guided = cell.steps * (cell.w_1st != 0) + (evaluations - cell.steps) * (cell.w_2nd != 0)
        return evaluations + (GUIDED_COST - 1) * guided

    def _evaluations(self, solver: str, steps: int) -> int:
        """Of a run; of an adaptive one it is not known."""
        if (solver, steps) not in self._counts:
            adaptive = isinstance(get_solver(solver), Driver)
            sampler = None if adaptive else self.sampler.replace(solver=solver, steps=steps, compiled=False)
            self._counts[solver, steps] = steps if sampler is None else sampler.plan().evaluations
        return self._counts[solver, steps]

    def seeds(self, cell: Cell) -> range:
        """The seeds of a cell's range."""
        first = self.first_seed + cell.range * self.samples
        return range(first, first + self.samples)

    def configuration(self, cell: Cell) -> dict[str, Any]:
        """Everything that decides a cell's scores, as JSON can hold it."""
        seeds = [self.seeds(cell)[0], self.samples]
        return self._setting(cell)[0] | {"cell": asdict(cell), "seeds": seeds}

    def _setting(self, cell: Cell) -> tuple[dict[str, Any], int]:
        """What decides all ranges of a cell's setting, and its number of evaluations."""
        if cell.setting not in self._settings:
            sampler = self.build(cell)
            prediction = sampler.prediction
            configuration = {
                "fastdiff": __version__, "torch": torch.__version__, **self._identity,
                "labels": self.labels, "batch": self.batch, "shape": list(sampler.shape or ()),
                "levels": [list(level) for level in sampler.levels], "options": _plain(sampler.options),
                "prediction": {"name": prediction.name} | _plain(vars(prediction)),
                "epsilon_scale_mode": sampler.epsilon_scale_mode, "clip_denoised": _plain(sampler.clip),
                "dtype": str(sampler.dtype), "model_dtype": str(sampler.model_dtype),
                "device": sampler.device.type, "backend": sampler.backend,
            }  # fmt: skip
            if cell.guided:
                configuration |= {"discriminator": self._guide, "guidance": _plain(self._guidance)}
            self._settings[cell.setting] = configuration, sampler.plan().evaluations
        return self._settings[cell.setting]

    def result(self, cell: Cell) -> Result | None:
        """What was measured, if the cell is finished."""
        try:
            content = json.loads(self._file(cell).read_text(encoding="utf-8"))
            scores = content["scores"] or dict.fromkeys(("frechet", "precision", "recall"))
            seeds = content["configuration"]["seeds"]
            frechet, precision, recall = (scores[name] for name in ("frechet", "precision", "recall"))
            return Result(cell, content["nfe"], (seeds[0], seeds[1]), frechet, precision, recall, self._keys[cell])
        except (OSError, ValueError, KeyError, TypeError, IndexError):  # none, or a damaged one: to be measured
            return None

    def results(self) -> list[Result]:
        """Of all finished cells, in the grid's order."""
        return [result for cell in self.cells if (result := self.result(cell)) is not None]

    @property
    def finished(self) -> bool:
        """Whether all cells are, by whichever process."""
        return all(self.result(cell) is not None for cell in self.cells)

    def _measure(self, cell: Cell, sampler: Sampler) -> Result:
        try:
            scored = self.score(generate(sampler, self.seeds(cell), labels=self.labels, batch=self.batch))
            numbers = {name: float(getattr(scored, name)) for name in ("frechet", "precision", "recall")}
        except FloatingPointError:  # a lambda far off can do this
            numbers = {"frechet": math.nan}
        scores = numbers if all(map(math.isfinite, numbers.values())) else None
        content = {"configuration": self.configuration(cell), "nfe": self._setting(cell)[1], "scores": scores}
        file = self._file(cell)
        file.parent.mkdir(parents=True, exist_ok=True)
        with atomic_path(file) as temporary:
            temporary.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
        result = self.result(cell)
        assert result is not None
        return result

    def _file(self, cell: Cell) -> Path:
        return self.folder / "cells" / f"{self._keys[cell]}.json"

    def _key(self, cell: Cell) -> str:
        text = json.dumps(self.configuration(cell), sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:20]


def digest_of(name: str, thing: Any) -> str:
    """SHA-256 of what a network or an `Evaluator` computes with: classes, weights, reference features, settings.

    Args:
        name: for the message.
        thing: an nn.Module, or an object that holds modules, tensors and plain values; what is private to it
            (`_name`) is taken for a cache.

    Raises:
        ValueError: a function, whose content cannot be told from here.
    """
    digest = hashlib.sha256()
    for line in _content(name, thing):
        digest.update(line)
    return digest.hexdigest()


def _content(name: str, thing: Any) -> Iterator[bytes]:
    if isinstance(thing, nn.Module):
        yield f"{type(thing).__qualname__} {getattr(thing, 'config', '')}\n".encode()
        for key, tensor in sorted(thing.state_dict().items()):
            yield from _content(key, tensor)
    elif isinstance(thing, Tensor):
        yield f"{name} {thing.dtype} {list(thing.shape)}\n".encode()
        yield thing.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
    elif thing is None or isinstance(thing, (str, int, float, bool, tuple, list, dict)):
        yield f"{name} {thing!r}\n".encode()
    elif not callable(thing) or not vars(thing):
        raise ValueError(f"identity must name the {name}, since {type(thing).__name__} has no content to hash")
    else:
        yield f"{type(thing).__qualname__}\n".encode()
        for key, value in sorted(vars(thing).items()):
            if not key.startswith("_"):
                yield from _content(key, value)


def _plain(value: Any) -> Any:
    """A setting as JSON can hold it: functions and objects by their names."""
    if isinstance(value, Mapping):
        return {str(key): _plain(entry) for key, entry in sorted(value.items())}
    if isinstance(value, (list, tuple)):
        return [_plain(entry) for entry in value]
    if is_dataclass(value) and not isinstance(value, type):
        return _plain(asdict(value))
    if value is None or isinstance(value, (str, int, float, bool)):
        return value if not isinstance(value, float) or math.isfinite(value) else str(value)
    return getattr(value, "__qualname__", type(value).__qualname__)
