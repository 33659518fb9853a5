"""Names on the Hugging Face hub, without a network."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from click.testing import CliRunner
from safetensors.torch import load_file

from fastdiff.cli import main
from fastdiff.importing import folders
from fastdiff.importing.load import load
from fastdiff.models import ModelFileError

from .pipelines import WEIGHTS, T, X, computed, with_autoencoder


class Hub:
    """huggingface_hub, with one repository that is a folder here; remembers what it was asked for."""

    COMMIT = "0123456789abcdef0123456789abcdef01234567"

    def __init__(self, source: Path, cache: Path):
        self.source, self.cache, self.asked = source, cache / "snapshots" / self.COMMIT, []

    def snapshot_download(self, repo, revision=None, allow_patterns=()):
        from fnmatch import fnmatch

        self.asked.append((repo, revision))
        self.cache.mkdir(parents=True, exist_ok=True)
        for file in self.source.rglob("*"):
            name = file.relative_to(self.source).as_posix()
            if file.is_file() and any(fnmatch(name, pattern) for pattern in allow_patterns):
                (self.cache / name).parent.mkdir(exist_ok=True)
                shutil.copy(file, self.cache / name)
        return str(self.cache)

    def hf_hub_download(self, repo, file, revision=None):
        self.asked.append((repo, revision))
        return str(self.source / file)


@pytest.fixture
def hub(pipeline, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    made = Hub(pipeline, tmp_path / "cache")
    monkeypatch.setitem(sys.modules, "huggingface_hub", made)
    return made


@pytest.mark.parametrize(
    ("name", "is_id"),
    [
        ("google/ddpm-cifar10-32", True),
        ("owner/name@v1.0", True),
        ("hf:owner/name", True),
        ("hf:owner/name/folder/file.pt@main", True),
        ("owner/name/file.pt", False),
        ("owner/net.pkl", False),
        ("digits", False),
        ("/owner/name", False),
        ("../owner", False),
        ("here/name", False),
    ],
)
def test_which_names_are_of_the_hub(name, is_id, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "here").mkdir()
    assert folders.is_id(name) == is_id
    assert not folders.is_id(Path(name))


@pytest.mark.parametrize("name", ["owner/name", "hf:owner/name@v1"])
def test_a_repository(hub, assert_same, name):
    (hub.source / "unet" / f"{WEIGHTS}.bin").write_bytes(b"not needed")
    (hub.source / "big.ckpt").write_bytes(b"not needed")
    with_autoencoder(hub.source)
    network = load(name)
    assert_same(network(X, T))
    assert network.vae is not None
    first, *others = hub.asked
    assert first == ("owner/name", "v1" if "@" in name else None)
    assert set(others) == {("owner/name", Hub.COMMIT)}  # the same revision for all files
    assert not list(hub.cache.rglob("*.bin")) and not list(hub.cache.rglob("*.ckpt"))


def test_a_repository_with_bin_files(hub, assert_same):
    file = hub.source / "unet" / f"{WEIGHTS}.safetensors"
    torch.save(load_file(file), file.with_suffix(".bin"))
    file.unlink()
    assert_same(computed("owner/name"))


def test_one_file_of_a_repository(hub, written):
    path = folders.fetch(f"hf:owner/name/unet/{WEIGHTS}.safetensors@v2")
    assert path.read_bytes() == (written / "unet" / f"{WEIGHTS}.safetensors").read_bytes()
    assert hub.asked == [("owner/name", "v2")]


def test_a_repository_of_something_else(hub):
    for file in hub.source.rglob("*.json"):
        file.unlink()
    with pytest.raises(ModelFileError, match="owner/name: not a repository of diffusers; name one of its files"):
        load("owner/name")


@pytest.mark.parametrize("name", ["hf:name", "hf:", "hf:a/b/../c.pt", "hf:a/b@", "hf:../b"])
def test_names_that_are_none(hub, name):
    with pytest.raises(ModelFileError, match="must be owner/name, or hf:owner/name/file"):
        load(name)
    assert not hub.asked


def test_offline_is_one_clear_line(monkeypatch, tmp_path):
    def fail(*args, **kwargs):
        raise OSError("Cannot reach the host\nand much more. With a second sentence.")

    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(sys.modules, "huggingface_hub", SimpleNamespace(snapshot_download=fail, hf_hub_download=fail))
    result = CliRunner().invoke(main, ["convert", "owner/name", "out.safetensors"])
    assert result.exit_code == 2
    assert result.output.count("\n") == 1
    assert (
        "owner/name: no such file, and not to be had from the Hugging Face hub (OSError: Cannot reach" in result.output
    )
    assert not list(tmp_path.iterdir())


def test_really_offline(monkeypatch, tmp_path):
    """With huggingface_hub itself."""
    hub = pytest.importorskip("huggingface_hub")
    monkeypatch.setattr(hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(hub.constants, "HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(ModelFileError, match="owner/name: no such file, and not to be had") as refused:
        load("owner/name")
    assert "\n" not in str(refused.value) and len(str(refused.value)) < 400


def test_without_huggingface_hub(monkeypatch):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(ModuleNotFoundError, match=r"owner/name: .*pip install huggingface_hub"):
        load("owner/name")
