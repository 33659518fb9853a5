"""The preconditioners of Karras et al. 2022 (Table 1): denoisers D(x; sigma) around a raw network F.

    D(x; sigma) = c_skip x + c_out F(c_in x; c_noise)

Names, arguments and state dicts are those of the published checkpoints. `fastdiff.sampler_of` gives a sampler the raw
network, and folds these coefficients into its own arithmetic.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from ...errors import check_count, check_finite, check_positive
from ...prediction import EDMPrediction, IDDPMPrediction, Prediction, VEPrediction, VPPrediction
from ...schedules import iddpm_table, sigma_vp
from ..network import architecture
from .preconditioner import Preconditioner

__all__ = ["EDMPrecond", "VEPrecond", "VPPrecond", "iDDPMPrecond"]

SOURCE = "Karras et al. 2022, Table 1"
LONGEST = 100_000  # of iDDPM's table


@architecture("denoiser", SOURCE)
class EDMPrecond(Preconditioner):
    """EDM's own: c_noise = ln(sigma) / 4.

    Args:
        sigma_min, sigma_max: the noise levels that the network knows.
        sigma_data: standard deviation of the training data.

    The other arguments are `Preconditioner`'s.

    Raises:
        ValueError: an argument is out of range; the message names it.
    """

    def __init__(
        self,
        img_resolution: int,
        img_channels: int,
        label_dim: int = 0,
        use_fp16: bool = False,
        sigma_min: float = 0.0,
        sigma_max: float = math.inf,
        sigma_data: float = 0.5,
        model_type: str = "DhariwalUNet",
        **model_kwargs: Any,
    ) -> None:
        super().__init__(img_resolution, img_channels, label_dim, use_fp16, model_type, model_kwargs)
        self.sigma_min, self.sigma_max = _limits(type(self).__name__, sigma_min, sigma_max)
        self.sigma_data = check_positive("sigma_data", sigma_data)

    def coefficients(self, s: Tensor) -> tuple[Tensor | float, Tensor, Tensor | float]:
        variance, norm = s.square() + self.sigma_data**2, (s.square() + self.sigma_data**2).sqrt()
        return self.sigma_data**2 / variance, s * self.sigma_data / norm, 1 / norm

    def c_noise(self, s: Tensor) -> Tensor:
        return s.log() / 4

    def prediction(self) -> Prediction:
        return EDMPrediction(self.sigma_data)


@architecture("denoiser", SOURCE)
class VPPrecond(Preconditioner):
    """Of networks trained with the VP SDE: F predicts the noise, c_noise = (M - 1) t(sigma).

    Args:
        beta_d, beta_min: beta(t) = beta_min + beta_d t.
        M: times of the network's original training.
        epsilon_t: its smallest time, which is sigma_min.

    The other arguments are `Preconditioner`'s.

    Raises:
        ValueError: an argument is out of range; the message names it.
    """

    def __init__(
        self,
        img_resolution: int,
        img_channels: int,
        label_dim: int = 0,
        use_fp16: bool = False,
        beta_d: float = 19.9,
        beta_min: float = 0.1,
        M: int = 1000,
        epsilon_t: float = 1e-5,
        model_type: str = "SongUNet",
        **model_kwargs: Any,
    ) -> None:
        super().__init__(img_resolution, img_channels, label_dim, use_fp16, model_type, model_kwargs)
        self.beta_d, self.beta_min = check_positive("beta_d", beta_d), check_positive("beta_min", beta_min)
        self.M, self.epsilon_t = check_count("M", M, 2), check_positive("epsilon_t", epsilon_t)
        self.sigma_min, self.sigma_max = (float(sigma_vp(t, beta_d, beta_min)) for t in (self.epsilon_t, 1.0))
        if not self.sigma_min < self.sigma_max < math.inf:
            raise ValueError(f"VPPrecond: epsilon_t must be below 1 and beta_d of use, got {epsilon_t} and {beta_d}")

    def coefficients(self, s: Tensor) -> tuple[Tensor | float, Tensor, Tensor | float]:
        return 1.0, -s, 1 / (s.square() + 1).sqrt()

    def c_noise(self, s: Tensor) -> Tensor:
        # Not log1p: the published networks compute it so, and at the lowest levels it shows in float32.
        root = (self.beta_min**2 + 2 * self.beta_d * (1 + s.square()).log()).sqrt()
        return (self.M - 1) * ((root - self.beta_min) / self.beta_d)

    def prediction(self) -> Prediction:
        return VPPrediction(self.beta_d, self.beta_min, self.M)


@architecture("denoiser", SOURCE)
class VEPrecond(Preconditioner):
    """Of networks trained with the VE SDE: F predicts minus the noise, c_noise = ln(sigma / 2).

    Args:
        sigma_min, sigma_max: the noise levels that the network knows.

    The other arguments are `Preconditioner`'s.

    Raises:
        ValueError: an argument is out of range; the message names it.
    """

    def __init__(
        self,
        img_resolution: int,
        img_channels: int,
        label_dim: int = 0,
        use_fp16: bool = False,
        sigma_min: float = 0.02,
        sigma_max: float = 100.0,
        model_type: str = "SongUNet",
        **model_kwargs: Any,
    ) -> None:
        super().__init__(img_resolution, img_channels, label_dim, use_fp16, model_type, model_kwargs)
        self.sigma_min, self.sigma_max = _limits(type(self).__name__, sigma_min, sigma_max)

    def coefficients(self, s: Tensor) -> tuple[Tensor | float, Tensor, Tensor | float]:
        return 1.0, s, 1.0

    def c_noise(self, s: Tensor) -> Tensor:
        return (0.5 * s).log()

    def prediction(self) -> Prediction:
        return VEPrediction()


@architecture("denoiser", SOURCE)
class iDDPMPrecond(Preconditioner):
    """Of improved DDPM's networks: F predicts the noise, and a variance in further channels that D does not use.

    Args:
        C_1, C_2: of the cosine schedule.
        M: number of its levels.

    The other arguments are `Preconditioner`'s.

    Attributes:
        u: float32 [M + 1], the levels, decreasing to 0; part of the state dict.

    Raises:
        ValueError: an argument is out of range; the message names it.
    """

    u: Tensor

    def __init__(
        self,
        img_resolution: int,
        img_channels: int,
        label_dim: int = 0,
        use_fp16: bool = False,
        C_1: float = 0.001,
        C_2: float = 0.008,
        M: int = 1000,
        model_type: str = "DhariwalUNet",
        **model_kwargs: Any,
    ) -> None:
        super().__init__(img_resolution, img_channels, label_dim, use_fp16, model_type, model_kwargs, outputs=2)
        self.C_1, self.C_2, self.M = check_positive("C_1", C_1), check_positive("C_2", C_2), check_count("M", M, 2)
        if self.C_1 >= 1 or self.M > LONGEST:
            raise ValueError(f"iDDPMPrecond: C_1 must be below 1 and M at most {LONGEST}, got {C_1} and {M}")
        self.register_buffer("u", torch.tensor(iddpm_table(M, C_1, C_2, float32_table=True), dtype=torch.float32))

    @property
    def sigma_min(self) -> float:  # type: ignore[override]
        """The lowest level; read from the device."""
        return float(self.u[self.M - 1])

    @property
    def sigma_max(self) -> float:  # type: ignore[override]
        """The highest level; read from the device."""
        return float(self.u[0])

    def coefficients(self, s: Tensor) -> tuple[Tensor | float, Tensor, Tensor | float]:
        return 1.0, -s, 1 / (s.square() + 1).sqrt()

    def c_noise(self, s: Tensor) -> Tensor:
        return (self.M - 1 - self.round_sigma(s, return_index=True)).to(s.dtype)

    def round_sigma(self, sigma: Tensor | float, return_index: bool = False) -> Tensor:
        """The levels nearest in absolute distance, in float32.

        Args:
            sigma: any shape.
            return_index: their places in `u` instead.

        Returns:
            As `sigma`, or int64; on the device of `u`.
        """
        given = torch.as_tensor(sigma, device=self.u.device)
        index = (given.to(torch.float32)[..., None] - self.u.to(torch.float32)).abs().argmin(dim=-1)
        if return_index:
            return index
        return self.u[index].to(given.dtype if given.is_floating_point() else torch.float32)

    def prediction(self) -> Prediction:
        return IDDPMPrediction(self.u.tolist())

    def _rounding(self) -> Any:
        return IDDPMPrediction(self.u.tolist()).levels.round

    def _apply(self, fn: Any, recurse: bool = True) -> nn.Module:
        """As of every module, but that the levels stay in float32: half has no 20291 and 0.0064 apart."""
        levels = self.u
        super()._apply(fn, recurse)
        if self.u.dtype != levels.dtype:
            self.u = levels.to(self.u.device)
        return self


def _limits(name: str, sigma_min: float, sigma_max: float) -> tuple[float, float]:
    least, most = check_finite("sigma_min", sigma_min), float(sigma_max)
    if not 0 <= least < most:
        raise ValueError(f"{name}: sigma_min must be at least 0 and below sigma_max={sigma_max}, got {sigma_min}")
    return least, most
