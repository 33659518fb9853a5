"""The training objectives of the literature, one function each; every one noises its batch through `perturb`."""

from __future__ import annotations

from .bound import calc_bpd, prior_bpd, reverse_step, vb_terms
from .ddpm import ddpm_loss
from .edm import edm_loss
from .flow import flow_loss
from .likelihoods import approx_standard_normal_cdf, discretized_gaussian_log_likelihood, normal_kl
from .penalty import gradient_penalty
from .score import dsm_loss, sliced_terms, ssm_loss, ssm_vr_loss
from .sde import sde_ddpm_loss, sde_loss, smld_loss

__all__ = [
    "approx_standard_normal_cdf",
    "calc_bpd",
    "ddpm_loss",
    "discretized_gaussian_log_likelihood",
    "dsm_loss",
    "edm_loss",
    "flow_loss",
    "gradient_penalty",
    "normal_kl",
    "prior_bpd",
    "reverse_step",
    "sde_ddpm_loss",
    "sde_loss",
    "sliced_terms",
    "smld_loss",
    "ssm_loss",
    "ssm_vr_loss",
    "vb_terms",
]
