"""An inert reader of pickles: nothing is imported, and nothing is called but what the caller's own table holds.

A pickle is a program for a small stack machine, and two of its instructions look up any name of any module and call
it. Here the machine knows the data instructions of protocols 2 to 5 only. A global name that is not in the caller's
table ends the reading, whether or not the result would have been used; one that is in the table is only a record of
its name and of the caller's function that makes a record of the arguments. Byte strings are views of the input, and
no instruction allocates more than it has in its own bytes.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

__all__ = ["Global", "Instance", "Unreadable", "check_key", "read"]

MOST_STEPS = 500_000  # instructions of one file; EDM's pickles take about 140 for every tensor
COSTLY = 4  # of names and calls, in other instructions
LONGEST_TEXT = 1 << 24
LONGEST_NUMBER = 32
LONGEST_KEY = 1024
LARGEST_KEY = 1 << 60  # a hash of its own for every number
STOP = 0x2E

Maker = Callable[[tuple[Any, ...]], Any]


class Unreadable(ValueError):
    """A file that is damaged, or holds what no checkpoint needs; the reason without the file's name."""


class Global(NamedTuple):
    """A name in a module, "module.name", and what makes a record of a call of it (None: it is never called)."""

    name: str
    make: Maker | None


class Instance:
    """A record of an object: its class's name and its `__dict__`, once that has been read."""

    __slots__ = ("name", "state")

    def __init__(self, name: str, state: dict[Any, Any] | None = None):
        self.name, self.state = name, state


def read(
    data: memoryview,
    table: Mapping[str, Maker | None],
    *,
    persistent: Callable[[Any], Any] | None = None,
    most: int = MOST_STEPS,
) -> tuple[Any, int]:
    """Reads one pickle at the beginning of `data`.

    Args:
        data: the bytes; more may follow.
        table: the names that may occur, "module.name", each with the function that gets the tuple of arguments.
        persistent: gets the persistent ids; None: there may be none.
        most: number of instructions.

    Returns:
        (the value, the number of bytes that were read). Byte strings in it are views of `data`.

    Raises:
        Unreadable: the pickle is truncated or damaged, too long, of an unknown protocol, or names something that is
            not in the table.
    """
    machine = _Machine(data, table, persistent, most)
    try:
        return machine.run()
    except (IndexError, KeyError, UnicodeDecodeError, struct.error):
        raise Unreadable(f"the pickle is damaged at byte {machine.at}") from None


def check_key(name: Any) -> Any:
    """The key of a dictionary or the member of a set, if it is one that checkpoints have.

    Raises:
        Unreadable: it is no printable text of moderate length, no number and not None.
    """
    if type(name) is str:
        good = len(name) <= LONGEST_KEY and name.isprintable()
    else:
        good = name is None or type(name) is bool or (type(name) is int and abs(name) < LARGEST_KEY)
    if not good:
        raise Unreadable("the file has a key that is no name and no number")
    return name


class _Machine:
    """The stack machine. `steps` has the method of every instruction."""

    def __init__(
        self,
        data: memoryview,
        table: Mapping[str, Maker | None],
        persistent: Callable[[Any], Any] | None,
        most: int,
    ):
        self.data, self.table, self.persistent, self.most = data, table, persistent, most
        self.at, self.left = 0, most
        self.stack: list[Any] = []
        self.marked: list[list[Any]] = []
        self.memo: dict[int, Any] = {}

    def run(self) -> tuple[Any, int]:
        data, steps = self.data, _STEPS
        if bytes(data[:1]) != b"\x80":
            raise Unreadable("a pickle of protocol 0 or 1, or none at all; it must be of protocol 2 to 5")
        while True:
            if self.at >= len(data):
                raise Unreadable(f"the pickle ends at byte {self.at} without its end mark: the file is truncated")
            self.spend(1)
            code = data[self.at]
            self.at += 1
            if code == STOP:
                if len(self.stack) != 1 or self.marked:
                    raise Unreadable(f"the pickle is damaged at byte {self.at}: it ends with values left over")
                return self.stack[0], self.at
            step = steps.get(code)
            if step is None:
                raise Unreadable(f"the pickle has the instruction 0x{code:02x} at byte {self.at - 1}, no data")
            step(self)

    def spend(self, steps: int) -> None:
        self.left -= steps
        if self.left < 0:
            raise Unreadable(f"the pickle has more than {self.most} instructions, more than a checkpoint needs")

    # --- bytes of the file

    def take(self, count: int) -> memoryview:
        if count > len(self.data) - self.at:
            raise Unreadable(
                f"the pickle is truncated: {count} bytes expected at byte {self.at}, {len(self.data) - self.at} left"
            )
        taken = self.data[self.at : self.at + count]
        self.at += count
        return taken

    def number(self, width: int) -> int:
        return int.from_bytes(self.take(width), "little")

    def line(self) -> str:
        raw = bytes(self.data[self.at : self.at + 256])
        text, newline, _ = raw.partition(b"\n")
        if not newline:
            raise Unreadable(f"the pickle is damaged at byte {self.at}: a name without an end")
        self.at += len(text) + 1
        return text.decode()

    def text(self, width: int) -> None:
        count = self.number(width)
        if count > LONGEST_TEXT:
            raise Unreadable(f"the pickle has a text of {count} bytes at byte {self.at}; at most {LONGEST_TEXT}")
        self.stack.append(str(self.take(count), "utf-8"))

    def push_number(self, width: int) -> None:
        self.stack.append(self.number(width))

    def signed(self, width: int | None) -> None:
        width = self.number(1) if width is None else width
        if width > LONGEST_NUMBER:
            raise Unreadable(f"the pickle has a number of {width} bytes at byte {self.at}; at most {LONGEST_NUMBER}")
        self.stack.append(int.from_bytes(self.take(width), "little", signed=True))

    def real(self) -> None:
        self.stack.append(struct.unpack(">d", self.take(8))[0])

    def blob(self, width: int) -> None:
        self.stack.append(self.take(self.number(width)))

    def protocol(self) -> None:
        version = self.number(1)
        if not 2 <= version <= 5 or self.at != 2:
            raise Unreadable(f"a pickle of protocol {version} at byte {self.at - 2}; it must be 2 to 5, told once")

    def frame(self) -> None:
        count = self.number(8)
        if count > len(self.data) - self.at:
            raise Unreadable(f"the pickle is truncated: a frame of {count} bytes, {len(self.data) - self.at} left")

    # --- the stack

    def push(self, value: Any) -> None:
        self.stack.append(value)

    def mark(self) -> None:
        self.marked.append(self.stack)
        self.stack = []

    def unmark(self) -> list[Any]:
        above, self.stack = self.stack, self.marked.pop()
        return above

    def put(self, width: int) -> None:
        self.memo[self.number(width)] = self.stack[-1]

    def memoise(self) -> None:
        self.memo[len(self.memo)] = self.stack[-1]

    def get(self, width: int) -> None:
        self.stack.append(self.memo[self.number(width)])

    def tuple_of(self, count: int) -> None:
        if len(self.stack) < count:
            raise IndexError
        self.stack[-count:] = [tuple(self.stack[-count:])]

    def marked_tuple(self) -> None:
        items = self.unmark()
        self.stack.append(tuple(items))

    # --- containers

    def append(self, items: list[Any]) -> None:
        self.top(list, "appends to").extend(items)

    def set_items(self, items: list[Any]) -> None:
        if len(items) % 2:
            raise IndexError
        target = self.top(dict, "sets an entry of")
        for name, value in zip(items[::2], items[1::2]):
            target[check_key(name)] = value

    def add_items(self) -> None:
        items = self.unmark()
        self.top(set, "adds to").update(map(check_key, items))

    def frozen(self) -> None:
        items = self.unmark()
        self.stack.append(frozenset(map(check_key, items)))

    def top(self, kind: type, verb: str) -> Any:
        target = self.stack[-1]
        if type(target) is not kind:
            raise Unreadable(f"the pickle {verb} what is no {kind.__name__}, at byte {self.at}")
        return target

    # --- names and calls, of the table only

    def name(self, module: Any, name: Any) -> None:
        self.spend(COSTLY)
        full = f"{module}.{name}" if type(module) is str and type(name) is str else "?"
        if full not in self.table:
            raise Unreadable(f"the file asks for {full[:100]!r}, code and no data: nothing of it was run")
        self.stack.append(Global(full, self.table[full]))

    def name_line(self) -> None:
        self.name(self.line(), self.line())

    def name_stack(self) -> None:
        name = self.stack.pop()
        self.name(self.stack.pop(), name)

    def call(self) -> None:
        arguments, callee = self.stack.pop(), self.stack.pop()
        if type(callee) is not Global or callee.make is None or type(arguments) is not tuple:
            raise Unreadable(f"the pickle calls what cannot be called, at byte {self.at}")
        self.spend(COSTLY + sum(len(each) for each in arguments if type(each) in (list, tuple)))  # these are copied
        self.stack.append(callee.make(arguments))

    def build(self) -> None:
        state, target = self.stack.pop(), self.stack[-1]
        if type(target) is dict:
            return  # attributes of an OrderedDict: those of torch's state dicts, versions of modules
        if not isinstance(target, Instance) or target.state is not None or type(state) not in (dict, tuple):
            raise Unreadable(f"the pickle gives a state to what has none, at byte {self.at}")
        target.state = state

    def persistent_id(self) -> None:
        if self.persistent is None:
            raise Unreadable(f"the pickle refers to data outside of it, at byte {self.at}")
        self.stack.append(self.persistent(self.stack.pop()))


_STEPS: dict[int, Callable[[_Machine], Any]] = {
    0x80: _Machine.protocol,
    0x95: _Machine.frame,
    ord("N"): lambda m: m.push(None),
    0x88: lambda m: m.push(True),
    0x89: lambda m: m.push(False),
    ord("K"): lambda m: m.push_number(1),
    ord("M"): lambda m: m.push_number(2),
    ord("J"): lambda m: m.signed(4),
    0x8A: lambda m: m.signed(None),
    ord("G"): _Machine.real,
    0x8C: lambda m: m.text(1),
    ord("X"): lambda m: m.text(4),
    0x8D: lambda m: m.text(8),
    ord("C"): lambda m: m.blob(1),
    ord("B"): lambda m: m.blob(4),
    0x8E: lambda m: m.blob(8),
    ord("("): _Machine.mark,
    ord("0"): lambda m: m.stack.pop(),
    ord("1"): _Machine.unmark,
    ord("q"): lambda m: m.put(1),
    ord("r"): lambda m: m.put(4),
    0x94: _Machine.memoise,
    ord("h"): lambda m: m.get(1),
    ord("j"): lambda m: m.get(4),
    ord(")"): lambda m: m.push(()),
    0x85: lambda m: m.tuple_of(1),
    0x86: lambda m: m.tuple_of(2),
    0x87: lambda m: m.tuple_of(3),
    ord("t"): _Machine.marked_tuple,
    ord("]"): lambda m: m.push([]),
    ord("a"): lambda m: m.append([m.stack.pop()]),
    ord("e"): lambda m: m.append(m.unmark()),
    ord("}"): lambda m: m.push({}),
    ord("s"): lambda m: m.set_items([m.stack.pop(), m.stack.pop()][::-1]),
    ord("u"): lambda m: m.set_items(m.unmark()),
    0x8F: lambda m: m.push(set()),
    0x90: _Machine.add_items,
    0x91: _Machine.frozen,
    ord("c"): _Machine.name_line,
    0x93: _Machine.name_stack,
    ord("R"): _Machine.call,
    0x81: _Machine.call,
    ord("b"): _Machine.build,
    ord("Q"): _Machine.persistent_id,
}
