"""Damaged and hostile versions of checkpoint files, one for every seed."""

from __future__ import annotations

import io
import json
import pickletools
import random
import struct
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from . import made

NUMBERS = (0, 1, 2, 0x7F, 0x80, 0xFF, 0xFFFF, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF, 1 << 40, (1 << 63) - 1, (1 << 64) - 1)
CODES = bytes(ord(op.code) for op in pickletools.opcodes)
MOST = 1 << 21

Mutation = Callable[[bytes, random.Random], bytes]


def mutated(seed: int, bases: Mapping[str, bytes]) -> tuple[str, str, bytes]:
    """(the base's name, what was done to it, the file)."""
    rng = random.Random(seed)
    name = rng.choice(sorted(bases))
    data, done = bases[name], []
    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        if rng.random() < 0.1:
            other = bases[rng.choice(sorted(bases))]
            at, to = rng.randrange(len(data) + 1), rng.randrange(len(other))
            data, what = data[:at] + other[to : to + MOST], "splice"
        else:
            mutation = rng.choice(_choices(data))
            data, what = mutation(data, rng), mutation.__name__
        done.append(what)
    return name, "+".join(done), data


def _choices(data: bytes) -> Sequence[Mutation]:
    """General ones, and twice as often those of the format."""
    special: Sequence[Mutation] = ()
    if data[:4] == b"PK\x03\x04":
        special = (pickle_in_zip, pickle_in_zip, zip_fields, zip_entries)
    elif data[:2] in (b"\x80\x02", b"\x80\x03", b"\x80\x04"):
        special = (instructions, instructions, integers, hostile_call, nested, bombs)
    elif data[8:9] == b"{":
        special = (header, header, header_length, *([own_config] * 3 if b'"fastdiff"' in data[:64] else []))
    return (flip, numbers, cut, patch, *special, *special)


# --- any file


def _place(data: bytes, rng: random.Random) -> int:
    """Often at the beginning or the end, where formats have their structure."""
    near = min(len(data), 4096)
    return (
        rng.choice((rng.randrange(near), len(data) - 1 - rng.randrange(near), rng.randrange(len(data)))) if data else 0
    )


def flip(data: bytes, rng: random.Random) -> bytes:
    changed = bytearray(data)
    for _ in range(rng.choice((1, 1, 2, 8, 64)) if data else 0):
        changed[_place(data, rng)] ^= 1 << rng.randrange(8)
    return bytes(changed)


def numbers(data: bytes, rng: random.Random) -> bytes:
    width, at = rng.choice((1, 2, 4, 8)), _place(data, rng)
    return data[:at] + (rng.choice(NUMBERS) % (1 << 8 * width)).to_bytes(width, "little") + data[at + width :]


def cut(data: bytes, rng: random.Random) -> bytes:
    return data[: _place(data, rng)]


def patch(data: bytes, rng: random.Random) -> bytes:
    """A part removed, doubled, or replaced by noise."""
    at, count = _place(data, rng), rng.choice((1, 4, 40, 400))
    part = data[at : at + count]
    return data[:at] + rng.choice((b"", part + part, rng.randbytes(count))) + data[at + count :]


# --- pickles


def _split(data: bytes) -> tuple[list[bytes], bytes]:
    """The instructions of the pickle, without frames, and what follows it."""
    file = io.BytesIO(data)
    places: list[tuple[str, int]] = []
    try:
        places = [(op.name, place) for op, _, place in pickletools.genops(file)]
    except Exception:
        return [], data
    ends = [place for _, place in places[1:]] + [file.tell()]
    return [data[at:end] for (name, at), end in zip(places, ends) if name != "FRAME"], data[file.tell() :]


def _edited(data: bytes, rng: random.Random, edit: Callable[[list[bytes], int, random.Random], None]) -> bytes:
    """One of the pickles at the beginning of the file, changed by instructions."""
    before = b""
    for _ in range(rng.choice((0, 3, 4)) if data.startswith(made.legacy_of({})[:15]) else 0):
        parts, rest = _split(data)
        before, data = before + b"".join(parts), rest
    parts, rest = _split(data)
    if parts:
        edit(parts, rng.randrange(1, len(parts) + 1), rng)
    return before + b"".join(parts) + rest


def instructions(data: bytes, rng: random.Random) -> bytes:
    """Some removed, doubled, exchanged or replaced."""

    def edit(parts: list[bytes], at: int, rng: random.Random) -> None:
        for _ in range(rng.choice((1, 1, 4, 16))):
            at, other = rng.randrange(len(parts)), rng.randrange(len(parts))
            match rng.randrange(6):
                case 0:
                    parts[at] = b""
                case 1:
                    parts[at] *= 2
                case 2:
                    parts[at], parts[other] = parts[other], parts[at]
                case 3:
                    parts[at] = parts[other]
                case 4:
                    parts[at] = bytes([rng.choice(CODES)]) + parts[at][1:]
                case 5:
                    parts[at] = parts[at][:1] + numbers(parts[at][1:], rng)

    return _edited(data, rng, edit)


def integers(data: bytes, rng: random.Random) -> bytes:
    """Sizes, strides, and arguments of networks: others, of the same or another type."""

    def edit(parts: list[bytes], at: int, rng: random.Random) -> None:
        places = [i for i, part in enumerate(parts) if part[:1] in (b"J", b"K", b"M", b"G", b"\x88", b"\x89")]
        for i in rng.sample(places, min(len(places), rng.choice((1, 2, 5)))):
            small, large = rng.choice((0, 1, 2, 3, 5, 8, 64, 256)), rng.choice(NUMBERS)
            choices = (
                _wide(b"K", small, 1),
                _wide(b"J", large, 4),
                _wide(b"\x8a\x09", large, 9),
                b"N",
                b"]",
                b"}",
                b"\x88",
            )
            parts[i] = rng.choice((*choices, b"G" + rng.choice((b"\x7f\xf8", b"\x7f\xf0", b"\xbf\xf0")) + bytes(6)))

    return _edited(data, rng, edit)


def hostile_call(data: bytes, rng: random.Random) -> bytes:
    def edit(parts: list[bytes], at: int, rng: random.Random) -> None:
        call = made.call_of(*rng.choice(made.HOSTILE))
        parts.insert(at, rng.choice((call, call + b"0", b"(" + call + b"1")))

    return _edited(data, rng, edit)


def _wide(code: bytes, number: int, width: int) -> bytes:
    return code + (number % (1 << 8 * width)).to_bytes(width, "little")


def bombs(data: bytes, rng: random.Random) -> bytes:
    """Few bytes that stand for much: deep nesting, doubling, large counts and indices."""
    many = rng.choice((100, 10_000, 200_000))
    doubled = b")\x94" + b"".join(_wide(b"h", i % 256, 1) * 2 + b"\x86\x94" for i in range(min(many, 200)))
    choices = (
        b"]" * many + b"a" * (many - 1) + b"0",
        b")" + b"\x85" * many + b"0",
        b")" + b"\x85" * many + b"\x85R",
        b"(" * many,
        doubled + b"0",
        b"}" + doubled + b"Ns",
        b"\x8f(" + doubled + b"\x90",
        b"N" + _wide(b"r", rng.choice(NUMBERS), 4) + b"0",
        b"N" * many + b"\x85",
        b"N\x94" * many,
        _wide(b"j", rng.choice(NUMBERS), 4),
        _wide(rng.choice((b"\x8e", b"\x8d", b"\x96", b"\x95")), rng.choice(NUMBERS), 8),
        _wide(rng.choice((b"B", b"X", b"\x8b", b"T")), rng.choice(NUMBERS), 4),
        b"\x8a\xff" + b"\x7f" * 255,
        b"I" + b"9" * many + b"\n",
        b"L" + b"9" * many + b"L\n",
        b"c" + b"x" * many + b"\n" + b"y\n",
        b"(" + b"K\x01" * many + b"l",
    )

    def edit(parts: list[bytes], at: int, rng: random.Random) -> None:
        parts.insert(at, rng.choice(choices))

    return _edited(data, rng, edit)


def nested(data: bytes, rng: random.Random) -> bytes:
    """A byte string inside of the pickle, often a whole file for one storage, changed, its length corrected."""

    def edit(parts: list[bytes], at: int, rng: random.Random) -> None:
        places = [i for i, part in enumerate(parts) if part[:1] in b"BC" and len(part) > 8]
        if not places:
            return
        at = rng.choice(places)
        inner = parts[at][5 if parts[at][:1] == b"B" else 2 :]
        change = rng.choice((flip, numbers, cut, patch, instructions, hostile_call, bombs))
        inner = data[:MOST] if rng.random() < 0.05 else change(inner, rng)
        parts[at] = _wide(b"B", len(inner), 4) + inner

    return _edited(data, rng, edit)


# --- zip archives


def pickle_in_zip(data: bytes, rng: random.Random) -> bytes:
    """Its data.pkl changed, the checksums right."""
    try:
        members = made.unzipped(data)
    except Exception:
        return flip(data, rng)
    for name in members:
        if name.endswith("data.pkl"):
            change = rng.choice((flip, numbers, cut, patch, instructions, instructions, hostile_call, bombs))
            members[name] = change(members[name], rng)
    return made.rezipped(members)


def zip_fields(data: bytes, rng: random.Random) -> bytes:
    """Numbers in the headers and in the directory."""
    marks = (b"PK\x01\x02", b"PK\x03\x04", b"PK\x05\x06", b"PK\x06\x06", b"PK\x06\x07")
    changed = bytearray(data)
    for _ in range(rng.choice((1, 2, 6))):
        mark = rng.choice(marks)
        places = [i for i in range(len(data) - 4) if data[i : i + 4] == mark] if len(data) < 1 << 16 else []
        place = rng.choice(places) if places else max(0, data.rfind(mark))
        width, at = rng.choice((2, 4, 8)), place + rng.randrange(4, 50)
        changed[at : at + width] = (rng.choice(NUMBERS) % (1 << 8 * width)).to_bytes(width, "little")
    return bytes(changed)


def zip_entries(data: bytes, rng: random.Random) -> bytes:
    """Files compressed, renamed, left out, added, exchanged."""
    try:
        members = made.unzipped(data)
    except Exception:
        return flip(data, rng)
    name = rng.choice(sorted(members) or [""])
    match rng.randrange(6):
        case 0:
            return made.rezipped(members, compress_type=8)
        case 1:
            return made.rezipped(members | {"archive/data/bomb": bytes(1 << 20)}, compress_type=8)
        case 2:
            outside = rng.choice(("../x", "/x", "archive/../../x", "C:\\x", "archive/data/\x1b[2J"))
            return made.rezipped({outside if key == name else key: value for key, value in members.items()})
        case 3:
            return made.rezipped({key: value for key, value in members.items() if key != name})
        case 4:
            return made.rezipped(members, external_attr=0o120777 << 16, create_system=3)
        case _:
            return made.rezipped(members | {name: members.get(rng.choice(sorted(members)), b"")})


# --- safetensors


def header(data: bytes, rng: random.Random) -> bytes:
    """Its JSON changed, the length right."""
    length = int.from_bytes(data[:8], "little")
    try:
        described = json.loads(data[8 : 8 + length])
        name = rng.choice(sorted(described))
        entry: dict[str, Any] = described[name]
        shape, offsets = entry.get("shape", [1]), entry.get("data_offsets", [0, 4])
        match rng.randrange(8):
            case 0:
                entry["dtype"] = rng.choice(("F16", "F64", "BOOL", "F8_E4M3", "F4", "C64", "U64", "", 3, None))
            case 1:
                entry["shape"] = [rng.choice((*NUMBERS, -1, 1.5, None, "1")) for _ in shape]
            case 2:
                entry["shape"] = rng.choice((shape[::-1], [*shape, 1], [], [1] * 2000, None))
            case 3:
                entry["data_offsets"] = [rng.choice((*NUMBERS, *offsets)), rng.choice((*NUMBERS, *offsets))]
            case 4:
                described[rng.choice(("", "a\n", "\x1b[2J", "model.x", "__metadata__"))] = described.pop(name)
            case 5:
                described.update(__metadata__=rng.choice(({}, {"fastdiff": "{"}, {"fastdiff": "[]"}, {"a": 1}, None)))
            case 6:
                return made.safetensors_of(b'{"a":' * 3000 + b"1" + b"}" * 3000, data[8 + length :])
            case 7:
                described[name] = rng.choice(([], "", 1, {}, [[[]]]))
        return made.safetensors_of(described, data[8 + length :])
    except (ValueError, AttributeError, TypeError, IndexError, RecursionError):
        return flip(data, rng)


def own_config(data: bytes, rng: random.Random) -> bytes:
    """The description of one of our own files: numbers of the configuration changed, entries exchanged."""
    length = int.from_bytes(data[:8], "little")
    try:
        described = json.loads(data[8 : 8 + length])
        own = json.loads(described["__metadata__"]["fastdiff"])
        for _ in range(rng.choice((1, 2, 4))):
            within = own if rng.random() < 0.2 else own["config"]
            value = rng.choice(
                (*NUMBERS, 3, 64, 200, -1, 0.5, "inf", "x", None, [], [1] * 200, [256] * 30, {"a": []}, True)
            )
            within[rng.choice(sorted(within))] = value
        described["__metadata__"]["fastdiff"] = json.dumps(own)
        return made.safetensors_of(described, data[8 + length :])
    except (ValueError, AttributeError, TypeError, IndexError, KeyError, RecursionError):
        return flip(data, rng)


def header_length(data: bytes, rng: random.Random) -> bytes:
    return struct.pack("<Q", rng.choice((*NUMBERS, len(data), len(data) - 8))) + data[8:]
