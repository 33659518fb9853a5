"""EDM's pickles: class names, constructor arguments and tensors, from the records of its objects.

EDM writes every object with the source text of its class, and its own reader runs that text. It is not needed: class
name and constructor arguments stand beside it, and the tensors have their names in the modules' state.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from ..models.io import ModelFileError
from .checkpoint import Checkpoint
from .containers import Record
from .pickles import Instance, Unreadable
from .tensors import TensorRef

__all__ = ["checkpoint"]

NETWORKS = ("SongUNet", "DhariwalUNet")
PRECONDITIONERS: dict[str, tuple[str, ...]] = {  # numbers that are constructor arguments and attributes
    "VPPrecond": ("beta_d", "beta_min", "M", "epsilon_t"),
    "VEPrecond": ("sigma_min", "sigma_max"),
    "iDDPMPrecond": ("C_1", "C_2", "M"),
    "EDMPrecond": ("sigma_min", "sigma_max", "sigma_data"),
}
SHARED = ("img_resolution", "img_channels", "label_dim", "use_fp16")
DEEPEST = 32
MOST_ENTRIES = 200_000
LONGEST_NAME = 512


def checkpoint(record: Record, *, weights: str = "ema") -> Checkpoint:
    """The network of one of EDM's pickles.

    Args:
        record: of the format "edm-pickle".
        weights: "ema", the only ones that such a file has.

    Returns:
        The checkpoint: `architecture` is the preconditioner's class, `config` its constructor's arguments; those of
        the network inside are taken from its own record. Attributes win over arguments, as in EDM's own reader.

    Raises:
        ModelFileError: there is no such network in the file, or its records are not whole or contradict each other.
    """
    try:
        if weights != "ema":
            raise Unreadable(f"weights must be 'ema', the only ones of EDM's pickles, got {weights!r}")
        return _read(record)
    except Unreadable as error:
        raise ModelFileError(f"{record.path}: {error}") from None


def _read(record: Record) -> Checkpoint:
    content = record.content
    outer = content.get("ema") if type(content) is dict else None
    if type(outer) is not Instance:
        raise Unreadable("a pickle without EDM's entry 'ema'")
    state, given = _state(outer), _arguments(outer)
    if outer.name not in PRECONDITIONERS:
        raise Unreadable(f"a network of class {outer.name[:100]!r}; known are {', '.join(PRECONDITIONERS)}")
    inner = _entries(state, "_modules").get("model")
    if type(inner) is not Instance or inner.name not in NETWORKS:
        told = repr(inner.name[:100]) if type(inner) is Instance else "nothing"
        raise Unreadable(f"a {outer.name} of {told}; known are {', '.join(NETWORKS)}")
    names = (*SHARED, *PRECONDITIONERS[outer.name])
    own = {name: given[name] for name in names if name in given}
    own |= {name: _plain(state[name]) for name in names if name in state}
    network = _arguments(inner)
    channels = own.get("img_channels")
    wanted = {
        "img_resolution": own.get("img_resolution"),
        "in_channels": channels,
        "out_channels": 2 * channels if outer.name == "iDDPMPrecond" and type(channels) is int else channels,
        "label_dim": own.get("label_dim", 0),
    }
    for name, value in wanted.items():
        if (got := network.pop(name, 0 if name == "label_dim" else None)) != value or type(value) is not int:
            raise Unreadable(
                f"{name} of the {inner.name} must be {value!r} as its {outer.name} says, got {got!r}"[:300]
            )
    if clash := sorted(network.keys() & own.keys()):
        raise Unreadable(f"{', '.join(clash)[:200]}: arguments of both the {outer.name} and the {inner.name}")
    if unknown := sorted(given.keys() - own.keys() - network.keys() - {"model_type"}):
        raise Unreadable(f"{', '.join(unknown)[:200]}: arguments of the {outer.name} that its {inner.name} did not get")
    tensors = record.load(dict(_tensors(outer)))
    unused = ", ".join(str(name)[:40] for name in content if name != "ema")
    notes = ["weights: ema", *([f"not used: {unused[:200]}"] if unused else [])]
    config = {**own, "model_type": inner.name, **network}
    return Checkpoint(str(record.path), record.format, tensors, outer.name, config, notes=notes)


def _tensors(root: Instance) -> Iterator[tuple[str, TensorRef]]:
    """Names and tensors in the order of torch's state dicts: parameters, buffers, then the modules inside."""
    left = MOST_ENTRIES
    pending: list[tuple[str, Instance, int]] = [("", root, 0)]
    while pending:
        prefix, module, depth = pending.pop()
        state = _state(module)
        hidden = state.get("_non_persistent_buffers_set", set())
        if depth > DEEPEST or not isinstance(hidden, (set, frozenset)):
            raise Unreadable(f"the modules of the file are damaged, or nested more than {DEEPEST} deep")
        for kind in ("_parameters", "_buffers"):
            for name, tensor in _entries(state, kind).items():
                left -= 1
                if tensor is None or (kind == "_buffers" and name in hidden):
                    continue
                if type(tensor) is not TensorRef:
                    raise Unreadable(f"{prefix}{name} is no tensor")
                yield f"{prefix}{name}", tensor
        inside = [(name, each) for name, each in _entries(state, "_modules").items() if each is not None]
        left -= 1 + len(inside)
        if left < 0:
            raise Unreadable(f"more than {MOST_ENTRIES} entries in the modules of the file")
        for name, each in reversed(inside):
            if type(each) is not Instance:
                raise Unreadable(f"{prefix}{name} is no module")
            pending.append((f"{prefix}{name}.", each, depth + 1))


def _state(instance: Instance) -> dict[Any, Any]:
    if type(instance.state) is not dict:
        raise Unreadable(f"a {instance.name[:100]} without a state")
    return instance.state


def _entries(state: dict[Any, Any], kind: str) -> dict[str, Any]:
    """The named parts of a module's state."""
    entries = state.get(kind)
    if type(entries) is not dict:
        raise Unreadable(f"a module without {kind}")
    for name in entries:
        if type(name) is not str or not name or "." in name or len(name) > LONGEST_NAME or not name.isprintable():
            raise Unreadable(f"a name in {kind} that is no module's or tensor's")
    return entries


def _arguments(instance: Instance) -> dict[str, Any]:
    """Those of the constructor, all by name."""
    state = _state(instance)
    given, positional = state.get("_init_kwargs"), state.get("_init_args")
    if type(given) is not dict or positional != () or not all(type(name) is str for name in given):
        raise Unreadable(f"a {instance.name[:100]} without constructor arguments, or with some that have no names")
    if len(given) > 256 or not all(name.isidentifier() and len(name) < 100 for name in given):
        raise Unreadable(f"constructor arguments of the {instance.name[:100]} that are no names")
    return {name: _plain(value) for name, value in given.items()}


def _plain(value: Any, depth: int = 0) -> Any:
    """Numbers, texts, and short lists of them."""
    if value is None or type(value) in (bool, float) or (type(value) is int and abs(value) < 1 << 63):
        return value
    if type(value) is str and len(value) <= LONGEST_NAME and value.isprintable():
        return value
    if type(value) in (list, tuple) and len(value) <= 256 and depth < 2:
        return [_plain(each, depth + 1) for each in value]
    raise Unreadable("a constructor argument that is no number, no text and no short list")
