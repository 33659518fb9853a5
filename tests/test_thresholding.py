"""Dynamic thresholding: against torch.quantile, in a compiled run, refusals."""

from __future__ import annotations

import pytest
import torch

import fastdiff
from fastdiff.thresholding import DynamicThresholding, compose, get_thresholding

from .tolerances import CLOSED_FORM


@pytest.mark.parametrize("ratio", [0.0, 0.3, 0.9, 0.95, 0.995, 1.0])
@pytest.mark.parametrize("shape", [(3, 3, 4, 4), (2, 7), (4, 1), (4,)])
def test_against_quantiles(ratio, shape):
    x0 = 3 * torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    flat = x0.reshape(len(x0), -1)
    s = flat.abs().quantile(ratio, dim=1).clamp(1, 2.5)[:, None]
    expected = (flat.clamp(-s, s) / s).reshape(shape)
    torch.testing.assert_close(DynamicThresholding(ratio, 2.5)(x0), expected, rtol=1e-14, atol=1e-14)


def test_a_maximum_of_one_is_clipping():
    x0 = torch.linspace(-3, 3, 20).reshape(2, 10)
    assert torch.equal(DynamicThresholding()(x0), x0.clamp(-1, 1))


@pytest.mark.parametrize("solver", ["ddim", "dpm_multistep"])
def test_compiled_runs_are_the_solvers_lines(solver):
    """And `denoised_fn` comes first: what it shifts is thresholded."""

    def sampler(**options):
        return fastdiff.Sampler(
            lambda x, t: torch.tanh(x) - 0.2 * x,
            process="vp",
            prediction="eps",
            solver=solver,
            steps=6,
            shape=(3, 4, 4),
            dtype=torch.float64,
            denoised_fn=lambda x0: x0 + 5,
            thresholding=(0.9, 1.5),
            **options,
        )

    compiled, readable = sampler()(3, seeds=1), sampler(compiled=False)(3, seeds=1)
    torch.testing.assert_close(compiled, readable, rtol=CLOSED_FORM, atol=CLOSED_FORM)
    assert compiled.max() <= 1 + 1e-12 and compiled.min() > -1
    assert sampler()(1, seeds=2).equal(sampler()(2, seeds=[2, 9])[:1])


def test_ways_to_ask():
    assert get_thresholding(None) is get_thresholding(False) is compose(None, None) is None
    assert get_thresholding(True) == DynamicThresholding()
    assert get_thresholding((0.9, 2.0)) == DynamicThresholding(0.9, 2.0)


@pytest.mark.parametrize(
    ("value", "name"), [((1.5, 1.0), "ratio"), ((0.9, 0.5), "maximum"), ((0.9, float("nan")), "maximum"), (3, "thresh")]
)
def test_refusals(value, name):
    with pytest.raises(ValueError, match=name):
        get_thresholding(value)
