"""Denoising and sliced score matching: definitions, exact gradients through two derivatives, noise by seeds."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from fastdiff import ops
from fastdiff.models import UNet
from fastdiff.training.losses import dsm_loss, sliced_terms, ssm_loss, ssm_vr_loss

from ...tolerances import LOSS, LOSS_GRADIENT

SIGMAS = torch.tensor([5.0, 1.0, 0.2, 0.05], dtype=torch.float64)
LABELS = torch.tensor([3, 0, 1, 1, 2])
SEEDS = torch.tensor([5, 6, 11, -3, 2**40])
BOTH = pytest.mark.parametrize("variance_reduced", [True, False])


def draws(*lead, dtype=torch.float64):
    generator = torch.Generator().manual_seed(0)
    return torch.randn(*lead, 5, 2, 3, dtype=torch.float64, generator=generator).to(dtype)


def close(got, want, dtype=torch.float64):
    torch.testing.assert_close(got.double(), want.double(), rtol=LOSS[dtype], atol=LOSS[dtype])


class Linear(nn.Module):
    """s(x) = A x + b on flattened samples, whatever the level."""

    def __init__(self, dim=6):
        super().__init__()
        generator = torch.Generator().manual_seed(1)
        self.A = nn.Parameter(torch.randn(dim, dim, dtype=torch.float64, generator=generator))
        self.b = nn.Parameter(torch.randn(dim, dtype=torch.float64, generator=generator))

    def forward(self, x, level):
        return (x.flatten(1) @ self.A.T + self.b).reshape(x.shape)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("power", [0.0, 1.0, 2.0])
@pytest.mark.parametrize("by_label", [True, False])
def test_denoising(by_label, power, dtype):
    x0, z, xi = draws(3, dtype=dtype)
    sigma = SIGMAS[LABELS]
    told = []

    def score(x, level, shift):
        told.append(level)
        return x.sin() + shift

    levels = (LABELS, z, SIGMAS) if by_label else (sigma, z)
    loss = dsm_loss(score, x0, *levels, anneal_power=power, gamma=0.2, xi=xi, cond={"shift": 0.1})
    assert (loss.dtype, told[0].dtype) == (dtype, torch.int64 if by_label else dtype)
    assert told[0].tolist() == (LABELS if by_label else sigma.to(dtype)).tolist()
    s, x0, z, xi = sigma[:, None, None], x0.double(), z.double(), xi.double()
    error = (x0 + s * (z + 0.2 * xi)).sin() + 0.1 + z / s
    close(loss, 0.5 * (error.square() * s**power).sum((1, 2)), dtype)


def test_denoising_has_no_error_at_the_score_of_a_point():
    sigma, z = SIGMAS[LABELS], draws()
    loss = dsm_loss(lambda x, s: (0.3 - x) / s[:, None, None] ** 2, torch.full_like(z, 0.3), sigma, z)
    close(loss, torch.zeros(5))


@BOTH
def test_sliced_loss_and_gradient_of_a_linear_score(variance_reduced):
    """1/2 |s|^2 or 1/2 (v s)^2, plus v A v; the gradient by A is s x^T or (v s) v x^T, plus v v^T."""
    score, x, v = Linear(), draws(), draws(4)
    loss = ssm_vr_loss if variance_reduced else ssm_loss
    got = loss(score, x, LABELS, None, annealed=False, particles=4, projections=v, directions="gaussian")
    got.sum().backward()
    with torch.no_grad():
        flat, directions = x.flatten(1), v.flatten(2)
        s = flat @ score.A.T + score.b
        along = (directions * s).sum(2)
        half = 0.5 * s.square().sum(1) if variance_reduced else 0.5 * along.square().mean(0)
        close(got, half + torch.einsum("pbi,ij,pbj->pb", directions, score.A, directions).mean(0))
        inner = s if variance_reduced else (along[:, :, None] * directions).mean(0)
        outer = torch.einsum("pbi,pbj->ij", directions, directions) / 4
        close(score.A.grad, inner.T @ flat + outer)
        close(score.b.grad, inner.sum(0))


def test_the_best_linear_score_is_that_of_the_fitted_gaussian():
    """s = -a x on n samples: with signs as directions v J v is -a D exactly, so the minimum is a = D n / sum |x|^2."""
    x = draws()
    a = (x.numel() / x.square().sum()).requires_grad_()
    loss = ssm_vr_loss(lambda x, _: -a * x, x, LABELS, SEEDS, annealed=False, particles=2, directions="rademacher")
    (slope,) = torch.autograd.grad(loss.sum(), a)
    close(slope, torch.zeros(()))


@BOTH
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_annealed_is_the_loss_at_the_perturbed_samples(variance_reduced, dtype):
    def score(x, level):
        return x.tanh() * (1 + level.to(x.dtype))[:, None, None]

    loss = ssm_vr_loss if variance_reduced else ssm_loss
    x0, z, v = (value.to(dtype) for value in (draws(2)[1], draws(), draws(3)))
    sigma = SIGMAS[LABELS]
    plain = {"annealed": False, "particles": 3, "projections": v.double()}
    for levels, sigmas in ((LABELS, SIGMAS), (sigma, None)):
        got = loss(score, x0, levels, z, sigmas, particles=3, projections=v)
        x = x0.double() + sigma[:, None, None] * z.double()
        assert got.dtype == dtype
        close(got, sigma.square() * loss(score, x, levels, None, **plain), dtype)


@pytest.mark.parametrize("loss", [dsm_loss, ssm_loss, ssm_vr_loss])
def test_noise_is_that_of_the_seeds(loss):
    x0 = draws(dtype=torch.float32)
    given = {} if loss is dsm_loss else {"particles": 2}
    got = loss(Linear().float(), x0, LABELS, SEEDS, SIGMAS, **given)
    z, *v = (ops.normal(SEEDS, x0.shape, draw) for draw in (0, 2, 3))
    explicit = {} if loss is dsm_loss else {"particles": 2, "projections": torch.stack(v)}
    close(got, loss(Linear().float(), x0, LABELS, z, SIGMAS, **explicit), torch.float32)
    part = torch.tensor([3, 1])  # a sample's loss is its own
    close(got[part], loss(Linear().float(), x0[part], LABELS[part], SEEDS[part], SIGMAS, **given), torch.float32)


def test_kinds_of_directions():
    """A score s = b: 1/2 (v b)^2 tells what v is."""
    x, b = draws(), torch.arange(6.0, dtype=torch.float64).reshape(2, 3)
    v = draws(2)

    def loss(kind):
        return ssm_loss(
            lambda x, _: b + 0 * x, x, LABELS, None, annealed=False, particles=2, directions=kind, projections=v
        )

    def want(v):
        return 0.5 * (v * b).sum((2, 3)).square().mean(0)

    close(loss("gaussian"), want(v))
    close(loss("rademacher"), want(v.sign()))
    close(loss("sphere"), want(v / v.square().sum((2, 3), keepdim=True).sqrt()))


def smooth_network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(6, 5), nn.SiLU(), nn.Linear(5, 6), nn.Unflatten(1, (2, 3))).double()


@BOTH
def test_gradient_of_a_network_is_that_of_differences(variance_reduced):
    with torch.random.fork_rng(devices=[]):
        network = smooth_network()
    names = [name for name, _ in network.named_parameters()]
    x0, loss = draws(), ssm_vr_loss if variance_reduced else ssm_loss

    def value(*parameters):
        def score(x, level):
            return torch.func.functional_call(network, dict(zip(names, parameters)), (x,)) / level[:, None, None]

        return loss(score, x0, SIGMAS[LABELS], SEEDS, particles=2)

    parameters = tuple(p.detach().clone().requires_grad_() for p in network.parameters())
    assert torch.autograd.gradcheck(value, parameters)


@BOTH
def test_gradient_of_a_unet_with_attention_is_that_of_differences(variance_reduced):
    """Fused attention has no second derivative; the loss asks for the plain one."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        unet = UNet(image_size=8, width=32, mults=(1, 2), blocks=1, attention=(1,), log_time=True, scale_by_sigma=True)
        for parameter in unet.parameters():
            nn.init.normal_(parameter, std=0.1)
    unet = unet.double()
    x0 = torch.linspace(-1, 1, 128, dtype=torch.float64).reshape(2, 1, 8, 8).sin()
    sigma = torch.tensor([0.3, 2.0], dtype=torch.float64)
    loss = ssm_vr_loss if variance_reduced else ssm_loss

    def value():
        return loss(unet, x0, sigma, SEEDS[:2], particles=2).sum()

    parameters = list(unet.parameters())
    gradients = torch.autograd.grad(value(), parameters)
    step = 1e-5
    along = [torch.randn(p.shape, dtype=p.dtype, generator=torch.Generator().manual_seed(2)) for p in parameters]

    def moved(by):
        with torch.no_grad():
            for parameter, direction in zip(parameters, along):
                parameter += by * direction
        return value().item()

    ahead, behind = moved(step), moved(-2 * step)
    got = sum((g * v).sum().item() for g, v in zip(gradients, along))
    assert got == pytest.approx((ahead - behind) / (2 * step), rel=LOSS_GRADIENT)
    assert all(g.abs().max() > 0 for g in gradients)


@BOTH
def test_without_gradients_the_value_is_the_same(variance_reduced):
    score, x, v = Linear(), draws(), draws(2)
    with torch.no_grad():
        frozen = sliced_terms(score, x, LABELS, v, variance_reduced=variance_reduced)
    for value, want in zip(frozen, sliced_terms(score, x, LABELS, v, variance_reduced=variance_reduced)):
        assert want.requires_grad
        assert not value.requires_grad
        close(value, want.detach())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"particles": 0}, "particles must be an integer of at least 1, got 0"),
        ({"directions": "cube"}, "directions must be one of gaussian, rademacher, got 'cube'"),
        ({"directions": "sphere"}, "directions must be one of gaussian, rademacher, got 'sphere'"),
        ({"noise": draws()}, "projections must be given without noise seeds, got None"),
        ({"noise": None, "projections": draws(1)}, "noise must be given with annealed=True, got None"),
        (
            {"projections": draws(2)},
            "projections must be [1, 5, 2, 3] (particles, then as the samples), got [2, 5, 2, 3]",
        ),
        (
            {"annealed": False, "levels": LABELS[:2]},
            "levels must be an integer tensor [5], one per sample, got torch.int64 [2]",
        ),
    ],
)
def test_refused(change, message):
    arguments = {"levels": LABELS, "noise": SEEDS, "sigmas": SIGMAS, **change}
    with pytest.raises(ValueError) as refusal:
        ssm_vr_loss(Linear(), draws(), arguments.pop("levels"), arguments.pop("noise"), **arguments)
    assert str(refusal.value) == message
