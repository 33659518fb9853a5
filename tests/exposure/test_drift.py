"""The drift against closed forms: a Gaussian, whose every step is linear, and Gaussian mixtures."""

from __future__ import annotations

import math
from functools import cache

import numpy as np
import pytest
import torch

from fastdiff import VP, EDMPrediction, Sampler, ops
from fastdiff.exposure.drift import measure_drift
from fastdiff.prediction import Eps, get_prediction
from fastdiff.solvers.heun import heun

from ..threads import one_thread  # noqa: F401
from ..tolerances import CLOSED_FORM

MEAN, STD = torch.tensor([0.4, -0.3, 0.1], dtype=torch.float64), 0.6
SEEDS = list(range(100, 140))


def data(count=40, mean=MEAN, std=STD):
    return mean + std * torch.randn(count, len(mean), generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def gaussian(process, prediction, bias=1.0, mean=MEAN, seen=None):
    """The exact network for N(mean, STD^2), its eps multiplied by `bias`, in any prediction; labels shift the mean."""
    prediction = get_prediction(prediction)

    def model(y, t, labels=None):
        if seen is not None:
            seen.append((len(y), float(t[0])))
        level = min(LEVELS[process], key=lambda level: abs(prediction.time(level) - float(t[0])))
        skip, out, scale = prediction.coefficients(level)
        x, a, s = y / scale, level.alpha, level.sigma
        centre = mean if labels is None else mean + labels[:, None]
        eps = bias * s / (a**2 * STD**2 + s**2) * (x - a * centre)
        x0 = (x - s * eps) / a
        return (x0 - skip * x) / out

    return model


PROCESSES = {"edm": "edm", "ve": "ve", "vp": VP.linear(100), "vp_cosine": VP.cosine(50)}
LEVELS = {
    name: [level for level in Sampler(lambda x, t: x, process=p, steps=5).levels if level.sigma]
    for name, p in PROCESSES.items()
}


def make(process="edm", prediction="x0", solver="euler", bias=1.0, seen=None, **options):
    model = gaussian(process, prediction, bias, seen=seen)
    options = {"process": PROCESSES[process], "steps": 5, "shape": (3,), "dtype": torch.float64} | options
    return Sampler(model, prediction=prediction, solver=solver, **options)


def expected(process, scales, bias=1.0, scale=1.0):
    """|eps| and variances along Euler's run in closed form: in VE terms, u - mean stays a multiple of u_0 - mean."""
    x0, z = data(), ops.normal(torch.tensor(SEEDS), (40, 3)).double()
    levels = LEVELS[process]
    start = levels[0].sigma if process in ("edm", "ve") else 1.0
    u = start * z / levels[0].alpha
    rows = []
    for i, level in enumerate(levels):
        s = level.sigma_ve
        slope = bias * s / (STD**2 + s**2)
        t = x0 + s * z
        rows.append(
            {
                "eps_norm_sampling": (slope * (u - MEAN)).norm(dim=1).mean(),
                "eps_norm_data": (slope * (t - MEAN)).norm(dim=1).mean(),
                "variance_error": level.alpha**2 * (u.var(0) - t.var(0)).mean(),
                "variance_sampling": level.alpha**2 * u.var(0).mean(),
                "delta": ((u - x0).var(0).mean().sqrt() - s * z.var(0).mean().sqrt()) ** 2 * level.alpha**2,
                "x0_error": (t - s * slope * (t - MEAN) - x0).square().mean().sqrt(),
            }
        )
        following = levels[i + 1].sigma_ve if i + 1 < len(levels) else 0.0
        u = u + (following - s) * slope / scale * (u - MEAN)
    rows.append({"variance_sampling": u.var(0).mean(), "variance_error": (u.var(0) - x0.var(0)).mean()})
    return {key: [float(row.get(key, math.nan)) for row in rows] for key in rows[0]}


CASES = [
    *(("edm", p) for p in ("x0", "eps", "score", EDMPrediction(0.5))),
    ("ve", "x0"),
    *(("vp", p) for p in ("eps", "x0", "v", "score")),
    ("vp_cosine", "eps"),
    ("vp_cosine", EDMPrediction(1.0)),
]


@pytest.mark.parametrize(("process", "prediction"), CASES, ids=[f"{a}-{getattr(b, 'name', b)}" for a, b in CASES])
@pytest.mark.parametrize("scale", [1.0, 1.05])
def test_every_number_in_closed_form(process, prediction, scale):
    drift = measure_drift(
        make(process, prediction, bias=1.1, epsilon_scale=scale), data(), seeds=SEEDS, batch=16, probe=0
    )
    for name, values in expected(process, None, bias=1.1, scale=scale).items():
        found = getattr(drift, name)[: len(values)]
        known = ~np.isnan(values)
        np.testing.assert_allclose(found[known], np.array(values)[known], rtol=1e-7, atol=1e-9, err_msg=name)
    assert np.isnan(drift.eps_norm_data[-1])
    assert (drift.sigma[:-1] == [level.sigma for level in LEVELS[process]]).all()
    assert drift.timestep.tolist() == [5, 4, 3, 2, 1, 0]
    np.testing.assert_allclose(drift.eps_norm_applied[:-1], drift.eps_norm_sampling[:-1] / scale, rtol=1e-9)


def test_standard_errors_are_of_paired_differences():
    drift = measure_drift(make(bias=1.1), data(), seeds=SEEDS, probe=0)
    x0, z = data(), ops.normal(torch.tensor(SEEDS), (40, 3)).double()
    s = LEVELS["edm"][0].sigma
    a, b = (s * z - MEAN).norm(dim=1), (x0 + s * z - MEAN).norm(dim=1)
    ratio = a.mean() / b.mean()
    assert drift.ratio[0] == pytest.approx(float(ratio), abs=1e-12)
    assert drift.ratio_se[0] == pytest.approx(float((a - ratio * b).std() / b.mean() / 40**0.5), rel=1e-6)
    alone = math.hypot(drift.eps_norm_sampling_se[0], drift.eps_norm_data_se[0]) / drift.eps_norm_data[0]
    assert drift.ratio_se[0] < alone / 10
    difference = (s * z - MEAN).square().mean(1) - (x0 + s * z - MEAN).square().mean(1)
    assert drift.variance_error_se[0] == pytest.approx(float(difference.std() / 40**0.5), rel=0.1)


def test_batches_and_dtypes_change_nothing_but_rounding():
    whole = measure_drift(make("vp", "eps"), data(), seeds=SEEDS, probe=3)
    seen = []
    parts = measure_drift(make("vp", "eps", seen=seen), data(), seeds=SEEDS, batch=7, probe=3)
    assert max(count for count, _ in seen) == 7
    single = measure_drift(
        make("vp", "eps", dtype=torch.float32, model_dtype=torch.float32), data().float(), seeds=SEEDS, probe=3
    )
    for name, column in whole.columns().items():
        np.testing.assert_allclose(parts.columns()[name], column, rtol=CLOSED_FORM * 1e3, atol=1e-12, err_msg=name)
        if name not in ("shapiro_passed",):
            np.testing.assert_allclose(single.columns()[name], column, rtol=2e-3, atol=1e-5, err_msg=name)


def test_a_network_in_low_precision_is_measured_in_the_states_precision():
    exact = gaussian("edm", "x0")

    def model(y, t):
        assert y.dtype == torch.bfloat16
        return exact(y.double(), t).to(torch.bfloat16)

    sampler = Sampler(model, solver="euler", steps=5, shape=(3,), model_dtype=torch.bfloat16)
    drift = measure_drift(sampler, data().float(), seeds=SEEDS, probe=0)
    known = expected("edm", None)
    np.testing.assert_allclose(drift.eps_norm_data[:3], known["eps_norm_data"][:3], rtol=0.02)


def test_the_first_evaluation_of_a_step_is_measured_after_churn():
    seen = []
    drift = measure_drift(make(solver="heun", seen=seen), data(4), seeds=[1, 2, 3, 4], probe=0)
    assert (drift.sigma[:-1] == [level.sigma for level in LEVELS["edm"]]).all()
    assert len(seen) == 9 + 5  # the run, and one evaluation per step on data

    model = Sampler(lambda x, t: x / (1 + t[:, None] ** 2), solver="heun", steps=5, shape=(3,), S_churn=1.0)
    churned = measure_drift(model, data(4).float(), seeds=[1, 2, 3, 4], probe=0)
    np.testing.assert_allclose(churned.sigma[:-1], 1.2 * drift.sigma[:-1], rtol=1e-12)


@pytest.mark.parametrize("solver", ["ddpm", "ddim", "euler", "heun"])
def test_previous_x_and_learned_variances(solver):
    """Predictions that are defined between two levels, and networks with a variance half, give the same eps."""
    levels = [*LEVELS["vp"], Sampler(lambda x, t: x, process=PROCESSES["vp"], steps=5).levels[-1]]
    exact = gaussian("vp", "eps")

    def previous(x, t):
        i = [level.time for level in levels].index(float(t[0]))
        skip, out, _ = get_prediction("previous_x").coefficients_between(levels[i], levels[i + 1])
        eps_skip, eps_out, _ = Eps().coefficients(levels[i])
        return (eps_skip * x + eps_out * exact(x, t) - skip * x) / out

    def with_variance(x, t):
        return torch.cat([exact(x, t), torch.zeros_like(x)], 1)

    options = {"process": PROCESSES["vp"], "solver": solver, "steps": 5, "shape": (3,), "dtype": torch.float64}
    tables = [measure_drift(Sampler(exact, prediction="eps", **options), data(), seeds=SEEDS, probe=0)]
    tables.append(measure_drift(Sampler(with_variance, prediction="eps", **options), data(), seeds=SEEDS, probe=0))
    if solver != "heun":
        tables.append(
            measure_drift(Sampler(previous, prediction="previous_x", **options), data(), seeds=SEEDS, probe=0)
        )
    for table in tables[1:]:
        for name, column in tables[0].columns().items():
            np.testing.assert_allclose(table.columns()[name], column, rtol=1e-8, atol=1e-10, err_msg=name)


def test_labels_go_with_their_data():
    labels = torch.arange(40) % 3
    x0 = data() + labels[:, None]
    drift = measure_drift(make(), x0, seeds=SEEDS, labels=labels, batch=9, probe=0)
    z = ops.normal(torch.tensor(SEEDS), (40, 3)).double()
    for i, level in enumerate(LEVELS["edm"]):
        norm = (level.sigma / (STD**2 + level.sigma**2) * (x0 + level.sigma * z - MEAN - labels[:, None])).norm(dim=1)
        assert drift.eps_norm_data[i] == pytest.approx(float(norm.mean()), rel=1e-7)

    def model(x, t, shift):
        return gaussian("edm", "x0")(x, t, labels=shift[:, 0])

    sampler = Sampler(model, solver="euler", steps=5, shape=(3,), dtype=torch.float64)
    same = measure_drift(sampler, x0, seeds=SEEDS, cond={"shift": labels[:, None]}, probe=0)
    np.testing.assert_allclose(same.eps_norm_sampling, drift.eps_norm_sampling, rtol=1e-12)


def test_more_and_fewer_seeds_than_data():
    assert measure_drift(make(), data(10), seeds=range(25), probe=0).samples == 25
    assert measure_drift(make(), data(10), probe=0).samples == 10
    x0 = torch.arange(10.0, dtype=torch.float64)[:, None].expand(10, 3)
    few = measure_drift(make(), x0, seeds=range(5), probe=0)  # data at even distances: 0, 2, 4, 6, 8
    assert few.variance_data[-1] == pytest.approx(10.0)


MIXTURE = torch.tensor([[1.5, 0.0], [-0.5, 1.0], [-0.5, -1.0]], dtype=torch.float64)


def mixture(bias=1.0, std=0.3):
    """The exact denoiser of three Gaussians, its predicted noise multiplied by `bias`."""

    def model(x, t):
        total = std**2 + t[:, None] ** 2
        weight = torch.softmax(-(torch.cdist(x, MIXTURE) ** 2) / (2 * total), 1)
        x0 = (weight @ MIXTURE * t[:, None] ** 2 + std**2 * x) / total
        return x - bias * (x - x0)

    generator = torch.Generator().manual_seed(3)
    chosen = torch.randint(3, (2000,), generator=generator)
    sample = MIXTURE[chosen] + std * torch.randn(2000, 2, generator=generator, dtype=torch.float64)
    return model, sample


@cache
def mixture_drift(bias=1.0, **options):
    model, x0 = mixture(bias)
    sampler = Sampler(model, shape=(2,), dtype=torch.float64, **{"steps": 30, "sigma_min": 0.01} | options)
    return measure_drift(sampler, x0, batch=1000, probe=0)


def test_the_exact_mixture_does_not_drift():
    drift = mixture_drift()
    assert (np.abs(drift.ratio - 1)[:-1] < 4 * drift.ratio_se[:-1] + 1e-4).all()
    assert (np.abs(drift.variance_error) < 4 * drift.variance_error_se + 1e-3 * drift.variance_data).all()
    assert drift.delta_marginal[drift.sigma < 1].max() < 1e-3
    assert drift.delta[-1] > 0.1  # the paper's, against the own datum, is far from 0 all the same


@pytest.mark.parametrize(("bias", "sign"), [(0.95, 1), (1.05, -1)])
def test_a_biased_mixture_drifts_and_its_scale_mends_it(bias, sign):
    """Too small a predicted noise leaves too much of it in the state, as in the papers; lambda = bias undoes it."""
    drift, mended, exact = mixture_drift(bias), mixture_drift(bias, epsilon_scale=bias), mixture_drift()
    late = drift.sigma < 2
    assert (sign * drift.variance_error[late] > 3 * drift.variance_error_se[late]).all()
    assert sign * (drift.ratio[-2] - 1) > 3 * drift.ratio_se[-2]
    assert mended.delta_marginal[-1] < drift.delta_marginal[-1] / 10
    np.testing.assert_allclose(mended.variance_error, exact.variance_error, rtol=1e-6, atol=1e-9)
    np.testing.assert_allclose(mended.eps_norm_applied[:-1], exact.eps_norm_sampling[:-1], rtol=1e-6)
    np.testing.assert_allclose(mended.ratio, exact.ratio, rtol=1e-6)


def test_a_solver_of_ones_own_and_any_rank():
    def restarted(denoise, x, levels, noise):
        for state in heun(denoise, x, levels, noise):
            yield state + 0.0 * noise()

    def model(x, t):
        return x / (1 + t.view(-1, *(1,) * (x.ndim - 1)) ** 2)

    for shape in ((), (4,), (1, 2, 2)):
        x0 = torch.randn(12, *shape, generator=torch.Generator().manual_seed(0))
        tables = [
            measure_drift(Sampler(model, solver=solver, steps=4, shape=shape), x0, seeds=5, batch=5, probe=2)
            for solver in ("heun", restarted)
        ]
        for name, column in tables[0].columns().items():
            np.testing.assert_allclose(tables[1].columns()[name], column, rtol=1e-4, atol=1e-6, err_msg=name)


def test_the_sampler_is_left_as_it_was():
    sampler = make()
    before = sampler(4, seeds=3)
    measure_drift(sampler, data(), seeds=SEEDS, probe=0)
    assert sampler.compiled
    assert torch.equal(sampler(4, seeds=3), before)


@pytest.mark.parametrize(
    ("arguments", "wanted"),
    [
        ({"data": torch.zeros(1, 3)}, "data must be a floating tensor"),
        ({"data": torch.zeros(4, 3, dtype=torch.int64)}, "data must be a floating tensor"),
        ({"data": [1.0]}, "got list"),
        ({"data": torch.zeros(4, 2)}, r"data must hold samples of shape \[3\], got \[2\]"),
        ({"seeds": [1]}, "the number of seeds"),
        ({"seeds": [1, 0.5]}, "seeds must be"),
        ({"labels": [0, 1]}, "labels must hold one class per sample"),
        ({"batch": 0}, "batch must be"),
        ({"probe": -1}, "probe must be"),
        ({"sampler": "ddim_inversion"}, "ddim_inversion"),
    ],
)
def test_refused_before_any_work(arguments, wanted):
    seen = []
    sampler = make("vp", "eps", solver=arguments.pop("sampler", "ddim"), seen=seen)
    with pytest.raises(ValueError, match=wanted):
        measure_drift(sampler, **{"data": data()} | arguments)
    assert not seen
