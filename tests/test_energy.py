"""Energy models as networks, and the process of one level."""

from __future__ import annotations

import pytest
import torch

from fastdiff import Sampler
from fastdiff.energy import EnergyScore, OneLevel


def test_score_is_minus_the_gradient():
    matrix = torch.tensor([[2.0, 0.5], [0.5, 1.0]], dtype=torch.float64)

    def energy(x, shift=0.0):
        y = x - shift
        return 0.5 * (y @ matrix * y).sum(1)

    x, score = torch.randn(5, 2, dtype=torch.float64), EnergyScore(energy)
    with torch.no_grad():
        assert torch.allclose(score(x, torch.zeros(5)), -x @ matrix)
        assert torch.allclose(score(x, torch.zeros(5), shift=1.0), -(x - 1) @ matrix)
    assert not x.requires_grad


def test_a_module_s_parameters_are_the_network_s():
    class Energy(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.width = torch.nn.Parameter(torch.tensor(2.0, dtype=torch.float64))

        def forward(self, x):
            return (x / self.width).square().flatten(1).sum(1) / 2

    network = EnergyScore(Energy())
    assert [name for name, _ in network.named_parameters()] == ["energy.width"]
    sampler = Sampler(
        network, process=OneLevel(std=0.1), prediction="score", solver="langevin", steps=3, dtype=torch.float64
    )
    start = sampler((500, 2), seeds=0, return_trajectory=True)[1][0]
    assert start.std().item() == pytest.approx(0.1, rel=0.1)


def test_one_level():
    levels = OneLevel(0.5).levels(7)
    assert levels.steps == 7
    assert set(levels) == {(1.0, 0.5, 0.5)}


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: OneLevel(0.0), "sigma must be positive, got 0.0"),
        (lambda: OneLevel(std=-1.0), "std must be positive, got -1.0"),
        (lambda: OneLevel().levels(3, schedule="karras"), "schedule must be left out for process OneLevel"),
        (lambda: Sampler(lambda x, t: x, process=OneLevel(), sigmas=[1.0, 0.0]), "sigmas must be left out for process"),
    ],
)
def test_refusals(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_an_energy_must_be_callable():
    with pytest.raises(TypeError, match="energy must be callable"):
        EnergyScore(3.0)
