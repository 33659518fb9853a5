"""The variational bound: its terms against closed forms, and that it bounds what it should."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from fastdiff import ops
from fastdiff.process import VP
from fastdiff.training.chain import Chain
from fastdiff.training.losses import calc_bpd, prior_bpd, reverse_step, vb_terms
from fastdiff.training.perturb import perturb

from ...tolerances import BOUND

F64 = torch.float64
PREDICTIONS = ("eps", "x0", "v", "previous_x")


def normals(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=F64)


def noised(chain: Chain, prediction: str) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """x_0 [T', 2, 3], a sample for every step t, its x_t, and what a perfect network answers."""
    x0, t = normals(0, chain.T, 2, 3).clamp(-1, 1), torch.arange(chain.T)
    x_t, target = perturb(x0, chain.noising(prediction), t, normals(1, chain.T, 2, 3))
    return x0, t, x_t, target


@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_a_perfect_prediction_is_the_posterior(prediction):
    chain = Chain(VP.linear(60), "12", dtype=F64)
    x0, t, x_t, target = noised(chain, prediction)
    for clip in (False, True):
        step = reverse_step(target, x_t, t, chain, prediction=prediction, clip=clip)
        torch.testing.assert_close(step.pred_xstart, x0, rtol=BOUND, atol=BOUND)
        mean = noised(chain, "previous_x")[3]
        torch.testing.assert_close(step.mean, mean, rtol=BOUND, atol=BOUND)
        bpd = vb_terms(target, x0, x_t, t, chain, prediction=prediction, clip=clip).bpd
        assert float(bpd[1:].abs().max()) < BOUND


def test_clipping_moves_x0_and_the_mean_but_not_a_predicted_mean():
    chain = Chain(VP.linear(60), "12", dtype=F64)
    for prediction in PREDICTIONS:
        _, t, x_t, target = noised(chain, prediction)
        output = target + 2 * normals(2, *target.shape)
        free, clipped = (reverse_step(output, x_t, t, chain, prediction=prediction, clip=c) for c in (False, True))
        assert torch.equal(clipped.pred_xstart, free.pred_xstart.clamp(-1, 1)) and (free.pred_xstart.abs() > 1).any()
        assert torch.equal(clipped.mean, free.mean) == (prediction == "previous_x")


def test_variances():
    chain = Chain(VP.cosine(20), dtype=F64)
    x0, t, x_t, target = noised(chain, "eps")
    q, head = chain.tables, normals(3, *target.shape)
    small = torch.from_numpy(q.posterior_variance)
    small[0] = small[1]
    large = torch.from_numpy(q.betas).reshape(-1, 1, 1)
    wanted = {
        "fixed_small": small.reshape(-1, 1, 1).expand_as(x0),
        "fixed_large": torch.cat([small[:1], large[1:, 0, 0]]).reshape(-1, 1, 1).expand_as(x0),
        "learned": head.exp(),
        "learned_range": large ** ((1 + head) / 2) * small.reshape(-1, 1, 1) ** ((1 - head) / 2),
    }
    for variance, value in wanted.items():
        output = torch.cat([target, head], 1) if variance.startswith("learned") else target
        step = reverse_step(output, x_t, t, chain, variance=variance)
        torch.testing.assert_close(step.log_variance.exp(), value, rtol=BOUND, atol=0)


def test_prior_is_the_divergence_of_the_last_step():
    chain = Chain(VP.linear(60), "3", dtype=F64)
    x0, abar = normals(4, 5, 2, 3), float(chain.tables.alphas_cumprod[-1])
    wanted = 0.5 * ((1 - abar) - 1 - math.log(1 - abar) + abar * x0.square().flatten(1).mean(1)) / math.log(2)
    torch.testing.assert_close(prior_bpd(x0, chain), wanted, rtol=BOUND, atol=0)
    silent = Chain(VP([0.2, 0.5, 1.0]), dtype=F64)  # alpha = 0: nothing of x_0 is left
    assert not prior_bpd(x0, silent).any()


def half_known(x: Tensor, time: Tensor) -> Tensor:
    return 0.5 * x


def test_columns_go_from_the_noisiest_step_down():
    chain = Chain(VP.linear(50), "6", dtype=F64)
    x0, z = normals(5, 4, 3, 2, 2).clamp(-1, 1), normals(6, 6, 4, 3, 2, 2)
    times: list[int] = []

    def network(x: Tensor, time: Tensor, labels: Tensor) -> Tensor:
        assert labels.tolist() == [1, 2, 3, 4] and not torch.is_grad_enabled()
        times.extend(time.unique().tolist())
        return half_known(x, time)

    bound = calc_bpd(network, x0, chain, z, cond={"labels": torch.arange(1, 5)})
    assert times == chain.times.tolist()[::-1]
    for i, step in enumerate(range(5, -1, -1)):
        t = torch.full((4,), step)
        x_t, _ = perturb(x0, chain.noising(), t, z[i])
        alone = vb_terms(half_known(x_t, t), x0, x_t, t, chain)
        assert torch.equal(bound.vb[:, i], alone.bpd)
        torch.testing.assert_close(bound.xstart_mse[:, i], (alone.pred_xstart - x0).square().flatten(1).mean(1))
        alpha, sigma = chain.noising()[step, :2]
        eps = (x_t - alpha * alone.pred_xstart) / sigma
        torch.testing.assert_close(bound.mse[:, i], (eps - z[i]).square().flatten(1).mean(1))
    torch.testing.assert_close(bound.total, bound.vb.sum(1) + bound.prior)
    assert torch.equal(bound.prior, prior_bpd(x0, chain))


def test_seeds_draw_the_noise_of_every_column():
    chain = Chain(VP.linear(50), "4")
    x0, seeds = normals(7, 3, 1, 4, 4).float(), torch.tensor([8, -3, 8])
    given = torch.stack([ops.normal(seeds, x0.shape, draw) for draw in range(4)])
    drawn, same = (calc_bpd(half_known, x0, chain, noise) for noise in (seeds, given))
    assert all(torch.equal(a, b) for a, b in zip(drawn, same))
    alone = calc_bpd(half_known, x0[1:2], chain, seeds[1:2])
    assert torch.equal(alone.vb, drawn.vb[1:2])  # whatever the batch


def test_the_bound_of_the_perfect_network_is_just_above_the_entropy():
    """Data of two equally likely values have 1 bit per dimension, and the best denoiser is a tanh."""
    process = VP.linear(200)
    chain, short = Chain(process, dtype=F64), Chain(process, "20", dtype=F64)
    x0 = (torch.arange(64 * 64).reshape(64, 64) % 2 * 2 - 1).double()

    def perfect(x: Tensor, time: Tensor) -> Tensor:
        abar = chain("alphas_cumprod", time).reshape(-1, 1)
        return (abar.sqrt() * x / (1 - abar)).tanh()

    def bits(network: Callable[..., Tensor], chain: Chain, **options: str) -> Tensor:
        return calc_bpd(network, x0, chain, torch.arange(64), prediction="x0", bins=2, cdf="exact", **options).total

    best = bits(perfect, chain)
    error = float(best.std()) / 8
    assert 1 - 3 * error < float(best.mean()) < 1.05
    others = [
        bits(lambda x, time: 0.9 * perfect(x, time), chain),
        bits(perfect, short),
        bits(perfect, chain, variance="fixed_large"),
    ]
    assert all(float(other.mean()) > float(best.mean()) + 3 * error for other in others)


def test_empty_batches_and_points():
    chain = Chain(VP.linear(50), "3")
    bound = calc_bpd(half_known, torch.zeros(0, 2), chain, torch.zeros(0, dtype=torch.int64))
    assert bound.total.shape == (0,) and bound.vb.shape == (0, 3)
    assert calc_bpd(half_known, torch.zeros(4, 2), chain, torch.arange(4)).total.isfinite().all()


def test_what_is_refused():
    chain, x0 = Chain(VP.linear(50), "3"), torch.zeros(4, 2, 3)
    for noise in (torch.arange(3), torch.zeros(2, 4, 2, 3), x0):
        with pytest.raises(ValueError, match=r"noise must be int64 \[4\] or \[3, 4, 2, 3\]"):
            calc_bpd(half_known, x0, chain, noise)
    t = torch.zeros(4, dtype=torch.int64)
    with pytest.raises(ValueError, match="prediction must be one of eps"):
        reverse_step(x0, x0, t, chain, prediction="score")
    with pytest.raises(
        ValueError, match=r"network must return \[4, 2, 3\] with variance='fixed_small', got \[4, 4, 3\]"
    ):
        reverse_step(torch.zeros(4, 4, 3), x0, t, chain)
    with pytest.raises(ValueError, match="x0 and t must be"):
        vb_terms(x0, x0, x0, t[:2], chain)
    with pytest.raises(ValueError, match="alpha = 0: no x_0 follows from eps"):
        calc_bpd(half_known, x0, Chain(VP([0.2, 1.0])), torch.arange(4))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"prediction": "score"}, "prediction must be"),
        ({"variance": "small"}, "variance must be"),
        ({"cdf": "erf"}, "cdf must be"),
        ({"bins": 1}, "bins must be"),
    ],
)
def test_a_bound_is_refused_before_any_evaluation(options, message):
    def network(x: Tensor, time: Tensor) -> Tensor:
        raise AssertionError("the network was called")

    with pytest.raises(ValueError, match=message):
        calc_bpd(network, torch.zeros(4, 2), Chain(VP.linear(50), "3"), torch.arange(4), **options)
