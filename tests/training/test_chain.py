"""The tables of a chain on a device."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from fastdiff.process import EDM, VP, GaussianTables
from fastdiff.schedules import space_timesteps
from fastdiff.solvers.ddpm import log_variance
from fastdiff.training.chain import Chain
from fastdiff.training.perturb import input_perturbation, noising_table

from ..tolerances import CLOSED_FORM


def test_a_column_is_the_float64_table_rounded_once():
    process = VP.cosine(50)
    tables = GaussianTables(process.levels("7").alphas_cumprod)
    t = torch.tensor([6, 0, 3, 3])
    for dtype in (torch.float32, torch.float64):
        chain = Chain(process, "7", dtype=dtype)
        for name in ("betas", "posterior_mean_coef1", "sqrt_recipm1_alphas_cumprod", "posterior_variance"):
            assert torch.equal(chain(name, t), torch.from_numpy(getattr(tables, name)).to(dtype)[t])
    assert chain.T == 7 and np.array_equal(chain.tables.betas, tables.betas)


@pytest.mark.parametrize("variance", ["fixed_small", "fixed_large", "learned", "learned_range"])
def test_log_variances_are_those_of_the_sampler(variance):
    chain = Chain(VP.linear(25), dtype=torch.float64)
    scale, offset = log_variance(chain.tables, variance)
    t = torch.arange(25)
    assert torch.equal(chain(f"{variance}_log_variance_scale", t), torch.from_numpy(scale))
    assert torch.equal(chain(f"{variance}_log_variance", t), torch.from_numpy(offset))


def test_the_network_is_told_the_original_steps():
    kept = space_timesteps(100, "ddim10")
    assert Chain(VP.linear(100), "ddim10").times.tolist() == kept
    assert Chain(VP.linear(100), "ddim10").times.dtype == torch.int64
    rescaled = Chain(VP.linear(100, rescale_timesteps=True), "ddim10", dtype=torch.float64).times
    assert torch.equal(rescaled, torch.tensor(kept, dtype=torch.float64) * 10)
    assert Chain(VP.linear(100, rescale_timesteps=True)).times.dtype == torch.float32


@pytest.mark.parametrize("target", ["eps", "x0", "v", "previous_x"])
def test_noising_is_the_table_of_the_chain(target):
    chain = Chain(VP.linear(30), "5", dtype=torch.float64)
    q = chain.tables
    alpha, sigma = (torch.from_numpy(np.sqrt(v)) for v in (q.alphas_cumprod, 1 - q.alphas_cumprod))
    before = torch.from_numpy(np.sqrt(q.alphas_cumprod_prev)), torch.from_numpy(np.sqrt(1 - q.alphas_cumprod_prev))
    for gamma in (None, 0.0, 0.1, input_perturbation((0.05, 0.2), 5)):
        wanted = noising_table(alpha, sigma, target, gamma=gamma, following=before, dtype=torch.float64)
        torch.testing.assert_close(chain.noising(target, gamma), wanted, rtol=CLOSED_FORM, atol=CLOSED_FORM)


def test_noising_is_made_once_for_the_same_arguments():
    chain, gamma = Chain(VP.linear(30)), torch.full((30,), 0.1)
    for arguments in (("eps",), ("v", 0.1), ("eps", gamma, True)):
        assert chain.noising(*arguments) is chain.noising(*arguments)
    first = chain.noising("eps", 0.1)
    assert chain.noising("eps", 0.2)[0, 2] == pytest.approx(2 * float(first[0, 2]))
    assert torch.equal(chain.noising("eps", gamma.double()), chain.noising("eps", gamma))
    assert chain.noising("eps", 0.0).shape == (30, 6) and chain.noising("eps").shape == (30, 4)
    assert chain.noising("eps", 0.1, True)[0, 5] != 0 == chain.noising("eps", 0.1)[0, 5]


def test_a_chain_of_one_step_and_one_that_ends_in_pure_noise():
    assert Chain(VP([0.5])).T == 1
    chain = Chain(VP([0.1, 0.5, 1.0]), dtype=torch.float64)
    assert chain("alphas_cumprod", torch.tensor([2])) == 0
    assert chain.noising("v")[2].tolist() == [0.0, 1.0, -1.0, 0.0]


def test_what_is_refused():
    with pytest.raises(ValueError, match=r"process must be a fastdiff\.VP"):
        Chain(EDM())
    with pytest.raises(ValueError, match="dtype must be"):
        Chain(VP.cosine(5), dtype=torch.bfloat16)
    chain = Chain(VP.cosine(5))
    for name in ("alpha", "eps_log_variance", "_table", "learned"):
        with pytest.raises(ValueError, match="name must be one of alphas_cumprod"):
            chain(name, torch.tensor([0]))
    with pytest.raises(ValueError, match=r"gamma must be a number or \[5\]"):
        chain.noising("eps", torch.zeros(4))
