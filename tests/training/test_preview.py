"""Previews: pictures of fixed seeds, the distance to real samples, shares of several processes, what is refused."""

from __future__ import annotations

import os
import sys
import threading

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from fastdiff.data import InMemory
from fastdiff.evaluation import FeatureError, frechet_distance, generate
from fastdiff.opening import default_settings, network_sampler
from fastdiff.pictures import pixels
from fastdiff.training.log import Log, read_log
from fastdiff.training.preview import Preview


class Gaussian(nn.Module):
    """The exact denoiser of data that are N(mean, std^2), with a metadata that says so."""

    def __init__(self, shape, mean=0.25, std=0.5, label_dim=0):
        super().__init__()
        self.sample_shape, self.label_dim = shape, label_dim
        self.metadata = {"prediction": "x0", "process": {"name": "edm"}}
        self.mean, self.std = nn.Parameter(torch.tensor(mean)), std
        self.batches, self.classes = [], []

    def forward(self, x, sigma, labels=None):
        self.batches.append(len(x))
        if labels is not None:
            self.classes = labels.tolist()
        variance = sigma.reshape(-1, *[1] * (x.dim() - 1)) ** 2
        return (self.std**2 * x + variance * self.mean) / (self.std**2 + variance)


class Events:
    """A log that keeps what it is given."""

    def __init__(self):
        self.rows, self.pictures = [], []

    def add(self, iteration, **fields):
        self.rows.append({"iteration": iteration, **fields})

    def picture(self, iteration, name, shown):
        self.pictures.append((iteration, name, shown))


@pytest.mark.parametrize("channels", [1, 3])
def test_a_grid_of_fixed_seeds(tmp_path, channels):
    network, log = Gaussian((channels, 4, 4)), Events()
    preview = Preview(tmp_path / "samples", 5, batch=2)
    assert preview(network, 500, log) == {"samples": "samples/0000500.png"}
    assert set(network.batches) == {2, 1}
    preview(network, 1000)
    first, second = ((tmp_path / "samples" / f"{i:07d}.png").read_bytes() for i in (500, 1000))
    assert first == second
    assert sorted(os.listdir(tmp_path / "samples")) == ["0000500.png", "0001000.png"]

    expected = generate(network_sampler(network, **default_settings(network)), range(5))[0, 0, 0, 0]
    shown = pixels(first)
    assert shown.shape == (2 * 64, 3 * 64, 3)
    assert shown[0, 0, 0] == round(float((expected.clamp(-1, 1) + 1) * 127.5))
    assert log.rows == [{"iteration": 500, "samples": "samples/0000500.png"}]
    ((iteration, name, picture),) = log.pictures
    assert (iteration, name) == (500, "samples")
    assert np.array_equal(picture, shown)


def test_the_row_is_in_the_log(tmp_path):
    log = Log(tmp_path / "log.jsonl", tensorboard=False)
    Preview(tmp_path / "samples", 2)(Gaussian((1, 4, 4)), 7, log)
    assert read_log(log.path) == [{"iteration": 7, "samples": "samples/0000007.png"}]


def test_classes_in_turn(tmp_path):
    network = Gaussian((1, 4, 4), label_dim=3)
    Preview(tmp_path, 5)(network, 1)
    assert network.classes == [0, 1, 2, 0, 1]


def test_points_are_scattered(tmp_path):
    pytest.importorskip("matplotlib")
    preview = Preview(tmp_path, 50)
    preview(Gaussian((2,)), 1)
    with Image.open(tmp_path / "0000001.png") as picture:
        assert picture.size == (400, 400)


def test_points_without_matplotlib(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.backends.backend_agg", None)
    with pytest.warns(RuntimeWarning, match="samples are not drawn: plots need matplotlib"):
        assert Preview(tmp_path, 4)(Gaussian((2,)), 1, log := Events()) == {}
    assert log.rows == []
    assert os.listdir(tmp_path) == []


def test_vectors_and_many_channels_have_no_picture(tmp_path):
    for shape in ((3,), (2, 4, 4)):
        assert Preview(tmp_path / "none", 2)(Gaussian(shape), 1) == {}
    assert not (tmp_path / "none").exists()


def test_the_distance_of_points(tmp_path):
    pytest.importorskip("torchmetrics")
    pytest.importorskip("matplotlib")
    real = 0.25 + 0.5 * torch.randn(1203, 2, generator=torch.Generator().manual_seed(0))
    preview, log = Preview(tmp_path, 400, reference=InMemory("real", real)), Events()
    near = preview(Gaussian((2,)), 1, log)["frechet"]
    far = preview(Gaussian((2,), mean=1.25), 2, log)["frechet"]
    drawn = generate(network_sampler(Gaussian((2,)), **default_settings(Gaussian((2,)))), range(400))
    assert near == pytest.approx(frechet_distance(real, drawn), rel=1e-4)
    assert near < 0.02
    assert far == pytest.approx(2.0, abs=0.2)  # each mean is off by 1
    assert [row["frechet"] for row in log.rows] == [near, far]


def test_the_distance_of_digits_is_in_the_shipped_features(tmp_path):
    pytest.importorskip("torchmetrics")
    real = torch.randint(0, 256, (70, 1, 16, 16), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    row = Preview(tmp_path, 8, reference=InMemory("real", real))(Gaussian((1, 16, 16)), 1)
    assert 0 < row["frechet"] < float("inf")


class Threads:
    """A process group whose processes are threads."""

    def __init__(self, rank, world, box, barrier):
        self.rank, self.world, self.box, self.barrier = rank, world, box, barrier
        self.device = torch.device("cpu")

    def sum(self, value):
        self.box[self.rank] = value.clone()
        self.barrier.wait(30)
        return value.copy_(sum(self.box[rank] for rank in range(self.world)))


@pytest.mark.parametrize("count", [7, 2])
def test_processes_share_the_work(tmp_path, count):
    pytest.importorskip("torchmetrics")
    pytest.importorskip("matplotlib")
    real = InMemory("real", torch.randn(50, 2, generator=torch.Generator().manual_seed(0)))
    world = 3
    networks, results, box, barrier = [Gaussian((2,)) for _ in range(world)], {}, {}, threading.Barrier(world)

    def process(rank):
        group = Threads(rank, world, box, barrier)
        preview = Preview(tmp_path / "shared", count, batch=2, reference=real, group=group)
        results[rank] = preview(networks[rank], 1)

    threads = [threading.Thread(target=process, args=(rank,)) for rank in range(world)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    alone = Preview(tmp_path / "alone", count, reference=real)(Gaussian((2,)), 1)
    assert results[0]["frechet"] == pytest.approx(alone["frechet"], rel=1e-5)
    assert results[1] == results[2] == {}
    assert os.listdir(tmp_path / "shared") == ["0000001.png"]
    assert networks[0].batches == networks[1].batches == networks[2].batches  # as shards need


def test_samples_that_are_not_finite_are_left_out(tmp_path):
    log = Events()
    with pytest.warns(RuntimeWarning, match="no picture at iteration 3: 4 of 4 samples are not finite"):
        assert Preview(tmp_path, 4)(Gaussian((1, 4, 4), mean=float("nan")), 3, log) == {}
    assert log.rows == []
    assert os.listdir(tmp_path) == []


def test_refuses(tmp_path, monkeypatch):
    def reference(*shape):
        return InMemory("real", torch.zeros(5, *shape))

    with pytest.raises(ValueError, match="samples must be an integer of at least 1, got 0"):
        Preview(tmp_path, 0)
    with pytest.raises(ValueError, match="samples must be an integer of at least 2, got 1"):
        Preview(tmp_path, 1, reference=reference(2))
    with pytest.raises(ValueError, match=r"reference must be images of 1 or 3 channels.*\[2, 8, 8\]"):
        Preview(tmp_path, 4, reference=reference(2, 8, 8))
    monkeypatch.delenv("FASTDIFF_INCEPTION", raising=False)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(FeatureError, match="Inception's weights are not at"):
        Preview(tmp_path, 4, reference=reference(3, 8, 8))
    monkeypatch.setitem(sys.modules, "torchmetrics.image.fid", None)
    with pytest.raises(ModuleNotFoundError, match="the Frechet distance needs torchmetrics"):
        Preview(tmp_path, 4, reference=reference(2))
