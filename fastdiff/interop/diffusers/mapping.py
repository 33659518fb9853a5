"""From a scheduler of diffusers to the arguments of `fastdiff.Sampler`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ...errors import check_choice, check_count
from ...prediction import Coefficients, EDMPrediction, Prediction
from ...process import Level
from ...thresholding import DynamicThresholding
from . import rules
from .configs import Config, read_config
from .grids import kind_of
from .process import process_of

Options = dict[str, Any]

PREDICTIONS = {
    "epsilon": "eps",
    "sample": "x0",
    "original_sample": "x0",
    "v_prediction": "v",
    "flow_prediction": "flow",
}
ALGORITHMS: dict[str, Options] = {
    "dpmsolver": {"predict": "eps"},
    "dpmsolver++": {"predict": "x0"},
    "deis": {"predict": "x0"},
    "sde-dpmsolver": {"predict": "eps", "eta": 1.0},
    "sde-dpmsolver++": {"predict": "x0", "eta": 1.0},
}
MOST_TIMES = 1_000_000  # of training; a file may ask for any
CHURN = {"s_churn": "S_churn", "s_tmin": "S_min", "s_tmax": "S_max", "s_noise": "S_noise"}


class NegativeEDM(EDMPrediction):
    """EDM's preconditioning with the sign of the network's output turned: the EDM schedulers' v_prediction."""

    def coefficients(self, level: Level) -> Coefficients:
        c = super().coefficients(level)
        return c._replace(c_out=-c.c_out)


def sampler_options(scheduler: Any, steps: int, class_name: str | None = None, **step: Any) -> Options:
    """The keyword arguments of `fastdiff.Sampler` that sample as a scheduler of diffusers does.

    The scheduler's set_timesteps(steps), its step in a loop and init_noise_sigma for the start, in one compiled run;
    the model is what scale_model_input's result and the timestep are passed to.

    Args:
        scheduler: a scheduler of diffusers, its config, or the content of a scheduler_config.json; see `read_config`.
            diffusers itself need not be installed.
        steps: num_inference_steps.
        class_name: of a config without a `_class_name`.
        step: keyword arguments of the scheduler's step: eta and use_clipped_model_output (DDIM); s_churn, s_tmin,
            s_tmax and s_noise (Euler, EDM Euler); s_noise (DPMSolverSDE); order (LMS). And mu of set_timesteps
            (FlowMatchEuler with use_dynamic_shifting).

    Returns:
        process, prediction, solver, steps, clip_denoised, thresholding and the solver's own options.

    Raises:
        ValueError, TypeError: a scheduler or an argument without a counterpart; what diffusers turns into NaN or an
            error, and has no meaning, is refused with the reason.
    """
    config = read_config(scheduler, class_name)
    if (T := check_count("num_train_timesteps", config.get("num_train_timesteps", 1))) > MOST_TIMES:
        raise ValueError(f"num_train_timesteps must be at most {MOST_TIMES}, got {T}")
    mu = float(step.pop("mu")) if "mu" in step and config.scheduler.startswith("FlowMatch") else None
    options: Options = {"process": process_of(config, steps, mu), "steps": check_count("steps", steps)}
    options["prediction"] = _prediction(config)
    if config.get("thresholding") and config.get("predict_x0", True):  # UniPC's noise prediction leaves it out
        options["thresholding"] = DynamicThresholding(config["dynamic_thresholding_ratio"], config["sample_max_value"])
    elif config.get("clip_sample"):
        options["clip_denoised"] = (-config["clip_sample_range"], config["clip_sample_range"])
    options |= SOLVERS[config.scheduler](config, options, step)
    if step:
        raise TypeError(f"step of {config.scheduler} takes no {', '.join(sorted(step))} here")
    return options


def _prediction(config: Config) -> str | Prediction:
    if config.scheduler.startswith("EDM"):
        kind = check_choice("prediction_type", config["prediction_type"], ("epsilon", "v_prediction"))
        return (EDMPrediction if kind == "epsilon" else NegativeEDM)(config["sigma_data"])
    if config.scheduler == "IPNDMScheduler":
        return "v"  # its output is combined as a v-prediction's, whatever the network was trained for
    if config.scheduler == "ScoreSdeVeScheduler":
        return "score"
    if config.scheduler.startswith("FlowMatch"):
        return "flow"
    return PREDICTIONS[check_choice("prediction_type", config["prediction_type"], PREDICTIONS)]


def _euler(config: Config, options: Options, step: Options) -> Options:
    given = {ours: float(step.pop(theirs)) for theirs, ours in CHURN.items() if theirs in step}
    if not given.get("S_churn"):
        return {"solver": "euler"}
    if config.get("interpolation_type") == "log_linear" and kind_of(config) is None:
        # Its array of levels has one more than are used, and churn is divided by their number.
        given["S_churn"] *= options["process"].levels().steps / (options["steps"] + 1)
    return {"solver": rules.euler, **given}


def _ddim(config: Config, options: Options, step: Options) -> Options:
    return {
        "solver": rules.ddim,
        "eta": float(step.pop("eta", 0.0)),
        "use_clipped_model_output": bool(step.pop("use_clipped_model_output", False)),
    }


def _ddpm(config: Config, options: Options, step: Options) -> Options:
    variance = config["variance_type"]
    if not isinstance(variance, str):
        raise ValueError(f"variance_type must be a name, got {variance!r}")
    if variance == "learned":
        raise ValueError(
            "variance_type must not be 'learned': diffusers takes the square root of the output itself, which is a "
            "logarithm in published models, and NaN where it is negative; use solver='ddpm', variance='learned'"
        )
    return {"solver": rules.ddpm, "variance": variance.removesuffix("_log")}


def _pndm(config: Config, options: Options, step: Options) -> Options:
    return {
        "solver": "pndm",
        "start": "heun" if config["skip_prk_steps"] else "runge_kutta",
        "history": "output" if config["prediction_type"] == "v_prediction" else "eps",
        "stride": config["num_train_timesteps"] // options["steps"],
    }


def _ipndm(config: Config, options: Options, step: Options) -> Options:
    if config["trained_betas"] is not None:
        raise ValueError("trained_betas must be left out for IPNDMScheduler, which has betas of its own")
    return {"solver": "ipndm", "blind": True}


def _algorithm(config: Config) -> Options:
    """What the DPM-Solvers share; names of other schedulers' solvers mean the defaults."""
    solver_type = config["solver_type"]
    return {
        **ALGORITHMS[check_choice("algorithm_type", config["algorithm_type"], ALGORITHMS)],
        "order": config["solver_order"],
        "solver_type": "midpoint" if solver_type in ("logrho", "bh1", "bh2") else solver_type,
        "quadratic": "diffusers",
    }


def _multistep(config: Config, options: Options, step: Options) -> Options:
    return {
        "solver": "dpm_multistep",
        **_algorithm(config),
        "lower_order_final": bool(config["lower_order_final"]),
        "euler_at_final": bool(config["euler_at_final"]),
    }


def _singlestep(config: Config, options: Options, step: Options) -> Options:
    return {
        "solver": "dpm_singlestep",
        **_algorithm(config),
        "lower_order_final": bool(config["lower_order_final"]),
    }


def _unipc(config: Config, options: Options, step: Options) -> Options:
    if config["solver_p"] is not None:
        raise ValueError("solver_p must be left out: another scheduler as the predictor of UniPC has no counterpart")
    solver_type = config["solver_type"]
    return {
        "solver": "unipc",
        "predict": "x0" if config["predict_x0"] else "eps",
        "order": config["solver_order"],
        "solver_type": "bh2" if solver_type in ("midpoint", "heun", "logrho") else solver_type,
        "lower_order_final": bool(config["lower_order_final"]),
        "disable_corrector": tuple(config["disable_corrector"]),
    }


def _deis(config: Config, options: Options, step: Options) -> Options:
    lower = bool(config["lower_order_final"]) and options["steps"] < 15
    return {"solver": "deis", "order": config["solver_order"], "lower_order_final": lower}


def _lms(config: Config, options: Options, step: Options) -> Options:
    return {"solver": "lms", "order": check_count("order", step.pop("order", 4))}


def _flow_match(config: Config, options: Options, step: Options) -> Options:
    return {"solver": rules.renoised if config["stochastic_sampling"] else "ddim"}  # Euler's method on the flow


def _dpm_sde(config: Config, options: Options, step: Options) -> Options:
    return {"solver": "dpmpp_sde", "noise": "brownian", "S_noise": float(step.pop("s_noise", 1.0))}


def _score_sde_ve(config: Config, options: Options, step: Options) -> Options:
    return {
        "solver": "predictor_corrector",
        "snr": config["snr"],
        "corrector_steps": config["correct_steps"],
        "norm": "batch",
        "discretization": "score_sde",
    }


def _named(solver: str) -> Callable[[Config, Options, Options], Options]:
    return lambda config, options, step: {"solver": solver}


SOLVERS: dict[str, Callable[[Config, Options, Options], Options]] = {
    "DDIMScheduler": _ddim,
    "DDPMScheduler": _ddpm,
    "PNDMScheduler": _pndm,
    "IPNDMScheduler": _ipndm,
    "EulerDiscreteScheduler": _euler,
    "EulerAncestralDiscreteScheduler": _named("euler_ancestral"),
    "HeunDiscreteScheduler": _named("heun"),
    "LMSDiscreteScheduler": _lms,
    "KDPM2DiscreteScheduler": _named("dpm_2"),
    "KDPM2AncestralDiscreteScheduler": _named("dpm_2_ancestral"),
    "DPMSolverMultistepScheduler": _multistep,
    "DPMSolverSinglestepScheduler": _singlestep,
    "UniPCMultistepScheduler": _unipc,
    "DEISMultistepScheduler": _deis,
    "EDMEulerScheduler": _euler,
    "EDMDPMSolverMultistepScheduler": _multistep,
    "DPMSolverSDEScheduler": _dpm_sde,
    "FlowMatchEulerDiscreteScheduler": _flow_match,
    "ScoreSdeVeScheduler": _score_sde_ve,
}
