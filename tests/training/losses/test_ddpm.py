"""DDPM's objectives against the formulas written out sample by sample, and what must hold whatever the network."""

from __future__ import annotations

import itertools
import math
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.distributions import Normal, kl_divergence

from fastdiff import ops
from fastdiff.process import VP
from fastdiff.schedules import space_timesteps
from fastdiff.training.chain import Chain
from fastdiff.training.losses import calc_bpd, ddpm_loss, prior_bpd
from fastdiff.training.perturb import input_perturbation

from ...tolerances import BOUND, CLOSED_FORM, FLOAT32_LOSS

F64 = torch.float64
PREDICTIONS = ("eps", "x0", "v", "previous_x")
VARIANCES = ("fixed_small", "fixed_large", "learned", "learned_range")
CHAINS = {
    "linear": (VP.linear(40), ""),
    "cosine": (VP.cosine(1000), "9"),
    "float time": (VP.linear(30, rescale_timesteps=True), "5,4"),
}


def normals(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=F64)


def pixels(*shape: int) -> Tensor:
    """8-bit data, both ends among it."""
    codes = torch.randint(0, 256, shape, generator=torch.Generator().manual_seed(9))
    codes.flatten()[:2] = torch.tensor([0, 255])
    return codes.double() * 2 / 255 - 1


class Batch:
    """A small batch, float64: steps from the cleanest to the noisiest of a chain, and a network with random output."""

    def __init__(self, chain: Chain, variance: str = "fixed_small", shape: tuple[int, ...] = (3, 2, 3)):
        self.chain = chain
        self.t = torch.tensor([0, 1, chain.T // 2, chain.T - 1])
        self.x0, self.z, self.xi = pixels(4, *shape), normals(1, 4, *shape), normals(2, 4, *shape)
        channels = 2 * shape[0] if variance.startswith("learned") else shape[0]
        self.output = (0.3 * normals(3, 4, channels, *shape[1:])).requires_grad_()
        self.seen: list[tuple[Tensor, Tensor]] = []

    def network(self, x: Tensor, time: Tensor) -> Tensor:
        self.seen.append((x, time))
        return self.output

    def loss(self, **options: Any) -> Any:
        given = {"xi": self.xi} if options.get("gamma") is not None else {}
        return ddpm_loss(self.network, self.x0, self.t, self.z, self.chain, **given, **options)


def chain_of(name: str) -> Chain:
    process, steps = CHAINS[name]
    return Chain(process, steps or None, dtype=F64)


def written_out(batch: Batch, name: str, prediction: str, variance: str, loss: str, gamma: float) -> list[Tensor]:
    """The loss of every sample, from the betas."""
    process, steps = CHAINS[name]
    kept = space_timesteps(process.T, steps)
    abar = [math.prod(1 - process.betas[: i + 1]) for i in kept]

    def posterior(i: int) -> tuple[float, float, float]:
        """c1, c2 and variance of q(x_(i-1) | x_i, x_0)."""
        prev = abar[i - 1] if i else 1.0
        beta = 1 - abar[i] / prev
        scale = 1 - abar[i]
        return math.sqrt(prev) * beta / scale, math.sqrt(1 - beta) * (1 - prev) / scale, beta * (1 - prev) / scale

    losses = []
    for b, i in enumerate(batch.t.tolist()):
        (c1, c2, small), x0, out = posterior(i), batch.x0[b], batch.output[b]
        small = small if i else posterior(1)[2]
        large = 1 - abar[i] / (abar[i - 1] if i else 1.0)
        alpha, sigma = math.sqrt(abar[i]), math.sqrt(1 - abar[i])
        x = alpha * x0 + sigma * (batch.z[b] + gamma * batch.xi[b])
        target = {
            "eps": batch.z[b],
            "x0": x0,
            "v": alpha * batch.z[b] - sigma * x0,
            "previous_x": c1 * x0 + c2 * x,
        }[prediction]
        raw, head = out[:3], out[3:]
        mse = (raw - target).square().mean()
        if not loss.endswith("kl"):
            raw = raw.detach()
        mean = {
            "eps": c1 * (x - sigma * raw) / alpha + c2 * x,
            "x0": c1 * raw + c2 * x,
            "v": c1 * (alpha * x - sigma * raw) + c2 * x,
            "previous_x": raw,
        }[prediction]
        fixed = {"fixed_small": small, "fixed_large": large if i else small}
        if variance in fixed:
            log_variance = torch.full_like(x, math.log(fixed[variance]))
        elif variance == "learned":
            log_variance = head
        else:
            log_variance = (1 + head) / 2 * math.log(large) + (1 - head) / 2 * math.log(small)
        std = (log_variance / 2).exp()
        if i:
            term = kl_divergence(Normal(c1 * x0 + c2 * x, math.sqrt(small)), Normal(mean, std))
        else:
            low, high = ((x0 + side / 255 - mean) / std for side in (-1, 1))
            below, above = (
                0.5 * (1 + torch.tanh(math.sqrt(2 / math.pi) * (edge + 0.044715 * edge**3))) for edge in (low, high)
            )
            mass = above * (x0 < 1) + (x0 == 1) - below * (x0 > -1)
            term = -mass.clamp(min=1e-12).log()
        bound = term.mean() / math.log(2)
        learned = variance.startswith("learned")
        losses.append(
            {
                "mse": mse + bound if learned else mse,
                "rescaled_mse": mse + bound * len(kept) / 1000 if learned else mse,
                "kl": bound,
                "rescaled_kl": bound * len(kept),
            }[loss]
        )
    return losses


@pytest.mark.parametrize("name", CHAINS)
@pytest.mark.parametrize("loss", ["mse", "rescaled_mse", "kl", "rescaled_kl"])
@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_every_combination(prediction, loss, name):
    for variance, gamma in itertools.product(VARIANCES, (None, 0.0, 0.15)):
        batch = Batch(chain_of(name), variance)
        got = batch.loss(prediction=prediction, variance=variance, loss=loss, gamma=gamma).loss
        wanted = torch.stack(written_out(batch, name, prediction, variance, loss, gamma or 0.0))
        torch.testing.assert_close(got, wanted, rtol=BOUND, atol=BOUND)
        (slope,) = torch.autograd.grad(got.sum(), batch.output)
        (wanted_slope,) = torch.autograd.grad(wanted.sum(), batch.output)
        torch.testing.assert_close(slope, wanted_slope, rtol=BOUND, atol=BOUND)


def test_the_network_is_given_x_t_its_own_time_and_the_conditions():
    chain = chain_of("float time")
    batch, labels = Batch(chain), torch.arange(4)

    def network(x: Tensor, time: Tensor, labels: Tensor) -> Tensor:
        assert labels.tolist() == [0, 1, 2, 3]
        return batch.network(x, time)

    ddpm_loss(network, batch.x0, batch.t, batch.z, chain, cond={"labels": labels})
    ((x, time),) = batch.seen
    alpha, sigma = (
        chain(f"sqrt_{name}", batch.t).reshape(-1, 1, 1, 1) for name in ("alphas_cumprod", "one_minus_alphas_cumprod")
    )
    torch.testing.assert_close(x, alpha * batch.x0 + sigma * batch.z, rtol=CLOSED_FORM, atol=CLOSED_FORM)
    assert torch.equal(time, torch.tensor(space_timesteps(30, "5,4"), dtype=F64)[batch.t] * 1000 / 30)


# --- input perturbation -----------------------------------------------------------------------------------------------


def test_the_target_stays_eps_not_the_perturbed_noise():
    """DDPM-IP: the network sees z + gamma xi and is told z. An oracle of z has no loss, one of z + gamma xi has."""
    chain, gamma = chain_of("linear"), 0.1
    batch = Batch(chain)
    options = {"chain": chain, "gamma": gamma, "xi": batch.xi}
    alpha, sigma = (
        chain(f"sqrt_{name}", batch.t).reshape(-1, 1, 1, 1) for name in ("alphas_cumprod", "one_minus_alphas_cumprod")
    )
    perturbed = batch.z + gamma * batch.xi

    def oracle(answer: Tensor):
        def network(x: Tensor, time: Tensor) -> Tensor:
            torch.testing.assert_close(x, alpha * batch.x0 + sigma * perturbed, rtol=CLOSED_FORM, atol=CLOSED_FORM)
            return answer

        return network

    of_z, of_perturbed = (
        ddpm_loss(oracle(answer), batch.x0, batch.t, batch.z, **options).loss for answer in (batch.z, perturbed)
    )
    assert torch.equal(of_z, torch.zeros(4, dtype=F64))
    torch.testing.assert_close(of_perturbed, gamma**2 * batch.xi.square().flatten(1).mean(1))
    # The negative control, DDPM-y, has it the other way round.
    control = ddpm_loss(oracle(perturbed), batch.x0, batch.t, batch.z, perturbed_target=True, **options).loss
    torch.testing.assert_close(control, torch.zeros(4, dtype=F64), rtol=0, atol=CLOSED_FORM)


@pytest.mark.parametrize("control", [False, True])
def test_what_a_network_learns_from_perturbed_inputs(control):
    """The best linear guess of z from x_t shrinks by 1 / (1 + gamma^2) under DDPM-IP; under DDPM-y it stays."""
    chain, gamma, count = chain_of("linear"), 0.5, 200_000
    x0, t, seeds = torch.zeros(count, 1, dtype=F64), torch.full((count,), 7), torch.arange(count)
    seen: list[Tensor] = []
    slope = torch.zeros((), dtype=F64, requires_grad=True)

    def network(x: Tensor, time: Tensor) -> Tensor:
        seen.append(x)
        return slope * x

    loss = ddpm_loss(network, x0, t, seeds, chain, gamma=gamma, perturbed_target=control).loss.mean()
    (first,) = torch.autograd.grad(loss, slope)  # of (slope x - target)^2 at 0: -2 E[x target]
    best = float(-first / 2 / seen[0].square().mean()) * float(chain("sqrt_one_minus_alphas_cumprod", t[:1]))
    wanted = 1.0 if control else 1 / (1 + gamma**2)
    assert abs(best - wanted) < 4 * gamma / math.sqrt(count) + CLOSED_FORM


def test_gamma_may_differ_from_step_to_step():
    chain = chain_of("linear")
    batch, gamma = Batch(chain), input_perturbation((0.05, 0.2), chain.T)
    got = batch.loss(gamma=gamma).mse
    for b, t in enumerate(batch.t.tolist()):
        assert torch.equal(got[b], batch.loss(gamma=float(gamma[t])).mse[b])


def test_gamma_of_0_draws_and_adds_nothing():
    batch = Batch(chain_of("cosine"))
    assert torch.equal(batch.loss(gamma=0.0).loss, batch.loss().loss)
    assert torch.equal(batch.seen[0][0], batch.seen[1][0])


@pytest.mark.parametrize("gamma", [None, 0.1])
def test_seeds_stand_for_the_noise_of_the_contract(gamma):
    chain = Chain(VP.linear(40))
    x0, t, seeds = pixels(5, 3, 2, 3).float(), torch.tensor([0, 39, 3, 17, 20]), torch.tensor([5, -1, 0, 7, 2**40])
    z, xi = (ops.normal(seeds, x0.shape, draw) for draw in (0, 1))

    def network(x: Tensor, time: Tensor) -> Tensor:
        return (x + time.reshape(-1, 1, 1, 1) / 40).sin()

    drawn = ddpm_loss(network, x0, t, seeds, chain, gamma=gamma).loss
    given = ddpm_loss(network, x0, t, z, chain, gamma=gamma, xi=None if gamma is None else xi).loss
    assert drawn.dtype == torch.float32 and torch.equal(drawn, given)
    some = torch.tensor([3, 1])  # whatever the batch
    assert torch.equal(ddpm_loss(network, x0[some], t[some], seeds[some], chain, gamma=gamma).loss, drawn[some])


# --- the bound --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("loss", ["mse", "rescaled_mse"])
def test_the_bound_of_a_hybrid_loss_trains_the_variance_alone(loss):
    for variance in ("learned", "learned_range"):
        batch = Batch(chain_of("cosine"), variance)
        result = batch.loss(variance=variance, loss=loss)
        (of_bound,) = torch.autograd.grad(result.vb.sum(), batch.output, retain_graph=True)
        (of_mse,) = torch.autograd.grad(result.mse.sum(), batch.output)
        assert not of_bound[:, :3].any() and of_bound[:, 3:].any()
        assert not of_mse[:, 3:].any() and of_mse[:, :3].any()
        assert torch.equal(result.loss, result.mse + result.vb)


@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_weighted_squared_errors_are_terms_of_the_bound(prediction):
    chain = chain_of("linear")
    batch = Batch(chain)
    batch.t = torch.tensor([1, 2, 20, 39])
    options = {"prediction": prediction}
    torch.testing.assert_close(
        batch.loss(weighting="L_t", **options).loss, batch.loss(loss="kl", **options).loss, rtol=BOUND, atol=BOUND
    )
    # Of another variance, up to the divergence of a perfect mean: 0.5 (r - 1 - ln r) with the variances' ratio r.
    small, large = (chain(f"fixed_{size}_log_variance", batch.t) for size in ("small", "large"))
    constant = 0.5 * ((small - large).exp() - 1 - (small - large)) / math.log(2)
    weighted = batch.loss(weighting="L_t", variance="fixed_large", **options).loss
    bound = batch.loss(loss="kl", variance="fixed_large", **options).loss
    torch.testing.assert_close(weighted + constant, bound, rtol=BOUND, atol=BOUND)


def test_weight_of_eps_is_that_of_the_paper():
    chain = chain_of("linear")
    batch = Batch(chain)
    beta, abar = chain("betas", batch.t), chain("alphas_cumprod", batch.t)
    variance = chain("fixed_large_log_variance", batch.t).exp()
    weight = beta.square() / (2 * variance * (1 - beta) * (1 - abar)) / math.log(2)  # Ho et al. 2020, Eq. 12
    options = {"variance": "fixed_large"}
    torch.testing.assert_close(batch.loss(weighting="L_t", **options).mse, weight * batch.loss(**options).mse)


def test_rescaled_kl_estimates_the_whole_bound():
    chain = chain_of("linear")
    x0, z = pixels(2, 3, 2, 3), normals(4, chain.T, 2, 3, 2, 3)

    def network(x: Tensor, time: Tensor) -> Tensor:
        return (2 * x).sin()

    terms = [
        ddpm_loss(network, x0, torch.full((2,), t), z[chain.T - 1 - t], chain, loss="rescaled_kl").loss
        for t in range(chain.T)
    ]
    whole = calc_bpd(network, x0, chain, z, clip=False)
    torch.testing.assert_close(torch.stack(terms).mean(0) + prior_bpd(x0, chain), whole.total)


# --- shapes, dtypes, limits -------------------------------------------------------------------------------------------


def test_points_empty_batches_and_other_layouts():
    chain = Chain(VP.linear(30))
    points = normals(5, 7, 2).float()
    t, seeds = torch.arange(7), torch.arange(7)
    learned = ddpm_loss(lambda x, time: torch.cat([x, x], 1), points, t, seeds, chain, variance="learned_range")
    assert learned.loss.shape == learned.vb.shape == (7,) and learned.loss.isfinite().all()
    for loss in ("mse", "kl"):
        assert ddpm_loss(lambda x, time: x, points[:0], t[:0], seeds[:0], chain, loss=loss).loss.shape == (0,)
    images = pixels(3, 5, 4, 2).float()
    turned = images.permute(0, 3, 1, 2)
    assert not turned.is_contiguous()
    a, b = (
        ddpm_loss(lambda x, time: x, x0, t[:3], seeds[:3], chain, loss="kl").loss
        for x0 in (turned, turned.contiguous())
    )
    assert torch.equal(a, b)


def test_a_half_precision_output_is_judged_in_the_chains_dtype():
    chain = Chain(VP.linear(30))
    x0, t, seeds = pixels(3, 3, 2, 2).float(), torch.tensor([0, 9, 29]), torch.arange(3)
    for loss in ("mse", "kl"):
        low = ddpm_loss(lambda x, time: x.bfloat16(), x0, t, seeds, chain, loss=loss).loss
        same = ddpm_loss(lambda x, time: x.bfloat16().float(), x0, t, seeds, chain, loss=loss).loss
        assert low.dtype == torch.float32 and torch.equal(low, same)


def test_float32_stays_close_to_float64():
    for name, prediction, loss in itertools.product(("linear", "cosine"), PREDICTIONS, ("mse", "kl")):
        process, steps = CHAINS[name]
        batch = Batch(chain_of(name), "learned_range")
        single = Chain(process, steps or None)
        options = {"prediction": prediction, "variance": "learned_range", "loss": loss, "cdf": "exact"}
        exact = batch.loss(**options).loss.detach()
        x0, z, batch.output = batch.x0.float(), batch.z.float(), batch.output.float()
        got = ddpm_loss(batch.network, x0, batch.t, z, single, **options).loss.detach()
        assert float((got - exact).abs().max()) <= FLOAT32_LOSS * float(exact.abs().max())


def test_a_chain_that_ends_in_pure_noise():
    chain = Chain(VP([0.1, 0.3, 1.0]), dtype=F64)
    batch = Batch(chain)
    batch.t = torch.tensor([2, 2, 1, 0])
    assert batch.loss().loss.isfinite().all()
    for prediction in ("x0", "v", "previous_x"):
        assert batch.loss(prediction=prediction, loss="kl").loss.isfinite().all()
    for options in ({"loss": "kl"}, {"variance": "learned_range"}, {"weighting": "L_t"}):
        with pytest.raises(ValueError, match="alpha = 0"):
            batch.loss(**options)


def test_what_is_refused():
    batch = Batch(chain_of("linear"))
    for options, message in [
        ({"prediction": "noise"}, "prediction must be one of eps, x0, v, previous_x, got 'noise'"),
        ({"variance": "small"}, "variance must be one of fixed_small"),
        ({"loss": "l1"}, "loss must be one of mse, rescaled_mse, kl, rescaled_kl, got 'l1'"),
        ({"weighting": "snr"}, "weighting must be one of L_t, got 'snr'"),
        ({"weighting": "L_t", "loss": "kl"}, "weighting must be None with loss='kl'"),
        ({"weighting": "L_t", "variance": "learned"}, "weighting must be None with .*variance='learned'"),
        ({"perturbed_target": True}, "perturbed_target needs gamma"),
        ({"perturbed_target": True, "gamma": 0.1, "loss": "kl"}, "perturbed_target needs gamma and a loss with"),
    ]:
        with pytest.raises(ValueError, match=message):
            batch.loss(**options)
    assert not batch.seen  # before any work
    with pytest.raises(ValueError, match=r"network must return \[4, 6, 2, 3\] with variance='learned', got \[4, 3"):
        batch.loss(variance="learned")
    arguments = [batch.network, batch.x0, batch.t, batch.z, batch.chain]
    for i, value in ((2, batch.t.float()), (2, batch.t[:2]), (1, torch.zeros(4))):
        wrong = list(arguments)
        wrong[i] = value
        with pytest.raises(ValueError, match="x0 and t must be"):
            ddpm_loss(*wrong)
    with pytest.raises(ValueError, match="xi must be given"):
        ddpm_loss(*arguments, gamma=0.1)
