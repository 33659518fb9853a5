"""Level samplers: their distributions, importance weights, the second-moment rule step by step, and their state."""

from __future__ import annotations

import math
from collections import deque

import numpy as np
import pytest
import torch
from scipy import stats

from fastdiff import VP
from fastdiff.training.levels import (
    Antithetic,
    LevelSampler,
    LogitNormal,
    LogNormal,
    LogSNRSteps,
    LossSecondMoment,
    Uniform,
    UniformLogSNR,
    UniformTime,
)

P_VALUE = 1e-3  # the seeds are fixed, so that a test passes always or never
STEPS = VP.linear(50).alphas_cumprod


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def taught() -> LossSecondMoment:
    """A sampler past its warm-up, with losses that differ by orders of magnitude."""
    sampler = LossSecondMoment(5, history=3)
    levels = torch.arange(5).repeat(4)
    sampler.update(levels, 10.0 ** (levels - 2) * (1 + torch.rand(20, generator=generator())))
    return sampler


ALL = [
    pytest.param(lambda: Uniform(7), id="uniform"),
    pytest.param(lambda: Antithetic(7), id="antithetic"),
    pytest.param(lambda: LossSecondMoment(7), id="second moment, new"),
    pytest.param(taught, id="second moment"),
    pytest.param(lambda: LogSNRSteps(STEPS), id="log snr steps"),
    pytest.param(LogNormal, id="log normal"),
    pytest.param(LogitNormal, id="logit normal"),
    pytest.param(UniformTime, id="time"),
    pytest.param(lambda: UniformTime(1e-5, antithetic=True), id="antithetic time"),
    pytest.param(lambda: UniformTime(stratified=True), id="stratified time"),
    pytest.param(lambda: UniformLogSNR(0.01, 80), id="log snr"),
]
DISCRETE = ALL[:5]


@pytest.mark.parametrize("make", ALL)
@pytest.mark.parametrize("batch", [0, 1, 7, 32])
def test_a_draw_depends_on_the_generator_only(make, batch):
    levels, weights = make().draw(batch, generator(3))
    assert levels.shape == weights.shape == (batch,)
    assert weights.dtype == torch.float32
    assert levels.dtype in (torch.int64, torch.float64)
    torch.rand(5)  # the global generator plays no part
    again, same_weights = make().draw(batch, generator(3))
    assert torch.equal(levels, again) and torch.equal(weights, same_weights)
    if batch >= 7:
        assert not torch.equal(levels, make().draw(batch, generator(4))[0])


@pytest.mark.parametrize("make", DISCRETE)
def test_importance_weights_keep_the_mean_over_the_steps(make):
    sampler = make()
    levels, weights = sampler.draw(200_000, generator(1))
    count = len(STEPS) if isinstance(sampler, LogSNRSteps) else sampler.T
    assert levels.min() >= 0 and levels.max() < count
    values = torch.randn(count, generator=generator(2), dtype=torch.float64)
    for function in (values, torch.ones_like(values)):
        terms = weights.double() * function[levels]
        assert abs(terms.mean() - function.mean()) <= 4 * terms.std() / math.sqrt(len(terms))


@pytest.mark.parametrize("make", [taught, lambda: LogSNRSteps(STEPS), lambda: LossSecondMoment(6)])
def test_steps_have_their_probabilities(make):
    sampler = make()
    p = sampler.probabilities()
    assert p.dtype == torch.float64 and p.sum().item() == pytest.approx(1)
    levels, weights = sampler.draw(100_000, generator(5))
    counts = levels.bincount(minlength=len(p))
    assert stats.chisquare(counts.numpy(), (p * len(levels)).numpy()).pvalue > P_VALUE
    torch.testing.assert_close(weights, (1 / (len(p) * p[levels])).float())


def test_uniform_and_antithetic_steps():
    levels, _ = Uniform(10).draw(100_000, generator())
    assert stats.chisquare(levels.bincount(minlength=10).numpy()).pvalue > P_VALUE
    levels, _ = Antithetic(10).draw(100_001, generator())
    assert stats.chisquare(levels[::2].bincount(minlength=10).numpy()).pvalue > P_VALUE
    assert torch.equal(levels[1::2], 9 - levels[:-1:2])


# --- loss-second-moment -----------------------------------------------------------------------------------------------


class OneByOne:
    """The rule of Nichol & Dhariwal 2021 in plain Python: a queue of the latest losses of every step."""

    def __init__(self, T: int, history: int, uniform_prob: float):
        self.queues = [deque(maxlen=history) for _ in range(T)]
        self.history, self.uniform_prob = history, uniform_prob

    def update(self, levels, losses):
        for level, loss in zip(levels.tolist(), losses.tolist()):
            self.queues[level].append(loss)

    def weights(self):
        T = len(self.queues)
        if any(len(queue) < self.history for queue in self.queues):
            return np.ones(T)
        moments = np.array([math.sqrt(sum(loss**2 for loss in queue) / self.history) for queue in self.queues])
        return moments / moments.sum() * (1 - self.uniform_prob) + self.uniform_prob / T


@pytest.mark.parametrize("history", [1, 3, 10])
@pytest.mark.parametrize("batch", [1, 5, 64])
def test_second_moment_follows_the_rule_whatever_the_batch(history, batch):
    draws = generator(history)
    levels = torch.randint(4, (640,), generator=draws) * torch.randint(2, (640,), generator=draws)  # step 0 is frequent
    losses = torch.rand(640, generator=draws) * (1 + levels)
    sampler, plain = LossSecondMoment(4, history, 0.01), OneByOne(4, history, 0.01)
    warm = False
    for some, values in zip(levels.split(batch), losses.split(batch)):
        sampler.update(some, values)
        plain.update(some, values)
        np.testing.assert_allclose(sampler.weights().numpy(), plain.weights(), rtol=1e-12)
        warm = warm or not (sampler.weights() == 1).all()
    assert warm


def test_second_moment_takes_losses_as_they_come():
    """Of any dtype, with or without a graph; those that are not finite are passed over."""
    sampler, other = LossSecondMoment(2, 2), LossSecondMoment(2, 2)
    levels = torch.tensor([0, 1, 0, 1, 1])
    sampler.update(levels, torch.tensor([1.0, 2.0, 3.0, 4.0, math.nan], requires_grad=True))
    sampler.update(torch.tensor([0]), torch.tensor([math.inf]))
    sampler.update(levels[:0], torch.zeros(0))
    other.update(levels[:4], torch.tensor([1.0, 2.0, 3.0, 4.0], dtype=torch.bfloat16))
    assert torch.equal(sampler.weights(), other.weights())
    assert not torch.equal(sampler.weights(), torch.ones(2))


def test_losses_of_zero_are_drawn_uniformly():
    sampler = LossSecondMoment(3, 1)
    sampler.update(torch.arange(3), torch.zeros(3))
    torch.testing.assert_close(sampler.probabilities(), torch.full((3,), 1 / 3, dtype=torch.float64))


def test_a_step_without_loss_is_not_drawn_if_nothing_is_uniform():
    sampler = LossSecondMoment(3, 1, uniform_prob=0)
    sampler.update(torch.arange(3), torch.tensor([0.0, 1.0, 0.0]))
    levels, weights = sampler.draw(100, generator())
    assert (levels == 1).all() and torch.allclose(weights, torch.tensor(1 / 3))


@pytest.mark.parametrize("after", [0, 2, 5, 9])
def test_a_restored_sampler_goes_on_to_the_same_bits(after):
    def run(sampler: LossSecondMoment, first: int, last: int) -> list[torch.Tensor]:
        drawn = []
        for i in range(first, last):
            levels, weights = sampler.draw(16, generator(i))
            drawn += [levels, weights]
            sampler.update(levels, torch.rand(16, generator=generator(100 + i)) * (1 + levels))
        return drawn

    whole = LossSecondMoment(4, history=5)
    expected = run(whole, 0, 10)
    first, second = LossSecondMoment(4, history=5), LossSecondMoment(4, history=5)
    drawn = run(first, 0, after)
    state = first.state()
    run(first, after, 10)  # what the first one learns later does not reach the state
    second.restore(state)
    drawn += run(second, after, 10)
    assert all(torch.equal(a, b) for a, b in zip(expected, drawn))
    assert torch.equal(second.weights(), whole.weights()) and not torch.equal(whole.weights(), torch.ones(4))


def test_a_state_of_another_sampler_is_refused():
    with pytest.raises(ValueError, match=r"state must hold .*\[4, 10\].* of LossSecondMoment"):
        LossSecondMoment(4).restore(LossSecondMoment(5).state())
    with pytest.raises(ValueError, match="of Uniform"):
        Uniform(4).restore(LossSecondMoment(4).state())
    Uniform(4).restore(Uniform(4).state())


def test_only_the_second_moment_learns():
    sampler: LevelSampler = Uniform(4)
    sampler.update(torch.tensor([0]), torch.tensor([1.0]))
    assert sampler.state() == {}


# --- in log SNR, and continuous levels --------------------------------------------------------------------------------


def test_steps_are_uniform_in_log_snr():
    abar = VP.linear().alphas_cumprod
    log_snr = np.log(abar / (1 - abar))
    levels, _ = LogSNRSteps(abar).draw(100_000, generator())
    mean = log_snr[levels.numpy()].mean()
    width = log_snr[0] - log_snr[-1]
    middle = (log_snr[0] + log_snr[-1]) / 2
    assert mean == pytest.approx(middle, abs=0.01 * width)  # uniform steps are far from it
    assert log_snr.mean() < middle - 0.05 * width


@pytest.mark.parametrize(
    ("sampler", "distribution"),
    [
        (LogNormal(-1.2, 1.2), stats.lognorm(1.2, scale=math.exp(-1.2))),
        (LogNormal(0.5, 0.3), stats.lognorm(0.3, scale=math.exp(0.5))),
        (UniformTime(), stats.uniform(0, 1)),
        (UniformTime(1e-3, 2.0), stats.uniform(1e-3, 2.0 - 1e-3)),
        (UniformLogSNR(0.02, 80), stats.loguniform(0.02, 80)),
    ],
)
def test_continuous_levels_have_their_distribution(sampler, distribution):
    levels, weights = sampler.draw(20_000, generator())
    assert stats.kstest(levels.numpy(), distribution.cdf).pvalue > P_VALUE
    assert (weights == 1).all()


def test_logit_normal_times():
    levels, _ = LogitNormal(-0.5, 1.5).draw(20_000, generator())
    assert ((levels > 0) & (levels < 1)).all()
    assert stats.kstest(torch.logit(levels).numpy(), stats.norm(-0.5, 1.5).cdf).pvalue > P_VALUE


@pytest.mark.parametrize("batch", [1, 8, 33])
def test_stratified_times_have_one_in_every_part(batch):
    levels, _ = UniformTime(stratified=True).draw(batch, generator())
    assert (levels * batch).floor().long().bincount(minlength=batch).eq(1).all()
    firsts = torch.cat([UniformTime(stratified=True).draw(4, generator(i))[0][:1] for i in range(500)])
    assert stats.kstest(firsts.numpy(), stats.uniform.cdf).pvalue > P_VALUE


def test_antithetic_times_mirror_each_other():
    levels, _ = UniformTime(0.2, 1.0, antithetic=True).draw(1001, generator())
    torch.testing.assert_close(levels[1::2], 1.2 - levels[:-1:2])
    levels, _ = UniformLogSNR(0.1, 10, antithetic=True).draw(10, generator())
    torch.testing.assert_close(levels[1::2], 1 / levels[::2])


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Uniform(0), "T must be an integer of at least 1, got 0"),
        (lambda: LossSecondMoment(4, history=0), "history must be"),
        (lambda: LossSecondMoment(4, uniform_prob=1.5), r"uniform_prob must be in \[0, 1\], got 1.5"),
        (lambda: LogSNRSteps([0.5]), "alphas_cumprod must fall"),
        (lambda: LogSNRSteps([0.5, 0.6]), "alphas_cumprod must fall"),
        (lambda: LogSNRSteps([1.0, 0.6]), "alphas_cumprod must fall"),
        (lambda: LogNormal(P_std=0), "P_std must be positive"),
        (lambda: LogitNormal(std=-1), "std must be positive"),
        (lambda: UniformTime(1.0, 1.0), "eps must be below end=1.0, got 1.0"),
        (lambda: UniformTime(antithetic=True, stratified=True), "antithetic and stratified"),
        (lambda: UniformLogSNR(2, 1), "sigma_min must be below sigma_max=1, got 2"),
        (lambda: LossSecondMoment(4).update(torch.tensor([4]), torch.zeros(1)), r"levels must be in \[0, 4\), got 4"),
        (lambda: LossSecondMoment(4).update(torch.tensor([0]), torch.zeros(2)), "levels and losses must be"),
        (lambda: LossSecondMoment(4).update(torch.tensor([0.0]), torch.zeros(1)), "levels and losses must be int64"),
    ],
)
def test_bad_input_is_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()
