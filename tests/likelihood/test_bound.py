"""The variational bound of any model: one value for every reading of a chain, the entropy of known discrete data."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from fastdiff.continuous import Flow
from fastdiff.likelihood import nll_bound
from fastdiff.process import EDM, VE, VP

from ..threads import one_thread
from ..tolerances import CLOSED_FORM

__all__ = ["one_thread"]

VALUES = torch.tensor([-1.0, -1 / 3, 1 / 3, 1.0], dtype=torch.float64)  # four levels
WEIGHTS = torch.tensor([0.1, 0.5, 0.15, 0.25], dtype=torch.float64)
ENTROPY = float(-(WEIGHTS * WEIGHTS.log2()).sum())


def x0_of(x, alpha, sigma):
    """E[x_0 | alpha x_0 + sigma z = x], each element alone one of VALUES."""
    logits = WEIGHTS.log() - 0.5 * ((x.double()[..., None] - alpha * VALUES) / sigma).square()
    return (logits.softmax(-1) * VALUES).sum(-1).to(x.dtype)


def told_sigma(x, sigma, **cond):
    return x0_of(x, 1.0, float(sigma[0]))


def told_time_of_flow(x, t):
    t = float(t[0])
    return (x - x0_of(x, 1 - t, t)) / t  # z - x_0


def on_chain(process, prediction):
    def network(x, time):
        abar = float(process.alphas_cumprod[int(time[0])])
        alpha, sigma = math.sqrt(abar), math.sqrt(1 - abar)
        x0 = x0_of(x, alpha, sigma)
        return x0 if prediction == "x0" else (x - alpha * x0) / sigma

    return network


def data(count, dtype=torch.float64):
    index = torch.multinomial(WEIGHTS, count * 12, replacement=True, generator=torch.Generator().manual_seed(0))
    return VALUES[index].reshape(count, 1, 3, 4).to(dtype)


def vp_of(sigmas):
    """The VP chain of noise levels in VE terms, noisiest first."""
    abar = 1 / (1 + np.asarray(sigmas)[::-1] ** 2)
    return VP(1 - abar / np.append(1.0, abar[:-1]))


@pytest.mark.parametrize("process", [EDM(), VE(0.05, 30.0)], ids=["edm", "ve"])
@pytest.mark.parametrize("variance", ["fixed_small", "fixed_large"])
def test_a_process_is_the_chain_of_its_levels(process, variance):
    x, seeds = data(4), [5, 2, -9, 0]
    options = {"variance": variance, "levels": 4, "seeds": seeds}
    got = nll_bound(told_sigma, x, process=process, steps=25, **options)
    chain = vp_of([level.sigma for level in process.levels(25)][:-1])
    for prediction in ("x0", "eps"):
        network = on_chain(chain, prediction)
        want = nll_bound(network, x, process=chain, prediction=prediction, **options)
        assert got.vb.shape == (4, 25)
        torch.testing.assert_close(got.total, want.total, rtol=1e-6, atol=0)  # eps loses digits where x_t is clean
        torch.testing.assert_close(got.prior, want.prior, rtol=CLOSED_FORM, atol=0)


@pytest.mark.parametrize(
    ("model", "process", "prediction", "steps"),
    [
        (told_sigma, EDM(0.02, 80.0), "x0", 150),
        (told_time_of_flow, Flow(), "flow", 150),
        (on_chain(VP.linear(150), "eps"), VP.linear(150), "eps", None),
    ],
    ids=["edm", "flow", "vp"],
)
def test_the_best_model_is_near_the_entropy_and_never_below(model, process, prediction, steps):
    """Of data whose elements are independent draws from four levels, for the exact posterior mean as network."""
    x = data(150)
    for cdf in ("tanh", "exact"):
        got = nll_bound(model, x, process=process, prediction=prediction, steps=steps, levels=4, cdf=cdf, seeds=1).total
        error = float(got.std()) / math.sqrt(len(got))
        assert ENTROPY - 4 * error < float(got.mean()) < ENTROPY + 0.1 + 4 * error


def test_a_sample_has_its_seeds_bound_in_any_batch_and_dtype():
    x, seeds = data(5), torch.tensor([4, 8, -2, 0, 1])
    options = {"process": EDM(0.02, 80.0), "steps": 12, "levels": 4}
    together = nll_bound(told_sigma, x, seeds=seeds, **options).total
    apart = nll_bound(told_sigma, x[[3, 1]], seeds=seeds[[3, 1]], **options).total
    torch.testing.assert_close(apart, together[[3, 1]], rtol=CLOSED_FORM, atol=CLOSED_FORM)
    single = nll_bound(told_sigma, x.float(), seeds=seeds, **options).total
    assert single.dtype == torch.float64
    torch.testing.assert_close(single, together, rtol=1e-4, atol=1e-5)
    assert nll_bound(lambda y, sigma: y, x[:0], seeds=[], **options).total.shape == (0,)


def test_conditioning_reaches_the_network():
    seen = []

    def model(x, sigma, labels, style):
        seen.append((labels.tolist(), style.tolist(), x.dtype, sigma.dtype))
        return told_sigma(x, sigma)

    model.label_dim = 3
    nll_bound(model, data(2, torch.float32), labels=[2, 0], cond={"style": torch.ones(2)}, steps=3, levels=4, seeds=0)
    assert seen == [([2, 0], [1.0, 1.0], torch.float32, torch.float32)] * 3


def test_unfit_predictions_and_variances_are_refused():
    x = data(2)
    with pytest.raises(ValueError, match="prediction must be one of eps"):
        nll_bound(told_sigma, x, process="vp", prediction="score", levels=4)
    with pytest.raises(ValueError, match="variance must be one of fixed_small"):
        nll_bound(told_sigma, x, variance="learned_range", levels=4)
    with pytest.raises(ValueError, match="levels must be the number of levels"):
        nll_bound(told_sigma, x, levels=5)
