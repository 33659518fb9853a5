"""Every recorded checkpoint loads, is what its index says, and is the same network after convert, save and load."""

from __future__ import annotations

import json
import os
from typing import Any

import pytest
import torch

import fastdiff
from fastdiff.importing import convert, open_checkpoint
from fastdiff.importing.infer import infer
from fastdiff.models import MLP, ModelFileError, io, save
from fastdiff.models.network import build
from tests.importing.fixtures import Fixture, fixtures, probe
from tests.models.contract import randomise


def known(fixture: Fixture):
    return {"config": None if fixture.whole else fixture.known}


@pytest.mark.parametrize("fixture", fixtures())
def test_converted_and_read_again_it_computes_the_same_bits(fixture: Fixture, tmp_path):
    network = fastdiff.load(fixture.path, **known(fixture))
    counts = fixture.entry.get("num_parameters")
    counts = counts.values() if isinstance(counts, dict) else [counts]
    assert counts == [None] or sum(p.numel() for p in network.parameters()) in counts

    converted = convert(fixture.path, tmp_path / "network.safetensors", **known(fixture))
    again = io.load(converted.target)
    assert type(again) is type(network) and again.config == network.config
    states = network.state_dict(), again.state_dict()
    assert states[0].keys() == states[1].keys()
    assert all(torch.equal(tensor, states[1][name]) for name, tensor in states[0].items())
    assert torch.equal(probe(again), probe(network)) and probe(network).std() > 0
    assert json.loads(converted.description.read_text()) == again.metadata
    assert again.metadata["digest"] == converted.digest and again.metadata["imported"]["file"] == fixture.path.name


@pytest.mark.parametrize("fixture", fixtures(lambda fixture: fixture.known and fixture.whole))
def test_what_is_known_and_what_the_file_says_are_the_same(fixture: Fixture):
    network, given = fastdiff.load(fixture.path), fastdiff.load(fixture.path, config=fixture.known)
    assert torch.equal(probe(network), probe(given))


@pytest.mark.parametrize("fixture", fixtures(lambda fixture: fixture.known))
def test_the_tensors_show_what_the_configuration_says(fixture: Fixture):
    """What is inferred is right; what no tensor shows is named, as missing or as assumed."""
    checkpoint = open_checkpoint(fixture.path)
    network = fastdiff.load(fixture.path, **known(fixture))
    shapes = {name: tensor.shape for name, tensor in checkpoint.tensors.items()}
    architecture = {"architecture": type(network).__name__}
    hidden: dict[str, Any] = {}
    for _ in range(3):  # what is asked for may depend on what was given
        found = infer(shapes, {**hidden, **architecture})
        asked = [name for each in (*found.missing, *found.assumed) for name in each.split(" or ")]
        hidden |= {name: network.config[name] for name in asked if name in network.config}
    assert not found.missing and found.architecture == type(network).__name__
    again = build(found.architecture, {n: v for n, v in found.config.items() if n != "architecture"}, "cpu")
    again.load_state_dict(network.state_dict())
    assert torch.equal(probe(again), probe(network))


@pytest.fixture
def source(tmp_path):
    """A file that says everything, in a folder of its own."""
    (tmp_path / "in").mkdir()
    save(tmp_path / "in/m.safetensors", randomise(MLP(width=4, depth=1, embedding=4)), {"prediction": "eps"})
    return tmp_path / "in/m.safetensors"


def refused(wanted, *arguments, error=ValueError, **options):
    """It is refused, and neither folder has changed."""
    folder = arguments[0].parents[1]
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    with pytest.raises(error, match=wanted):
        convert(*arguments, **options)
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before


def test_refusals_write_nothing(source, tmp_path):
    target = tmp_path / "out.safetensors"
    refused("does not build a MLP", source, target, error=ModelFileError, widht=3)
    refused("shape", source, target, error=ModelFileError, width=8)
    refused("config must be", source, target, config=3)
    refused("target would replace .*m.safetensors, which is being read", source, source)
    refused("target must be in a folder that exists", source, tmp_path / "absent/out.safetensors")
    refused("target must not end in .json", source, tmp_path / "out.json")
    refused("target must be a file, and .* is a folder", source, tmp_path / "in")
    for nameless in ("", "."):
        with pytest.raises(ValueError, match=f"target must be a file, got '{nameless}'"):
            convert(source, nameless)
    os.mkfifo(tmp_path / "pipe")
    refused("pipe is a device or a pipe", source, tmp_path / "pipe")
    (tmp_path / "other.pt").write_text("of somebody else")
    refused("other.pt, which is not a model file of fastdiff's", source, tmp_path / "other.pt")
    refused("prediction must be .* one of", source, target, prediction="epsilom")
    refused("process", source, target, process="vq")
    (tmp_path / "kwargs.json").write_text('{"cls": "MLP", "kwargs": {}}')
    refused(
        "target would replace .*kwargs.json, which is being read",
        source, tmp_path / "kwargs.safetensors", config=tmp_path / "kwargs.json",
    )  # fmt: skip
    refused("kwargs.json, which is not a description of a model file", source, tmp_path / "kwargs.safetensors")
    (tmp_path / "list.json").write_text("[]")
    refused("list.json, which is not a description of a model file", source, tmp_path / "list.pt")
    torch.save({"x": torch.full((2,), torch.nan)}, tmp_path / "in/nan.pt")
    refused("missing", tmp_path / "in/nan.pt", target, error=ModelFileError, config={"cls": "MLP", "kwargs": {}})


@pytest.mark.parametrize("fixture", fixtures(lambda fixture: fixture.path.name == "network.pkl")[:1])
def test_a_preconditioned_network_is_read_in_one_way(fixture: Fixture, tmp_path):
    for given in ({"prediction": "eps"}, {"process": "vp"}, {"process.betas": "cosine"}):
        with pytest.raises(ValueError, match=r"must be left out: of a .*Precond its arguments say how it is read"):
            convert(fixture.path, tmp_path / "out.safetensors", **given)
    assert not os.listdir(tmp_path)


def test_a_failure_to_write_leaves_nothing(source, tmp_path, monkeypatch):
    def full(*arguments):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(io, "save_tensors", full)
    refused("No space left", source, tmp_path / "out.safetensors", error=OSError)
    assert os.listdir(tmp_path) == ["in"]


def test_an_own_earlier_file_is_replaced(source, tmp_path):
    first = convert(source, tmp_path / "out.safetensors")
    second = convert(source, tmp_path / "out.safetensors", dtype=torch.bfloat16, prediction="v")
    assert second.digest != first.digest
    assert json.loads((tmp_path / "out.json").read_text()) == io.load(second.target).metadata
    assert io.load(second.target).metadata["prediction"] == "v"
    assert {tensor.dtype for tensor in io.load(second.target).state_dict().values()} == {torch.bfloat16}
    assert second.network.config == io.load(second.target).config
    assert not second.checkpoint.tensors


@pytest.mark.parametrize("fixture", fixtures(lambda fixture: fixture.path.name == "discriminator.pt"))
def test_a_discriminator_of_two_files(fixture: Fixture, tmp_path):
    extractor = fixture.path.with_name("adm_classifier.pt")
    converted = convert(extractor, tmp_path / "dg.safetensors", head=fixture.path, config=fixture.known)
    both = io.load(converted.target)
    assert type(both).__name__ == "DGDiscriminator"
    assert both.metadata["imported"]["notes"] == ["extractor: adm_classifier.pt", "head: discriminator.pt"]
    parts = {
        "extractor": fastdiff.load(extractor, config=fixture.known),
        "head": fastdiff.load(fixture.path, **known(fixture)),
    }
    for part, network in parts.items():
        held = getattr(both, part).state_dict()
        assert all(torch.equal(tensor, held[name]) for name, tensor in network.state_dict().items())
    assert torch.equal(probe(both), probe(converted.network))
    values = {f"{part}.num_head_channels": network.config["num_head_channels"] for part, network in parts.items()}
    shown = fastdiff.load(extractor, head=fixture.path, **values)
    assert torch.equal(probe(shown), probe(both))
    with pytest.raises(ModelFileError, match=r"do not show extractor\.num_head_channels, head\.num_head_channels"):
        fastdiff.load(extractor, head=fixture.path)
