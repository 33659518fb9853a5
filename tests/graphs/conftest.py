"""The devices graphs are tested on (the emulator, and CUDA where there is one), and small networks to sample from."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fastdiff import Sampler
from fastdiff.graphs import device as devices

from .emulator import Emulator


@dataclass
class Graphs:
    """A device to capture on.

    Attributes:
        device: for tensors and samplers.
        machine: its `GraphDevice`.
    """

    device: torch.device
    machine: Any

    @property
    def emulated(self) -> bool:
        return isinstance(self.machine, Emulator)

    def sampler(self, model: Callable[..., Tensor] | None = None, **arguments: Any) -> Sampler:
        """A sampler of 3 steps of a small network on this device, by default with a graph of the whole loop."""
        defaults = {"steps": 3, "graph": "loop", "device": self.device, "shape": SHAPE}
        return Sampler(self.net() if model is None else model, **{**defaults, **arguments})

    def net(self, **arguments: Any) -> Net:
        """A network with the same weights every time."""
        with torch.random.fork_rng():
            torch.manual_seed(0)
            return Net(**arguments).to(self.device).eval()

    def captures(self) -> int:
        """Captures so far, failed ones included; counted by the emulator only."""
        return len(self.machine.events("capture")) if self.emulated else 0


SHAPE = (3, 4, 4)


class Net(nn.Module):
    """A convolutional network with labels, conditioning tensors and a Python number; ends near the identity.

    Args:
        halves: 2 for an output with a variance half.
        dropout: probability.
    """

    sample_shape, label_dim = SHAPE, 4

    def __init__(self, halves: int = 1, dropout: float = 0.0):
        super().__init__()
        self.first, self.last = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 3 * halves, 3, padding=1)
        self.norm, self.time, self.classes = nn.GroupNorm(2, 8), nn.Linear(1, 8), nn.Embedding(4, 8)
        self.dropout, self.halves = nn.Dropout(dropout), halves

    def forward(self, x, t, labels=None, context=None, strength=1.0):
        dtype = self.first.weight.dtype
        e = self.time(torch.log1p(t.abs().to(dtype))[:, None])
        if labels is not None:
            e = e + self.classes(labels)
        if context is not None:
            e = e + strength * context["text"].to(dtype).mean(dim=1)
        y = self.last(self.dropout(self.norm(self.first(x) + e[:, :, None, None]).tanh()))
        return y + 0.5 * torch.cat([x] * self.halves, dim=1)


class Critic(nn.Module):
    """A guidance term whose gradient comes from autograd."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.SiLU(), nn.Flatten(), nn.Linear(16, 1))

    def forward(self, x, level, **cond):
        dtype = self.net[0].weight.dtype
        with torch.enable_grad():
            leaf = x.detach().to(dtype).requires_grad_()
            score = nn.functional.logsigmoid(self.net(leaf) / (1.0 + level.sigma)).sum()
            return torch.autograd.grad(score, leaf)[0]


def critic(graphs: Graphs, dtype: torch.dtype = torch.float32) -> Critic:
    """A guidance term with the same weights every time."""
    with torch.random.fork_rng():
        torch.manual_seed(1)
        return Critic().to(graphs.device, dtype)


class Judge(nn.Module):
    """A discriminator of one logit, or a classifier."""

    def __init__(self, outputs: int) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.SiLU(), nn.Flatten(), nn.Linear(16, outputs))
        self.classes = nn.Embedding(4, outputs)

    def forward(self, y, t, labels=None):
        logits = self.net(y.to(self.classes.weight.dtype)) * (1 + t.to(y.dtype)[:, None] / 1000).to(y.dtype)
        return logits if labels is None else logits + self.classes(labels)


def judge(graphs: Graphs, outputs: int = 1) -> Judge:
    """A discriminator or classifier with the same weights every time."""
    with torch.random.fork_rng():
        torch.manual_seed(2)
        return Judge(outputs).to(graphs.device)


def linear(x, t, labels=None):
    """A network of a few operations, with the same rows in every batch."""
    y = 0.5 * x + 0.01 * torch.log1p(t).to(x.dtype).reshape(-1, *[1] * (x.ndim - 1))
    return y if labels is None else y + labels.to(x.dtype).reshape(-1, *[1] * (x.ndim - 1))


def quick(graphs, model=linear, **arguments):
    return graphs.sampler(model, **{"steps": 2, "solver": "euler", "shape": (3,), **arguments})


def counts(sampler, *names):
    stats = sampler.stats()
    return tuple(getattr(stats, name) for name in names)


DEVICES = ["cpu", *([pytest.param("cuda", marks=pytest.mark.cuda)] if torch.cuda.is_available() else [])]


@pytest.fixture(params=DEVICES)
def graphs(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[Graphs]:
    """A fresh graph device: the emulator in place of the CPU's, and CUDA's own."""
    if request.param == "cuda":
        monkeypatch.setattr(torch.backends.cudnn, "deterministic", True)
    else:
        monkeypatch.setitem(devices.GRAPH_DEVICES, "cpu", Emulator)
    devices.graph_device.cache_clear()
    device = torch.device(request.param, 0) if request.param == "cuda" else torch.device("cpu")
    yield Graphs(device, devices.graph_device(device))
    devices.graph_device.cache_clear()


@pytest.fixture
def emulated(graphs: Graphs) -> Graphs:
    """The emulator only: for tests that read its log."""
    if not graphs.emulated:
        pytest.skip("reads the emulator's log")
    return graphs
