"""The directory of a zip archive, for files that are stored as they are: nothing is unpacked.

A stricter reader than a general one needs to be: torch.save stores every file uncompressed, so that a compressed one
is a zip bomb or another kind of archive; names that leave the folder, links, encrypted, overlapping and doubled files
are refused.
"""

from __future__ import annotations

import struct
import zlib
from dataclasses import dataclass
from itertools import pairwise

from .pickles import Unreadable

__all__ = ["Member", "members"]

MOST_MEMBERS = 20_000
LONGEST_NAME = 512
_END = struct.Struct("<4s4H2LH")  # end of the central directory
_END64_PLACE = struct.Struct("<4sLQL")
_END64 = struct.Struct("<4sQ2H2L4Q")
_ENTRY = struct.Struct("<4s6H3L5H2L")  # one file in the central directory
_LOCAL = struct.Struct("<4s5H3L2H")  # before the file itself
_FULL, _FULL64 = 0xFFFF, 0xFFFFFFFF
_ENCRYPTED, _LINK = 0x1, 0o120000


@dataclass(frozen=True)
class Member:
    """One file: its bytes, and their checksum (0: not computed by the writer)."""

    name: str
    raw: memoryview
    checksum: int

    def data(self) -> memoryview:
        """Its bytes.

        Raises:
            Unreadable: they are damaged.
        """
        if self.checksum and zlib.crc32(self.raw) != self.checksum:
            raise Unreadable(f"{self.name!r} is damaged (its checksum differs)")
        return self.raw


def members(data: memoryview) -> dict[str, Member]:
    """The files of an archive by name.

    Raises:
        Unreadable: it is truncated or damaged, or has compressed, encrypted, overlapping or doubled files, links, or
            names that lead out of its folder.
    """
    try:
        return _members(data)
    except struct.error:
        raise Unreadable("the zip archive is damaged: its directory ends early") from None


def _members(data: memoryview) -> dict[str, Member]:
    count, at, end = _directory(data)
    start = at
    found: dict[str, Member] = {}
    spans: list[tuple[int, int]] = []
    for _ in range(count):
        (magic, made, _, flags, method, _, _, checksum, packed, size, *rest) = _ENTRY.unpack_from(data[:end], at)
        name_length, extra_length, comment_length, _, _, attributes, offset = rest
        if magic != b"PK\x01\x02":
            raise Unreadable(f"the zip archive is damaged: no entry of its directory at byte {at}")
        at += _ENTRY.size
        name = _name(data[at : at + name_length])
        extra = data[at + name_length : at + name_length + extra_length]
        at += name_length + extra_length + comment_length
        size, packed, offset = _wide(extra, size, packed, offset)
        if flags & _ENCRYPTED or method or packed != size:
            raise Unreadable(
                f"{name!r} in the zip archive is compressed or encrypted; torch.save stores files as they are"
            )
        if made >> 8 == 3 and (attributes >> 16) & 0o170000 == _LINK:
            raise Unreadable(f"{name!r} in the zip archive is a link")
        if name in found:
            raise Unreadable(f"{name!r} is in the zip archive twice")
        first = _first(data, offset, name, start)
        if first + size > start:
            raise Unreadable(f"{name!r} in the zip archive is truncated: {size} bytes at byte {first}")
        spans.append((offset, first + size))
        found[name] = Member(name, data[first : first + size], checksum)
    spans.sort()
    if any(last > first for (_, last), (first, _) in pairwise(spans)):
        raise Unreadable("the zip archive is damaged: files overlap")
    return found


def _directory(data: memoryview) -> tuple[int, int, int]:
    """(number of files, where the directory begins, where it ends)."""
    at = bytes(data[-(_END.size + _FULL) :]).rfind(b"PK\x05\x06")
    if at < 0:
        raise Unreadable("the zip archive has no directory: the file is truncated")
    at += max(0, len(data) - _END.size - _FULL)
    _, disk, _, _, count, size, offset, _ = _END.unpack_from(data, at)
    end = at
    if at >= _END64_PLACE.size and bytes(data[at - _END64_PLACE.size :][:4]) == b"PK\x06\x07":
        _, _, place, _ = _END64_PLACE.unpack_from(data, at - _END64_PLACE.size)
        if place + _END64.size > at or bytes(data[place : place + 4]) != b"PK\x06\x06":
            raise Unreadable("the zip archive is damaged: no directory where its end says")
        _, _, _, _, disk, _, _, count, size, offset = _END64.unpack_from(data, place)
        end = place
    if count > MOST_MEMBERS:
        raise Unreadable(f"the zip archive has {count} files; at most {MOST_MEMBERS}")
    if disk or offset + size > end:
        raise Unreadable("the zip archive is damaged: its directory is not inside of it")
    return count, offset, offset + size


def _name(raw: memoryview) -> str:
    if len(raw) > LONGEST_NAME:
        raise Unreadable(f"a name of {len(raw)} bytes in the zip archive; at most {LONGEST_NAME}")
    try:
        name = bytes(raw).decode()
    except UnicodeDecodeError:
        raise Unreadable("a name in the zip archive that is no text") from None
    parts = name.removesuffix("/").split("/")
    if not name.isprintable() or "\\" in name or ":" in name or any(part in ("", ".", "..") for part in parts):
        raise Unreadable(f"the name {name[:100]!r} in the zip archive leads out of its folder")
    return name


def _wide(extra: memoryview, size: int, packed: int, offset: int) -> tuple[int, int, int]:
    """The 64-bit values of those that are full in 32 bits."""
    at = 0
    while at + 4 <= len(extra):
        kind, length = struct.unpack_from("<2H", extra, at)
        if kind == 1:
            rest = extra[at + 4 : at + 4 + length]
            values = [size, packed, offset]
            for i, value in enumerate(values):
                if value == _FULL64:
                    (values[i],) = struct.unpack_from("<Q", rest)
                    rest = rest[8:]
            return values[0], values[1], values[2]
        at += 4 + length
    return size, packed, offset


def _first(data: memoryview, offset: int, name: str, end: int) -> int:
    """Where a file's bytes begin."""
    if offset + _LOCAL.size > end:
        raise Unreadable(f"{name!r} in the zip archive is truncated")
    magic, _, _, method, *_, name_length, extra_length = _LOCAL.unpack_from(data, offset)
    first = offset + _LOCAL.size
    if magic != b"PK\x03\x04" or method or bytes(data[first : first + name_length]) != name.encode():
        raise Unreadable(f"{name!r} in the zip archive is damaged: another file is at byte {offset}")
    return first + name_length + extra_length
