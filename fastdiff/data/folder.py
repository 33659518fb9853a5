"""Folders of images, and the labels of folders and archives."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path, PurePosixPath

from torch import Tensor

from .images import SUFFIXES, BadSample, decode
from .samples import DataError, NoSplitError

__all__ = ["Folder", "is_image", "labels_of", "open_folder"]

LABEL_FILE = "dataset.json"
_MOST_CLASSES = 2**31
SPLITS = {"train": ("train",), "test": ("test", "val", "validation", "valid")}  # what a split may be called


class Folder:
    """The images below a folder, ordered by name (about 150 bytes an image)."""

    def __init__(
        self, root: Path, names: Sequence[str], labels: Sequence[int] | None, fit: tuple[int | None, int | None]
    ):
        self.root, self.names, self.labels, self.fit = root, names, labels, fit

    def __len__(self) -> int:
        return len(self.names)

    def name(self, index: int) -> str:
        return self.names[index]

    def read(self, index: int) -> tuple[Tensor, int]:
        path = self.root / self.names[index]
        try:
            file = path.open("rb")
        except OSError as error:
            raise BadSample(f"cannot be opened ({error.strerror or error})") from None
        with file:
            return decode(file, path.suffix.lower(), *self.fit), -1 if self.labels is None else self.labels[index]


def open_folder(root: Path, split: str, fit: tuple[int | None, int | None]) -> tuple[Folder, int, bool]:
    """The images below `root`, or below its sub-folder of the split (`train`; `test` or `val` ...).

    Returns:
        (reader, number of classes, whether the split has a sub-folder of its own).

    Raises:
        DataError: no images, or labels that cannot be used.
    """
    own = (root / "train").is_dir()
    if own:
        folders = [root / name for name in SPLITS[split] if (root / name).is_dir()]
        if not folders:
            raise NoSplitError(f"{root}: has a train folder, but none called {' or '.join(SPLITS[split])}")
        root = folders[0]
    others = 0
    names = []
    seen = set()

    def refuse(error: OSError) -> None:
        raise DataError(f"{error.filename}: cannot be listed ({error.strerror or error})")

    for folder, below, files in os.walk(root, onerror=refuse, followlinks=True):
        here = os.stat(folder)
        if (here.st_dev, here.st_ino) in seen:  # a link back
            below.clear()
            continue
        seen.add((here.st_dev, here.st_ino))
        below[:] = sorted(name for name in below if not name.startswith("."))
        for file in files:
            name = (Path(folder) / file).relative_to(root).as_posix()
            if is_image(name):
                names.append(name)
            else:
                others += 1
    if not names:
        wanted = " ".join(sorted(SUFFIXES))
        raise DataError(f"{root}: no images ({wanted}) among its {others} file{'' if others == 1 else 's'}")
    names.sort()
    try:
        text = (root / LABEL_FILE).read_bytes()
    except FileNotFoundError:
        text = None
    except OSError as error:
        raise DataError(f"{root / LABEL_FILE}: cannot be read ({error.strerror or error})") from None
    labels, classes = labels_of(str(root), names, text)
    return Folder(root, names, labels, fit), classes, own


def is_image(name: str) -> bool:
    """Whether a path looks like an image's: a known suffix, and no hidden part."""
    path = PurePosixPath(name)
    return path.suffix.lower() in SUFFIXES and not any(part.startswith((".", "__MACOSX")) for part in path.parts)


def labels_of(source: str, names: Sequence[str], text: bytes | None) -> tuple[list[int] | None, int]:
    """Classes of images.

    Args:
        names: paths relative to the folder or archive.
        text: of its `dataset.json`, EDM's format: `{"labels": [[name, class], ...]}`, or null for no classes. Without
            one, the class of an image is its first sub-folder (in the order of their names), if every image lies
            in one and there are at least two.

    Returns:
        (class of each image or None, number of classes).

    Raises:
        DataError: the JSON cannot be used, or an image has no label or none that is an integer from 0 to 2^31 - 1.
    """
    if text is None:
        tops = [name.split("/", 1)[0] if "/" in name else None for name in names]
        folders = sorted({top for top in tops if top is not None})
        if None in tops or len(folders) < 2:
            return None, 0
        number = {folder: index for index, folder in enumerate(folders)}
        return [number[top] for top in tops if top is not None], len(folders)
    where = f"{source}: {LABEL_FILE}"
    try:
        given = json.loads(text).get("labels")
        known = None if given is None else {str(name): label for name, label in given}
    except (ValueError, AttributeError, TypeError):
        raise DataError(f'{where}: expected {{"labels": [[name, class], ...]}} or {{"labels": null}}') from None
    if known is None:
        return None, 0
    labels = []
    for name in names:
        if name not in known:
            raise DataError(f"{where}: no label for {name} ({sum(n not in known for n in names)} images lack one)")
        label = known[name]
        if isinstance(label, bool) or not isinstance(label, int) or not 0 <= label < _MOST_CLASSES:
            wanted = f"an integer from 0 to {_MOST_CLASSES - 1}"
            raise DataError(f"{where}: the label of {name} must be {wanted}, got {label!r}")
        labels.append(label)
    return labels, max(labels) + 1
