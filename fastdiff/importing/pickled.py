"""What the pickles of checkpoints may hold: EDM's objects, and the two forms of torch.save's files.

Every name that may occur stands in a table here, with the function that makes a record of it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from . import archive, pickles
from .numbers import NUMBERS, encoded
from .pickles import Instance, Maker, Unreadable, check_key
from .tensors import STORAGES, Storage, rebuild_parameter, rebuild_tensor

__all__ = ["MAGIC", "read_edm", "read_legacy", "read_zip"]

MAGIC = b"\x80\x02\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19."  # the pickle of the number 0x1950a86a20f9469cfc6c
VERSION = 1001
NESTED_STEPS = 64  # of a pickle that describes one storage
MOST_NESTED = 5000  # storages with files of their own


def _dict(arguments: tuple[Any, ...]) -> dict[Any, Any]:
    """An OrderedDict or EasyDict: made empty, or of a list of pairs (protocol 2)."""
    pairs = arguments[0] if len(arguments) == 1 else [] if not arguments else None
    if type(pairs) is not list or not all(type(pair) in (list, tuple) and len(pair) == 2 for pair in pairs):
        raise Unreadable("a dictionary made of no pairs")
    return {check_key(name): value for name, value in pairs}


def _set(arguments: tuple[Any, ...]) -> set[Any]:
    if len(arguments) != 1 or type(arguments[0]) is not list:
        raise Unreadable("a set made of no list")
    return set(map(check_key, arguments[0]))


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


def read_edm(data: memoryview) -> Any:
    """EDM's pickle: a dictionary of records.

    Raises:
        Unreadable: it is truncated or damaged, or holds anything else than data.
    """
    count, left = 0, len(data)

    def text(arguments: tuple[Any, ...]) -> memoryview:
        """Bytes of protocol 2, which the same text could ask for again and again: no more in all than the file has."""
        nonlocal left
        made = encoded(arguments, left)
        left -= len(made)
        return made

    def nested(arguments: tuple[Any, ...]) -> Storage:
        """A storage, from the whole torch file that stands for it."""
        nonlocal count
        count += 1
        if len(arguments) != 1 or type(arguments[0]) is not memoryview:
            raise Unreadable("a storage made of no bytes")
        if count > MOST_NESTED:
            raise Unreadable(f"more than {MOST_NESTED} storages, more than a checkpoint needs")
        storage = _legacy(arguments[0], _STORAGES, NESTED_STEPS)
        if not isinstance(storage, Storage):
            raise Unreadable("a storage's own file does not hold one")
        return storage

    table = {
        **_PLAIN,
        **_MODULES,
        "torch_utils.persistence._reconstruct_persistent_obj": _persistent,
        "torch.storage._load_from_bytes": nested,
        "_codecs.encode": text,
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


def read_legacy(data: memoryview) -> Any:
    """A file of torch.save from before its zip archives.

    Raises:
        Unreadable: as `read_edm`.
    """
    return _legacy(data, {**_PLAIN, **_STORAGES})


def read_zip(data: memoryview) -> Any:
    """A zip archive of torch.save: `data.pkl`, and a file for each storage.

    Raises:
        Unreadable: as `read_edm`, and for a zip archive that is compressed, unsafe or none of torch.save's.
    """
    members = archive.members(data)
    folders = [name.removesuffix("data.pkl") for name in members if name.count("/") == 1 and name.endswith("/data.pkl")]
    if len(folders) != 1:
        raise Unreadable("a zip archive that is no checkpoint of torch.save: it must hold one data.pkl")
    folder = folders[0]
    if any(name.startswith((f"{folder}code/", f"{folder}constants.pkl")) for name in members):
        raise Unreadable("a TorchScript archive: it holds code and is refused")
    order = members.get(f"{folder}byteorder")
    if order is not None and order.raw != b"little":
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
