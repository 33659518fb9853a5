"""Runs of EDM-G++ and SEDM-G++ against a plain loop: random configurations, boosting, windows that split a batch."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch

from fastdiff import Sampler
from fastdiff.guidance import AutoGuidance, Boosting, DiscriminatorGuidance, vp
from fastdiff.ops import native

from ..conformance import dg_loop
from ..conformance.analytic import Mixture, per_sample
from .toys import ROUTE_PARAMS, ROUTES, SHAPES, Judge, column

COMPILED = [param for param in ROUTE_PARAMS if param.values[0] != "readable"]
TOLERANCE = 1e-9


@dataclass
class Problem:
    """A sampler's configuration and the plain loop of the same run."""

    shape: tuple[int, ...]
    steps: int
    grid: dict[str, float]
    churn: dict[str, float]
    guidance: dict[str, Any]
    boosting: Boosting | None
    scales: list[float]
    euler: bool
    labels: torch.Tensor | None
    judge: Judge
    seed: int

    @property
    def batch_window(self) -> bool:
        return self.guidance["batch_window"]

    def draws(self) -> torch.Tensor:
        random = torch.Generator().manual_seed(self.seed)
        return torch.randn(self.steps + 1, *self.shape, generator=random, dtype=torch.float64)

    def net(self, x, sigma, labels=None):
        return _mixture(self.shape[1:]).denoise(x, torch.ones_like(sigma), sigma) + 0.05 * (3 * x).sin() * per_sample(
            sigma / (1 + sigma), x
        )

    def sampler(self, route: str, **changes: Any) -> Sampler:
        term = DiscriminatorGuidance(self.judge, boosting=self.boosting, **{**self.guidance, **changes})
        return Sampler(
            self.net,
            solver="euler" if self.euler else "heun",
            steps=self.steps,
            epsilon_scale=self.scales,
            guidance=term,
            dtype=torch.float64,
            **self.grid,
            **self.churn,
            **ROUTES[route],
        )

    def run(self, route: str, **changes: Any) -> torch.Tensor:
        """States of the library's run."""
        draws = self.draws()
        sampler = self.sampler(route, **changes)
        noise = lambda draw, step: draws[step + 1]  # noqa: E731
        return sampler(self.shape, noise=noise, labels=self.labels, return_trajectory=True)[1]

    def loop(self, **changes: Any) -> dict[str, torch.Tensor]:
        """What the plain loop records."""
        draws, guidance = self.draws(), dict(self.guidance)
        grid = self.sampler("reference").levels.sigmas.tolist()
        loop = {
            "cosine": guidance.pop("time") == "cosine",
            "per_sample": not guidance.pop("batch_window"),
            "boosting": self.boosting and dg_loop.Boost(**vars(self.boosting)),
            "use_euler": self.euler,
        }
        constant = self.scales[0]
        assert np.allclose(np.diff(self.scales, 2), 0)
        kappa = self.scales[1] - self.scales[0]
        return dg_loop.sedm_gpp(
            self.net,
            self.judge,
            draws[0],
            grid,
            lambda step: draws[step + 1],
            eps_scaler=constant,
            kappa=kappa,
            labels=self.labels,
            **{**loop, **guidance, **self.churn, **changes},
        )


def _mixture(shape: tuple[int, ...]) -> Mixture:
    random = np.random.default_rng(sum(shape))
    return Mixture(random.normal(size=(4, *shape)) * 0.6, random.uniform(0.1, 0.4, 4), random.dirichlet(np.ones(4)))


def problem(seed: int) -> Problem:
    """A random configuration; every choice is taken by some of the first few."""
    random = np.random.default_rng(seed)
    pick = lambda *options: options[random.integers(len(options))]  # noqa: E731
    shape, steps = SHAPES[seed % len(SHAPES)], int(random.integers(3, 11))
    weights = random.uniform(0.5, 3.0, steps).tolist()
    boosting = pick(None, Boosting(), Boosting(period=2, churn=6.0, noise=1.1, factor_period=1, factor=3.0))
    constant, kappa = pick((1.0, 0.0), (1.02, 0.0), (0.99, 0.003))
    return Problem(
        shape=shape,
        steps=steps,
        grid=pick({}, {"sigma_min": 0.02, "sigma_max": 20.0, "rho": 3.0}),
        churn=pick({}, {"S_churn": 2.0, "S_noise": 1.003}, {"S_churn": 40.0, "S_min": 0.05, "S_max": 50.0}),
        guidance={
            "w_1st": pick(2.0, 1.67, weights),
            "w_2nd": pick(0.0, 0.0, 1.0),
            "time": pick("vp", "vp", "cosine"),
            "batch_window": pick(False, True),
            **pick({}, {"time_min": 0.1, "time_max": 0.6}, {"time_min": 0.0, "time_max": 0.9}),
        },
        boosting=boosting,
        scales=[constant + kappa * i for i in range(steps)],
        euler=pick(False, False, True),
        labels=pick(None, torch.as_tensor(random.integers(0, 3, shape[0]))),
        judge=Judge(math.prod(shape[1:]), seed, shift=float(pick(0.0, 1.0)), classes=3, gain=2.0),
        seed=seed,
    )


RANDOM = [problem(seed) for seed in range(18)]


def assert_same(got: torch.Tensor, want: dict[str, torch.Tensor]) -> None:
    states = want["states"]
    worst = (got - states).abs().max() / states.abs().max().clamp(min=1)
    assert worst < TOLERANCE, f"{worst:.1e}"
    final = want["final"]
    assert (got[-1] - final).abs().max() / final.abs().max().clamp(min=1) < TOLERANCE


@pytest.mark.parametrize("route", COMPILED)
@pytest.mark.parametrize("number", range(len(RANDOM)))
def test_random_configurations(number, route):
    assert_same(RANDOM[number].run(route), RANDOM[number].loop())


@pytest.mark.parametrize("number", [i for i, p in enumerate(RANDOM) if not (p.boosting and p.batch_window)])
def test_random_configurations_on_tensors(number):
    assert_same(RANDOM[number].run("readable"), RANDOM[number].loop())


def test_samples_that_run_alone_have_no_batch_window():
    with pytest.raises(ValueError, match="batch_window must be False"):
        splitting("time_min").run("readable", batch_window=True)


def test_the_random_configurations_boost():
    """Some samples of some batches are boosted, and it matters."""
    mattered = 0
    for wanted in RANDOM:
        if wanted.boosting:
            mattered += not torch.equal(wanted.loop()["final"], wanted.loop(boosting=None)["final"])
    assert mattered >= 4


def splitting(limit: str) -> Problem:
    """Boosted churn carries some samples of a batch across a limit of the window in step 2, and leaves the others."""
    steps, shape = 6, (6, 5)
    found = Problem(
        shape=shape,
        steps=steps,
        grid={"sigma_min": 1.0, "sigma_max": 4.0},
        churn={},
        guidance={"w_1st": 1.0, "w_2nd": 0.0, "time": "vp", "batch_window": False, "time_min": 0.0, "time_max": 1.0},
        boosting=Boosting(period=2, churn=40.0),
        scales=[1.0] * steps,
        euler=False,
        labels=None,
        judge=Judge(5, gain=2.0),
        seed=3,
    )
    grid = found.sampler("reference").levels.sigmas
    above = grid[1] if limit == "time_min" else math.sqrt(2) * grid[2]  # step 1 is inside
    below = grid[2] if limit == "time_min" else grid[1]
    found.guidance[limit] = float(vp.tau_of_sigma(math.sqrt(above * below)))
    return found


@pytest.mark.parametrize("route", ROUTE_PARAMS)
@pytest.mark.parametrize("limit", ["time_min", "time_max"])
def test_the_window_is_each_samples_own(limit, route):
    wanted = splitting(limit)
    want = wanted.loop()
    flagged = want["sigma_hat"][2] > want["sigma_hat"][2].min()
    assert flagged.any() and not flagged.all(), "the batch is not split"
    guided = want["dg_guidance"][2].flatten(1).any(1)
    assert guided.equal(flagged if limit == "time_min" else ~flagged)
    assert_same(wanted.run(route), want)


@pytest.mark.parametrize("limit", ["time_min", "time_max"])
def test_samples_outside_the_window_are_not_boosted_next(limit):
    """Boosting in every step: who was outside in the last one has no log ratio, whatever the discriminator thinks."""
    outside_and_fake = 0
    for seed in range(4):
        wanted = splitting(limit)
        wanted.boosting, wanted.seed = Boosting(period=1, churn=40.0), seed
        wanted.guidance["w_1st"] = -2.0  # makes fakes
        want = wanted.loop()
        assert_same(wanted.run("reference"), want)
        ratio = torch.stack(
            [
                wanted.judge(column(torch.as_tensor(vp.vp_scale(s)), x) * x, torch.as_tensor(vp.tau_of_sigma(s)))
                for x, s in zip(want["dg_x"], want["dg_sigma"].numpy())
            ]
        )
        outside = want["dg_log_ratio"] == dg_loop.OFF
        split = outside.any(1) & ~outside.all(1)
        outside_and_fake += int((outside & (ratio < 0))[split].sum())
    assert outside_and_fake, "nobody tells the two apart"


@pytest.mark.parametrize("route", COMPILED)
@pytest.mark.parametrize("limit", ["time_min", "time_max"])
def test_the_official_window_is_the_whole_batchs(limit, route):
    """The least time decides for all: one sample below the window switches all off; one above it changes nothing."""
    wanted = splitting(limit)
    alone, together = wanted.loop(), wanted.loop(per_sample=False)
    assert not torch.equal(alone["final"], together["final"])
    assert bool(together["dg_active"][2]) == (limit == "time_max")
    assert_same(wanted.run(route, batch_window=True), together)


@pytest.mark.parametrize("route", COMPILED)
def test_without_boosting_both_windows_agree(route):
    wanted = splitting("time_min")
    wanted.boosting = None
    assert wanted.run(route).equal(wanted.run(route, batch_window=True))


@pytest.mark.parametrize("route", ROUTE_PARAMS)
def test_boosting_does_not_depend_on_the_batch(route):
    wanted = splitting("time_max")
    whole = wanted.run(route)
    draws = wanted.draws()
    noise = lambda draw, step: draws[step + 1][2:4]  # noqa: E731
    part = wanted.sampler(route)((2, 5), noise=noise, return_trajectory=True)[1]
    torch.testing.assert_close(part, whole[:, 2:4], rtol=1e-12, atol=1e-12)


def test_the_first_step_and_unguided_steps_boost_nobody():
    """No log ratio was seen before step 0, nor in a step outside the window: there every sample churns alike."""
    wanted = splitting("time_max")
    high = wanted.guidance["time_max"]
    levels = []

    def net(x, sigma, labels=None):
        levels.append(sigma.clone())
        return wanted.net(x, sigma)

    sampler = wanted.sampler("reference").replace(model=net)
    sampler((6, 5), seeds=0)
    first, apart = levels[0::2], [len(set(level.tolist())) > 1 for level in levels[0::2]]
    tau = [float(vp.tau_of_sigma(level.min().item())) for level in first]
    assert not apart[0] and not any(apart[i] for i in range(1, 6) if tau[i - 1] > high)
    assert any(apart), "nobody is ever boosted"


@pytest.mark.skipif(not native.available("cpu"), reason=native.reason("cpu"))
def test_backends_and_seeds_agree_on_boosted_runs():
    for wanted in RANDOM[:9]:
        a, b = (wanted.sampler(route)(wanted.shape, seeds=5, labels=wanted.labels) for route in ("reference", "cpu"))
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-10)


def test_a_boosted_run_that_breaks_says_where():
    """NaN in a step whose levels differ from sample to sample."""
    wanted = splitting("time_max")

    def net(x, sigma, labels=None):
        return wanted.net(x, sigma) * (math.nan if (sigma != sigma[0]).any() else 1.0)

    with pytest.raises(FloatingPointError, match="first in step 2"):
        wanted.sampler("reference").replace(model=net)((6, 5), seeds=0)


@pytest.mark.parametrize("route", ROUTE_PARAMS)
def test_observed_runs_have_the_bits_of_others(route):
    for wanted in [p for p in RANDOM if p.boosting and not p.batch_window][:6]:
        sampler = wanted.sampler(route)
        call = {"seeds": 0, "labels": wanted.labels}
        final = sampler(wanted.shape, **call)
        assert final.isfinite().all() and sampler(wanted.shape, return_trajectory=True, **call)[0].equal(final)


def test_a_callback_of_a_boosted_run():
    wanted, seen = splitting("time_max"), []
    wanted.sampler("reference")((6, 5), seeds=0, callback=lambda info: seen.append((info.step, repr(info.level))))
    assert [step for step, _ in seen] == list(range(6))


@pytest.mark.parametrize("route", COMPILED)
def test_a_callback_is_told_the_same_levels_on_every_route(route):
    """Where samples are at several levels, that of the grid."""
    wanted, seen = splitting("time_max"), {}
    for name in (route, "readable"):
        levels = seen[name] = []
        wanted.sampler(name)((6, 5), seeds=0, callback=lambda info, levels=levels: levels.append(info.level))
    assert seen[route] == seen["readable"] and len(seen[route]) == 6


VP = {"process": "vp", "prediction": "x0"}
PROCESSES = {
    "ve": {"process": "ve", "steps": 7, "S_churn": 2.0},
    "vp heun": {**VP, "solver": "heun", "steps": "9"},
    "vp euler": {**VP, "solver": "euler", "steps": "9", "S_churn": 1.0},
    "ddim": {**VP, "solver": "ddim", "steps": "9", "eta": 0.5},
    "ddpm": {**VP, "solver": "ddpm", "steps": "9"},
    "every step": {"steps": 7},
}


@pytest.mark.parametrize("name", PROCESSES)
def test_boosting_on_every_process(name):
    """Samples with rows of coefficients of their own are what they are when they run alone, on tensors."""
    shape, seeds, judge = (6, 5), range(6), Judge(5, gain=2.0, shift=2.0)
    everywhere = {"time_min": 0.0, "time_max": 2.0}

    def net(x, t):
        return 0.5 * x.tanh()

    runs = {}
    for factor in (1.0, 3.0):
        boosting = Boosting(period=1 if name == "every step" else 2, churn=20.0, factor_period=2, factor=factor)
        term = DiscriminatorGuidance(judge, 0.1, boosting=boosting, **everywhere)
        options = {"guidance": term, "dtype": torch.float64, **PROCESSES[name]}
        runs[factor] = [Sampler(net, **options, **ROUTES[r.values[0]])(shape, seeds=seeds) for r in ROUTE_PARAMS[:2]]
        torch.testing.assert_close(*runs[factor], rtol=1e-9, atol=1e-9)
    assert not torch.allclose(runs[1.0][0], runs[3.0][0], atol=1e-6)
    plain = Sampler(net, **{**options, "guidance": DiscriminatorGuidance(judge, 0.1, **everywhere)})
    assert torch.equal(runs[1.0][1], plain(shape, seeds=seeds)) == (name in ("ddim", "ddpm")), "they do not churn"


@pytest.mark.parametrize("route", ROUTE_PARAMS)
def test_functions_of_the_level_see_each_samples_own(route):
    """A weight by comparison and an interval: as in a plain loop, each sample is weighted by the level it is at."""
    shape, judge = (8, 5), Judge(5, gain=2.0, shift=1.0)
    boosting = Boosting(period=1, churn=20.0, factor=1.0)

    def weight(level):
        assert isinstance(level.sigma, float)
        return 0.3 if 0.5 < level.sigma < 5.0 else 0.1

    terms = [
        DiscriminatorGuidance(judge, weight, weight, boosting=boosting, time_min=0.0),
        AutoGuidance(lambda x, t: 0.3 * x.tanh(), weight, interval=(0.3, 4.5)),
    ]
    options = {"guidance": terms, "steps": 9, "dtype": torch.float64}
    net = lambda x, t: 0.5 * x.tanh()  # noqa: E731
    run = Sampler(net, **options, **ROUTES[route])(shape, seeds=0)
    alone = [Sampler(net, **options, **ROUTES["readable"])((1, 5), seeds=[k]) for k in range(8)]
    torch.testing.assert_close(run, torch.cat(alone), rtol=1e-9, atol=1e-9)
    apart = Sampler(net, **{**options, "guidance": terms[1]}, compiled=False)(shape, seeds=0)
    assert not run.equal(apart)


@pytest.mark.parametrize("window", [False, True])
@pytest.mark.parametrize("route", ROUTE_PARAMS)
def test_no_samples_at_all(route, window):
    term = DiscriminatorGuidance(Judge(5), boosting=Boosting(period=2), time_min=0.3, batch_window=window)
    assert Sampler(lambda x, t: 0.5 * x, steps=7, guidance=term, **ROUTES[route])((0, 5), seeds=0).shape == (0, 5)


def test_churned_levels_are_between_no_two_of_the_chain():
    """One clear error, with one level for all samples or several."""
    term = DiscriminatorGuidance(Judge(5), 0.1, boosting=Boosting(period=2), time_min=0.0, time_max=2.0)
    options = {"process": "vp", "prediction": "previous_x", "solver": "euler", "steps": "9"}
    for more in ({"guidance": term}, {"S_churn": 4.0}):
        with pytest.raises(ValueError, match=r"previous_x.*leave out churn"):
            Sampler(lambda x, t: 0.9 * x, **options, **more)
