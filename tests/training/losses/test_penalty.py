"""The gradient penalty against the exact Jacobian, and its gradient against double backward, in float64."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn
from torch.func import jacrev, vmap

from fastdiff import ops
from fastdiff.models import MLP
from fastdiff.training.losses import gradient_penalty

TINY = 1e-6  # a step that leaves neither curvature nor much rounding, in float64


def network(dim: int = 3, **options) -> MLP:
    torch.manual_seed(0)
    model = MLP(dim, width=8, depth=2, embedding=4, **options).double()
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.5)
    return model.eval()


def batch(size: int = 4, dim: int = 3) -> tuple[torch.Tensor, torch.Tensor]:
    draws = torch.Generator().manual_seed(1)
    x = torch.randn(size, dim, generator=draws, dtype=torch.float64)
    return x, torch.rand(size, generator=draws, dtype=torch.float64)


def exact(model: nn.Module, x: torch.Tensor, time: torch.Tensor) -> torch.Tensor:
    """|dF/dx|_F^2 of every sample, by automatic differentiation, differentiable again."""

    def one(point: torch.Tensor, at: torch.Tensor) -> torch.Tensor:
        return model(point[None], at[None])[0]

    return vmap(jacrev(one))(x, time).square().flatten(1).sum(1)


def axes(x: torch.Tensor) -> list[torch.Tensor]:
    """Directions over which the mean of |J v|^2 is |J|_F^2 itself: every axis, as long as a random direction."""
    dim = x.shape[1]
    return list((math.sqrt(dim) * torch.eye(dim, dtype=x.dtype))[:, None].expand(-1, len(x), -1))


def mean_over_axes(model: nn.Module, x: torch.Tensor, time: torch.Tensor) -> torch.Tensor:
    return torch.stack([gradient_penalty(model, x, time, model(x, time), v, delta=TINY) for v in axes(x)]).mean(0)


def test_axes_give_the_exact_norm():
    model, (x, time) = network(), batch()
    wanted = exact(model, x, time)
    torch.testing.assert_close(mean_over_axes(model, x, time), wanted, rtol=1e-4, atol=1e-6)
    assert wanted.min() > 0.05  # the comparison is not one of zeros


def test_random_directions_are_unbiased():
    """With the default step too: the mean over many seeds is within its standard error of the exact norm."""
    model, (x, time) = network(), batch()
    count = 20_000
    seeds = torch.arange(count)
    for i in range(len(x)):
        many, times = x[i].expand(count, -1), time[i].expand(count)
        values = gradient_penalty(model, many, times, None, seeds)
        wanted = exact(model, x[i : i + 1], time[i : i + 1]).item()
        error = values.std().item() / math.sqrt(count)
        assert error < 0.02 * wanted
        assert abs(values.mean().item() - wanted) < 4 * error


def test_the_gradient_is_that_of_double_backward():
    model, (x, time) = network(), batch()
    parameters = [p for p in model.parameters() if p is not model.out.bias]  # it shifts F, so the penalty ignores it
    by_difference = torch.autograd.grad(mean_over_axes(model, x, time).sum(), parameters)
    twice = torch.autograd.grad(exact(model, x, time).sum(), parameters)
    scale = max(g.abs().max() for g in twice)
    for mine, wanted in zip(by_difference, twice):
        torch.testing.assert_close(mine, wanted, rtol=1e-4, atol=1e-6 * scale)
    assert scale > 0.1


def test_the_error_of_the_step_is_of_second_order():
    """Over a direction and its opposite, the part of first order in the step vanishes."""
    model, (x, time) = network(), batch()
    v = torch.randn(x.shape, generator=torch.Generator().manual_seed(2), dtype=x.dtype)
    output = model(x, time)

    def pair(delta: float) -> torch.Tensor:
        values = [gradient_penalty(model, x, time, output, sign * v, delta=delta) for sign in (1, -1)]
        return sum(values) / 2

    limit = pair(TINY)
    errors = [(pair(delta) - limit).abs().max().item() for delta in (0.02, 0.01)]
    assert errors[0] / errors[1] == pytest.approx(4, rel=0.1)


def test_seeds_are_draw_two_of_the_contract():
    model, (x, time) = network(), batch()
    seeds = torch.tensor([5, -1, 2**62, 0])
    for draw in (2, 8):
        v = ops.normal(seeds, x.shape, draw).double()
        drawn = gradient_penalty(model, x, time, None, seeds, **({} if draw == 2 else {"draw": draw}))
        assert torch.equal(drawn, gradient_penalty(model, x, time, model(x, time), v))


def test_images_conditions_and_empty_batches():
    convolution = nn.Conv2d(2, 2, 3, padding=1).double()

    def f(x, time, labels):
        return torch.tanh(convolution(x)) * labels.reshape(-1, 1, 1, 1)

    x = torch.randn(2, 2, 3, 5, dtype=torch.float64).transpose(2, 3)  # not contiguous
    labels = torch.tensor([1.0, 3.0], dtype=torch.float64)
    seeds = torch.tensor([1, 1])
    values = gradient_penalty(f, x, torch.zeros(2), None, seeds, cond={"labels": labels})
    ones = gradient_penalty(f, x, torch.zeros(2), None, seeds, cond={"labels": torch.ones(2, dtype=torch.float64)})
    torch.testing.assert_close(values, ones * labels.square())
    none = gradient_penalty(f, x[:0], torch.zeros(0), None, seeds[:0], cond={"labels": labels[:0]})
    assert none.shape == (0,)


def test_a_variance_half_does_not_count():
    torch.manual_seed(0)
    model = network(learned_variance=True)
    x, time = batch()
    seeds = torch.arange(len(x))
    before = gradient_penalty(model, x, time, None, seeds)
    with torch.no_grad():
        model.out.weight[3:] *= 10
    assert torch.equal(before, gradient_penalty(model, x, time, None, seeds))


def test_dropout_is_the_same_on_both_sides():
    """Another mask at the second point would show as a difference of order 1 / delta."""
    model, (x, time) = network(dropout=0.5), batch(256)
    seeds = torch.arange(len(x))
    still = gradient_penalty(model, x, time, None, seeds)
    model.train()
    torch.manual_seed(3)
    dropped = gradient_penalty(model, x, time, model(x, time), seeds)
    assert not torch.equal(still, dropped)
    assert dropped.mean() < 20 * still.mean()


def test_autocast_does_not_reach_the_difference():
    model, (x, time) = network().float(), batch()
    x, time, seeds = x.float(), time.float(), torch.arange(len(x))
    exactly = gradient_penalty(model, x, time, None, seeds)
    with torch.autocast("cpu", torch.bfloat16):
        under = gradient_penalty(model, x, time, model(x, time), seeds)
    assert torch.equal(exactly, under)


def test_float32_keeps_enough_digits():
    model, (x, time) = network(), batch(64)
    seeds = torch.arange(len(x))
    wanted = gradient_penalty(model, x, time, None, seeds)
    single = gradient_penalty(model.float(), x.float(), time.float(), None, seeds)
    torch.testing.assert_close(single.double(), wanted, rtol=1e-3, atol=1e-3 * wanted.mean().item())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"delta": 0.0}, "delta must be positive, got 0.0"),
        ({"directions": torch.zeros(4, 2, dtype=torch.float64)}, r"directions must be \[4, 3\] or int64 seeds"),
    ],
)
def test_bad_input_is_refused(change, message):
    x, time = batch()
    arguments = {"directions": torch.arange(4), **change}
    with pytest.raises(ValueError, match=message):
        gradient_penalty(network(), x, time, None, **arguments)
