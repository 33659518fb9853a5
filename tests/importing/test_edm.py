"""EDM's pickles: class, arguments and tensors from their records; what is not whole is refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from fastdiff.importing.checkpoint import Checkpoint
from fastdiff.importing.containers import open_record
from fastdiff.importing.edm import checkpoint
from fastdiff.models import ModelFileError

from ..conformance.cases import ROOT
from . import made

PICKLES = sorted((ROOT / "checkpoints").glob("edm*/*.pkl"))
TENSORS = {
    "model.map_layer0.weight": torch.arange(6.0).reshape(2, 3),
    "model.map_layer0.bias": torch.ones(2),
    "model.enc.8x8_conv.weight": torch.full((2, 1, 3, 3), 0.5),
    "model.dec.8x8_block0.conv0.weight": torch.zeros(1, 2, 1, 1),
}


def read(folder: Path, record: Any, weights: str = "ema") -> Checkpoint:
    file = folder / "network.pkl"
    file.write_bytes(made.pickled(record))
    return checkpoint(open_record(file), weights=weights)


def network(**attributes: Any) -> made.Persistent:
    return made.edm_network(TENSORS, **attributes)


def test_class_arguments_and_tensors(tmp_path: Path):
    found = read(tmp_path, {"ema": network(), "loss_fn": None, "dataset_kwargs": {"path": "x"}})
    config = {name: value for name, value in made.CONFIG.items() if name != "architecture"}
    assert found.architecture == "EDMPrecond" and found.format == "edm-pickle"
    assert found.config == {**config, "sigma_data": 0.5, "sigma_max": float("inf")}
    assert found.notes == ["weights: ema", "not used: loss_fn, dataset_kwargs"]
    assert found.tensors.keys() == TENSORS.keys()
    assert all(torch.equal(found.tensors[name], tensor) for name, tensor in TENSORS.items())


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_every_protocol(protocol: int, tmp_path: Path):
    """Protocol 2 has no bytes: it writes a storage as a text and its encoding."""
    file = tmp_path / "network.pkl"
    file.write_bytes(made.pickled({"ema": network()}, protocol))
    found = checkpoint(open_record(file))
    assert all(torch.equal(found.tensors[name], tensor) for name, tensor in TENSORS.items())


def test_texts_as_bytes_are_bounded_by_the_file(tmp_path: Path):
    """One text of 10 kB, encoded again and again."""
    again = b"".join(b"h\x01h\x00X\x06\0\0\0latin1\x86R0" for _ in range(9))
    text = b"X" + (10_000).to_bytes(4, "little") + b"a" * 10_000
    file = tmp_path / "network.pkl"
    file.write_bytes(b"\x80\x02" + text + b"q\x000c_codecs\nencode\nq\x010" + again + b"}.")
    with pytest.raises(ModelFileError, match="10000 bytes written as a text, at most"):
        open_record(file)


@pytest.mark.skipif(not PICKLES, reason="no recorded checkpoints")
@pytest.mark.parametrize("file", PICKLES, ids=lambda file: file.parent.name)
def test_recorded_pickles(file: Path):
    """Class, arguments and tensors are those that were recorded beside the file."""
    found = checkpoint(open_record(file))
    want = json.loads((file.parent / "kwargs.json").read_text("utf-8"))["precond"]
    kwargs = {name: float("inf") if value == "inf" else value for name, value in want["kwargs"].items()}
    assert found.architecture == want["cls"] and found.config is not None
    assert {name: found.config[name] for name in kwargs} == kwargs
    twin = file.parent / "state_dict.safetensors"
    if twin.is_file():
        tensors = load_file(twin)
        assert found.tensors.keys() == tensors.keys()
        assert all(torch.equal(found.tensors[name], tensor) for name, tensor in tensors.items())


def test_numpy_numbers_and_attributes_over_arguments(tmp_path: Path):
    found = read(tmp_path, {"ema": network(sigma_data=np.float64(0.7), sigma_min=np.float32(0.5))})
    assert found.config is not None and found.config["sigma_data"] == 0.7 and found.config["sigma_min"] == 0.5
    json.dumps(found.config)


def test_buffers_that_are_not_kept(tmp_path: Path):
    """As torch's own state dicts leave them out."""
    record = network()
    state = record.meta["state"]
    state["_buffers"] = {"u": torch.ones(3), "passing": torch.ones(2)}
    state["_non_persistent_buffers_set"] = {"passing"}
    assert read(tmp_path, {"ema": record}).tensors.keys() == {*TENSORS, "u"}


def test_only_ema(tmp_path: Path):
    with pytest.raises(ModelFileError, match="weights must be 'ema'"):
        read(tmp_path, {"ema": network()}, weights="model")


def _change(path: str, value: Any) -> Callable[[made.Persistent], None]:
    """Of an entry of the record's state, or of that of the network inside ("model.")."""

    def change(record: made.Persistent) -> None:
        state = record.meta["state"]
        if path.startswith("model."):
            state = state["_modules"]["model"].meta["state"]
        *within, last = path.removeprefix("model.").split(".")
        for name in within:
            state = state[name]
        if value is KeyError:
            del state[last]
        else:
            state[last] = value

    return change


def _meta(**changes: Any) -> Callable[[made.Persistent], None]:
    return lambda record: record.meta.update(changes)


class _Deep(made.Persistent):
    def __init__(self) -> None:
        inner: Any = None
        for _ in range(40):
            inner = made.Persistent("Linear", made.module_state({}, {}, {"a": inner}))
        super().__init__("Linear", made.module_state({}, {}, {"a": inner}))


BROKEN: dict[str, tuple[Callable[[made.Persistent], None], str]] = {
    "another version": (_meta(version=7), "version 6, this one is of version 7"),
    "a function": (_meta(type="function"), "must be a class"),
    "no class name": (_meta(class_name=3), "without a class name"),
    "no state": (_meta(state=None), "without a class name or a state"),
    "another class": (_meta(class_name="StackedRandomGenerator"), "known are VPPrecond"),
    "another network": (
        lambda r: r.meta["state"]["_modules"]["model"].meta.update(class_name="X"),
        "known are SongUNet",
    ),
    "no network": (_change("_modules.model", KeyError), "of nothing"),
    "a tensor as network": (_change("_modules.model", torch.ones(1)), "of nothing"),
    "no modules": (_change("_modules", KeyError), "without _modules"),
    "modules in a list": (_change("_modules", []), "without _modules"),
    "no parameters": (_change("model._parameters", KeyError), "without _parameters"),
    "a text as parameter": (_change("model._parameters", {"weight": "x"}), "model.weight is no tensor"),
    "a text as module": (_change("model._modules", {"enc": "x"}), "model.enc is no module"),
    "a point in a name": (_change("model._parameters", {"a.b": torch.ones(1)}), "no module's or tensor's"),
    "an empty name": (_change("model._modules", {"": None}), "no module's or tensor's"),
    "a number as name": (_change("model._parameters", {1: torch.ones(1)}), "no module's or tensor's"),
    "deep modules": (lambda r: _change("model._modules", {"a": _Deep()})(r), "nested more than"),
    "no arguments": (_change("_init_kwargs", KeyError), "without constructor arguments"),
    "arguments without names": (_change("_init_args", (3,)), "some that have no names"),
    "a tensor as argument": (_change("_init_kwargs.model_channels", torch.ones(1)), "no number, no text"),
    "a dict as argument": (_change("model._init_kwargs.channel_mult", {}), "no number, no text"),
    "a huge argument": (_change("_init_kwargs.M", 1 << 70), "no number, no text"),
    "a long list": (_change("model._init_kwargs.channel_mult", [1] * 1000), "no number, no text"),
    "other channels": (_change("model._init_kwargs.in_channels", 4), "in_channels of the DhariwalUNet must be 1"),
    "other classes": (_change("model._init_kwargs.label_dim", 4), "label_dim of the DhariwalUNet must be 0"),
    "other size": (_change("img_resolution", 16), "img_resolution of the DhariwalUNet must be 16"),
    "no channels": (_change("_init_kwargs.img_channels", KeyError), "in_channels of the DhariwalUNet must be None"),
    "an argument that gets lost": (_change("_init_kwargs.extra", 1), "extra: arguments of the EDMPrecond"),
    "an argument of both": (_change("model._init_kwargs.sigma_data", 1), "sigma_data: arguments of both"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_broken(name: str, tmp_path: Path):
    change, told = BROKEN[name]
    record = network()
    change(record)
    with pytest.raises(ModelFileError, match=told) as refusal:
        read(tmp_path, {"ema": record})
    assert str(tmp_path / "network.pkl") in str(refusal.value) and len(str(refusal.value)) < 600


@pytest.mark.parametrize("content", [[], {}, {"ema": None}, {"ema": {}}, {"ema": torch.ones(1)}, {"G_ema": None}])
def test_other_pickles(content: Any, tmp_path: Path):
    with pytest.raises(ModelFileError, match="without EDM's entry 'ema'"):
        read(tmp_path, content)


def test_modules_in_circles(tmp_path: Path):
    container = torch.nn.ModuleDict()
    container._modules["again"] = container
    record = network()
    record.meta["state"]["_modules"]["model"].meta["state"]["_modules"]["enc"] = container
    with pytest.raises(ModelFileError, match="nested more than"):
        read(tmp_path, {"ema": record})


def test_modules_doubled_again_and_again(tmp_path: Path):
    """2^25 modules in few bytes: each of the 25 is in the next one twice."""
    inner: Any = None
    for _ in range(25):
        inner = made.Persistent("Linear", made.module_state({}, {}, {"a": inner, "b": inner}))
    record = network()
    record.meta["state"]["_modules"]["model"].meta["state"]["_modules"]["enc"] = inner
    with pytest.raises(ModelFileError, match="more than 200000 entries"):
        read(tmp_path, {"ema": record})


@pytest.mark.parametrize("change", [b"\x00", b"\xff" * 8])
def test_storage_files_within(change: bytes, tmp_path: Path):
    """The file of a storage is checked as any other: its own count, its length."""
    data = made.pickled({"ema": network()})
    raw = torch.arange(6.0).numpy().tobytes()
    at = data.index((6).to_bytes(8, "little") + raw)
    file = tmp_path / "network.pkl"
    file.write_bytes(data[:at] + change + data[at + len(change) :])
    with pytest.raises(ModelFileError, match="two sizes"):
        open_record(file)


def test_code_in_the_file_of_a_storage(tmp_path: Path, monkeypatch):
    """The official reader hands it to torch.load without restriction."""
    monkeypatch.chdir(tmp_path)
    inner = made.legacy_of({}).replace(
        b"\x80\x02}", b"\x80\x02cio\nopen\nX\x06\x00\x00\x00markerX\x01\x00\x00\x00w\x86R0}", 2
    )
    storage = (
        b"\x8c\x0dtorch.storage\x8c\x10_load_from_bytes\x93B" + len(inner).to_bytes(4, "little") + inner + b"\x85R"
    )
    (tmp_path / "network.pkl").write_bytes(b"\x80\x04" + storage + b".")
    with pytest.raises(ModelFileError, match=r"asks for 'io\.open'"):
        open_record(tmp_path / "network.pkl")
    assert [path.name for path in tmp_path.iterdir()] == ["network.pkl"]
