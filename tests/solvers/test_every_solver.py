"""What holds for every solver: its length, its launches, its facts, and that the plan does what its lines do."""

from __future__ import annotations

import ast
import inspect
import math
import textwrap
from collections.abc import Callable
from typing import Any

import pytest
import torch

from fastdiff import ops
from fastdiff.plan import Call
from fastdiff.solvers import FACTS, SOLVERS
from fastdiff.trace import Choose, Measure
from tests.tolerances import SMALL_SIGMA

from .every import PLANNED, short_run

LINES = 30
SEEDS = torch.tensor([5, 6, 7, 8])
START = torch.linspace(-1, 1, 15, dtype=torch.float64).reshape(3, 5)
BENDS: dict[str, dict[str, Any]] = {
    "plain": {},
    "clipped": {"clip_denoised": True},
    "scaled": {"epsilon_scale": 1.02},
    "bent": {"denoised_fn": torch.tanh},
}


def body_lines(function: Callable[..., Any]) -> int:
    """Lines of a function after its docstring."""
    (definition,) = ast.parse(textwrap.dedent(inspect.getsource(function))).body
    assert isinstance(definition, ast.FunctionDef)
    first = definition.body[1 if ast.get_docstring(definition) else 0]
    return int(definition.end_lineno or 0) - first.lineno + 1


@pytest.mark.parametrize("name", PLANNED)
def test_a_step_function_has_at_most_thirty_lines(name):
    assert body_lines(SOLVERS[name]) <= LINES


@pytest.mark.parametrize("name", SOLVERS)
def test_every_solver_says_what_it_is(name):
    assert inspect.getdoc(SOLVERS[name])
    assert FACTS[name].source
    assert FACTS[name].evaluations
    assert any(noisy in name for noisy in ("sde", "ancestral")) <= FACTS[name].stochastic


@pytest.mark.parametrize("name", PLANNED)
@pytest.mark.parametrize("bend", ["plain", "clipped", "scaled"])
def test_at_most_one_fused_launch_per_evaluation(name, bend):
    """And the one that makes the start. Sums of squares write nothing; what samples choose by, or a measurement reads,
    has to be written, three tensors a launch, and a clipped x_0 has to be before its norm is taken."""
    plan = short_run(name, **BENDS[bend]).plan(x_init=name == "ddim_inversion")
    fused = [launch for launch in plan.launches if not launch.squares]
    events = [item.event for item in plan.items if isinstance(item, Call)]
    read = [event.values if isinstance(event, Choose) else event.values[event.squares :] for event in events
            if isinstance(event, (Choose, Measure))]  # fmt: skip
    written = sum(math.ceil(len(values) / 3) for values in read)
    clipped = sum(isinstance(event, Measure) for event in events if bend == "clipped")
    assert len(fused) <= plan.evaluations + 1 + written + clipped


@pytest.mark.parametrize("name", PLANNED)
@pytest.mark.parametrize("bend", BENDS)
@pytest.mark.parametrize("route", ["reference", None])
def test_the_plan_is_the_solver_s_own_lines(name, bend, route):
    """Compiled against the same solver running on tensors, in float64."""
    start = {"x_init": START} if name == "ddim_inversion" else {}
    given = {"seeds": 5, "return_trajectory": True, **start}
    _, compiled = short_run(name, backend=route, **BENDS[bend])((3, 5), **given)
    _, readable = short_run(name, compiled=False, **BENDS[bend])((3, 5), **given)
    assert (compiled - readable).abs().max() <= SMALL_SIGMA * readable.abs().max()


@pytest.mark.parametrize("name", PLANNED)
def test_observing_changes_no_bit(name):
    start = {"x_init": START} if name == "ddim_inversion" else {}
    sampler = short_run(name)
    assert torch.equal(sampler((3, 5), seeds=5, **start), sampler((3, 5), seeds=5, return_trajectory=True, **start)[0])


@pytest.mark.parametrize("name", PLANNED)
def test_one_step_is_finite_or_refused(name):
    """Official codes' grids of one step are 0 / 0."""
    start = {"x_init": START} if name == "ddim_inversion" else {}
    try:
        made = short_run(name, steps=1)
    except ValueError as error:
        assert "at least" in str(error)
    else:
        assert made((3, 5), seeds=1, **start).isfinite().all()


@pytest.mark.parametrize("name", PLANNED)
def test_samples_may_be_numbers_and_noise_a_function(name):
    """States [B]; and the draws that a run asks a function for are the lines' own, in their order."""
    asked = []

    def noise(draw, step):
        asked.append((draw, step))
        return ops.normal(SEEDS, (4,), draw, torch.float64)

    start = {"x_init": START.flatten()[:4]} if name == "ddim_inversion" else {}
    compiled, readable = short_run(name), short_run(name, compiled=False)
    x = compiled((4,), seeds=SEEDS, **start)
    for run in (readable((4,), seeds=SEEDS, **start), compiled((4,), noise=noise, **start)):
        assert (x - run).abs().max() <= SMALL_SIGMA * x.abs().max()
    once = asked.copy()
    asked.clear()
    readable((4,), noise=noise, **start)
    a, b = (run((4,), generator=torch.Generator().manual_seed(3), **start) for run in (compiled, readable))
    assert (a - b).abs().max() <= SMALL_SIGMA * a.abs().max()
    assert list(dict.fromkeys(asked)) == once  # where samples choose, the lines run once for each


@pytest.mark.parametrize("name", [name for name in PLANNED if name not in ("ddim_inversion", "dpm_fast")])
def test_a_part_of_an_image_is_kept(name):
    """As the lines do, whatever a solver remembers of the steps before."""
    given = {"seeds": 5, "image": START, "mask": torch.tensor([1.0, 1.0, 0.6, 0.0, 0.0])}
    x = short_run(name)((3, 5), **given)
    readable = short_run(name, compiled=False)((3, 5), **given)
    assert (x - readable).abs().max() <= SMALL_SIGMA * readable.abs().max()
    assert name in ("langevin", "mala") or x[:, :2].equal(START[:, :2])  # those end at their noise


@pytest.mark.parametrize(
    ("solver", "option", "message"),
    [
        ("euler_ancestral", {"eta": math.inf}, "eta must be finite, got inf"),
        ("dpmpp_2m_sde", {"S_noise": math.inf}, "S_noise must be finite, got inf"),
        ("ddim", {"eta": "a"}, "eta must be a number, got 'a'"),
        ("heun", {"S_churn": None}, "S_churn must be a number, got None"),
        ("dpmpp_sde", {"r": "half"}, "r must be a number, got 'half'"),
        ("unipc", {"lower_order_final": "no"}, "lower_order_final must be True or False, got 'no'"),
        ("dpm_fast", {"evaluations": 0}, "evaluations must be an integer of at least 1, got 0"),
        ("exponential_rk", {"c2": "half"}, "c2 must be a number, got 'half'"),
        ("edm_design_space", {"betas": 3.0}, r"betas must be two numbers \(beta_d, beta_min\), got 3.0"),
    ],
)
def test_options_of_another_kind_are_refused(solver, option, message):
    with pytest.raises(ValueError, match=message):
        short_run(solver, **option)
