"""The file formats of checkpoints: which one a file has is read off its bytes, never off its name.

EDM's pickles, torch.save's zip archives and their older form, safetensors. All of them become a `Record`: a tree of
plain values whose tensors are not read yet. Nothing of a file is run, see `pickles`.
"""

from __future__ import annotations

import json
import math
import mmap
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from ..models.io import ModelFileError
from .pickled import MAGIC, read_edm, read_legacy, read_zip
from .pickles import Unreadable, check_key
from .tensors import Storage, TensorRef, rebuild_tensor

__all__ = ["Record", "open_record", "sniff"]

LONGEST_HEADER = 1 << 24
RELEASE = 1 << 26  # bytes


@dataclass
class Record:
    """What a file holds.

    Attributes:
        path: the file.
        format: "edm-pickle", "torch", "torch-legacy" or "safetensors".
        content: dicts, lists, tuples, sets, texts, numbers, memoryviews (byte strings), `TensorRef` tensors, and
            `Instance` records of modules (EDM).
        metadata: the texts of a safetensors header.
        map: the file in memory.
    """

    path: Path
    format: str
    content: Any
    metadata: dict[str, str] = field(default_factory=dict)
    map: mmap.mmap | None = field(default=None, repr=False)

    def load(self, tensors: Mapping[str, TensorRef]) -> dict[str, Tensor]:
        """Reads tensors, each into memory of its own; those that are the same numbers become one tensor.

        Raises:
            ModelFileError: they are not in the file, or are more than twice its size.
        """
        size, total = self.path.stat().st_size, 0
        loaded: dict[Any, Tensor] = {}
        since = 0
        for name, tensor in tensors.items():
            if tensor.key in loaded:
                continue
            total, since = total + tensor.nbytes, since + tensor.nbytes
            if total > 2 * size:
                raise ModelFileError(
                    f"{self.path}: its tensors overlap, and are more than twice the file's {size} bytes"
                )
            try:
                loaded[tensor.key] = tensor.load()
            except Unreadable as error:
                raise ModelFileError(f"{self.path}: tensor {name!r}: {error}") from None
            if since > RELEASE and self.map is not None and hasattr(self.map, "madvise"):
                self.map.madvise(mmap.MADV_DONTNEED)  # what has been copied need not stay in memory
                since = 0
        return {name: loaded[tensor.key] for name, tensor in tensors.items()}


def open_record(path: str | Path) -> Record:
    """Reads what a file holds, but for the numbers of its tensors.

    Raises:
        ModelFileError: no such file; of no known format, truncated, damaged, or with code in it.
    """
    file = Path(path)
    if not file.is_file():
        raise ModelFileError(f"{file}: no such file")
    try:
        with open(file, "rb") as handle:
            if not file.stat().st_size:
                raise Unreadable("the file is empty")
            mapped = mmap.mmap(handle.fileno(), 0, access=mmap.ACCESS_READ)
        data = memoryview(mapped)
        form = sniff(data)
        if form == "safetensors":
            content, metadata = _safetensors(file, data)
        else:
            content, metadata = _READERS[form](data), {}
        return Record(file, form, content, metadata, mapped)
    except (Unreadable, OSError) as error:
        raise ModelFileError(f"{file}: {error}") from None


def sniff(data: memoryview) -> str:
    """The format of a file, by its first bytes.

    Raises:
        Unreadable: it is none of those that checkpoints have.
    """
    first = bytes(data[: len(MAGIC)])
    if first[3:9] == b"\0\0\0\0\0{":  # before pickles: the length of a header may begin as they do
        return "safetensors"
    if first.startswith(b"PK\x03\x04"):
        return "torch"
    if first == MAGIC:
        return "torch-legacy"
    if first[:1] == b"\x80" and first[1:2] in (b"\x02", b"\x03", b"\x04", b"\x05"):
        return "edm-pickle"
    if first[8:9] == b"{":
        return "safetensors"
    raise Unreadable(
        f"not a checkpoint: it begins with {first[:8].hex(' ')}; known are EDM's pickles, files of torch.save, and "
        "safetensors"
    )


_READERS = {"edm-pickle": read_edm, "torch": read_zip, "torch-legacy": read_legacy}


# --- safetensors


_SAFETENSORS = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}


def _safetensors(file: Path, data: memoryview) -> tuple[dict[str, TensorRef], dict[str, str]]:
    """The safetensors package checks the header; the tensors are read as those of all other formats."""
    length = int.from_bytes(data[:8], "little")
    if length > min(LONGEST_HEADER, len(data) - 8):
        raise Unreadable(
            f"a safetensors header of {length} bytes; the file has {len(data)}, and {LONGEST_HEADER} are the most"
        )
    try:
        with safe_open(file, framework="np"):
            header = json.loads(bytes(data[8 : 8 + length]))
    except (SafetensorError, ValueError, RecursionError) as error:
        told = "".join(letter if letter.isprintable() else "?" for letter in str(error)[:300])
        raise Unreadable(f"not a readable safetensors file ({told})") from None
    metadata = header.pop("__metadata__", None) or {}
    return {check_key(name): _described(name, entry, data[8 + length :]) for name, entry in header.items()}, metadata


def _described(name: str, entry: Mapping[str, Any], data: memoryview) -> TensorRef:
    dtype = _SAFETENSORS.get(entry["dtype"])
    if dtype is None:
        raise Unreadable(f"tensor {name!r} is of type {entry['dtype']}; known are {', '.join(_SAFETENSORS)}")
    shape, (first, last) = tuple(entry["shape"]), entry["data_offsets"]
    stride = tuple(math.prod(shape[axis + 1 :]) for axis in range(len(shape)))
    storage = Storage(dtype, math.prod(shape))
    storage.bind(data[first:last])
    return rebuild_tensor((storage, 0, shape, stride, False, None))
