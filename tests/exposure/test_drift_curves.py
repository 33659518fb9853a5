"""The normality check, the table and the picture of a drift."""

from __future__ import annotations

import csv
import io
import os
import sys

import numpy as np
import pytest
import torch
from PIL import Image

from fastdiff import Sampler
from fastdiff.exposure.curves import draw
from fastdiff.exposure.drift import measure_drift
from fastdiff.exposure.normality import shapiro_wilk
from fastdiff.plots import panels, png

from ..threads import one_thread  # noqa: F401

scipy_stats = pytest.importorskip("scipy.stats")


@pytest.fixture(scope="module")
def gaussian():
    """Exact data N(0, I) in 40 dimensions: the prediction error is Gaussian at every level."""
    sampler = Sampler(lambda x, t: x / (1 + t[:, None] ** 2), steps=5, shape=(40,), dtype=torch.float64)
    x0 = torch.randn(300, 40, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    return measure_drift(sampler, x0, batch=128, probe=30)


def test_shapiro_wilk_is_scipys_and_skips_constant_columns():
    values = np.random.default_rng(0).normal(size=(100, 4))
    values[:, 1] = np.random.default_rng(1).uniform(size=100) ** 3
    values[:, 2] = 0.7
    found = shapiro_wilk(values)
    known = [scipy_stats.shapiro(values[:, i]) for i in (0, 1, 3)]
    assert found.dimensions == 3
    assert found.statistic == pytest.approx(np.mean([w for w, _ in known]), rel=1e-12)
    assert found.passed == pytest.approx(2 / 3)
    assert shapiro_wilk(values[:2]).dimensions == 0


def test_gaussian_errors_pass_and_others_do_not(gaussian):
    assert (gaussian.shapiro_dimensions[:-1] == 30).all()
    assert gaussian.shapiro_dimensions[-1] == 0
    assert (gaussian.shapiro_passed[:-1] >= 0.8).all()  # 0.95 is expected; 0.8 is 3.8 standard errors away
    assert (gaussian.shapiro_w[:-1] > 0.985).all()

    coin = torch.randint(0, 2, (300, 40), generator=torch.Generator().manual_seed(0)).double() * 2 - 1
    sampler = Sampler(lambda x, t: (x / t[:, None] ** 2).tanh(), steps=5, shape=(40,), dtype=torch.float64)
    drift = measure_drift(sampler, coin, probe=30)
    assert (drift.shapiro_passed[:2] == 0).all()  # at high noise the error is the datum itself, +-1
    assert drift.shapiro_w[0] < 0.7


def test_only_so_many_errors_are_kept(monkeypatch):
    sizes = []
    monkeypatch.setattr("fastdiff.exposure.drift.MOST_SAMPLES", 25)
    monkeypatch.setattr(
        "fastdiff.exposure.drift.shapiro_wilk", lambda errors: sizes.append(errors.shape) or shapiro_wilk(errors)
    )
    sampler = Sampler(lambda x, t: x / (1 + t[:, None] ** 2), steps=3, shape=(4,))
    measure_drift(sampler, torch.randn(60, 4), batch=20, probe=3)
    assert sizes == [(25, 3)] * 3


def test_csv_has_every_column(gaussian, tmp_path):
    gaussian.save_csv(tmp_path / "drift.csv")
    assert os.listdir(tmp_path) == ["drift.csv"]
    rows = list(csv.DictReader(io.StringIO((tmp_path / "drift.csv").read_text())))
    assert len(rows) == 6
    assert [float(row["timestep"]) for row in rows] == [5, 4, 3, 2, 1, 0]
    assert {row["samples"] for row in rows} == {"300"}
    for name, column in gaussian.columns().items():
        read = np.array([float(row[name]) if row[name] else np.nan for row in rows])
        np.testing.assert_allclose(read, column, rtol=1e-9)
    assert rows[-1]["ratio"] == ""
    assert len(str(gaussian).splitlines()) == 8


def test_picture(gaussian, tmp_path):
    pytest.importorskip("matplotlib")
    gaussian.plot(tmp_path / "drift.png")
    picture = np.asarray(Image.open(tmp_path / "drift.png"))
    assert picture.shape[1] > picture.shape[0] > 500
    assert picture.std() > 10
    assert draw({"a": gaussian, "b": gaussian}, title="both") != (tmp_path / "drift.png").read_bytes()
    with pytest.raises(ValueError, match="at least one"):
        draw({})


def test_panels_and_png():
    pytest.importorskip("matplotlib")
    figure, axes = panels(3, columns=2, width=2, height=1)
    axes[0].plot([0, 1], [0, 1])
    assert len(axes) == 3
    assert Image.open(io.BytesIO(png(figure, dpi=100))).size == (400, 200)
    assert png(figure) == png(figure)
    assert "matplotlib.pyplot" not in sys.modules or not sys.modules["matplotlib.pyplot"].get_fignums()


@pytest.mark.parametrize(("package", "wanted"), [("scipy", r"fastdiff\[eval\]"), ("matplotlib", r"fastdiff\[plots\]")])
def test_missing_packages_are_named(package, wanted, gaussian, tmp_path, monkeypatch):
    for name in [name for name in sys.modules if name.split(".")[0] == package]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ModuleNotFoundError, match=wanted):
        if package == "scipy":
            measure_drift(Sampler(lambda x, t: x, steps=3, shape=(2,)), torch.randn(4, 2))
        else:
            gaussian.plot(tmp_path / "drift.png")
    assert os.listdir(tmp_path) == []
