"""Noising a batch: the network's input and its target from clean samples and noise, in one launch of `combine`.

x_t = alpha x_0 + sigma (z + gamma xi), where gamma is DDPM-IP's input perturbation (Ning et al. 2023, algorithm 2), and
every target of the literature is linear in x_0, z and xi as well. So an objective is a table: a row per level that
holds [c_x, c_z(, c_xi)] of the input, then of the target. The noise is that of the contract (`fastdiff.ops.normal`):
a sample's seed decides it, draw 0 is z and draw 1 is xi, whatever the batch, the rank or the accumulation step.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .. import ops
from ..errors import check_choice

__all__ = ["TARGETS", "input_perturbation", "noising_table", "perturb", "sample_seeds"]

TARGETS = ("eps", "x0", "v", "score", "flow", "edm", "previous_x")


def input_perturbation(gamma: float | tuple[float, float] | list[float], levels: int) -> Tensor | None:
    """gamma of every step of a chain: float64 [levels], or None for no perturbation.

    Args:
        gamma: a number, or (at the cleanest, at the noisiest step) of a schedule that is linear in between.
        levels: steps of the chain.

    Raises:
        ValueError: gamma is negative or not finite.
    """
    ends = torch.tensor([gamma] if isinstance(gamma, (int, float)) else list(gamma), dtype=torch.float64)
    if len(ends) not in (1, 2) or not (ends.isfinite() & (ends >= 0)).all():
        raise ValueError(
            f"gamma must be a number of at least 0, or one at the cleanest and noisiest step, got {gamma!r}"
        )
    if not ends.any():
        return None
    return ends[0] + (ends[-1] - ends[0]) * torch.linspace(0, 1, levels, dtype=torch.float64)


def noising_table(
    alpha: Tensor,
    sigma: Tensor,
    target: str = "eps",
    *,
    gamma: Tensor | float | None = None,
    perturbed_target: bool = False,
    following: tuple[Tensor, Tensor] | None = None,
    sigma_data: float = 0.5,
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """Rows of `perturb`: one per level, composed in float64.

    The input is x_t, except for the target "edm", where it is c_in x_t with c_in = 1 / sqrt(sigma^2 + sigma_data^2).

    Args:
        alpha, sigma: [R] on one device; for "edm", alpha is 1.
        target: what the network is to predict: "eps" z; "x0" x_0; "v" alpha z - sigma x_0; "score" -z / sigma;
            "flow" z - x_0 (the velocity of x_t = (1 - t) x_0 + t z); "edm" (x_0 - c_skip x_t) / c_out;
            "previous_x" the mean of q(x_(t-1) | x_t, x_0) at the x_t that the network sees (needs `following`).
        gamma: [R] or a number: the input perturbation. None leaves xi out; 0 draws it and adds nothing.
        perturbed_target: the noise in the target is z + gamma xi too. That is DDPM-y, the negative control of Ning et
            al. 2023 (section 5): training on a rescaled noise, which corrects nothing.
        following: alpha and sigma, [R] each, of the next cleaner step of the chain (1 and 0 after the cleanest).
        sigma_data: of the target "edm".
        dtype: of the result and so of `perturb`'s arithmetic, float32 or float64.

    Returns:
        [R, 4], or [R, 6] with gamma.
    """
    check_choice("target", target, TARGETS)
    alpha, sigma = alpha.double(), sigma.double()
    zero, one = torch.zeros_like(sigma), torch.ones_like(sigma)
    state = alpha, sigma
    if target == "edm":
        norm = (sigma.square() + sigma_data**2).sqrt()
        goal = sigma / (sigma_data * norm), -sigma_data / norm  # without a division by a small sigma
        state = alpha / norm, sigma / norm
    elif target == "previous_x":
        if following is None:
            raise ValueError("following must hold alpha and sigma of the next cleaner step for target='previous_x'")
        before_alpha, before_sigma = (value.double() for value in following)
        # Ho et al. 2020, Eq. 7; beta = 1 - alpha^2 / alpha'^2.
        keep = (alpha / before_alpha) * (before_sigma / sigma).square()
        clean = before_alpha * (1 - (alpha / before_alpha).square()) / sigma.square()
        goal = clean + keep * alpha, keep * sigma
    else:
        goal = {
            "eps": (zero, one),
            "x0": (one, zero),
            "v": (-sigma, alpha),
            "score": (zero, -1 / sigma),
            "flow": (-one, one),
        }[target]
    columns = [*state, *goal]
    if gamma is not None:
        # The mean of the chain is taken at the perturbed x_t; every other target keeps the unperturbed noise.
        moved = goal[1] if perturbed_target or target == "previous_x" else zero
        columns = [*state, gamma * state[1], *goal, gamma * moved]
    return torch.stack(columns, -1).to(dtype)


def perturb(
    x0: Tensor,
    table: Tensor,
    rows: Tensor | None,
    noise: Tensor,
    xi: Tensor | None = None,
    *,
    dtype: torch.dtype | None = None,
    out: tuple[Tensor, Tensor] | None = None,
    backend: str | None = None,
) -> tuple[Tensor, Tensor]:
    """The network's input and its target.

    Args:
        x0: [B, ...] clean samples, of any floating dtype.
        table: [R, 4] or [R, 6] of `noising_table`, on the device of `x0`.
        rows: int64 [B], the level of each sample; None: row b is sample b's.
        noise: int64 [B] seeds, from which the noise is drawn inside the kernel; or z itself, as `x0`.
        xi: as `x0`, with a given z and a table that has gamma.
        dtype: of the network's input; default the table's. The target has the table's.
        out: write into this pair instead, contiguous and shaped as `x0` (a loop's buffers: on a CPU, fresh memory costs
            as much as the noise).
        backend: see `fastdiff.ops.resolve_backend`.

    Returns:
        (input, target), shaped as `x0`.

    Raises:
        ValueError, RuntimeError: an argument of another shape, dtype or device; the message names it.
    """
    if table.ndim != 2 or table.shape[1] not in (4, 6):
        raise ValueError(f"table must be [R, 4] or [R, 6] (see noising_table), got {list(table.shape)}")
    perturbed = table.shape[1] == 6
    if rows is None:
        if len(table) != len(x0):
            raise ValueError(f"rows must be given for a table of {len(table)} rows and {len(x0)} samples, got None")
        rows = torch.arange(len(x0), device=x0.device)
        table = table if len(table) else table.new_zeros(1, table.shape[1])  # an empty batch
    drawn = noise.dtype == torch.int64
    if (xi is None) != (drawn or not perturbed):
        wanted = "be given with a given noise and gamma" if xi is None else "be left out without gamma or with seeds"
        raise ValueError(f"xi must {wanted}, got {xi if xi is None else list(xi.shape)}")
    given = [] if drawn else [noise] if xi is None else [noise, xi]
    draws = [] if not drawn else [0, 1] if perturbed else [0]
    state, target = ops.combine(
        [x0, *given],
        table,
        rows=rows,
        seeds=noise if drawn else None,
        draws=draws,
        out_dtypes=[dtype or table.dtype, table.dtype],
        out=out,
        backend=backend,
    )
    return state, target


def sample_seeds(key: int, first: int, count: int, device: torch.device | str) -> Tensor:
    """Noise seeds of `count` samples of a training run: int64 [count], key + first, key + first + 1, ...

    Args:
        key: of the run, a 63-bit integer.
        first: how many samples the run has drawn before these; with several ranks, counted over all of them.
    """
    start = (key + first + 2**63) % 2**64 - 2**63  # as a 64-bit integer wraps
    return torch.arange(count, device=device) + start
