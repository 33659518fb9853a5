"""Data sets of the Hugging Face `datasets` library, and any map-style `torch.utils.data.Dataset`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import Tensor

from .folder import SPLITS
from .images import BadSample, pixels
from .samples import DataError, NoSplitError

__all__ = ["HubReader", "TorchReader", "open_hub", "open_torch"]


class HubReader:
    """Rows of a `datasets.Dataset`: one column of images and maybe one of classes. The rows stay on disk."""

    def __init__(self, source: str, rows: Any, image: str, label: str | None, fit: tuple[int | None, int | None]):
        self.source, self.rows, self.image, self.label, self.fit = source, rows, image, label, fit

    def __len__(self) -> int:
        return len(self.rows)

    def name(self, index: int) -> str:
        return f"row {index}"

    def read(self, index: int) -> tuple[Tensor, int]:
        try:
            row = self.rows[index]
            image, label = row[self.image], None if self.label is None else row[self.label]
            if image is None:
                raise BadSample("has no image")
            return pixels(image, *self.fit), -1 if label is None else int(label)
        except BadSample:
            raise
        except Exception as error:  # whatever Arrow, the decoder or a user's transform raises
            raise BadSample(f"cannot be read ({type(error).__name__}: {' '.join(str(error).split())})") from None


def open_hub(source: str, split: str, fit: tuple[int | None, int | None]) -> tuple[HubReader, int, bool]:
    """`NAME` or `NAME:SPLIT`: a data set's name, or a folder that `save_to_disk` wrote or `load_dataset` reads.

    Returns:
        (reader, number of classes, whether the split is one of the set's own).

    Raises:
        ModuleNotFoundError: `datasets` is not installed.
        NoSplitError: it has no such split.
        DataError: the library cannot load it, it has no split `SPLIT`, or it has no column of images.
    """
    try:
        import datasets
    except ModuleNotFoundError:
        raise ModuleNotFoundError(
            "hf: data sets need the datasets library: pip install datasets", name="datasets"
        ) from None
    name, _, chosen = source.partition(":")
    try:
        if any((Path(name) / file).exists() for file in ("dataset_dict.json", "dataset_info.json")):
            rows = datasets.load_from_disk(name)
        else:
            rows = datasets.load_dataset(name, split=chosen or None)
    except Exception as error:  # the library raises its own, OSError, ValueError, those of its HTTP client ...
        reason = " ".join(str(error).split())
        raise DataError(f"hf:{name}: cannot be loaded ({type(error).__name__}: {reason})") from None
    own = isinstance(rows, dict) and not chosen
    if isinstance(rows, dict):
        known = [name for name in ((chosen,) if chosen else SPLITS[split]) if name in rows]
        if not known:
            kind = DataError if chosen else NoSplitError
            raise kind(f"hf:{name}: split must be one of {', '.join(rows)}, got {chosen or split!r}")
        rows = rows[known[0]]
    return *hub_reader(f"hf:{name}", rows, fit), own


def hub_reader(source: str, rows: Any, fit: tuple[int | None, int | None]) -> tuple[HubReader, int]:
    """A `datasets.Dataset` with one column of images, and its number of classes (0 without a ClassLabel column)."""
    import datasets

    images = [name for name, kind in rows.features.items() if isinstance(kind, datasets.Image)]
    if len(images) != 1:
        found = ", ".join(f"{name} ({type(kind).__name__})" for name, kind in rows.features.items())
        raise DataError(f"{source}: must have one column of images, got {len(images)} among {found}")
    labels = [name for name, kind in rows.features.items() if isinstance(kind, datasets.ClassLabel)]
    label = "label" if "label" in labels else labels[0] if len(labels) == 1 else None
    if labels and label is None:
        raise DataError(f"{source}: must have one column of classes, or one called label, got {', '.join(labels)}")
    classes = 0 if label is None else rows.features[label].num_classes
    return HubReader(source, rows.with_format(None), images[0], label, fit), classes


class TorchReader:
    """A map-style data set whose items are an image, (image, class) or {"image": ..., "label": ...}."""

    def __init__(self, dataset: Any, fit: tuple[int | None, int | None]):
        self.dataset, self.fit = dataset, fit

    def __len__(self) -> int:
        return len(self.dataset)

    def name(self, index: int) -> str:
        return f"item {index}"

    def read(self, index: int) -> tuple[Tensor, int]:
        try:
            item = self.dataset[index]
            if isinstance(item, dict):
                item = [item[key] for key in ("image", "label") if key in item]
            image, *label = item if isinstance(item, (tuple, list)) else (item,)
            return pixels(image, *self.fit), int(label[0]) if label else -1
        except BadSample:
            raise
        except Exception as error:  # a user's code may raise anything
            raise BadSample(f"cannot be read ({type(error).__name__}: {' '.join(str(error).split())})") from None


def open_torch(dataset: Any, fit: tuple[int | None, int | None]) -> tuple[Any, int | None]:
    """A reader of a `torch.utils.data.Dataset` or `datasets.Dataset`, and the number of classes if it says so.

    Raises:
        DataError: it has no length or no items by index.
    """
    if type(dataset).__module__.partition(".")[0] == "datasets" and hasattr(dataset, "features"):
        return hub_reader(type(dataset).__name__, dataset, fit)
    if not hasattr(dataset, "__getitem__") or not hasattr(dataset, "__len__"):
        raise DataError(f"{type(dataset).__name__}: must be a data set with a length and items by index")
    classes = getattr(dataset, "classes", None)
    return TorchReader(dataset, fit), classes if isinstance(classes, int) else len(classes) if classes else None
