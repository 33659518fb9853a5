"""Files of torch.save, old and new, and safetensors: the tensors that torch itself reads, or one clear refusal."""

from __future__ import annotations

import io
import pickle
import re
import struct
import zipfile
from collections import OrderedDict
from pathlib import Path
from typing import Any

import pytest
import torch

from fastdiff.importing import containers
from fastdiff.importing.containers import Record, open_record, sniff
from fastdiff.importing.edm import _tensors
from fastdiff.importing.pickles import Unreadable
from fastdiff.importing.tensors import Storage, rebuild_tensor
from fastdiff.models import ModelFileError

from . import made

DTYPES = (torch.float32, torch.float64, torch.float16, torch.bfloat16, torch.int64, torch.int32, torch.int16)
DTYPES += (torch.int8, torch.uint8, torch.bool)
FORMATS = {"torch": made.zip_of, "torch-legacy": made.legacy_of}


def opened(folder: Path, data: bytes) -> Record:
    file = folder / "file"
    file.write_bytes(data)
    return open_record(file)


def refused(folder: Path, data: bytes, told: str) -> None:
    with pytest.raises(ModelFileError, match=told) as refusal:
        record = opened(folder, data)
        record.load(record.content)
    assert str(refusal.value).startswith(f"{folder / 'file'}: ") and "\n" not in str(refusal.value)


def example() -> dict[str, torch.Tensor]:
    """Every dtype; views of one storage, transposed, empty, without axes; one tensor by two names."""
    torch.manual_seed(3)
    base = torch.randn(60)
    found = {str(dtype): (torch.randn(3, 4) * 3).to(dtype) for dtype in DTYPES}
    found |= {"part": base[7:19].reshape(3, 4), "transposed": base[20:40].reshape(4, 5).t(), "strided": base[1::7]}
    found |= {"empty": torch.empty(0, 3), "scalar": torch.tensor(2.5), "again": base, "tied": base}
    found["conv"] = torch.randn(2, 3, 4, 5).to(memory_format=torch.channels_last)
    return found


@pytest.mark.parametrize("form", FORMATS)
def test_tensors_are_those_of_torch(form: str, tmp_path: Path):
    data = FORMATS[form](OrderedDict(example()))
    record = opened(tmp_path, data)
    want = torch.load(io.BytesIO(data), weights_only=True)
    got = record.load(record.content)
    assert record.format == form and list(got) == list(want)
    for name, tensor in want.items():
        assert torch.equal(got[name], tensor) and got[name].dtype == tensor.dtype, name
        assert got[name].is_contiguous() and record.content[name].shape == tensor.shape
    assert got["again"] is got["tied"]


@pytest.mark.parametrize("form", FORMATS)
def test_tensors_own_their_memory(form: str, tmp_path: Path):
    """The file may go, and no tensor shares another's memory."""
    record = opened(tmp_path, FORMATS[form]({"a": torch.ones(4), "b": torch.ones(8)[2:6]}))
    got = record.load(record.content)
    (tmp_path / "file").unlink()
    got["a"].fill_(5.0)
    assert got["b"].tolist() == [1.0] * 4 and got["b"].untyped_storage().nbytes() == 16


def test_other_values(tmp_path: Path):
    content = {"step": 7, "ema": {"decay": 0.5, "shadow": [torch.ones(2)]}, "state": {0: {"on": True, "t": (1, None)}}}
    content["parameter"] = torch.nn.Parameter(torch.zeros(3))
    for form, write in FORMATS.items():
        found = opened(tmp_path, write(content)).content
        assert found["step"] == 7 and found["state"] == content["state"], form
        assert found["ema"]["shadow"][0].shape == (2,) and found["parameter"].shape == (3,)


def test_module_state_dict(tmp_path: Path):
    """With torch's own `_metadata` on the OrderedDict."""
    network = torch.nn.Sequential(torch.nn.Conv2d(2, 3, 1), torch.nn.BatchNorm2d(3))
    for write in FORMATS.values():
        record = opened(tmp_path, write(network.state_dict()))
        assert all(torch.equal(tensor, network.state_dict()[n]) for n, tensor in record.load(record.content).items())


@pytest.mark.parametrize("length", [0x0280, 0x0380, 0x0480, 0x0580, 0x8A0280])
def test_safetensors_that_begin_as_a_pickle(length: int, tmp_path: Path):
    """The length of a header begins the file, and may look like a pickle's protocol."""
    header = b'{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}'.ljust(length)
    record = opened(tmp_path, struct.pack("<Q", length) + header + struct.pack("<f", 2.5))
    assert record.format == "safetensors" and record.load(record.content)["a"].tolist() == [2.5]


def test_safetensors(tmp_path: Path):
    tensors = {name: tensor.contiguous().clone() for name, tensor in example().items()}
    record = opened(tmp_path, made.safetensors_bytes(tensors, metadata={"key": "text"}))
    assert record.format == "safetensors" and record.metadata == {"key": "text"}
    assert all(record.content[name].shape == tensor.shape for name, tensor in tensors.items())
    assert all(torch.equal(tensor, tensors[name]) for name, tensor in record.load(record.content).items())


# --- what is refused


@pytest.mark.parametrize(
    ("data", "told"),
    [
        (b"", "empty"),
        (b"{}", "not a checkpoint"),
        (b"GGUF" + bytes(40), "begins with 47 47 55 46"),
        (b"\x80", "not a c"),
    ],
)
def test_other_files(data: bytes, told: str, tmp_path: Path):
    refused(tmp_path, data, told)


def test_no_file(tmp_path: Path):
    for path in (tmp_path, tmp_path / "missing"):
        with pytest.raises(ModelFileError, match="no such file"):
            open_record(path)


@pytest.mark.parametrize("form", FORMATS)
def test_truncated(form: str, tmp_path: Path):
    data = FORMATS[form](example())
    for end in range(16, len(data), 97):
        refused(tmp_path, data[:end], "truncated|damaged|no directory")


@pytest.mark.parametrize("form", FORMATS)
def test_code_is_refused(form: str, tmp_path: Path, monkeypatch):
    class Hostile:
        def __reduce__(self) -> Any:
            return io.open, (made.MARKER, "w")

    monkeypatch.chdir(tmp_path)
    refused(tmp_path, FORMATS[form]({"weight": torch.ones(2), "unused": Hostile()}), "asks for 'io.open'")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_whole_modules_are_refused(tmp_path: Path):
    refused(tmp_path, made.zip_of(torch.nn.Linear(2, 2)), "asks for 'torch.nn.modules.linear.Linear'")


def test_bytes_after_the_end(tmp_path: Path):
    refused(tmp_path, made.legacy_of({"a": torch.ones(2)}) + b"x", "1 bytes follow")


def test_weights_that_are_damaged(tmp_path: Path):
    """A zip archive has a checksum of every file."""
    data = made.zip_of({"a": torch.full((64,), 3.0)})
    at = data.index(torch.full((64,), 3.0).numpy().tobytes())
    refused(tmp_path, data[: at + 5] + b"\x00\x01" + data[at + 7 :], "checksum")


def test_writer_without_checksums(tmp_path: Path):
    before = torch.serialization.get_crc32_options()
    torch.serialization.set_crc32_options(False)
    try:
        record = opened(tmp_path, made.zip_of({"a": torch.ones(3)}))
    finally:
        torch.serialization.set_crc32_options(before)
    assert record.load(record.content)["a"].tolist() == [1.0] * 3


def test_zip_bomb(tmp_path: Path):
    members = made.unzipped(made.zip_of({"a": torch.zeros(1 << 16)}))
    refused(tmp_path, made.rezipped(members, compress_type=zipfile.ZIP_DEFLATED), "compressed")


def test_zip_with_a_size_beyond_the_file(tmp_path: Path):
    """A few bytes that claim to be 4 GB: found by the bounds, before anything is allocated."""
    data = made.zip_of({"a": torch.zeros(4)})
    at = data.rindex(b"archive/data/0") - 46
    for size in (1 << 31, 0xFFFFFFFE):
        wide = size.to_bytes(4, "little")
        refused(tmp_path, data[: at + 20] + wide + wide + data[at + 28 :], "truncated|outside|damaged")


@pytest.mark.parametrize("name", ["../x", "/x", "archive/../../x", "a\\..\\x", "C:/x", "archive//x", "archive/\x1b[2J"])
def test_names_that_escape(name: str, tmp_path: Path):
    members = made.unzipped(made.zip_of({"a": torch.zeros(2)}))
    refused(tmp_path, made.rezipped(members | {name: b"x"}), "leads out of its folder")


def test_links_doubles_and_code(tmp_path: Path):
    members = made.unzipped(made.zip_of({"a": torch.zeros(2)}))
    refused(tmp_path, made.rezipped(members, create_system=3, external_attr=0o120777 << 16), "is a link")
    refused(tmp_path, made.rezipped(members | {"archive/code/a.py": b"x"}), "TorchScript")
    refused(tmp_path, made.rezipped(members | {"other/data.pkl": b"x"}), "one data.pkl")
    refused(tmp_path, made.rezipped({"a.npy": b"x"}), "one data.pkl")
    refused(tmp_path, made.rezipped(members | {"archive/byteorder": b"big"}), "little-endian")
    refused(
        tmp_path, made.rezipped({n: d for n, d in members.items() if n != "archive/data/0"}), "'0' is not in the file"
    )
    doubled = made.rezipped(members | {"archive/data/1": b""}).replace(b"archive/data/1", b"archive/data/0")
    refused(tmp_path, doubled, "twice")


def test_zip_files_that_overlap(tmp_path: Path):
    """Two entries of the directory with the same bytes: the beginning of many zip bombs."""
    members = made.unzipped(made.zip_of({"a": torch.zeros(2)}))
    data = bytearray(made.rezipped(members | {"archive/data/1": members["archive/data/0"]}))
    first, second = (data.rindex(name) - 46 for name in (b"archive/data/0", b"archive/data/1"))
    data[second + 42 : second + 46] = data[first + 42 : first + 46]
    refused(tmp_path, bytes(data), "another file|overlap")


def test_zip_of_64_bits(tmp_path: Path):
    """The larger form of the directory, which archives beyond 4 GB have."""
    data = made.rezipped(made.unzipped(made.zip_of({"a": torch.arange(3)})))
    end = data.rindex(b"PK\x05\x06")
    count, _, start = struct.unpack_from("<HLL", data, end + 10)
    at, entries = start, b""
    for _ in range(count):  # sizes and place of every file in an extra field
        fixed, name_length = data[at : at + 46], int.from_bytes(data[at + 28 : at + 30], "little")
        packed, full, place = *struct.unpack_from("<LL", fixed, 20), int.from_bytes(fixed[42:46], "little")
        extra = struct.pack("<HHHHQQQ", 0xCAFE, 0, 1, 24, full, packed, place)
        entries += fixed[:20] + b"\xff" * 8 + fixed[28:30] + struct.pack("<H", len(extra)) + fixed[32:42] + b"\xff" * 4
        entries += data[at + 46 : at + 46 + name_length] + extra
        at += 46 + name_length
    where = start + len(entries)
    wide = struct.pack("<4sQ2H2L4Q", b"PK\x06\x06", 44, 45, 45, 0, 0, count, count, len(entries), start)
    place = struct.pack("<4sLQL", b"PK\x06\x07", 0, where, 1)
    last = struct.pack("<4s4H2LH", b"PK\x05\x06", 0, 0, 0xFFFF, 0xFFFF, 0xFFFFFFFF, 0xFFFFFFFF, 0)
    record = opened(tmp_path, data[:start] + entries + wide + place + last)
    assert record.load(record.content)["a"].tolist() == [0, 1, 2]
    refused(
        tmp_path, data[:start] + entries + wide + place.replace(b"PK\x06\x07", b"PK\x06\x08") + last, "damaged|files"
    )


VIEWS: dict[str, tuple[Any, ...]] = {
    "beyond the end": (0, (5,), (1,)),
    "offset": (3, (2,), (1,)),
    "stride": (0, (2, 2), (3, 1)),
    "a number repeated": (0, (1 << 30, 1 << 9), (0, 0)),
    "negative stride": (0, (2,), (-1,)),
    "negative size": (0, (-1,), (1,)),
    "sizes without strides": (0, (2,), ()),
    "sizes that are no counts": (0, (2.0,), (1,)),
    "True for a size": (0, (True,), (1,)),
    "sizes in a list": (0, [2], (1,)),
    "huge and empty": (0, (0, 1 << 39, 1 << 39), (1, 1, 1)),
    "many axes": (0, (1,) * 70, (1,) * 70),
    "offset beyond 64 bits": (1 << 70, (1,), (1,)),
}


@pytest.mark.parametrize("name", VIEWS)
def test_views_out_of_bounds(name: str):
    with pytest.raises(Unreadable, match=r"leaves its storage|no counts|too large"):
        rebuild_tensor((Storage(torch.float32, 4), *VIEWS[name], False, OrderedDict()))


def test_storages():
    for numel in (-1, 1 << 60, True, "4", None, [[]]):
        with pytest.raises(Unreadable, match="count"):
            Storage(torch.float32, numel)
    with pytest.raises(Unreadable, match="16 bytes, got 15"):
        Storage(torch.float32, 4).bind(memoryview(bytes(15)))


def test_more_numbers_than_the_file_has(tmp_path: Path):
    """Many names of overlapping parts of one storage would take memory without end."""
    base = torch.zeros(10_000)
    refused(tmp_path, made.zip_of({str(i): base[i:] for i in range(100)}), "more than twice")


@pytest.mark.skipif(not Path("/proc/self/smaps").is_file(), reason="needs Linux's account of memory")
@pytest.mark.parametrize("form", ["edm.pkl", "legacy.pt", "state.pt", "state.safetensors"])
def test_what_was_read_leaves_the_memory(form: str, tmp_path: Path, monkeypatch):
    """A file is in memory once: as tensors."""
    monkeypatch.setattr(containers, "RELEASE", 1 << 20)
    record = opened(tmp_path, made.files({f"model.a{i}.w": torch.ones(1 << 18) for i in range(8)})[form])
    content = record.content
    tensors = record.load(content if form != "edm.pkl" else dict(_tensors(content["ema"])))
    resident = re.search(rf"{tmp_path}/file\n(?:.*\n)*?Rss: +(\d+) kB", Path("/proc/self/smaps").read_text())
    assert len(tensors) == 8 and resident is not None and int(resident[1]) < 4096


def _storage(told: Any) -> bytes:
    """A zip archive whose only tensor's storage is told so."""
    tensor = made.zip_of({"a": torch.ones(2)})
    members = made.unzipped(tensor)
    parts = pickle.dumps(told, protocol=2)[2:-1]
    text = members["archive/data.pkl"]
    start = text.index(b"X\x07\x00\x00\x00storage") - 1
    members["archive/data.pkl"] = text[:start] + parts + text[text.index(b"Q", start) :]
    return made.rezipped(members)


@pytest.mark.parametrize(
    "told", ["storage", ("storage",), ("module", 1, "0", "cpu", 2), ("storage", None, "0", "cpu", 2)]
)
def test_references_that_are_none(told: Any, tmp_path: Path):
    refused(tmp_path, _storage(told), "a reference")


def test_legacy_storages(tmp_path: Path):
    data = made.legacy_of({"a": torch.ones(2)})
    size = data.rindex((2).to_bytes(8, "little"))
    refused(tmp_path, data[:size] + (3).to_bytes(8, "little") + data[size + 8 :], "two sizes")
    big = re.sub(rb"(?s)(little_endian..)\x88", lambda found: found[1] + b"\x89", data)
    assert big != data
    refused(tmp_path, big, "little-endian")
    other = data.replace(b"\x80\x02M\xe9\x03.", b"\x80\x02M\xe8\x03.", 1)
    assert other != data
    refused(tmp_path, other, "version 1001")


SAFE: dict[str, tuple[Any, bytes]] = {
    "header beyond the file": (made.safetensors_of({}, length=1 << 20), b""),
    "shape and offsets differ": (
        made.safetensors_of({"a": {"dtype": "F32", "shape": [3], "data_offsets": [0, 8]}}),
        bytes(8),
    ),
    "offsets beyond the file": (
        made.safetensors_of({"a": {"dtype": "F32", "shape": [4], "data_offsets": [0, 16]}}),
        bytes(8),
    ),
    "a hole": (made.safetensors_of({"a": {"dtype": "F32", "shape": [1], "data_offsets": [4, 8]}}), bytes(8)),
    "unknown type": (made.safetensors_of({"a": {"dtype": "F8_E4M3", "shape": [4], "data_offsets": [0, 4]}}), bytes(4)),
    "not JSON": (made.safetensors_of(b'{"a":'), b""),
    "deep JSON": (made.safetensors_of(b'{"a":' * 100_000), b""),
    "a name that rewrites the terminal": (
        made.safetensors_of({"\x1b[2J": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}),
        bytes(4),
    ),
    "overflow": (
        made.safetensors_of({"a": {"dtype": "F32", "shape": [1 << 62, 16], "data_offsets": [0, 0]}}),
        b"",
    ),
}


@pytest.mark.parametrize("name", SAFE)
def test_safetensors_headers(name: str, tmp_path: Path):
    head, data = SAFE[name]
    refused(tmp_path, head + data, "header|safetensors file|of type F8|no name")


def test_formats_by_content(tmp_path: Path):
    """Names do not matter."""
    want = {"edm": "edm-pickle", "state.pt": "torch", "training": "torch", "legacy": "torch-legacy"}
    for name, data in made.files({"model.a.weight": torch.ones(2)}).items():
        found = [form for start, form in want.items() if name.startswith(start)] or ["safetensors"]
        assert sniff(memoryview(data)) == found[0]
