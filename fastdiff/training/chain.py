"""A discrete variance-preserving chain as training needs it: its tables on the device, a row for every step."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from ..process import VP, GaussianTables
from ..solvers.ddpm import VARIANCES, log_variance
from .perturb import noising_table

__all__ = ["Chain"]


class Chain:
    """The T' steps of a VP process, index 0 the cleanest, as guided-diffusion counts them.

    Tables are composed in float64 and rounded once; each is put on the device at its first use and stays there, so a
    training step uploads nothing.

    Args:
        process: the VP process.
        steps: respacing as in `VP.levels` (an int, "10,5,5", "ddim50"); None keeps all T steps.
        device: where the tables live.
        dtype: of the tables and of the arithmetic of the losses, float32 or float64.

    Attributes:
        times: [T'] what the network is told, ascending: int64 original steps, or with `rescale_timesteps`
            t * 1000 / T in `dtype`.
    """

    def __init__(
        self,
        process: VP,
        steps: int | str | None = None,
        *,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
    ):
        if not isinstance(process, VP):
            raise ValueError(f"process must be a fastdiff.VP, whose chain is discrete, got {process!r}")
        if dtype not in (torch.float32, torch.float64):
            raise ValueError(f"dtype must be torch.float32 or torch.float64, got {dtype}")
        self.process, self.device, self.dtype = process, torch.device(device), dtype
        self._levels = process.levels(steps)
        self.tables = GaussianTables(self._levels.alphas_cumprod)
        told = torch.tensor([level.time for level in self._levels[-2::-1]], dtype=torch.float64)
        self.times = told.to(self.device, torch.int64 if process.integer_time else dtype)
        self._columns: dict[str, Tensor] = {}
        self._noising: dict[tuple[str, bool], tuple[Tensor | float | None, Tensor]] = {}

    @property
    def T(self) -> int:
        """The number of steps, T'."""
        return len(self.tables.betas)

    def __call__(self, name: str, t: Tensor) -> Tensor:
        """A table at the steps t: [B] in `dtype`.

        Args:
            name: an attribute of `GaussianTables`; or "NAME_log_variance_scale", "NAME_log_variance" with NAME one of
                `VARIANCES`: a and b of log variance = a v + b (a is 0 where the variance is fixed).
            t: int64 [B] on the chain's device, from 0 (cleanest) to T' - 1.
        """
        if name not in self._columns:
            self._columns[name] = torch.from_numpy(self._table(name)).to(self.device, self.dtype)
        return self._columns[name][t]

    def _table(self, name: str) -> np.ndarray:
        variance = name.removesuffix("_scale").removesuffix("_log_variance")
        if variance in VARIANCES and variance != name:
            scale, offset = log_variance(self.tables, variance)
            return scale if name.endswith("_scale") else offset
        table = getattr(self.tables, name, None)
        if not isinstance(table, np.ndarray):
            known = ", ".join([*vars(self.tables), *(f"{v}_log_variance[_scale]" for v in VARIANCES)])
            raise ValueError(f"name must be one of {known}, got {name!r}")
        return table

    def noising(
        self, target: str = "eps", gamma: Tensor | float | None = None, perturbed_target: bool = False
    ) -> Tensor:
        """The chain's `noising_table`: [T', 4], or [T', 6] with gamma, on the device.

        Made once for the same arguments; a tensor of gamma is the same if it is the same object.

        Args:
            target, perturbed_target: see `noising_table`.
            gamma: None, a number or [T'] (see `input_perturbation`).
        """
        key = target, perturbed_target
        if key in self._noising:
            made_for, table = self._noising[key]
            numbers = isinstance(gamma, (int, float)) and isinstance(made_for, (int, float))
            if made_for is gamma or (numbers and made_for == gamma):
                return table
        if isinstance(gamma, Tensor) and gamma.shape != (self.T,):
            raise ValueError(f"gamma must be a number or [{self.T}], one a step, got {list(gamma.shape)}")
        levels = torch.tensor([level[:2] for level in self._levels[::-1]], dtype=torch.float64)  # clean, then 0, 1, ...
        table = noising_table(
            levels[1:, 0],
            levels[1:, 1],
            target,
            gamma=gamma.detach().to("cpu", torch.float64) if isinstance(gamma, Tensor) else gamma,
            perturbed_target=perturbed_target,
            following=(levels[:-1, 0], levels[:-1, 1]),
            dtype=self.dtype,
        ).to(self.device)
        self._noising[key] = gamma, table
        return table
