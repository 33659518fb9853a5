"""Objectives by name: each trains a network that can be sampled, draws the same levels everywhere, refuses nonsense."""

from __future__ import annotations

import json

import pytest
import torch

from fastdiff.config import ConfigError, ObjectiveConfig
from fastdiff.models import UNet
from fastdiff.opening import network_sampler
from fastdiff.training.objectives import make_objective
from fastdiff.training.perturb import sample_seeds

from ..threads import one_thread

__all__ = ["one_thread"]

NAMES = {
    "edm": {},
    "ddpm": {"T": 50},
    "ddpm x0 kl": {"name": "ddpm", "T": 50, "prediction": "x0", "loss": "kl", "betas": "cosine"},
    "ddpm v": {"name": "ddpm", "T": 50, "prediction": "v", "rescale_timesteps": True},
    "ddpm previous_x": {"name": "ddpm", "T": 50, "prediction": "previous_x"},
    "ddpm learned": {"name": "ddpm", "T": 50, "variance": "learned_range", "loss": "rescaled_mse"},
    "flow": {},
    "sde": {},
    "sde subvp": {"name": "sde", "sde": "subvp", "likelihood_weighting": True},
    "sde ve": {"name": "sde", "sde": "ve", "reduce_mean": False},
    "sde_ddpm": {"N": 50},
    "smld": {"N": 20},
    "dsm": {},
    "ssm": {},
    "ssm_vr": {"particles": 2},
}
EXTRA = [{}, {"gradient_penalty": 1e-3}, {"gamma": [0.1]}, {"gamma": [0.1], "perturbed_target": True}]


def objective(case, **more):
    return make_objective(ObjectiveConfig(**{"name": case, **NAMES[case], **more}))


def network(goal):
    torch.manual_seed(0)
    return UNet(image_size=8, width=8, patch=1, embedding=16, label_dim=3, **goal.network_options())


@pytest.mark.parametrize("extra", EXTRA, ids=str)
@pytest.mark.parametrize("case", NAMES)
def test_a_step_lowers_the_loss(case, extra):
    """On one batch with its noise held fixed, descent along the gradient lowers what is descended."""
    if "gamma" in extra and case.startswith("ssm"):
        pytest.skip("sliced score matching has no target that could keep its noise")
    if "perturbed_target" in extra and case.endswith("kl"):
        pytest.skip("the variational bound has no target")
    goal = objective(case, **extra)
    net = network(goal)
    for parameter in net.parameters():  # the zero weights at the start would hide the rest of the network
        torch.nn.init.normal_(parameter, std=0.2)
    x0 = torch.randn(6, 1, 8, 8, generator=torch.Generator().manual_seed(1)).clamp(-1, 1)
    levels, weights = goal.draw(6, torch.Generator().manual_seed(2))
    assert levels.shape == weights.shape == (6,)
    cond = {"labels": torch.tensor([0, 1, 2, -1, 0, 1])}

    def value():
        loss = goal.loss(net, x0, levels, sample_seeds(5, 0, 6, "cpu"), cond)
        assert loss.shape == (6,) and loss.isfinite().all()
        return loss.mean()

    before = value()
    gradients = torch.autograd.grad(before, list(net.parameters()), allow_unused=True)
    size = sum(g.square().sum() for g in gradients if g is not None)
    with torch.no_grad():
        for parameter, gradient in zip(net.parameters(), gradients):
            if gradient is not None:
                parameter -= 1e-3 * abs(before) / size * gradient
    after = value()
    # A loss of 1 falls by 1e-3 to first order, whatever its scale.
    assert 2e-4 < (before - after) / abs(before) < 5e-3


@pytest.mark.parametrize("case", NAMES)
def test_a_network_is_sampled_from_its_description(case):
    goal = objective(case)
    net = network(goal).eval()
    net.metadata = json.loads(json.dumps(goal.metadata()))
    sampler = network_sampler(net, steps=4, solver="ddim" if "previous" in case else None)
    x = sampler(3, seeds=0, labels=[0, 1, 2])
    assert x.shape == (3, 1, 8, 8) and x.isfinite().all()


@pytest.mark.parametrize("case", NAMES)
def test_draws_depend_on_the_generator_only(case):
    for kind in ["auto", *type(objective(case)).chooses]:
        goal = objective(case, levels=kind)
        torch.rand(1)
        first, second = (goal.draw(9, torch.Generator().manual_seed(3)) for _ in range(2))
        assert all(torch.equal(a, b) for a, b in zip(first, second))
        goal.update(first[0], torch.ones(9))


@pytest.mark.parametrize(
    ("config", "wanted"),
    [
        ({"name": "gan"}, "objective.name must be one of edm, ddpm"),
        ({"levels": "uniform"}, "objective.levels must be one of log_normal"),
        ({"name": "ddpm", "betas": "quadratic"}, "objective.betas must be one of linear, cosine"),
        ({"name": "flow", "gamma": [0.1, 0.2]}, "objective.gamma must be one number for flow"),
        ({"name": "ddpm", "perturbed_target": True}, "objective.perturbed_target"),
        ({"T": 100}, "objective.T must be left at 1000: edm does not read it, got 100"),
        ({"name": "ddpm", "sigma_data": 1.0}, "objective.sigma_data must be left at 0.5: ddpm does not read it"),
        ({"name": "sde", "sde": "edm"}, "objective.sde must be one of vp, subvp, ve"),
        ({"name": "ssm", "gamma": [0.1]}, "objective.gamma must be 0 for ssm"),
        ({"name": "ddpm", "prediction": "score"}, "objective.prediction must be one of eps"),
        ({"name": "ddpm", "variance": "big"}, "objective.variance must be one of fixed_small"),
        ({"name": "ddpm", "loss": "l1"}, "objective.loss must be one of mse"),
        ({"name": "ddpm", "weighting": "snr"}, "objective.weighting must be one of"),
        ({"name": "ddpm", "loss": "kl", "weighting": "L_t"}, "objective.weighting"),
        ({"name": "ddpm", "loss": "kl", "gamma": [0.1], "perturbed_target": True}, "objective.perturbed_target"),
    ],
)
def test_refuses(config, wanted):
    with pytest.raises(ConfigError, match=wanted):
        make_objective(ObjectiveConfig(**config))
