"""Which families fastdiff can replay, and by what."""

from __future__ import annotations

from collections.abc import Callable

from . import (
    checkpoint_adm,
    checkpoint_dg,
    checkpoint_edm,
    checkpoint_hf,
    checkpoint_invalid,
    checkpoint_layers,
    checkpoint_ssde,
    ddim_family,
    ddpm_family,
    dg_family,
    diffusers_family,
    edm_family,
    flow_family,
    kdiff_family,
    likelihood_family,
    loss_family,
    score_family,
    sde_family,
    tables,
    ts_family,
)
from .cases import Case

# Families that are tables of numbers, or losses: runner(case).
TABLE_RUNNERS: dict[tuple[str, str], Callable[[Case], None]] = {
    ("edm", "schedules"): tables.schedule_grids,
    ("ddpm", "beta_schedules"): tables.beta_schedules,
    ("ddpm", "gd_tables"): tables.posterior_tables,
    ("ddpm", "gd_respace"): tables.respacing,
    ("ddpm", "gd_unit"): loss_family.check_unit,
    ("ddpm", "gd_losses"): loss_family.check_loss,
    ("ddpm", "ip_losses"): loss_family.check_loss,
    ("ddpm", "gd_vb_terms"): loss_family.check_vb_terms,
    ("ddpm", "gd_calc_bpd"): loss_family.check_bound,
    ("ddpm", "sde_likelihood"): likelihood_family.check,
    ("ddpm", "ncsn_losses"): score_family.check_ncsn,
    ("ddpm", "sde_losses"): score_family.check_sde_losses,
    ("ddpm", "sde_tables"): score_family.check_sde_tables,
    ("edm", "kdiff_ll"): flow_family.check_likelihood,
    ("checkpoints", "guided-diffusion"): checkpoint_adm.check,
    ("checkpoints", "diffusers"): checkpoint_hf.check,
    ("checkpoints", "dg"): checkpoint_dg.check,
    ("checkpoints", "edm"): checkpoint_edm.check,
    ("checkpoints", "edm-layer"): checkpoint_layers.check,
    ("checkpoints", "invalid"): checkpoint_invalid.check,
    ("checkpoints", "score-sde"): checkpoint_ssde.check,
}
# Families that run the library, by each of its routes: runner(case, route).
ROUTE_RUNNERS: dict[tuple[str, str], Callable[[Case, str], None]] = {
    ("edm", "model"): edm_family.check_model,  # its guidance arrays: dg_family.check_model
    ("edm", "edm"): edm_family.check,
    ("edm", "es"): edm_family.check,
    ("edm", "ablation"): edm_family.check,
    ("edm", "kdiff"): kdiff_family.check,
    ("edm", "dg"): dg_family.check,
    ("edm", "sedm"): dg_family.check,
    ("edm", "sedm_b"): dg_family.check_other_reading,
    ("ddpm", "gd_p_mean_variance"): ddpm_family.check_mean_variance,
    ("ddpm", "gd_p_sample"): ddpm_family.check,
    ("ddpm", "gd_ddim"): ddpm_family.check,
    ("ddpm", "gd_ddim_reverse"): ddpm_family.check,
    ("ddpm", "es_p_sample"): ddpm_family.check,
    ("ddpm", "es_ddim"): ddpm_family.check,
    ("ddpm", "ts_dpm"): ts_family.check,
    ("ddpm", "sde_pc"): sde_family.check_pc,
    ("ddpm", "ncsnv1_ald"): sde_family.check_ald,
    ("ddpm", "ncsnv2_ald"): sde_family.check_ald,
    ("ddpm", "ts_adm_ddim"): ts_family.check,
    ("ddpm", "sde_ode"): flow_family.check_ode,
    ("ddpm", "ddim_repo"): ddim_family.check,
    ("ddpm", "diffusers"): diffusers_family.check,
    ("edm", "diffusers"): diffusers_family.check_edm,
}


def implemented(case: Case) -> bool:
    """Whether a case must pass."""
    key = (case.folder, case.family)
    return key in ROUTE_RUNNERS or key in TABLE_RUNNERS


def run_case(case: Case) -> None:
    """Replay a case on the readable route, whatever it is.

    Raises:
        NotImplementedError: the family has no runner.
    """
    key = (case.folder, case.family)
    if key in TABLE_RUNNERS:
        TABLE_RUNNERS[key](case)
    elif key in ROUTE_RUNNERS:
        ROUTE_RUNNERS[key](case, "readable")
    else:
        raise NotImplementedError(f"{case.folder}/{case.family} is not implemented yet")
