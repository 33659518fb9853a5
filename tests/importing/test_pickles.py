"""The inert reader of pickles: values as Python's own reader has them, and nothing run, imported or allocated."""

from __future__ import annotations

import builtins
import pickle
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fastdiff.importing import pickled, pickles
from fastdiff.importing.numbers import NUMBERS
from fastdiff.importing.pickles import Unreadable, read

from . import made

VALUES = [
    None,
    True,
    0,
    255,
    65535,
    -1,
    1 << 40,
    -(1 << 200),
    0.1,
    float("-inf"),
    "",
    "häß" * 100,
    (),
    (1,),
    (1, (2, 3), [4, (5, 6, 7, 8)]),
    [[]],
    {"a": 1, 2: [], None: {}, True: "x"},
    {"x", "y"},
    frozenset({"x"}),
    ["memo"] * 300,
    list(range(2500)),
    {str(i): i for i in range(2500)},
]


def plain(data: bytes, **options: Any) -> Any:
    return read(memoryview(data), options.pop("table", {}), **options)[0]


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_values(protocol: int):
    for value in VALUES:
        if isinstance(value, (set, frozenset)) and protocol < 4:
            continue  # calls of builtins.set
        data = pickle.dumps(value, protocol=protocol)
        assert read(memoryview(data + b"rest"), {}) == (value, len(data))


def test_bytes_are_views():
    data = memoryview(pickle.dumps([b"abc", b"x" * 70_000], protocol=4))
    found, _ = read(data, {})
    assert all(isinstance(each, memoryview) and each.obj is data.obj for each in found)
    assert [bytes(each) for each in found] == [b"abc", b"x" * 70_000]


def test_shared_and_cyclic_values():
    shared: list[Any] = []
    shared.append(shared)
    found = plain(pickle.dumps((shared, shared), protocol=4))
    assert found[0] is found[1] and found[0][0] is found[0]


@pytest.mark.parametrize("number", [0.5, np.float32(0.1), np.float64(0.1), np.int64(-3), np.uint8(200), np.bool_(True)])
@pytest.mark.parametrize("protocol", [2, 4])
def test_numpy_numbers(number: Any, protocol: int):
    found = plain(pickle.dumps([number], protocol=protocol), table=NUMBERS)[0]
    assert found == number and type(found) is type(np.asarray(number).item())


def test_numpy_1_and_big_endian():
    data = pickle.dumps(np.float64(0.1), protocol=2)
    assert plain(data.replace(b"numpy._core.", b"numpy.core."), table=NUMBERS) == 0.1
    with pytest.raises(Unreadable, match="little-endian"):
        plain(data.replace(b"<", b">"), table=NUMBERS)


def test_names_make_records_of_their_arguments():
    calls: list[Any] = []
    table = {"collections.OrderedDict": lambda arguments: calls.append(arguments) or {}}
    assert plain(pickle.dumps(OrderedDict(a=1), protocol=4), table=table) == {"a": 1} and calls == [()]


@pytest.mark.parametrize("protocol", [2, 4])
@pytest.mark.parametrize(("module", "name", "argument"), made.HOSTILE)
def test_other_names_are_refused(module: str, name: str, argument: str, protocol: int, tmp_path: Path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    calls = made.call_of(module, name, argument)
    if protocol == 2:
        calls = b"c" + module.encode() + b"\n" + name.encode() + b"\n" + calls[calls.index(b"\x93") + 1 :]
    for data in (b"\x80\x04N" + calls + b"0.", b"\x80\x04" + calls + b"."):
        for reader in (pickled.read_edm, lambda data: read(data, {})):
            with pytest.raises(Unreadable, match=f"asks for '{module}.{name}'"):
                reader(memoryview(data))
    assert not list(tmp_path.iterdir())


def test_nothing_is_run_or_imported(monkeypatch):
    """Not even the interpreter's own ways to do so are called while EDM's pickles and hostile ones are read."""
    network = made.pickled({"ema": made.edm_network({"model.a.weight": made.torch.ones(2)}), "x": OrderedDict(a=1)})
    hostile = [b"\x80\x04" + made.call_of(*each) + b"." for each in made.HOSTILE]

    def called(*_: Any, **__: Any) -> None:
        raise AssertionError("called")

    watched = dict.fromkeys(("exec", "eval", "compile", "open", "__import__"), called)
    before = {name: vars(builtins)[name] for name in watched}
    monkeypatch.setattr(pickle, "loads", called)
    monkeypatch.setattr(pickle, "Unpickler", called)
    refusals = 0
    vars(builtins).update(watched)
    try:
        found = pickled.read_edm(memoryview(network))
        for data in hostile:
            try:
                pickled.read_edm(memoryview(data))
            except Unreadable:
                refusals += 1
    finally:
        vars(builtins).update(before)
    assert found["ema"].name == "EDMPrecond" and refusals == len(hostile)


BROKEN = {
    "empty": (b"", "protocol 0 or 1"),
    "protocol 0": (b"I1\n.", "protocol 0 or 1"),
    "protocol 6": (b"\x80\x06N.", "protocol 6"),
    "protocol told twice": (b"\x80\x04\x80\x04N.", "told once"),
    "no end": (b"\x80\x04N", "without its end mark"),
    "nothing at the end": (b"\x80\x04.", "left over"),
    "two values at the end": (b"\x80\x04NN.", "left over"),
    "mark at the end": (b"\x80\x04(N.", "left over"),
    "empty stack": (b"\x80\x04a.", "damaged"),
    "no mark": (b"\x80\x04t.", "damaged"),
    "unknown instruction": (b"\x80\x04\xff.", "0xff"),
    "an extension": (b"\x80\x04\x82\x01.", "0x82"),
    "an instance": (b"\x80\x04(ios\nsystem\n.", "0x69"),
    "a buffer outside": (b"\x80\x05\x97.", "0x97"),
    "no such memo": (b"\x80\x04h\x07.", "damaged"),
    "huge text": (b"\x80\x04\x8d" + b"\xff" * 8, "text of"),
    "huge bytes": (b"\x80\x04\x8e" + b"\xff" * 8, "truncated"),
    "huge frame": (b"\x80\x04\x95" + b"\xff" * 8 + b".", "truncated"),
    "huge number": (b"\x80\x04\x8a\x40" + b"\x01" * 64 + b".", "number of 64 bytes"),
    "no text": (b"\x80\x04\x8c\x01\xff.", "damaged"),
    "a name without an end": (b"\x80\x04c" + b"x" * 1000, "without an end"),
    "a list as a key": (b"\x80\x04}]Ns.", "no name and no number"),
    "a tuple as a key": (b"\x80\x04})Ns.", "no name and no number"),
    "a real number as a key": (b"\x80\x04}G" + bytes(8) + b"Ns.", "no name and no number"),
    "a key that rewrites the terminal": (b"\x80\x04}\x8c\x02\x1b[Ns.", "no name and no number"),
    "a long key": (b"\x80\x04}X\x00\x10\x00\x00" + b"x" * 4096 + b"Ns.", "no name and no number"),
    "a key without a value": (b"\x80\x04}(Nu.", "damaged"),
    "a list set as a dict": (b"\x80\x04]NNs.", "no dict"),
    "a dict appended to": (b"\x80\x04}Na.", "no list"),
    "a list added to": (b"\x80\x04](N\x90.", "no set"),
    "a call of a number": (b"\x80\x04N)R.", "cannot be called"),
    "a state of a number": (b"\x80\x04N}b.", "has none"),
    "a persistent id": (b"\x80\x04NQ.", "outside"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_broken(name: str):
    data, told = BROKEN[name]
    with pytest.raises(Unreadable, match=told):
        plain(data)


def test_truncated_anywhere():
    data = pickle.dumps({"a": [1, 2.5, "text", b"bytes", (1, 2, 3, 4)], "b": {"c": None}}, protocol=4)
    for end in range(len(data)):
        with pytest.raises(Unreadable):
            plain(data[:end])


def test_number_of_instructions():
    data = b"\x80\x04" + b"N0" * 100 + b"N."
    assert plain(data, most=203) is None
    with pytest.raises(Unreadable, match="more than 202 instructions"):
        plain(data, most=202)


def test_doubled_values_cost_no_memory():
    """A tuple of 2^60 entries, written in a few hundred bytes: it stays what it is, and cannot be a key."""
    doubled = b")\x94" + b"".join(b"0h" + bytes([i]) + b"h" + bytes([i]) + b"\x86\x94" for i in range(60))
    assert len(plain(b"\x80\x04" + doubled + b".")) == 2
    with pytest.raises(Unreadable, match="key"):
        plain(b"\x80\x04}" + doubled + b"Ns.")


def test_copies_are_counted():
    """A set made of a long list again and again takes as many instructions as it copies entries."""
    make = {"builtins.set": lambda arguments: set(arguments[0])}
    listed = b"](" + b"N" * 1000 + b"e\x94\x8c\x08builtins\x8c\x03set\x93\x94"
    again = b"h\x01h\x00\x85R0"
    assert plain(b"\x80\x04" + listed + again * 2 + b"0.", table=make) == [None] * 1000
    with pytest.raises(Unreadable, match="instructions"):
        plain(b"\x80\x04" + listed + again * 1000 + b"0.", table=make, most=100_000)


def test_nested_values_of_any_depth():
    depth = 100_000
    found = plain(b"\x80\x04" + b"]" * depth + b"a" * (depth - 1) + b".")
    for _ in range(depth - 1):
        (found,) = found
    assert found == []


def test_machine_is_limited_by_default():
    with pytest.raises(Unreadable, match="instructions"):
        plain(b"\x80\x04" + b"N0" * pickles.MOST_STEPS)
