"""Samples by seed: the same in any batch, the same latents for every configuration, labels, refusals."""

from __future__ import annotations

import pytest
import torch

import fastdiff
from fastdiff.evaluation import generate
from fastdiff.models import UNet

from ..tolerances import FLOAT32_STATE

SEEDS = [3, 2**63, 7, 7, 0, 11, 12]


class Halves:
    """Predicts x_0 = x / 2 + label / 10, and keeps what it was given."""

    def __init__(self, label_dim=None):
        self.seen = []
        if label_dim is not None:
            self.label_dim = label_dim

    def __call__(self, x, t, labels=None):
        self.seen.append((x.clone(), labels))
        return x / 2 if labels is None else x / 2 + labels.to(x).view(-1, 1, 1, 1) / 10


def sampler(model=None, **options):
    return fastdiff.Sampler(model or Halves(), **{"steps": 3, "shape": (1, 2, 3), "S_churn": 1.0, **options})


@pytest.mark.parametrize("batch", [1, 2, 3, 7, 100])
def test_a_sample_depends_on_its_seed_alone(batch):
    whole = generate(sampler(), SEEDS)
    assert whole.shape == (7, 1, 2, 3)
    assert torch.equal(generate(sampler(), SEEDS, batch=batch), whole)
    assert torch.equal(generate(sampler(), SEEDS[::-1], batch=batch), whole.flip(0))
    assert torch.equal(generate(sampler(), range(4), batch=batch)[3], whole[0])
    assert torch.equal(whole[2], whole[3])
    assert not torch.equal(whole[0], whole[2])


def test_a_network_gives_the_same_samples_in_any_batch_up_to_rounding():
    torch.manual_seed(0)
    model = UNet(image_size=8, patch=1, width=8, embedding=8, label_dim=3)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.05)
    draw = fastdiff.Sampler(model, prediction=fastdiff.EDMPrediction(0.5), steps=3)
    whole, parts = generate(draw, range(9)), generate(draw, range(9), batch=4)
    assert (whole - parts).abs().max() <= FLOAT32_STATE * whole.abs().max()


def test_configurations_start_from_the_same_latents():
    first = {}
    for name, options in {"plain": {}, "scaled": {"epsilon_scale": 0.9}, "euler": {"solver": "euler"}}.items():
        model = Halves()
        generate(sampler(model, S_churn=0.0, **options), SEEDS, batch=4)
        first[name] = model.seen[0][0]
    assert torch.equal(first["plain"], first["scaled"])
    assert torch.equal(first["plain"], first["euler"])


def test_classes_follow_the_seeds():
    model = Halves(label_dim=3)
    drawn = generate(sampler(model), [5, 6, 7, 8], batch=2)
    assert [labels.tolist() for _, labels in model.seen[:1]] == [[2, 0]]
    given = generate(sampler(model), [5, 6, 7, 8], labels=[2, 0, 1, 2], batch=3)
    assert torch.equal(given, drawn)
    assert not torch.equal(generate(sampler(model), [5, 6, 7, 8], labels=torch.tensor([1, 1, 1, 1])), drawn)
    same = generate(sampler(model), [5, 6, 7, 8], labels=[1, 1, 1, 1])
    assert torch.equal(generate(sampler(model), [5, 6, 7, 8], labels=1, batch=3), same)


def test_no_classes_on_request_and_for_models_without_them():
    for model, labels in ((Halves(label_dim=3), None), (Halves(), "cycle"), (Halves(label_dim=0), "cycle")):
        generate(sampler(model), [1, 2], labels=labels)
        assert all(given is None for _, given in model.seen)


def test_float64_states_come_back_as_float32():
    assert generate(sampler(dtype=torch.float64), [1]).dtype == torch.float32


def test_no_seeds_no_samples():
    assert generate(sampler(), []).shape == (0, 1, 2, 3)


def test_refusals():
    with pytest.raises(ValueError, match="batch"):
        generate(sampler(), [1], batch=0)
    with pytest.raises(ValueError, match="shape of a sample"):
        generate(sampler(shape=None), [1])
    with pytest.raises(ValueError, match=r"labels must be 'cycle'.*got 'all'"):
        generate(sampler(), [1], labels="all")
    with pytest.raises(ValueError, match=r"one class per seed \(2\), got 3"):
        generate(sampler(Halves(label_dim=3)), [1, 2], labels=[0, 1, 2])
