"""The file formats of checkpoints: which one a file has is read off its bytes, never off its name.

EDM's pickles, torch.save's zip archives and their older form, safetensors. All of them become a `Record`: a tree of
plain values whose tensors are not read yet. Nothing of a file is run, see `pickles`.
"""

from __future__ import annotations

import json
import mmap
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from ..models.io import ModelFileError
from . import archive, pickles
from .numbers import NUMBERS
from .pickles import Instance, Maker, Unreadable
from .tensors import STORAGES, Storage, rebuild_parameter, rebuild_tensor

__all__ = ["Record", "Stored", "open_record", "sniff"]

MAGIC = b"\x80\x02\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19."  # the pickle of the number 0x1950a86a20f9469cfc6c
VERSION = 1001
NESTED_STEPS = 100  # of a pickle that describes one storage
LONGEST_HEADER = 1 << 24
RELEASE = 1 << 26


class Stored(Protocol):
    """A tensor that has been described but not yet read: `TensorRef`, or one of a safetensors file."""

    @property
    def dtype(self) -> torch.dtype: ...
    @property
    def shape(self) -> torch.Size: ...
    @property
    def nbytes(self) -> int: ...
    @property
    def key(self) -> Any: ...
    def load(self) -> Tensor: ...


@dataclass
class Record:
    """What a file holds.

    Attributes:
        path: the file.
        format: "edm-pickle", "torch", "torch-legacy" or "safetensors".
        content: dicts, lists, tuples, sets, texts, numbers, memoryviews (byte strings), `Stored` tensors, and
            `Instance` records of modules (EDM).
        metadata: the texts of a safetensors header.
    """

    path: Path
    format: str
    content: Any
    metadata: dict[str, str] = field(default_factory=dict)
    _map: mmap.mmap | None = field(default=None, repr=False)

    def load(self, tensors: Mapping[str, Stored]) -> dict[str, Tensor]:
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
            if since > RELEASE and self._map is not None and hasattr(self._map, "madvise"):
                self._map.madvise(mmap.MADV_DONTNEED)  # what has been copied need not stay in memory
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
            return _safetensors(file, data)
        return Record(file, form, _READERS[form](data), _map=mapped)
    except (Unreadable, OSError) as error:
        raise ModelFileError(f"{file}: {error}") from None


def sniff(data: memoryview) -> str:
    """The format of a file, by its first bytes.

    Raises:
        Unreadable: it is none of those that checkpoints have.
    """
    first = bytes(data[: len(MAGIC)])
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


# --- what pickles may name


def _dict(arguments: tuple[Any, ...]) -> dict[Any, Any]:
    """An OrderedDict or EasyDict: made empty, or of a list of pairs (protocol 2)."""
    pairs = arguments[0] if len(arguments) == 1 else [] if not arguments else None
    if type(pairs) is not list or not all(type(pair) in (list, tuple) and len(pair) == 2 for pair in pairs):
        raise Unreadable("a dictionary made of no pairs")
    if not all(type(name) in (str, int) for name, _ in pairs):
        raise Unreadable("a dictionary with a name that is no text and no number")
    return dict(pairs)


def _set(arguments: tuple[Any, ...]) -> set[Any]:
    if len(arguments) != 1 or type(arguments[0]) is not list or not all(type(item) is str for item in arguments[0]):
        raise Unreadable("a set of no texts")
    return set(arguments[0])


def _instance_of(name: str) -> Maker:
    def make(arguments: tuple[Any, ...]) -> Instance:
        if arguments:
            raise Unreadable(f"a {name} made with arguments")
        return Instance(name)

    return make


def _persistent(arguments: tuple[Any, ...]) -> Instance:
    """EDM's objects: class name and state. The text of the class's module, which EDM's own reader runs, is dropped."""
    meta = arguments[0] if len(arguments) == 1 else None
    if type(meta) is not dict or type(meta.get("class_name")) is not str or type(meta.get("state")) is not dict:
        raise Unreadable("an object of EDM's without a class name or a state")
    kind, version = meta.get("type"), meta.get("version")
    if kind != "class" or version != 6 or type(version) is not int:
        told = version if type(version) is int and abs(version) < 1000 else "unknown"
        raise Unreadable(f"an object of EDM's persistence must be a class of version 6, this one is of version {told}")
    return Instance(meta["class_name"], meta["state"])


_PLAIN: dict[str, Maker | None] = {
    "collections.OrderedDict": _dict,
    "dnnlib.util.EasyDict": _dict,
    "builtins.set": _set,
    "__builtin__.set": _set,
    "torch._utils._rebuild_tensor_v2": rebuild_tensor,
    "torch._utils._rebuild_parameter": rebuild_parameter,
    **NUMBERS,
}
_STORAGES: dict[str, Maker | None] = dict.fromkeys(STORAGES)
_MODULES: dict[str, Maker | None] = {
    f"torch.nn.modules.container.{name}": _instance_of(name) for name in ("ModuleDict", "ModuleList", "Sequential")
}


# --- EDM


def _edm(data: memoryview) -> Any:
    machine_steps = [pickles.MOST_STEPS]

    def nested(arguments: tuple[Any, ...]) -> Storage:
        """A storage, from the whole torch file that stands for it."""
        machine_steps[0] -= 5 * NESTED_STEPS
        if len(arguments) != 1 or type(arguments[0]) is not memoryview:
            raise Unreadable("a storage made of no bytes")
        if machine_steps[0] < 0:
            raise Unreadable("more storages than a checkpoint needs")
        storage = _legacy(arguments[0], _STORAGES, NESTED_STEPS)
        if not isinstance(storage, Storage):
            raise Unreadable("a storage's own file does not hold one")
        return storage

    table = {
        **_PLAIN,
        **_MODULES,
        "torch_utils.persistence._reconstruct_persistent_obj": _persistent,
        "torch.storage._load_from_bytes": nested,
    }
    content, end = pickles.read(data, table)
    _at_end(data, end)
    return content


# --- torch.save, before and since its zip archives


def _storage_of(find: Callable[[str, Storage], None]) -> Callable[[Any], Storage]:
    """What reads a persistent id; `find` is told of every storage when it first occurs."""
    known: dict[str, Storage] = {}

    def persistent(told: Any) -> Storage:
        if type(told) is not tuple or len(told) not in (5, 6) or told[0] != "storage":
            raise Unreadable("a reference that is not to a storage")
        kind, key, _, numel = told[1:5]
        if type(kind) is not pickles.Global or kind.name not in STORAGES or type(key) is not str:
            raise Unreadable("a reference to a storage of unknown type")
        if len(told) == 6 and told[5] is not None:
            raise Unreadable("a storage that is a view of another one")
        dtype = STORAGES[kind.name]
        storage = known.get(key)
        if storage is None:
            storage = known[key] = Storage(dtype, numel)
            find(key, storage)
        if storage.dtype != dtype or storage.numel != numel:
            raise Unreadable(f"storage {key[:40]!r} is told with two sizes or types")
        return storage

    return persistent


def _legacy(data: memoryview, table: Mapping[str, Maker | None], most: int = pickles.MOST_STEPS) -> Any:
    """Five pickles, then the storages in the order of the last one."""
    at = 0
    storages: dict[str, Storage] = {}

    def pickle(**options: Any) -> Any:
        nonlocal at
        value, end = pickles.read(data[at:], options.pop("table", {}), **options)
        at += end
        return value

    if bytes(data[: len(MAGIC)]) != MAGIC:
        raise Unreadable("a storage's own file does not begin as torch.save's do")
    pickle(most=NESTED_STEPS)
    version, system = pickle(most=NESTED_STEPS), pickle(most=NESTED_STEPS)
    if type(version) is not int or version != VERSION:
        raise Unreadable(f"a file of torch.save must be of version {VERSION}")
    if type(system) is not dict or system.get("little_endian") is not True:
        raise Unreadable("a file of torch.save must be little-endian")
    content = pickle(table=table, persistent=_storage_of(storages.__setitem__), most=most)
    keys = pickle(most=most)
    if type(keys) is not list or not all(type(key) is str for key in keys) or sorted(keys) != sorted(storages):
        raise Unreadable("the storages of a file of torch.save are not those that its tensors need")
    for key in keys:
        storage = storages[key]
        if at + 8 + storage.nbytes > len(data):
            raise Unreadable(f"truncated: storage {key[:40]!r} needs {storage.nbytes} bytes at byte {at + 8}")
        if int.from_bytes(data[at : at + 8], "little") != storage.numel:
            raise Unreadable(f"storage {key[:40]!r} is told with two sizes")
        storage.bind(data[at + 8 : at + 8 + storage.nbytes])
        at += 8 + storage.nbytes
    _at_end(data, at)
    return content


def _torch(data: memoryview) -> Any:
    """A zip archive: `data.pkl`, and a file for each storage."""
    members = archive.members(data)
    folders = [name.removesuffix("data.pkl") for name in members if name.count("/") == 1 and name.endswith("/data.pkl")]
    if len(folders) != 1:
        raise Unreadable("a zip archive that is no checkpoint of torch.save: it must hold one data.pkl")
    folder = folders[0]
    if any(name.startswith((f"{folder}code/", f"{folder}constants.pkl")) for name in members):
        raise Unreadable("a TorchScript archive: it holds code and is refused")
    order = members.get(f"{folder}byteorder")
    if order is not None and bytes(order.data()) != b"little":
        raise Unreadable("a file of torch.save must be little-endian")

    def find(key: str, storage: Storage) -> None:
        member = members.get(f"{folder}data/{key}")
        if member is None:
            raise Unreadable(f"storage {key[:40]!r} is not in the file")
        storage.bind(member.data())

    text = members[f"{folder}data.pkl"].data()
    content, end = pickles.read(text, {**_PLAIN, **_STORAGES}, persistent=_storage_of(find))
    _at_end(text, end)
    return content


def _at_end(data: memoryview, end: int) -> None:
    if end != len(data):
        raise Unreadable(f"{len(data) - end} bytes follow the end of the data")


_READERS: dict[str, Callable[[memoryview], Any]] = {
    "edm-pickle": _edm,
    "torch": _torch,
    "torch-legacy": lambda data: _legacy(data, {**_PLAIN, **_STORAGES}),
}


# --- safetensors


@dataclass(frozen=True)
class _Slice:
    """A tensor of a safetensors file."""

    handle: Any
    name: str
    dtype: torch.dtype
    shape: torch.Size

    @property
    def nbytes(self) -> int:
        return self.shape.numel() * self.dtype.itemsize

    @property
    def key(self) -> str:
        return self.name

    def load(self) -> Tensor:
        try:
            return self.handle.get_tensor(self.name)
        except (SafetensorError, RuntimeError, ValueError) as error:
            raise Unreadable(str(error)) from None


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


def _safetensors(file: Path, data: memoryview) -> Record:
    length = int.from_bytes(data[:8], "little")
    if length > min(LONGEST_HEADER, len(data) - 8):
        raise Unreadable(
            f"a safetensors header of {length} bytes; the file has {len(data)}, and {LONGEST_HEADER} are the most"
        )
    content: dict[str, Stored] = {}
    try:
        handle = safe_open(file, framework="pt").__enter__()
        for name in handle.keys():
            part = handle.get_slice(name)
            if part.get_dtype() not in _SAFETENSORS:
                raise Unreadable(
                    f"tensor {name[:100]!r} is of type {part.get_dtype()}; known are {', '.join(_SAFETENSORS)}"
                )
            content[name] = _Slice(handle, name, _SAFETENSORS[part.get_dtype()], torch.Size(part.get_shape()))
    except (SafetensorError, RuntimeError, ValueError, json.JSONDecodeError) as error:
        raise Unreadable(f"not a readable safetensors file ({error})") from None
    return Record(file, "safetensors", content, dict(handle.metadata() or {}))
