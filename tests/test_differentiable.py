"""Gradients through a whole run: against the readable route, finite differences and what is kept for them."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from fastdiff import Sampler
from fastdiff.guidance import DiscriminatorGuidance

from .tolerances import CLOSED_FORM, DIRECTIONAL_DERIVATIVE

SHAPE = (3, 4)
DTYPE = torch.float64


def layers(width: int, outputs: int, seed: int) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return nn.Sequential(nn.Linear(4, width), nn.Tanh(), nn.Linear(width, outputs)).to(DTYPE)


class Network(nn.Module):
    """x_0 of 4 numbers, and a variance half of as many if `variance`."""

    def __init__(self, width: int = 8, variance: bool = False):
        super().__init__()
        self.layers = layers(width, 8 if variance else 4, 0)

    def forward(self, x: torch.Tensor, t: torch.Tensor, bias: torch.Tensor | float = 0.0) -> torch.Tensor:
        return self.layers(x) + bias + 0.01 * t.to(x.dtype)[:, None]


def discriminator(network: nn.Module):
    return DiscriminatorGuidance(lambda y, tau, labels: network(y) * (1 + tau[:, None]), 1.5)


CASES = {
    "heun": {"solver": "heun", "S_churn": 5.0},
    "euler_ancestral": {"solver": "euler_ancestral"},
    "dpmpp_2m": {"solver": "dpmpp_2m"},
    "unipc": {"solver": "unipc"},
    "clipped": {"solver": "ddim", "clip_denoised": (-0.3, 0.3)},
    "guided": {"solver": "heun", "guidance": discriminator(layers(6, 1, 1))},
    "learned": {"solver": "ddpm", "process": "vp", "variance": "learned_range", "variances": True},
}


def made(case: str, **changes) -> Sampler:
    options = CASES[case] | changes
    network = Network(variance=options.pop("variances", False))
    if "process" not in options:
        options["sigma_max"] = 3.0
    return Sampler(network, steps=5, dtype=DTYPE, **options)


def run(sampler: Sampler, x: torch.Tensor, **arguments) -> list[torch.Tensor]:
    """The samples, then the gradients of a sum of squares in the start, a condition and the weights."""
    start, bias = x.clone().requires_grad_(), torch.zeros(1, 4, dtype=DTYPE, requires_grad=True)
    got = sampler.differentiable(SHAPE, seeds=1, x_init=start, cond={"bias": bias[:, :1]}, **arguments)
    weights = [start, bias, *sampler.model.parameters()]
    return [got.detach(), *torch.autograd.grad(got.square().sum(), weights)]


@pytest.fixture
def start() -> torch.Tensor:
    return torch.linspace(-2.0, 2.0, 12, dtype=DTYPE).reshape(SHAPE)


def close(got: list[torch.Tensor], want: list[torch.Tensor]) -> bool:
    return all((a - b).abs().max() <= CLOSED_FORM * b.abs().max().clamp_min(1) for a, b in zip(got, want, strict=True))


@pytest.mark.parametrize("case", CASES)
def test_gradients_are_those_of_the_readable_route(start, backend, device, case):
    want = run(made(case, compiled=False), start, checkpoint=False)
    sampler = made(case, backend=backend)
    for recompute in (True, False):
        assert close(run(sampler, start, checkpoint=recompute), want)
    assert close(run(made(case, compiled=False), start, checkpoint=True), want)
    assert close([sampler(SHAPE, seeds=1, x_init=start)], want[:1])


@pytest.mark.parametrize("case", CASES)
def test_gradients_are_finite_differences(start, case):
    sampler, step = made(case), 1e-5
    gradient = run(sampler, start)[1]
    direction = torch.linspace(1.0, -0.5, 12, dtype=DTYPE).reshape(SHAPE)

    def value(scale: float) -> torch.Tensor:
        return sampler(SHAPE, seeds=1, x_init=start + scale * direction).square().sum()

    slope = (value(step) - value(-step)) / (2 * step)
    assert (slope - (gradient * direction).sum()).abs() <= DIRECTIONAL_DERIVATIVE * slope.abs()


def test_a_part_that_is_kept_has_the_gradient_of_the_image():
    sampler, mask = made("heun"), torch.tensor([1.0, 1.0, 0.0, 0.0])
    image = torch.linspace(-1.0, 1.0, 12, dtype=DTYPE).reshape(SHAPE).requires_grad_()
    x = sampler.differentiable(SHAPE, seeds=1, image=image, mask=mask)
    (gradient,) = torch.autograd.grad(x[:, :2].sum(), image, retain_graph=True)
    assert gradient.equal(mask.double().expand(SHAPE))
    (through,) = torch.autograd.grad(x[:, 2:].sum(), image)
    assert through[:, :2].abs().min() > 0 and through[:, 2:].abs().max() == 0


def test_trajectory_and_repeated_samples():
    sampler = made("euler_ancestral")
    x, states = sampler.differentiable(SHAPE, seeds=1, return_trajectory=True)
    assert states.shape == (6, *SHAPE) and states[-1].equal(x) and states[2].requires_grad
    with torch.no_grad():
        assert sampler.differentiable(SHAPE, seeds=1).equal(sampler(SHAPE, seeds=1))


def kept_bytes(width: int, steps: int, recompute: bool) -> int:
    """What autograd keeps of a run, the weights apart."""
    network = Network(width)
    weights = {p.data_ptr() for p in network.parameters()}
    sampler, kept = Sampler(network, steps=steps, dtype=DTYPE), {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        x = sampler.differentiable((64, 4), seeds=1, checkpoint=recompute)
    assert x.requires_grad
    return sum(kept.values())


def test_memory_does_not_grow_with_activations_when_they_are_recomputed():
    assert kept_bytes(512, 6, True) == kept_bytes(8, 6, True) < kept_bytes(512, 6, False) / 20
    state = 64 * 4 * 8
    assert kept_bytes(512, 12, True) - kept_bytes(512, 6, True) <= 6 * 2 * 3 * state


def test_refusals():
    with pytest.raises(ValueError, match="solver 'dpm_adaptive' cannot be differentiated: it chooses its steps"):
        Sampler(Network(), solver="dpm_adaptive", dtype=DTYPE).differentiable(SHAPE, seeds=1)

    def measured(denoise, x, levels, noise):
        (scale,) = denoise.measure(root, [x], 1)
        yield x + scale * denoise(x, levels[0])

    def root(squares, told):
        return squares.sqrt()

    with pytest.raises(ValueError, match="solver 'measured' takes step sizes from norms of states"):
        Sampler(Network(), solver=measured, steps=3, dtype=DTYPE).differentiable(SHAPE, seeds=1)
    with pytest.raises(ValueError, match="image must be given with mask"):
        made("heun").differentiable(SHAPE, seeds=1, mask=torch.ones(4))
