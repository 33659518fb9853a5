"""Predictor-corrector sampling: its steps against other solvers and closed forms, what it draws, what it refuses."""

from __future__ import annotations

import math
from itertools import product

import numpy as np
import pytest
import torch

from fastdiff import EDM, VP, Sampler
from fastdiff.continuous import Flow, SDEProcess
from fastdiff.sde import VESDE, VPSDE, subVPSDE
from fastdiff.solvers.langevin import SnrStep
from fastdiff.solvers.predictor_corrector import PREDICTORS, Exact, Tabled
from tests.solvers.linear import sample_moments
from tests.tolerances import SMALL_SIGMA

F64 = {"dtype": torch.float64, "solver": "predictor_corrector"}
MEAN, STD = 0.4, 0.6
SDES = {"ve": VESDE(sigma_max=10.0), "vp": VPSDE(beta_max=8.0), "subvp": subVPSDE(beta_max=8.0)}


def gaussian(sde):
    """What score_sde's network of N(MEAN, STD^2) answers."""

    def output(x, label):
        t = label / 999 if sde.name != "ve" else sde.time(label)
        alpha, sigma = (m.reshape(-1, *(1,) * (x.ndim - 1)).to(x.dtype) for m in (sde.alpha(t), sde.sigma(t)))
        eps = sigma * (x - alpha * MEAN) / (alpha**2 * STD**2 + sigma**2)
        return -eps / sigma if sde.name == "ve" else eps

    return {"model": output, "prediction": "score" if sde.name == "ve" else "eps", "process": SDEProcess(sde)}


def sampler(name, **options):
    return Sampler(**gaussian(SDES[name]), **F64, **options)


def final_moments(made):
    """Exact mean and standard deviation of the samples of a run from noised data."""
    return sample_moments(made, MEAN, math.hypot(STD, made.levels[0].sigma_ve))


REFUSED = {("ancestral_sampling", "levels", True), ("ancestral_sampling", "score_sde", True)}
WAYS = [
    (name, *way)
    for name in SDES
    for way in product(PREDICTORS[:3], ["levels", "score_sde"], [False, True])
    if way not in REFUSED and (name, *way[:2]) != ("subvp", "ancestral_sampling", "score_sde")
]


@pytest.mark.parametrize(("name", "predictor", "discretization", "flow"), WAYS)
def test_predictors_reach_the_data(name, predictor, discretization, flow):
    options = {"predictor": predictor, "corrector": "none", "discretization": discretization, "probability_flow": flow}
    reached = [final_moments(sampler(name, steps=steps, compiled=False, **options)) for steps in (25, 100)]
    wanted = MEAN, STD
    errors = [max(abs(got - want) for got, want in zip(found, wanted)) for found in reached]
    assert errors[1] < max(0.5 * errors[0], 0.01)
    assert errors[1] < 0.07


@pytest.mark.parametrize("corrector", ["langevin", "ald"])
@pytest.mark.parametrize("name", SDES)
def test_correctors_keep_the_data(name, corrector):
    """A Langevin step of finite size widens a Gaussian a little; score_sde has none for sub-VP."""
    made = sampler(name, steps=80, corrector=corrector, snr=0.1)
    x = made((400, 64), seeds=0)
    assert x.mean().item() == pytest.approx(MEAN, abs=0.03)
    assert x.std().item() == pytest.approx(STD, rel=0.04)


def test_ancestral_steps_on_ddpm_s_chain_are_ddpm_s():
    options = {"process": VP.cosine(50), "prediction": "eps", "steps": 9, "dtype": torch.float64}
    model = lambda x, t: 0.3 * torch.sin(3 * x) + 0.1 * x  # noqa: E731
    mine = Sampler(model, solver="predictor_corrector", predictor="ancestral_sampling", corrector="none", **options)
    theirs = Sampler(model, solver="ddpm", variance="fixed_small", **options)
    torch.testing.assert_close(mine((2, 3), seeds=4), theirs((2, 3), seeds=4), rtol=SMALL_SIGMA, atol=SMALL_SIGMA)


def test_exact_transitions():
    """Of a VE process sqrt(s^2 - t^2), and of DDPM's chain (sqrt(1 - beta), sqrt(beta))."""
    ve = Sampler(lambda x, t: x, sigmas=[5.0, 3.0, 0.0], **F64, predictor="ancestral_sampling", corrector="none")
    transitions = Exact(ve.levels)
    assert transitions.chain() == [pytest.approx((1.0, 4.0)), pytest.approx((1.0, 3.0))]
    assert transitions.ancestral_noise() == [0.6, 0.0]
    process = VP.linear(100)
    for (a, b), beta in zip(Exact(process.levels()).chain(), process.betas[::-1]):
        assert (a, b) == (pytest.approx(math.sqrt(1 - beta)), pytest.approx(math.sqrt(beta)))


@pytest.mark.parametrize("sde", [VESDE(), VPSDE(), subVPSDE()], ids=lambda sde: sde.name)
def test_tables_are_those_of_as_many_steps(sde):
    """score_sde's tables of N, and exact transitions between times 1 / N apart, agree to first order."""
    process = SDEProcess(sde)
    exact, tabled = Exact(process.levels(400)).chain()[:-1], Tabled(process.levels(400)).chain()[:-1]
    for end in (0, 1):  # 1 - a and b; where sub-VP's g is nearly 0, Euler's relative error is large
        mine, theirs = (np.array([(1 - k.a, k.b)[end] for k in chain][:300]) for chain in (exact, tabled))
        assert np.allclose(mine, theirs, rtol=0.06, atol=1e-12)


def test_draws_nothing_that_is_not_used():
    """Draw 0 is the prior's; the last predictor step and the ODE draw none."""
    made = {"steps": 4, "corrector": "none"}
    drawn = [sorted(k for launch in s.plan().launches for k in launch.draws) for s in (
        sampler("vp", **made), sampler("vp", **made, final_denoise=False), sampler("vp", **made, probability_flow=True)
    )]  # fmt: skip
    assert drawn == [[0, 1, 2, 3], [0, 1, 2, 3, 4], [0]]


@pytest.mark.parametrize("corrector", ["langevin", "ald", "none"])
def test_one_launch_per_evaluation(corrector):
    plan = sampler("vp", steps=5, corrector=corrector, corrector_steps=3).plan()
    written = [launch for launch in plan.launches if not launch.squares]
    assert len(written) == 1 + 5 * (1 if corrector == "none" else 4)
    assert max(len(launch.inputs) for launch in written) <= 2


def test_step_size():
    squares = torch.tensor([[4.0, 9.0, 0.0], [16.0, 25.0, 1.0]], dtype=torch.float64)
    told = torch.tensor([0.5, 0.8], dtype=torch.float64)
    e, root = SnrStep()(squares, told)
    assert e.tolist() == pytest.approx([2 * 0.8 * (0.5 * 4 / 2) ** 2, 2 * 0.8 * (0.5 * 5 / 3) ** 2, 0.0])
    assert torch.allclose(root, (2 * e).sqrt())
    of_batch = 2 * 0.8 * (0.5 * ((4 + 5 + 1) / 3) / ((2 + 3 + 0) / 3)) ** 2
    assert SnrStep(batch=True)(squares, told)[0].tolist() == pytest.approx([of_batch] * 3)


@pytest.mark.parametrize("batch", [False, True])
def test_step_size_of_numbers(batch):
    """Of lists it is the same to the bit, zero norms and those that are not numbers included."""
    squares = torch.rand(2, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64) * 50
    for bad in (None, 0.0, math.inf, math.nan):
        if bad is not None:
            squares[0, 1] = bad
        of_tensors = SnrStep(batch)(squares, torch.tensor([0.16, 0.9]))
        told = torch.tensor([0.16, 0.9]).tolist()
        rows = torch.tensor(SnrStep(batch).small(squares.tolist(), told), dtype=torch.float64)
        same = torch.allclose(rows, of_tensors, rtol=1e-15, atol=0, equal_nan=True) if batch else None
        assert same or torch.equal(rows.nan_to_num(-1), of_tensors.nan_to_num(-1))


@pytest.mark.parametrize("sizes", [(1, 16), (3, 17), (16, 40)])
def test_samples_are_the_same_among_few_and_many(sizes):
    """Few small ones go another way than many, to the same bits."""
    few, many = (sampler("ve", steps=6)(shape=(n, 5), seeds=7) for n in sizes)
    assert torch.equal(few, many[: len(few)])


def test_samples_depend_on_the_batch_only_with_its_norm():
    alone, together = ({"shape": (n, 5), "seeds": 7} for n in (1, 3))
    own, batch = (sampler("ve", steps=6, norm=norm) for norm in ("sample", "batch"))
    assert torch.equal(own(**alone)[0], own(**together)[0])
    assert not torch.allclose(batch(**alone)[0], batch(**together)[0], rtol=1e-3)
    torch.testing.assert_close(batch(**alone)[0], own(**alone)[0])


@pytest.mark.parametrize("norm", ["sample", "batch"])
@pytest.mark.parametrize("name", SDES)
def test_routes_agree(name, norm):
    options = {"steps": 5, "norm": norm, "final_denoise": False}
    mine, readable = sampler(name, **options), sampler(name, **options, compiled=False)
    torch.testing.assert_close(mine((3, 4), seeds=2), readable((3, 4), seeds=2), rtol=SMALL_SIGMA, atol=SMALL_SIGMA)


def test_short_runs():
    """score_sde makes NaN of fewer steps than beta_max, and has no tables for one step."""
    for steps in (1, 2, 5):
        made = Sampler(**gaussian(VPSDE()), **F64, steps=steps)
        assert torch.isfinite(made((2, 8), seeds=0)).all()
    euler = Sampler(
        **gaussian(VPSDE()), **F64, steps=5, predictor="euler_maruyama", corrector="none", discretization="score_sde"
    )
    assert torch.isfinite(euler((2, 8), seeds=0)).all()


def test_other_processes():
    for process in (EDM(), VP.linear(100)):
        made = Sampler(lambda x, t: 0.5 * x, process=process, steps=8, **F64)
        assert torch.isfinite(made((2, 8), seeds=0)).all()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"predictor": "heun"}, "predictor must be one of reverse_diffusion, .* got 'heun'"),
        ({"corrector": "snr"}, "corrector must be one of langevin, ald, none, got 'snr'"),
        ({"norm": "l2"}, "norm must be one of sample, batch, got 'l2'"),
        ({"discretization": "exact"}, "discretization must be one of levels, score_sde, got 'exact'"),
        ({"snr": 0}, "snr must be positive, got 0"),
        ({"corrector_steps": 0}, "corrector_steps must be an integer of at least 1, got 0"),
        ({"predictor": "none", "corrector": "none"}, 'predictor must be another than "none"'),
        ({"predictor": "ancestral_sampling", "probability_flow": True}, "probability_flow must be False for predictor"),
        ({"steps": 1, "discretization": "score_sde"}, "steps must be at least 2 for discretization"),
        ({"steps": 5, "discretization": "score_sde"}, r"N, the steps of a chain, must be at least beta_max=20.0"),
        ({"process": EDM(), "prediction": "x0", "predictor": "euler_maruyama"}, "must be an SDEProcess for predictor"),
        ({"process": Flow(), "prediction": "x0"}, "process must have alpha > 0 at every level"),
        ({"process": EDM(), "prediction": "x0", "discretization": "score_sde"}, "must be an SDEProcess for discretiz"),
        (
            {"process": SDEProcess(subVPSDE()), "predictor": "ancestral_sampling", "discretization": "score_sde"},
            "sde must be 'vp' or 've' for score_sde's ancestral sampling",
        ),
    ],
)  # fmt: skip
def test_refusals(options, message):
    with pytest.raises(ValueError, match=message):
        Sampler(**{**gaussian(VPSDE()), "steps": 30, **F64, **options})
