"""What a run shows of itself while it goes on: samples of the averaged network, and their distance to real ones."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from ..data import Samples, fetch
from ..errors import check_count, warn
from ..evaluation import extract, frechet_distance, generate, get_features
from ..evaluation.features import eight_bit
from ..files import atomic_path
from ..opening import default_settings, network_sampler
from ..pictures import grid, pixels, png_bytes

if TYPE_CHECKING:
    from .log import Log
    from .parallel import Group

__all__ = ["Preview"]

_MOST = 50_000  # real samples that are compared with
_CHUNK = 500  # of them are held at once


class Preview:
    """Draws the same seeds again and again: a grid (images) or a scatter plot (points in the plane) as a PNG file.

    The samples come from the network's default sampler (`fastdiff.opening`), the classes in turn. With a reference
    their Frechet distance to it is measured: in the shipped classifier's features for digits of 16 pixels, in
    Inception's for other images, in the coordinates themselves for points. It depends on the number of samples; only
    values with the same number can be compared.

    Under torchrun every process draws its share (so networks in shards work), and the first one writes.

    Args:
        folder: for the pictures; made with the first one.
        count: samples.
        batch: samples per call of the network.
        reference: real samples, or None.
        group: the run's processes; None for one.
        device: of the feature network.

    Raises:
        ValueError: a count that is too small, or samples of a shape that has no feature space.
        FeatureError: Inception's file is missing; the message says how to get it.
        ModuleNotFoundError: a library that the distance needs is missing.
    """

    def __init__(
        self,
        folder: str | Path,
        count: int = 64,
        *,
        batch: int = 250,
        reference: Samples | None = None,
        group: Group | None = None,
        device: torch.device | str = "cpu",
    ) -> None:
        self.folder = Path(folder)
        self.count = check_count("samples", count, 1 if reference is None else 2)
        self.batch = check_count("batch", batch)
        self.rank, self.world = (0, 1) if group is None else (group.rank, group.world)
        self._group = group
        self._features: nn.Module | None = None
        if reference is not None:
            self._features = _features(reference.sample_shape).to(device)
            if self.rank == 0:
                self._real = self._reference(reference)
                frechet_distance(self._real[:2], self._real[:2])  # a missing library shows now

    def __call__(self, network: Any, iteration: int, log: Log | None = None) -> dict[str, Any]:
        """Draws, writes the picture `0000500.png`, measures. Every process of the run must call it.

        Args:
            network: the averaged network, in evaluation mode, with the `metadata` of a model file.
            iteration: iterations done so far.
            log: of the first process: gets a row, and the picture for TensorBoard.

        Returns:
            What is in the row: `frechet` (with a reference) and `samples`, the picture's path. Empty on other processes
            than the first, and, with a warning, where a sample is not finite.

        Raises:
            OSError: the picture cannot be written.
        """
        samples = self._draw(network)
        if self.rank:
            return {}
        bad = int((~samples.isfinite()).flatten(1).any(1).sum())
        if bad:
            warn(f"no picture at iteration {iteration}: {bad} of {self.count} samples are not finite")
            return {}
        row: dict[str, Any] = {}
        if self._features is not None:
            row["frechet"] = frechet_distance(self._real, self._extract(samples))
        picture = _picture(samples)
        if picture is not None:
            self.folder.mkdir(parents=True, exist_ok=True)
            file = self.folder / f"{iteration:07d}.png"
            with atomic_path(file) as temporary:
                temporary.write_bytes(picture)
            row["samples"] = f"{self.folder.name}/{file.name}"
        if log is not None and row:
            log.add(iteration, **row)
            if picture is not None:
                log.picture(iteration, "samples", pixels(picture))
        return row

    def _draw(self, network: Any) -> Tensor:
        """All samples, float32 [N, ...] on the CPU; each process draws equally many, as shards need."""
        sampler = network_sampler(network, **default_settings(network), check=False, graph="off")
        share = -(-self.count // self.world)
        first = self.rank * share
        own = generate(sampler, range(first, first + share), batch=self.batch)
        if self._group is None:
            return own
        everything = torch.zeros(share * self.world, *own.shape[1:], device=self._group.device)
        everything[first : first + share] = own.to(everything.device)
        return self._group.sum(everything)[: self.count].cpu()

    def _extract(self, samples: Tensor) -> Tensor:
        assert self._features is not None
        return extract(eight_bit(samples) if samples.dim() == 4 else samples, self._features, _CHUNK)

    def _reference(self, reference: Samples) -> Tensor:
        """Features of the real samples, float64 [N, d]; of a fixed choice of them if there are very many."""
        order = torch.randperm(len(reference), generator=torch.Generator().manual_seed(0))[:_MOST]
        return torch.cat([self._extract(fetch(reference, some, device="cpu")[0]) for some in order.split(_CHUNK)])


def _features(shape: tuple[int, ...]) -> nn.Module:
    """The feature space of samples of that shape."""
    if len(shape) == 1:
        return nn.Identity()
    if len(shape) != 3 or shape[0] not in (1, 3):
        raise ValueError(f"reference must be images of 1 or 3 channels, or vectors, got samples of shape {list(shape)}")
    return get_features("digits" if shape == (1, 16, 16) else "inception")


def _picture(samples: Tensor) -> bytes | None:
    """A PNG file of finite samples [N, ...], or None where they cannot be shown."""
    if samples.dim() == 4 and samples.shape[1] in (1, 3):
        levels = ((samples.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)
        return png_bytes(grid(levels.permute(0, 2, 3, 1).numpy()))
    return _scatter(samples) if samples.shape[1:] == (2,) else None


def _scatter(points: Tensor) -> bytes | None:
    """Points in the plane, or None, with a warning, where matplotlib is missing."""
    from ..plots import COLOURS, new_figure, png

    try:
        figure = new_figure(4.0, 4.0)
    except ModuleNotFoundError as error:
        warn(f"samples are not drawn: {error}")
        return None
    ax = figure.add_subplot()
    ax.scatter(points[:, 0].numpy(), points[:, 1].numpy(), s=3, c=COLOURS[1], linewidths=0)
    ax.set_aspect("equal", "datalim")
    return png(figure, dpi=100)
