"""The configurations of diffusers' schedulers (0.42.1): names, defaults, and what a scheduler_config.json may hold."""

from __future__ import annotations

import math
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

_BETAS = {
    "num_train_timesteps": 1000,
    "beta_start": 0.0001,
    "beta_end": 0.02,
    "beta_schedule": "linear",
    "trained_betas": None,
    "prediction_type": "epsilon",
}
_SPACING = {"timestep_spacing": "linspace", "steps_offset": 0}
_ZERO_SNR = {"rescale_betas_zero_snr": False}
_THRESHOLDING = {"thresholding": False, "dynamic_thresholding_ratio": 0.995, "sample_max_value": 1.0}
_CLIP = {"clip_sample": True, "clip_sample_range": 1.0}
_SIGMAS = {"use_karras_sigmas": False, "use_exponential_sigmas": False, "use_beta_sigmas": False}
_FLOW = {
    "use_flow_sigmas": False,
    "flow_shift": 1.0,
    "use_dynamic_shifting": False,
    "time_shift_type": "exponential",
}
_FINAL = {"final_sigmas_type": "zero"}
_CHAIN = _BETAS | _CLIP | _THRESHOLDING | _ZERO_SNR | {"timestep_spacing": "leading", "steps_offset": 0}
_SIGMA_SPACE = _BETAS | _SPACING | _SIGMAS
_OTHER_BETAS = {"beta_start": 0.00085, "beta_end": 0.012}
_DPM = _BETAS | _THRESHOLDING | _SIGMAS | _FLOW | {"solver_order": 2, "lower_order_final": True}
_DPM_SOLVER = {"algorithm_type": "dpmsolver++", "solver_type": "midpoint"}
_CLIPPED_LAMBDA = {"lambda_min_clipped": -math.inf, "variance_type": None}
_EDM = _FINAL | {
    "sigma_min": 0.002,
    "sigma_max": 80.0,
    "sigma_data": 0.5,
    "sigma_schedule": "karras",
    "num_train_timesteps": 1000,
    "prediction_type": "epsilon",
    "rho": 7.0,
}

DEFAULTS: Mapping[str, Mapping[str, Any]] = MappingProxyType(
    {
        "DDIMScheduler": _CHAIN | {"set_alpha_to_one": True},
        "DDPMScheduler": _CHAIN | {"variance_type": "fixed_small"},
        "PNDMScheduler": _BETAS
        | {"timestep_spacing": "leading", "steps_offset": 0, "skip_prk_steps": False, "set_alpha_to_one": False},
        "IPNDMScheduler": {"num_train_timesteps": 1000, "trained_betas": None},
        "EulerDiscreteScheduler": _SIGMA_SPACE
        | _ZERO_SNR
        | _FINAL
        | {"interpolation_type": "linear", "sigma_min": None, "sigma_max": None, "timestep_type": "discrete"},
        "EulerAncestralDiscreteScheduler": _BETAS | _SPACING | _ZERO_SNR,
        "HeunDiscreteScheduler": _SIGMA_SPACE | _OTHER_BETAS | {"clip_sample": False, "clip_sample_range": 1.0},
        "LMSDiscreteScheduler": _SIGMA_SPACE,
        "KDPM2DiscreteScheduler": _SIGMA_SPACE | _OTHER_BETAS,
        "KDPM2AncestralDiscreteScheduler": _SIGMA_SPACE | _OTHER_BETAS,
        "DPMSolverMultistepScheduler": _DPM
        | _DPM_SOLVER
        | _SPACING
        | _FINAL
        | _CLIPPED_LAMBDA
        | _ZERO_SNR
        | {"euler_at_final": False, "use_lu_lambdas": False},
        "DPMSolverSinglestepScheduler": _DPM | _DPM_SOLVER | _FINAL | _CLIPPED_LAMBDA | {"lower_order_final": False},
        "UniPCMultistepScheduler": _DPM
        | _SPACING
        | _FINAL
        | _ZERO_SNR
        | {"predict_x0": True, "solver_type": "bh2", "disable_corrector": (), "solver_p": None}
        | {"sigma_min": None, "sigma_max": None, "shift_terminal": None},
        "DEISMultistepScheduler": _DPM | _SPACING | {"algorithm_type": "deis", "solver_type": "logrho"},
        "EDMEulerScheduler": _EDM,
        "EDMDPMSolverMultistepScheduler": _EDM
        | _THRESHOLDING
        | _DPM_SOLVER
        | {"solver_order": 2, "lower_order_final": True, "euler_at_final": False},
        "DPMSolverSDEScheduler": _SIGMA_SPACE | _OTHER_BETAS | {"noise_sampler_seed": None},
        "FlowMatchEulerDiscreteScheduler": _SIGMAS
        | {"num_train_timesteps": 1000, "shift": 1.0, "shift_terminal": None, "stochastic_sampling": False}
        | {"use_dynamic_shifting": False, "time_shift_type": "exponential", "invert_sigmas": False}
        | {"base_shift": 0.5, "max_shift": 1.15, "base_image_seq_len": 256, "max_image_seq_len": 4096},
        "ScoreSdeVeScheduler": {
            "num_train_timesteps": 2000,
            "snr": 0.15,
            "sigma_min": 0.01,
            "sigma_max": 1348.0,
            "sampling_eps": 1e-5,
            "correct_steps": 1,
        },
    }
)
"""The arguments of every scheduler that has a counterpart here, with their defaults."""

_SAME = {"DDIMParallelScheduler": "DDIMScheduler", "DDPMParallelScheduler": "DDPMScheduler"}
_KNOWN = frozenset().union(*(set(defaults) for defaults in DEFAULTS.values()))


class Config(dict[str, Any]):
    """A scheduler's complete configuration, and its class.

    Attributes:
        scheduler: the name of the class, a key of `DEFAULTS`.
    """

    def __init__(self, scheduler: str, values: Mapping[str, Any]):
        super().__init__(values)
        self.scheduler = scheduler


def read_config(scheduler: Any, class_name: str | None = None) -> Config:
    """The complete configuration of a scheduler.

    Args:
        scheduler: a scheduler of diffusers, its `config`, or the content of a scheduler_config.json.
        class_name: of a configuration that does not hold its `_class_name`.

    Raises:
        ValueError, TypeError: no scheduler, one without a counterpart here, or an argument that no scheduler has.
            Arguments of other schedulers than its own are ignored, as diffusers does: published files hold them.
    """
    given = scheduler if isinstance(scheduler, Mapping) else getattr(scheduler, "config", None)
    if not isinstance(given, Mapping):
        raise TypeError(f"scheduler must be one of diffusers or its config, got {type(scheduler).__name__}")
    if not isinstance(scheduler, Mapping):
        class_name = class_name or type(scheduler).__name__
    name = str(class_name or given.get("_class_name"))
    name = _SAME.get(name, name)
    if name not in DEFAULTS:
        known = ", ".join([*DEFAULTS, *_SAME])
        raise ValueError(f"scheduler must be one of {known} (class_name= or its config's _class_name), got {name!r}")
    unknown = sorted(key for key in given if key not in _KNOWN and not key.startswith("_"))
    if unknown:
        raise ValueError(f"scheduler has arguments that no scheduler here knows: {', '.join(unknown)}")
    own = {key: given.get(key, default) for key, default in DEFAULTS[name].items()}
    return Config(name, own)
