"""Tracing and plans: what is recorded, what is written to memory, what is refused."""

from __future__ import annotations

import inspect
from itertools import pairwise

import pytest
import torch

import fastdiff
from fastdiff import Sampler
from fastdiff.guidance import ClassifierGuidance
from fastdiff.symbols import Combination, NotLinearError


def model(x, t):
    return 0.5 * x


def half_variance(x, t):
    return torch.cat([0.3 * x, 0.1 * x], 1)


def refused(solver) -> str:
    with pytest.raises(NotLinearError) as raised:
        Sampler(model, solver=solver, steps=3)
    return str(raised.value)


def line_of(function, text: str) -> int:
    lines, first = inspect.getsourcelines(function)
    return first + next(i for i, line in enumerate(lines) if text in line)


def test_not_linear_names_the_line():
    def squares(denoise, x, levels, noise):
        x0 = denoise(x, levels[0])
        x = x0 * x0
        yield x

    message = refused(squares)
    assert f"{__file__}:{line_of(squares, 'x0 * x0')} (squares)" in message
    assert "multiplied by another state" in message


@pytest.mark.parametrize(
    "operation",
    [
        lambda x: x**2,
        lambda x: abs(x),
        lambda x: torch.clamp(x, -1, 1),
        lambda x: torch.sqrt(x),
        lambda x: x.clamp(-1, 1),
        lambda x: 1.0 / x,
        lambda x: x + 1.0,
        lambda x: x * torch.ones(3),
        lambda x: torch.ones(3) * x,
        lambda x: x if x > 0 else -x,
        lambda x: x if x == 0 else -x,
        lambda x: x[0],
        lambda x: float(x),
    ],
)
def test_everything_else_is_refused(operation):
    def solver(denoise, x, levels, noise):
        yield operation(denoise(x, levels[0]))

    assert __file__ in refused(solver)


def test_combination_arithmetic():
    import numpy as np

    a, b = object(), object()
    x, y = Combination({a: 1.0}), Combination({b: 2.0})
    z = np.float64(3.0) * (x - y / 4) + -x * 2 + y
    assert z.terms == {a: 1.0, b: 0.5}
    assert sum([x, +y]).terms == {a: 1.0, b: 2.0}
    with pytest.raises(ZeroDivisionError, match=__file__):
        x / 0
    for wrong in (lambda: x * float("nan"), lambda: x / np.inf, lambda: float("-inf") * x):
        with pytest.raises(ValueError, match=f"by (nan|-?inf) in {__file__}"):
            wrong()


@pytest.mark.parametrize("options", [{}, {"S_churn": 40.0}, {"epsilon_scale": 1.01}, {"clip_denoised": True}])
@pytest.mark.parametrize("solver", ["euler", "heun"])
def test_one_launch_per_evaluation(solver, options):
    plan = Sampler(model, solver=solver, steps=5, **options).plan()
    assert len(plan.launches) == plan.evaluations + 1
    assert plan.evaluations == (5 if solver == "euler" else 9)


@pytest.mark.parametrize("variance", ["fixed_small", "fixed_large", "learned", "learned_range"])
def test_ancestral_sampling_is_one_launch_per_evaluation(variance):
    options = {"process": "vp", "prediction": "eps", "steps": 10, "clip_denoised": True}
    plan = Sampler(half_variance, solver="ddpm", variance=variance, **options).plan()
    assert len(plan.launches) == 11
    # Read state, output and the variance half where it is learned; write the state once.
    assert all(len(launch.inputs) == 2 and len(launch.outputs) == 1 for launch in plan.launches[1:])
    assert [launch.draws for launch in plan.launches] == [[k] for k in range(10)] + [[]]
    learned = [launch.variance is not None for launch in plan.launches]
    assert learned == [False] + [variance.startswith("learned")] * 9 + [False]


@pytest.mark.parametrize("clip", [False, True])
@pytest.mark.parametrize("variance", ["learned", "learned_range"])
def test_guidance_scaled_by_a_learned_variance_is_one_more_read(variance, clip):
    """ADM's rule: exp(a v + b) G beside exp((a v + b) / 2) z, one launch per evaluation as without guidance."""

    def classifier(x, t):
        return torch.stack([x.flatten(1).sum(1), -x.flatten(1).square().sum(1)], 1)

    options = {"process": "vp", "prediction": "eps", "solver": "ddpm", "steps": 6, "variance": variance}
    options |= {"clip_denoised": clip, "dtype": torch.float64, "backend": "reference"}
    adm = {"guidance": ClassifierGuidance(classifier, 0.1, rule="mean", shared=False)}
    guided = Sampler(half_variance, **options, **adm)
    plain, pushed = (s.plan().launches for s in (Sampler(half_variance, **options), guided))
    assert len(pushed) == len(plain) == 7
    assert [len(launch.inputs) for launch in plain] == [0] + [2] * 6
    assert [len(launch.inputs) for launch in pushed] == [0] + [3] * 6
    assert [launch.variance is not None for launch in pushed] == [False] + [True] * 6
    # C, perhaps P, lo, hi, c, then a, b, E and D over state, output, gradient and draw; no draw in the last step.
    widths = [launch.table.shape[1] for launch in pushed[1:]]
    assert widths == [3 * 4 + 2 + clip * (4 + 3)] * 5 + [2 * 3 + 2 + clip * (3 + 3)]
    runs = (Sampler(half_variance, **options, **adm, compiled=compiled) for compiled in (True, False))
    fused, expected = (run((2, 3, 4, 4), seeds=[1, 2], labels=torch.tensor([0, 1])) for run in runs)
    assert torch.allclose(fused, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(
    ("factors", "launches", "squares"),
    [
        ([(0.5, 0.2), (1.0, 0.4)], 0, 1),
        ([(1.0, 0.4), (0.5, 0.2)], 0, 1),
        ([(1.0, 0.4), (1.0, 0.4)], 1, 0),
        ([(0.5, 0.2), (1.0, 0.5)], 1, 0),
        ([(0.5, 0.2), (1.0, 0.4), (1.0, 0.4)], 1, 1),
        ([(0.5, 0.2), (1.0, 0.4), (2.0, 0.8)], 1, 1),
    ],
)
def test_two_scaled_values_share_a_launch_if_one_factor_is_the_others_square(factors, launches, squares):
    def scaling(denoise, x, levels, noise):
        evaluation = denoise.evaluate(x, levels[0])
        values = [noise(), 2.0 * x + evaluation.x0, 0.5 * x]
        x = evaluation.x0 + sum(denoise.learned(evaluation, a, b, v) for (a, b), v in zip(factors, values))
        yield x

    options = {"solver": scaling, "process": "vp", "prediction": "eps", "steps": 1, "dtype": torch.float64}
    options |= {"backend": "reference"}
    plan = Sampler(half_variance, **options).plan()
    assert len(plan.launches) == 2 + launches
    widths = [(len(i.inputs) + len(i.draws)) * len(i.outputs) for i in plan.launches]
    assert sum(i.table.shape[1] == 3 * w + 2 for i, w in zip(plan.launches, widths)) == squares
    fused, expected = (
        Sampler(half_variance, **options, compiled=compiled)((2, 4, 3), seeds=[5, 6]) for compiled in (True, False)
    )
    assert torch.allclose(fused, expected, rtol=1e-12, atol=1e-12)


def test_scaled_values_of_too_many_tensors_do_not_share_a_launch():
    """Each of them fits into a launch, both do not, whichever comes first."""

    def scaling(denoise, x, levels, noise):
        points = []
        for i in range(levels.steps - 1):
            x = x + 0.1 * denoise(x, levels[i]) + 0.3 * noise()
            points.append(x)
            yield x
        last = denoise.evaluate(x, levels[levels.steps - 1])
        sums = sum(points[:5]), sum(points[4:])
        x = last.x0 + denoise.learned(last, 0.5, 0.1, sums[0]) + denoise.learned(last, 1.0, 0.2, sums[1])
        yield x

    options = {"solver": scaling, "process": "vp", "prediction": "eps", "steps": 9, "backend": "reference"}
    options |= {"dtype": torch.float64}
    assert max(len(launch.inputs) for launch in Sampler(half_variance, **options).plan().launches) <= 8
    fused, expected = (
        Sampler(half_variance, **options, compiled=compiled)((2, 4, 3), seeds=[5, 6]) for compiled in (True, False)
    )
    assert torch.allclose(fused, expected, rtol=1e-12, atol=1e-12)


def test_heuns_trial_point_is_never_written():
    """With a preconditioned network only c_in x' is written after the first evaluation of a step, in its dtype."""
    plan = Sampler(model, prediction="edm", steps=4).plan()
    states = [[o.name for o in launch.outputs if not o.for_network] for launch in plan.launches]
    assert states == [["x[0]"], [], ["x[1]"], [], ["x[2]"], [], ["x[3]"], ["x"]]


def test_a_churned_state_is_written_once_and_draws_once():
    plan = Sampler(model, steps=4, S_churn=20.0).plan()
    assert [launch.draws for launch in plan.launches] == [[0, 1], [], [2], [], [3], [], [4], []]
    assert all(len(launch.outputs) == 1 for launch in plan.launches)


def test_a_churn_of_zero_draws_nothing():
    plan = Sampler(model, steps=6, S_churn=20.0, S_min=0.05, S_max=50.0).plan()
    sigmas = Sampler(model, steps=6).levels.sigmas[:-1]
    active = int(((sigmas >= 0.05) & (sigmas <= 50)).sum())
    assert 0 < active < 6
    assert sum(len(launch.draws) for launch in plan.launches) == 1 + active


def test_denoised_fn_splits_a_launch_in_two():
    options = {"process": "vp", "prediction": "eps", "solver": "ddpm", "steps": 5}
    plain, split = Sampler(model, **options).plan(), Sampler(model, denoised_fn=torch.tanh, **options).plan()
    assert len(split.launches) == len(plain.launches) + 5


def test_the_last_step_reads_only_what_it_needs():
    """Stepping to sigma = 0 returns x_0: the rounding of 1 - sigma / sigma is not a read of the state."""
    for steps in range(2, 40):
        launch = Sampler(model, solver="euler", steps=steps).plan().launches[-1]
        assert launch.table.tolist() == [[1.0]]


def test_a_low_precision_network_gets_its_input_in_its_own_dtype():
    net = torch.nn.Linear(3, 3).to(torch.bfloat16)
    sampler = Sampler(lambda x, t: net(x), steps=3, model_dtype=torch.bfloat16)
    seen = []
    sampler.model = lambda x, t: seen.append((x.dtype, t.dtype)) or net(x)
    assert sampler((2, 3), seeds=0).dtype == torch.float32
    assert set(seen) == {(torch.bfloat16, torch.float32)}


def test_a_users_solver_is_fused():
    """Second-order Adams-Bashforth in six lines: one launch per evaluation, equal to its own lines on tensors."""

    def adams_bashforth(denoise, x, levels, noise):
        previous = None
        for level, following in pairwise(levels):
            d = (x - denoise(x, level)) / level.sigma
            slope = d if previous is None else 1.5 * d - 0.5 * previous
            x, previous = x + (following.sigma - level.sigma) * slope, d
            yield x

    kwargs = {"solver": adams_bashforth, "steps": 6, "dtype": torch.float64, "backend": "reference"}
    fused, plain = Sampler(model, **kwargs), Sampler(model, compiled=False, **kwargs)
    assert len(fused.plan().launches) == fused.plan().evaluations + 1
    a, b = fused((2, 3), seeds=0), plain((2, 3), seeds=0)
    assert torch.allclose(a, b, rtol=1e-12, atol=1e-12)


def test_a_long_history_is_summed_in_parts():
    """Momentum reads every step before it; more than 8 tensors or 64 draws are summed by several launches."""

    def momentum(denoise, x, levels, noise):
        slope, shaken = 0.0 * x, 0.0 * x
        for level, following in pairwise(levels):
            slope = 0.5 * slope + (x - denoise(x, level)) / level.sigma
            shaken = shaken + 0.01 * sum(noise() for _ in range(6))
            x = x + (following.sigma - level.sigma) * slope + shaken
            yield x

    kwargs = {"solver": momentum, "prediction": "eps", "steps": 12, "dtype": torch.float64}
    a, b = Sampler(model, **kwargs), Sampler(model, compiled=False, **kwargs)
    assert len(a.plan().launches) > a.plan().evaluations + 1
    assert all(len(launch.inputs) <= 8 and len(launch.draws) <= 64 for launch in a.plan().launches)
    x, y = a((2, 3), seeds=0), b((2, 3), seeds=0)
    assert (x - y).abs().max() / y.abs().max() < 1e-12


def test_a_clipped_sum_of_too_many_tensors_is_one_clear_error():
    def hoarder(denoise, x, levels, noise):
        points = [denoise(x, levels[0]) for _ in range(9)]
        yield denoise(sum(points), levels[1])

    with pytest.raises(NotImplementedError, match="more than 8 tensors"):
        Sampler(model, solver=hoarder, steps=3, clip_denoised=True, prediction="eps")


def test_two_clipped_values_in_one_state():
    """Each launch clips one value; a second is written by a launch of its own."""

    def two(denoise, x, levels, noise):
        a, b = denoise(x, levels[0]), denoise(x, levels[1])
        x = 0.25 * x + a - 0.5 * b
        yield x

    kwargs = {"solver": two, "steps": 3, "dtype": torch.float64, "clip_denoised": (-0.1, 0.1), "backend": "reference"}
    a = Sampler(model, **kwargs)((2, 3), seeds=0)
    b = Sampler(model, compiled=False, **kwargs)((2, 3), seeds=0)
    assert torch.allclose(a, b, rtol=1e-12, atol=1e-12)


def both_ways(solver, generator=None, **options):
    """The compiled run and the solver's own lines on tensors agree; returns the plan."""
    kwargs = {"solver": solver, "steps": 3, "dtype": torch.float64, "backend": "reference"} | options
    fused, plain = Sampler(model, **kwargs), Sampler(model, compiled=False, **kwargs)
    for noise in {None, generator}:
        call = [{} if noise is None else {"generator": torch.Generator().manual_seed(noise)} for _ in range(2)]
        (a, seen), (b, expected) = (
            sampler((2, 3), seeds=0, return_trajectory=True, **c) for sampler, c in zip((fused, plain), call)
        )
        assert torch.allclose(a, b, rtol=1e-12, atol=1e-12)
        assert torch.allclose(seen, expected, rtol=1e-12, atol=1e-12)
        assert fused((2, 3), seeds=0).shape == (2, 3)
    return fused.plan()


@pytest.mark.parametrize("clip", [False, True])
def test_an_output_nobody_reads(clip):
    """A last evaluation that is thrown away is still made, and its clipped x_0 is never written."""

    def wasteful(denoise, x, levels, noise):
        for level in levels[:2]:
            x = x + denoise(x, level)
            yield x
        denoise(x, levels[1])

    plan = both_ways(wasteful, clip_denoised=clip)
    assert plan.evaluations == 3 and len(plan.launches) == 3


def test_noise_handed_in_is_asked_for_once_and_in_order():
    """Draws used twice, late, out of order or never: PyTorch's generator gives what the solver's own lines get."""

    def hoarder(denoise, x, levels, noise):
        late, unused, now = noise(), noise(), noise()
        del unused
        x = x + now
        x = denoise(x, levels[0]) + 0.5 * now
        yield x
        x = denoise(x, levels[1]) + late - 0.25 * now
        yield x

    both_ways(hoarder, generator=3)


def test_a_step_may_yield_before_any_evaluation_or_nothing_new():
    def idle(denoise, x, levels, noise):
        yield x
        yield x
        x = denoise(x, levels[0])
        yield x
        yield x

    both_ways(idle)


def test_a_state_may_be_zero(backend, device):
    def nothing(denoise, x, levels, noise):
        denoise(x, levels[0])
        yield 0.0 * x

    assert Sampler(model, solver=nothing, steps=3, backend=backend)((2, 3), seeds=0).equal(torch.zeros(2, 3))


def test_one_point_evaluated_twice_is_written_once():
    def twice(denoise, x, levels, noise):
        x = denoise(x, levels[0]) + denoise(x, levels[0]) - 0.5 * x
        yield x

    plan = both_ways(twice, prediction="edm")
    assert [len(launch.outputs) for launch in plan.launches] == [2, 1]


def test_every_slot_but_the_result_is_freed():
    """Variance halves and outputs that nothing reads included: memory does not grow with the steps."""
    options = {"process": "vp", "prediction": "eps", "steps": 6}
    plan = Sampler(half_variance, solver="ddpm", variance="learned", **options).plan()
    assert sorted(slot for dead in plan.dead for slot in dead) == sorted({*range(len(plan.names))} - {plan.final})


def test_print_is_a_table():
    text = str(Sampler(model, prediction="edm", steps=3, S_churn=10.0).plan(steps=4))
    assert "network input" in text and "z0, z1" in text and "8 launches, 7 network evaluations" in text
    assert len(text.splitlines()) == 11


@pytest.mark.parametrize("clip", [False, True])
@pytest.mark.parametrize("solver", ["ddpm", "ddim", "euler", "heun"])
def test_observing_a_run_does_not_change_its_bits(solver, clip):
    """Also on cosine levels, whose coefficients span nine orders of magnitude."""
    options = {"process": "vp_cosine", "prediction": "eps", "steps": 20, "clip_denoised": clip}
    sampler = Sampler(lambda x, t: torch.sin(x), solver=solver, **options)
    assert sampler((3, 5), seeds=0, return_trajectory=True)[0].equal(sampler((3, 5), seeds=0))


def test_states_and_predictions_are_observed_without_an_extra_launch():
    sampler = Sampler(model, process="vp", prediction="eps", solver="ddim", steps=5)
    observed = sampler.plan(observe=True)
    assert len(observed.launches) == len(sampler.plan().launches)
    seen: list[fastdiff.StepInfo] = []
    x, trajectory = sampler((2, 3), seeds=0, callback=seen.append, return_trajectory=True)
    assert [info.step for info in seen] == list(range(5))
    assert trajectory.shape == (6, 2, 3) and trajectory[-1].equal(x) and seen[-1].x.equal(x)
    assert seen[-1].denoised.equal(x)  # the last step returns the predicted x_0
    assert sampler((2, 3), seeds=0).equal(x)
