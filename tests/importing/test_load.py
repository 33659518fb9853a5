"""`fastdiff.load`: where a network's description comes from, and what is refused."""

from __future__ import annotations

import json
from importlib import import_module

import pytest
import torch
from safetensors.torch import save_file

import fastdiff
from fastdiff.importing import configure, folders, infer
from fastdiff.importing.checkpoint import Checkpoint
from fastdiff.importing.configure import settle
from fastdiff.models import MLP, ModelFileError, load, published, save
from tests.models.contract import randomise

CONFIG = {"dim": 3, "width": 4, "depth": 1, "embedding": 4}
GIVEN = {"cls": "MLP", "kwargs": CONFIG}


@pytest.fixture
def network():
    return randomise(MLP(**CONFIG))


@pytest.fixture
def file(network, tmp_path):
    """A state dict of torch.save."""
    torch.save(network.state_dict(), tmp_path / "model.pt")
    return tmp_path / "model.pt"


def same(a, b) -> bool:
    first, second = a.state_dict(), b.state_dict()
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.parametrize("given", [GIVEN, {"precond": GIVEN}, {"architecture": "MLP", **CONFIG}])
def test_forms_of_a_configuration(file, network, tmp_path, given):
    loaded = fastdiff.load(file, config=given)
    assert same(loaded, network) and loaded.config == network.config
    assert not loaded.training and not any(parameter.requires_grad for parameter in loaded.parameters())
    (tmp_path / "kwargs.json").write_text(json.dumps(given))
    assert same(fastdiff.load(file, config=tmp_path / "kwargs.json"), network)
    assert same(fastdiff.load(str(file), config=str(tmp_path / "kwargs.json")), network)


def test_our_own_description_says_how_the_output_is_read(file):
    given = {"architecture": "MLP", "config": CONFIG, "prediction": "eps", "digest": "of another file"}
    assert fastdiff.load(file, config=given).metadata == {
        "imported": {"file": "model.pt", "format": "torch", "notes": []},
        "prediction": "eps",
    }


@pytest.mark.parametrize("inside", ["state_dict", "model"])
def test_tensors_in_an_entry_with_a_wrapper_s_names(network, tmp_path, inside):
    tensors = {f"module.{name}": tensor for name, tensor in network.state_dict().items()}
    torch.save({inside: tensors, "step": 7, "rest": [1]}, tmp_path / "model.pt")
    loaded = fastdiff.load(tmp_path / "model.pt", config=GIVEN)
    assert same(loaded, network)
    assert loaded.metadata["imported"]["notes"] == [
        f"tensors of the entry {inside!r}; not used: step, rest",
        "the prefix 'module.' of all names was taken off",
    ]


def test_our_own_files_and_shipped_models(network, tmp_path):
    save(tmp_path / "own.safetensors", network, {"prediction": "eps", "training": {"seed": 3}})
    loaded = fastdiff.load(tmp_path / "own.safetensors")
    assert same(loaded, network) and loaded.config == network.config and loaded.metadata["training"] == {"seed": 3}
    assert "imported" not in loaded.metadata and loaded.metadata["digest"]
    assert fastdiff.load("digits").label_dim == 10


def test_single_values_go_over_all_others(network, tmp_path):
    save(tmp_path / "own.safetensors", network, {"prediction": "eps", "process": {"name": "vp", "betas": "linear"}})
    loaded = fastdiff.load(tmp_path / "own.safetensors", time_scale=1, prediction="v", **{"process.betas": "cosine"})
    assert loaded.config == {**network.config, "time_scale": 1}
    assert loaded.metadata["prediction"] == "v" and loaded.metadata["process"] == {"name": "vp", "betas": "cosine"}
    assert fastdiff.load(tmp_path / "own.safetensors", process="flow").metadata["process"] == {"name": "flow"}


def test_order_of_what_is_said(monkeypatch):
    published = configure.Candidate("MLP", {"width": 2, "depth": 2, "dim": 2}, {"prediction": "x0", "variance": "a"})
    monkeypatch.setattr(configure, "_published", {"it": published}.__getitem__)
    held = Checkpoint("file", "torch", {}, "MLP", {"width": 1, "dropout": 0.5}, {"prediction": "eps", "note": 1})
    settled = settle(held, {"cls": "MLP", "kwargs": {"depth": 3, "dim": 3}}, "it", {"dim": 4})
    assert settled.config == {"width": 2, "dropout": 0.5, "depth": 3, "dim": 4}
    assert settled.origins == {"width": "like it", "dropout": "file", "depth": "given", "dim": "given"}
    assert settled.metadata == {"prediction": "x0", "variance": "a", "note": 1}


@pytest.mark.parametrize("row", [row for row in published.published() if row.config], ids=lambda row: row.name)
def test_the_catalogue_describes_networks(row):
    settled = settle(Checkpoint("file", "torch", {}), like=row.name)
    assert (settled.architecture, settled.config, settled.metadata) == (row.architecture, row.config, row.reading)
    assert set(settled.origins.values()) == {f"like {row.name}"}


def test_arguments_of_another_class_are_not_taken_over():
    held = Checkpoint("file", "torch", {}, "UNet", {"width": 64, "patch": 2}, {"note": 1})
    settled = settle(held, {"cls": "MLP", "kwargs": {"depth": 3}})
    assert (settled.architecture, settled.config, settled.metadata) == ("MLP", {"depth": 3}, {"note": 1})


def test_what_the_tensors_show(file, network, monkeypatch):
    seen = {}

    def shown(shapes, given):
        seen.update(shapes=shapes, given=given)
        found = dict.fromkeys(("dim", "width", "depth"), "of a tensor")
        return infer.Inferred(
            "MLP", {**CONFIG, "dropout": 0.1, **given}, found, {"dropout": "by habit"}, seen["missing"]
        )

    monkeypatch.setattr(infer, "infer", shown)
    seen["missing"] = []
    assert same(fastdiff.load(file, time_scale=2.0), network)
    assert seen["given"] == {"time_scale": 2.0}
    assert seen["shapes"] == {name: tensor.shape for name, tensor in network.state_dict().items()}
    settled = settle(Checkpoint("file", "torch", dict(network.state_dict())), overrides={"depth": 1})
    origins = {"dim": "inferred", "width": "inferred", "embedding": "inferred", "depth": "given", "dropout": "assumed"}
    assert settled.origins == origins and settled.reasons["dropout"] == "by habit"
    seen["missing"] = ["width", "depth"]
    with pytest.raises(ModelFileError, match=r"model\.pt: the tensors of this MLP do not show width, depth; give"):
        fastdiff.load(file)


def test_tensors_of_no_known_network(tmp_path):
    torch.save({"odd.weight": torch.ones(1), "odd.bias": torch.ones(1)}, tmp_path / "model.pt")
    with pytest.raises(ModelFileError, match=r"no known architecture has tensors of these names \(odd\.weight, odd\.b"):
        fastdiff.load(tmp_path / "model.pt")


def test_types_of_the_parameters(network, tmp_path):
    halves = {name: tensor.half() for name, tensor in network.state_dict().items()}
    save_file(halves, tmp_path / "half.safetensors")
    path, known = tmp_path / "half.safetensors", {"config": GIVEN}
    assert all(torch.equal(t, halves[n].float()) for n, t in fastdiff.load(path, **known).state_dict().items())
    for dtype in (None, torch.float16):
        assert all(torch.equal(t, halves[n]) for n, t in fastdiff.load(path, dtype=dtype, **known).state_dict().items())
    for dtype in (torch.bfloat16, torch.float64):
        loaded = fastdiff.load(path, dtype=dtype, **known)
        assert {tensor.dtype for tensor in loaded.state_dict().values()} == {dtype}
    with pytest.raises(ValueError, match=r"dtype must be a floating-point type of 16 to 64 bits, or None, got"):
        fastdiff.load(path, dtype=torch.int32, **known)


def test_what_half_precision_cannot_hold_is_refused(network, tmp_path):
    network.out.weight.data[0, 0] = 1e6
    torch.save(network.state_dict(), tmp_path / "model.pt")
    assert fastdiff.load(tmp_path / "model.pt", config=GIVEN, dtype=torch.bfloat16)
    with pytest.raises(ModelFileError, match="holds NaN or infinite values"):
        fastdiff.load(tmp_path / "model.pt", config=GIVEN, dtype=torch.float16)


def test_one_tensor_under_several_names(network, tmp_path):
    tensors = dict(network.state_dict())
    pairs = [name for name, tensor in tensors.items() if tensor.shape == (4,)]
    tensors[pairs[1]] = tensors[pairs[0]]
    torch.save(tensors, tmp_path / "model.pt")
    loaded = fastdiff.load(tmp_path / "model.pt", config=GIVEN).state_dict()
    assert torch.equal(loaded[pairs[0]], loaded[pairs[1]])
    assert loaded[pairs[0]].data_ptr() != loaded[pairs[1]].data_ptr()
    torch.save({f"{name}": tensors[pairs[0]] for name in tensors}, tmp_path / "model.pt")
    with pytest.raises(ModelFileError, match="most of its tensors are the same numbers under several names"):
        fastdiff.load(tmp_path / "model.pt", config=GIVEN)


def wrong(tensors, name):
    first = next(iter(tensors))
    if name == "names":
        return {"a": tensors.pop(first), "b": tensors.popitem()[1], **tensors}
    changed = {
        "shape": lambda t: t.flatten(),
        "nan": lambda t: t.fill_(torch.nan),
        "inf": lambda t: t.fill_(-torch.inf),
        "type": lambda t: t.to(torch.int64),
        "complex": lambda t: t.to(torch.complex64),
    }[name](tensors[first].clone())
    return {**tensors, first: changed}


@pytest.mark.parametrize(
    ("what", "wanted"),
    [
        ("names", r"missing \S+, \S+; unexpected a, b"),
        ("shape", r"must have shape \[\d+, \d+\], got \[\d+\]"),
        ("nan", "holds NaN or infinite values"),
        ("inf", "holds NaN or infinite values"),
        ("type", "must be of type torch.float32, got torch.int64"),
        ("complex", "torch.Complex"),
    ],
)
def test_tensors_that_are_not_the_network_s(network, tmp_path, what, wanted):
    torch.save(wrong(dict(network.state_dict()), what), tmp_path / "model.pt")
    with pytest.raises(ModelFileError, match=f"model.pt: .*{wanted}"):
        fastdiff.load(tmp_path / "model.pt", config=GIVEN)


@pytest.mark.parametrize(
    ("given", "error", "wanted"),
    [
        ({"config": 3}, ValueError, "config must be a mapping of names to values, got int"),
        ({"config": "absent.json"}, ValueError, r"config: cannot read absent\.json: No such file"),
        ({"config": {"cls": 3, "kwargs": {}}}, ValueError, "the architecture must be a name, got 3"),
        (
            {"config": {"cls": "MLP", "kwargs": [1]}},
            ValueError,
            "kwargs must be a mapping .*, got list",
        ),
        ({"config": {"cls": "Os", "kwargs": {}}}, ValueError, "architecture must be one of .*MLP.*, got 'Os'"),
        ({"architecture": "nn.Linear"}, ValueError, "architecture must be one of .*, got 'nn.Linear'"),
        ({"config": GIVEN, "widht": 3}, ModelFileError, "does not build a MLP: .*unexpected keyword argument 'widht'"),
        ({"config": GIVEN, "width": "4"}, ModelFileError, "does not build a MLP"),
        ({"config": GIVEN, "width": 1 << 40}, ModelFileError, "width must be at most"),
        ({"config": GIVEN, "weights": "best"}, ValueError, "weights must be 'ema' or 'model', got 'best'"),
        ({"config": GIVEN, "head": "x.pt", "width": 4}, ModelFileError, "x.pt"),
        ({"like": "nothing so called"}, ValueError, "nothing so called"),
    ],
)
def test_what_cannot_be_used(file, given, error, wanted):
    with pytest.raises(error, match=wanted):
        fastdiff.load(file, **given)


def test_a_file_that_is_no_json(file, tmp_path):
    for content in (b"{", b"\xff", b"[" * 100_000, b"9" * 5000):
        (tmp_path / "config.json").write_bytes(content)
        with pytest.raises(ValueError, match=r"config.json is not a JSON file"):
            fastdiff.load(file, config=tmp_path / "config.json")


def test_a_name_on_the_hub(network, tmp_path, monkeypatch):
    place = tmp_path / "snapshots" / ("ab" * 20)
    place.mkdir(parents=True)
    torch.save(network.state_dict(), place / "model.pt")
    monkeypatch.setattr(folders, "fetch", lambda name: place / name.removeprefix("hf:somebody/something/"))
    loaded = fastdiff.load("hf:somebody/something/model.pt", config=GIVEN)
    assert same(loaded, network)
    assert loaded.metadata["imported"] == {
        "file": "hf:somebody/something/model.pt", "format": "torch", "notes": [f"revision: {'ab' * 20}"],
    }  # fmt: skip


def test_a_name_too_long_for_a_file():
    for path in ("m" * 5000, "m" * 5000 + "/m"):
        with pytest.raises(ModelFileError, match=r"^m{200}: File name too long$"):
            fastdiff.load(path)


@pytest.mark.parametrize("path", ["absent.pt", "absent", "a/b/c"])
def test_no_such_file(path, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ModelFileError, match="no such file"):
        fastdiff.load(path)


def test_a_file_of_something_else(tmp_path):
    with pytest.raises(ModelFileError, match="a folder, and not one of diffusers"):
        fastdiff.load(tmp_path)
    torch.save({"optimizer": {}, "epoch": 3}, tmp_path / "model.pt")
    with pytest.raises(ModelFileError, match=r"expected a dictionary of tensors by name, got one of optimizer, epoch"):
        fastdiff.load(tmp_path / "model.pt")
    (tmp_path / "model.pt").write_text("hello")
    with pytest.raises(ModelFileError, match=r"model\.pt: not a checkpoint"):
        fastdiff.load(tmp_path / "model.pt")


def test_more_blocks_than_the_file_has_tensors_are_not_even_built(network, file, tmp_path, monkeypatch):
    def built(*arguments, **options):
        raise AssertionError("built")

    save(tmp_path / "own.safetensors", network, {})
    content = (tmp_path / "own.safetensors").read_bytes().replace(b'depth\\": 1', b'depth\\":99')
    (tmp_path / "own.safetensors").write_bytes(content)
    monkeypatch.setattr("fastdiff.models.io.build", built)
    monkeypatch.setattr(import_module("fastdiff.importing.load"), "build", built)
    count = len(network.state_dict())
    for call in (load, fastdiff.load):
        with pytest.raises(ModelFileError, match=f"asks for 99 blocks, and the file has {count} tensors"):
            call(tmp_path / "own.safetensors")
    with pytest.raises(ModelFileError, match=f"asks for 99 blocks, and the file has {count} tensors"):
        fastdiff.load(file, config=GIVEN, depth=99)
    with pytest.raises(ModelFileError, match=f"asks for 7 levels of 30 blocks, and the file has {count} tensors"):
        fastdiff.load(file, architecture="UNet", **{"inner.channel_mult": [1] * 7, "inner.num_blocks": 30})
