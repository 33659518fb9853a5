"""Model files: a round trip, and one clear refusal for everything that is not a whole model file."""

from __future__ import annotations

import json
import os

import pytest
import torch
from safetensors.torch import save_file

from fastdiff.models import MLP, ModelFileError, UNet, io, load, read_metadata, save

METADATA = {"prediction": "edm", "sigma_data": 0.5, "training": {"seed": 3}}


@pytest.fixture
def model():
    torch.manual_seed(0)
    model = UNet(width=8, label_dim=2)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter)
    return model


@pytest.fixture
def file(tmp_path, model):
    path = tmp_path / "model.safetensors"
    save(path, model, METADATA)
    return path


def refused(path, wanted):
    """Asserts that loading fails with one line naming the file and what is wrong."""
    with pytest.raises(ModelFileError, match=wanted) as caught:
        load(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_round_trip_of_a_network_for_points(tmp_path):
    torch.manual_seed(0)
    model = MLP(width=8, depth=1, label_dim=2, time_scale=1000.0)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter)
    save(tmp_path / "model.safetensors", model, METADATA)
    loaded = load(tmp_path / "model.safetensors")
    arguments = torch.randn(3, 2), torch.rand(3), torch.tensor([0, 1, -1])
    assert isinstance(loaded, MLP)
    assert torch.equal(loaded(*arguments), model.eval()(*arguments))


def test_round_trip(file, model):
    loaded = load(str(file))
    x, c_noise, labels = torch.randn(2, 1, 16, 16), torch.zeros(2), torch.tensor([0, 1])
    assert torch.equal(loaded(x, c_noise, labels), model(x, c_noise, labels))
    assert not loaded.training
    assert not any(p.requires_grad for p in loaded.parameters())
    assert METADATA.items() <= loaded.metadata.items()
    assert read_metadata(file) == loaded.metadata
    assert os.listdir(file.parent) == [file.name]


def test_half_precision_weights_keep_their_dtype(tmp_path, model):
    save(tmp_path / "half", model.half(), METADATA)
    assert {p.dtype for p in load(tmp_path / "half").parameters()} == {torch.float16}


@pytest.mark.parametrize("keep", [0, 4, 100, 0.5, -1])
def test_truncated(file, keep):
    whole = file.read_bytes()
    file.write_bytes(whole[: int(keep * len(whole)) if isinstance(keep, float) else keep])
    refused(file, "not a readable safetensors file")
    with pytest.raises(ModelFileError):
        read_metadata(file)


def test_one_flipped_bit_in_the_weights(file):
    content = bytearray(file.read_bytes())
    content[-5] ^= 1
    file.write_bytes(content)
    refused(file, "damaged")


def test_damaged_header(file):
    content = bytearray(file.read_bytes())
    content[20] ^= 0xFF
    file.write_bytes(content)
    refused(file, "not a readable")


def test_missing_file_names_the_shipped_models(tmp_path):
    refused(tmp_path / "nothing", "no such file, and not a shipped model.*digits")
    refused(tmp_path, "no such file")


def test_foreign_safetensors(tmp_path):
    save_file({"w": torch.zeros(2)}, tmp_path / "foreign")
    refused(tmp_path / "foreign", "not one written by fastdiff")


def rewritten(file, model, change, metadata=METADATA):
    """Saves `model` with changed tensors but a valid digest."""
    tensors = dict(model.state_dict())
    change(tensors)
    io.save_tensors(file, tensors, {**metadata, "architecture": "UNet", "config": model.config})


def test_tensors_that_do_not_fit(file, model):
    rewritten(file, model, lambda t: t.pop("out.bias"))
    refused(file, "missing out.bias")
    rewritten(file, model, lambda t: t.update(extra=torch.zeros(1)))
    refused(file, "unexpected extra")
    rewritten(file, model, lambda t: t.update({"out.bias": torch.zeros(5)}))
    refused(file, r"'out.bias' must have shape \[4\], got \[5\]")
    rewritten(file, model, lambda t: t.update({"out.bias": torch.full((4,), torch.nan)}))
    refused(file, "'out.bias' holds NaN")


def test_descriptions_that_do_not_fit(file, model):
    for description, wanted in [
        ({"architecture": "Transformer", "config": {}}, "unknown architecture 'Transformer'"),
        ({"architecture": "UNet"}, "unknown architecture"),
        ({"architecture": "UNet", "config": {"wideness": 3}}, "does not build a UNet.*wideness"),
        ({"architecture": "UNet", "config": {**model.config, "width": 3}}, "does not build a UNet.*multiple of 8"),
    ]:
        io.save_tensors(file, model.state_dict(), description)
        refused(file, wanted)
    for text in (json.dumps("not a mapping"), "[" * 100_000, "9" * 5000):
        save_file({}, file, metadata={"fastdiff": text})
        refused(file, "not one written by fastdiff")


@pytest.mark.parametrize("broken", ["serialise", "os.replace"])
def test_an_interrupted_save_leaves_the_old_file(file, model, monkeypatch, broken):
    before = file.read_bytes()

    def fail(*_, **__):
        raise OSError("disk full")

    monkeypatch.setattr(*((io, "serialise") if broken == "serialise" else (os, "replace")), fail)
    with pytest.raises(OSError, match="disk full"):
        save(file, model, {"sigma_data": 1.0})
    assert file.read_bytes() == before
    assert os.listdir(file.parent) == [file.name]
