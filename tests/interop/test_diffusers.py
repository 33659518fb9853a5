"""Schedulers of diffusers as samplers: configurations, what diffusers itself cannot run, one launch an evaluation.

That steps are the same is tested on recorded runs, in tests/conformance.
"""

from __future__ import annotations

import json
import math
import pickle
from types import SimpleNamespace

import numpy as np
import pytest
import torch

import fastdiff
from fastdiff.interop.diffusers import read_config, sampler_options
from fastdiff.interop.diffusers.configs import DEFAULTS

from ..tolerances import CLOSED_FORM

STABLE_DIFFUSION = """{"_class_name": "PNDMScheduler", "_diffusers_version": "0.7.0", "beta_end": 0.012,
    "beta_schedule": "scaled_linear", "beta_start": 0.00085, "num_train_timesteps": 1000, "set_alpha_to_one": false,
    "skip_prk_steps": true, "steps_offset": 1, "trained_betas": null, "clip_sample": false}"""


def network(x, t):
    """Any smooth function, with a variance half for those who want one."""
    return 0.9 * torch.tanh(x)


def both_halves(x, t):
    return torch.cat([network(x, t), torch.tanh(-x)], 1)


def sampler(class_name, steps=8, step=None, model=network, **config):
    options = sampler_options(config, steps, class_name, **(step or {}))
    return fastdiff.Sampler(model, shape=(3, 4, 4), dtype=torch.float64, **options)


# --- configurations --------------------------------------------------------------------------------------------------


def test_a_published_file():
    config = read_config(json.loads(STABLE_DIFFUSION))
    assert config.scheduler == "PNDMScheduler" and config["skip_prk_steps"] and config["timestep_spacing"] == "leading"
    assert "clip_sample" not in config  # of other schedulers; diffusers ignores it, too
    options = sampler_options(json.loads(STABLE_DIFFUSION), 50)
    assert options["solver"] == "pndm" and options["start"] == "heun" and options["stride"] == 20
    levels = options["process"].levels(50)
    assert [levels[0].time, levels[-2].time] == [981, 1]
    assert levels[-1].alpha ** 2 == pytest.approx(1 - 0.00085)  # set_alpha_to_one=False


def test_a_scheduler_object_and_a_name():
    class DDIMScheduler(SimpleNamespace):
        pass

    scheduler = DDIMScheduler(config={"beta_schedule": "squaredcos_cap_v2", "clip_sample_range": 2.0})
    options = sampler_options(scheduler, 10, eta=0.3, use_clipped_model_output=True)
    assert options["eta"] == 0.3 and options["clip_denoised"] == (-2.0, 2.0) and options["prediction"] == "eps"
    assert np.allclose(options["process"].alphas_cumprod, fastdiff.VP.cosine().alphas_cumprod)
    assert read_config({}, "DDIMParallelScheduler").scheduler == "DDIMScheduler"


@pytest.mark.parametrize(
    ("arguments", "step", "error", "message"),
    [
        (({}, 5), {}, ValueError, "scheduler must be one of"),
        (({"_class_name": "LCMScheduler"}, 5), {}, ValueError, "scheduler must be one of"),
        ((3, 5), {}, TypeError, "scheduler"),
        (({"beta_schedul": "linear"}, 5, "DDIMScheduler"), {}, ValueError, "beta_schedul"),
        (({"trained_betas": [0.1, 0.2]}, 5, "DDIMScheduler"), {}, ValueError, "trained_betas"),
        (({"beta_schedule": "cubic"}, 5, "DDIMScheduler"), {}, ValueError, "beta_schedule"),
        (({"timestep_spacing": "even"}, 5, "DDIMScheduler"), {}, ValueError, "spacing"),
        (({}, 0, "DDIMScheduler"), {}, ValueError, "steps"),
        (({}, 1001, "DDIMScheduler"), {}, ValueError, "must be at most"),
        (({}, 5, "DDIMScheduler"), {"s_churn": 1.0}, TypeError, "s_churn"),
        (({}, 5, "DDIMScheduler"), {"eta": 1.5}, ValueError, "eta"),
        (({"variance_type": "learned"}, 5, "DDPMScheduler"), {}, ValueError, "square root"),
        (({}, 3, "PNDMScheduler"), {}, ValueError, "steps must be an integer of at least 4"),
        (({"trained_betas": [0.1]}, 5, "IPNDMScheduler"), {}, ValueError, "trained_betas"),
        (({"solver_p": 1}, 5, "UniPCMultistepScheduler"), {}, ValueError, "solver_p"),
        (({"algorithm_type": "rk"}, 5, "DPMSolverMultistepScheduler"), {}, ValueError, "algorithm_type"),
        (
            ({"use_karras_sigmas": True, "use_beta_sigmas": True}, 5, "EulerDiscreteScheduler"),
            {},
            ValueError,
            "at most one",
        ),
        (({"use_dynamic_shifting": True}, 5, "FlowMatchEulerDiscreteScheduler"), {}, ValueError, "mu"),
        (({"shift_terminal": 0.1}, 1, "FlowMatchEulerDiscreteScheduler"), {}, ValueError, "steps"),
    ],
)
def test_refusals(arguments, step, error, message):
    with pytest.raises(error, match=message):
        fastdiff.Sampler(network, shape=(3, 4, 4), **sampler_options(*arguments, **step))


def test_the_configuration_has_its_own_levels():
    options = sampler_options({}, 5, "EulerDiscreteScheduler")
    for other in ({"schedule": "karras"}, {"sigmas": [3.0, 1.0, 0.0]}):
        with pytest.raises(ValueError, match="left out"):
            fastdiff.Sampler(network, shape=(3, 4, 4), **{**options, **other, "steps": None})
    with pytest.raises(ValueError, match="ask it again"):
        fastdiff.Sampler(network, shape=(3, 4, 4), **options).plan(steps=7)


def test_a_copy_samples_the_same():
    sampled = sampler("EulerDiscreteScheduler", 5, {"s_churn": 1.0}, use_karras_sigmas=True)
    assert torch.equal(pickle.loads(pickle.dumps(sampled))(2, seeds=1), sampled(2, seeds=1))


# --- steps -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("class_name", sorted(DEFAULTS))
def test_every_scheduler_samples_with_one_launch_an_evaluation(class_name):
    sampled = sampler(class_name)
    result = sampled(3, seeds=4)
    assert torch.isfinite(result).all() and result.std() > 0
    plan = sampled.plan()
    assert len(plan.launches) <= plan.evaluations + 1 + ("ScoreSde" in class_name) * plan.evaluations
    readable = fastdiff.Sampler(
        network, shape=(3, 4, 4), dtype=torch.float64, compiled=False, **sampler_options({}, 8, class_name)
    )
    torch.testing.assert_close(readable(3, seeds=4), result, rtol=1e3 * CLOSED_FORM, atol=1e3 * CLOSED_FORM)


def test_ddim_where_its_steps_meet():
    """With leading times whose stride divides T it is `ddim`, on the chain with clipping that changes nothing."""
    ours = sampler("DDIMScheduler", 10, {"eta": 0.5}, clip_sample=False)(2, seeds=0)
    times = list(range(900, -1, -100))
    options = {"process": "vp", "prediction": "eps", "solver": "ddim", "eta": 0.5, "timesteps": times}
    same = fastdiff.Sampler(network, shape=(3, 4, 4), dtype=torch.float64, **options)(2, seeds=0)
    torch.testing.assert_close(ours, same, rtol=1e3 * CLOSED_FORM, atol=1e3 * CLOSED_FORM)


def test_ddpm_adds_noise_to_the_sample_where_times_do_not_end_at_0():
    ours = sampler("DDPMScheduler", 10, timestep_spacing="trailing", variance_type="fixed_large")
    assert ours.levels[-2].time == 99 and "z10" in str(ours.plan())
    quiet = sampler("DDPMScheduler", 10, variance_type="fixed_large")
    assert "z10" not in str(quiet.plan())
    times = list(range(900, -1, -100))
    options = {"process": "vp", "prediction": "eps", "solver": "ddpm", "variance": "fixed_large", "timesteps": times}
    same = fastdiff.Sampler(network, shape=(3, 4, 4), dtype=torch.float64, clip_denoised=True, **options)(2, seeds=0)
    torch.testing.assert_close(quiet(2, seeds=0), same, rtol=1e3 * CLOSED_FORM, atol=1e3 * CLOSED_FORM)


@pytest.mark.parametrize("class_name", ["EulerDiscreteScheduler", "EDMEulerScheduler"])
def test_churn_reads_the_state_before_the_noise(class_name):
    """Its input is that of the run without churn, whose first step is the same but for the noise."""
    seen = []

    def watched(x, t):
        seen.append((x.clone(), t.clone()))
        return network(x, t)

    churned = sampler(class_name, 4, {"s_churn": 2.0}, model=watched)
    churned(2, seeds=3)
    plain = seen[0]
    seen.clear()
    sampler(class_name, 4, model=watched)(2, seeds=3)
    assert torch.equal(plain[0], seen[0][0]) and torch.equal(plain[1], seen[0][1])
    assert torch.isfinite(churned(2, seeds=3)).all()


@pytest.mark.parametrize(
    ("class_name", "steps", "config"),
    [
        ("UniPCMultistepScheduler", 8, {"solver_type": "bh1"}),
        ("UniPCMultistepScheduler", 8, {"predict_x0": False}),
        ("UniPCMultistepScheduler", 8, {"use_karras_sigmas": True, "final_sigmas_type": "sigma_min"}),
        ("UniPCMultistepScheduler", 1, {"solver_order": 3}),
        ("DPMSolverMultistepScheduler", 1, {}),
        ("DPMSolverMultistepScheduler", 8, {"algorithm_type": "dpmsolver"}),
        ("DPMSolverMultistepScheduler", 8, {"algorithm_type": "sde-dpmsolver", "solver_order": 3}),
        (
            "DPMSolverMultistepScheduler",
            16,
            {"use_karras_sigmas": True, "final_sigmas_type": "sigma_min", "solver_order": 3},
        ),
        ("DPMSolverSinglestepScheduler", 8, {"algorithm_type": "dpmsolver", "thresholding": True}),
        ("DPMSolverSinglestepScheduler", 1, {"solver_order": 2}),
        ("EDMDPMSolverMultistepScheduler", 8, {"algorithm_type": "sde-dpmsolver++", "solver_order": 3}),
        ("EDMDPMSolverMultistepScheduler", 1, {"sigma_schedule": "exponential"}),
        ("DDPMScheduler", 8, {"variance_type": "fixed_large_log"}),
        ("DDIMScheduler", 8, {"rescale_betas_zero_snr": True, "prediction_type": "v_prediction"}),
    ],
)
def test_what_diffusers_turns_into_nan_or_an_error(class_name, steps, config):
    assert torch.isfinite(sampler(class_name, steps, **config)(2, seeds=1)).all()


def test_a_zero_terminal_snr_needs_a_prediction_that_says_something_there():
    with pytest.raises(ValueError, match="alpha = 0"):
        sampler("DDIMScheduler", 8, rescale_betas_zero_snr=True, timestep_spacing="trailing")


def test_a_learned_variance_and_its_threshold():
    config = {"variance_type": "learned_range", "thresholding": True, "sample_max_value": 1.5}
    assert torch.isfinite(sampler("DDPMScheduler", 6, model=both_halves, **config)(2, seeds=0)).all()


def test_the_start_has_the_schedulers_own_scale():
    """init_noise_sigma: the largest level, or with leading times the square root of 1 + its square."""
    for spacing, wanted in (("linspace", lambda s: s), ("leading", lambda s: math.hypot(s, 1))):
        process = sampler_options({"timestep_spacing": spacing}, 5, "EulerDiscreteScheduler")["process"]
        first = process.levels()[0]
        assert process.prior_std(first) / first.alpha == pytest.approx(wanted(first.sigma_ve))


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("spacing", ["leading", "linspace", "trailing"])
@pytest.mark.parametrize("class_name", [n for n in sorted(DEFAULTS) if "timestep_spacing" in DEFAULTS[n]])
def test_times_of_the_library_itself(class_name, spacing):
    """Where diffusers is installed: its own times and levels, which are float32."""
    diffusers = pytest.importorskip("diffusers")
    try:
        scheduler = getattr(diffusers, class_name)(timestep_spacing=spacing)
    except (ImportError, RuntimeError) as error:
        pytest.skip(f"diffusers cannot import {class_name}: {error}")
    scheduler.set_timesteps(9)
    levels = sampler_options(scheduler, 9)["process"].levels(9)
    theirs = {float(t) for t in scheduler.timesteps}
    assert all(min(abs(level.time - t) for t in theirs) < 1e-3 for level in levels[:-1])
    if hasattr(scheduler, "sigmas"):
        sigmas = scheduler.sigmas.numpy()
        assert all(np.abs(sigmas - s).min() < 1e-4 * max(1, s) for s in levels.sigmas)


@pytest.mark.parametrize("T", [4, 7, 1000])
@pytest.mark.parametrize("name", ["linear", "scaled_linear", "squaredcos_cap_v2", "sigmoid", "laplace"])
def test_beta_schedules_of_the_library_itself(name, T):
    """Where diffusers is installed: its own betas, which are float32."""
    diffusers = pytest.importorskip("diffusers")
    scheduler = diffusers.DDPMScheduler(beta_schedule=name, num_train_timesteps=T)
    betas = sampler_options(scheduler, 3)["process"].betas
    assert np.allclose(betas, scheduler.betas.numpy(), rtol=1e-5, atol=1e-7)


def test_the_laplace_schedule_by_hand():
    """alpha_bar at times 0, 1/2, 1: the square root of SNR / (1 + SNR), SNR = 1000, 1, 1/1000 but for 1e-6."""
    config = {"beta_schedule": "laplace", "num_train_timesteps": 2}
    betas = sampler_options(config, 2, "DDPMScheduler")["process"].betas
    abar = np.sqrt([1000 / 1001, 1 / 2, 1 / 1001])
    assert betas == pytest.approx(1 - abar[1:] / abar[:-1], rel=1e-5)


def test_a_table_beyond_all_use_is_not_made():
    for name in ("DDPMScheduler", "EulerDiscreteScheduler", "FlowMatchEulerDiscreteScheduler"):
        with pytest.raises(ValueError, match="num_train_timesteps must be at most 1000000, got 1000000000000"):
            sampler_options({"num_train_timesteps": 10**12}, 2, name)


def test_a_variance_type_that_is_no_name():
    with pytest.raises(ValueError, match="variance_type must be a name, got 1"):
        sampler_options({"variance_type": 1}, 2, "DDPMScheduler")
