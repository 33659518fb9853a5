"""Embeddings of times: their formulas, their dtypes, and what half precision leaves alone."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from fastdiff.models.blocks import FourierFeatures, sinusoids

FLOAT32 = 1e-4  # of the sine of up to 999 radians, rounded to 24 bits
TIMES = torch.tensor([0.0, 0.25, 37.0, 999.0], dtype=torch.float64)


@pytest.mark.parametrize("formula", ["quotient", "product", "power"])
@pytest.mark.parametrize("denominator", ["half", "half-1"])
@pytest.mark.parametrize("order", ["cos_sin", "sin_cos"])
def test_sinusoids(formula: str, denominator: str, order: str):
    half = 8
    divisor = half - (denominator == "half-1")
    angles = torch.tensor([[float(t) * 1e4 ** (-i / divisor) for i in range(half)] for t in TIMES], dtype=torch.float64)
    waves = [angles.cos(), angles.sin()]
    expected = torch.cat(waves if order == "cos_sin" else waves[::-1], dim=1)
    options: dict[str, Any] = {"formula": formula, "denominator": denominator, "order": order}
    torch.testing.assert_close(sinusoids(TIMES, 16, **options), expected, rtol=0.0, atol=1e-11)
    single = sinusoids(TIMES.float(), 16, **options)
    assert single.dtype == torch.float32
    torch.testing.assert_close(single.double(), expected, rtol=0.0, atol=FLOAT32)


def test_other_dtypes_periods_and_odd_widths():
    whole = sinusoids(torch.tensor([3, 999]), 7, pad_odd=True)
    assert whole.dtype == torch.float32 and whole.shape == (2, 7) and (whole[:, 6] == 0).all()
    assert torch.equal(whole[:, :6], sinusoids(torch.tensor([3.0, 999.0]), 6))
    assert torch.equal(sinusoids(torch.tensor([3.0]).half(), 6), whole[:1, :6])
    last = sinusoids(torch.tensor([1.0], dtype=torch.float64), 8, denominator="half-1", period=50.0)[0, -1]
    assert math.isclose(last, math.sin(1 / 50))


@pytest.mark.parametrize(
    ("channels", "options", "message"),
    [
        (7, {}, "channels must be even and at least 2, got 7"),
        (2, {"denominator": "half-1"}, "channels must be even and at least 4, got 2"),
        (8, {"denominator": "third"}, "denominator must be one of half, half-1, got 'third'"),
        (8, {"order": "sin"}, "order must be one of cos_sin, sin_cos, got 'sin'"),
        (8, {"formula": "log"}, "formula must be one of quotient, product, power, got 'log'"),
    ],
)
def test_wrong_arguments_are_refused(channels: int, options: dict[str, Any], message: str):
    with pytest.raises(ValueError, match=message):
        sinusoids(TIMES, channels, **options)


@pytest.mark.parametrize("frozen", [False, True])
def test_fourier_features_stay_in_float32(frozen: bool):
    features = FourierFeatures(8, scale=2.0, name="W", frozen=frozen, order="sin_cos", factor_first=not frozen)
    assert list(features.state_dict()) == ["W"] and len(list(features.parameters())) == frozen
    assert not any(parameter.requires_grad for parameter in features.parameters())
    numbers = features.W.detach().clone()
    angles = 2 * math.pi * TIMES[:, None] * numbers.double()
    expected = torch.cat([angles.sin(), angles.cos()], dim=1)
    for changed in (features, features.half(), features.to(torch.bfloat16)):
        assert changed.W.dtype == torch.float32 and torch.equal(changed.W, numbers)
        got = changed(TIMES.float())
        assert got.dtype == torch.float32
        torch.testing.assert_close(got.double(), expected, rtol=0.0, atol=100 * FLOAT32)
    torch.testing.assert_close(features.double()(TIMES), expected, rtol=0.0, atol=1e-9)
    assert features.W.dtype == torch.float64 and features.to("meta").W.is_meta


def test_fourier_features_refuse_odd_widths():
    with pytest.raises(ValueError, match="channels must be even and at least 2, got 3"):
        FourierFeatures(3)
    with pytest.raises(ValueError, match="order must be one of cos_sin, sin_cos, got 'cos'"):
        FourierFeatures(4, order="cos")
