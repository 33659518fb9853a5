"""The preconditioners of Karras et al. 2022 (Table 1): denoisers D(x; sigma) around a raw network F.

    D(x; sigma) = c_skip x + c_out F(c_in x; c_noise)

Names, arguments and state dicts are those of the published checkpoints. `fastdiff.sampler_of` gives a sampler the raw
network, and folds these coefficients into its own arithmetic.
"""

from __future__ import annotations

import math
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from ...errors import check_count, check_finite, check_positive
from ...prediction import EDMPrediction, IDDPMPrediction, Prediction, VEPrediction, VPPrediction
from ...process import EDM
from ...reading import Reading, in_ve
from ...schedules import iddpm_table, sigma_vp
from ..network import Network, architecture
from .dhariwal import DhariwalUNet
from .song import SongUNet

__all__ = ["EDMPrecond", "VEPrecond", "VPPrecond", "iDDPMPrecond"]

RAW: dict[str, type[SongUNet] | type[DhariwalUNet]] = {"SongUNet": SongUNet, "DhariwalUNet": DhariwalUNet}
SOURCE = "Karras et al. 2022, Table 1"
LEAST, MOST = 0.002, 80.0  # the levels that EDM samples between, where the network knows them
LONGEST = 100_000  # of iDDPM's table


class Preconditioner(Network):
    """What the four have in common.

    Args:
        img_resolution, img_channels: of the images.
        label_dim: number of classes, 0 for none.
        use_fp16: on CUDA the raw network runs under float16 autocast when D is called. A sampler calls the raw network
            in the dtype of its parameters: `net.model.half()`, or bfloat16, settles that.
        model_type: class of the raw network, "SongUNet" or "DhariwalUNet".
        model_kwargs: its further arguments.

    Attributes:
        model: the raw network.
        sigma_min, sigma_max: the noise levels it knows.
        config, metadata, sample_shape, label_dim: see `Network`.
    """

    sigma_min: float
    sigma_max: float

    def __init__(
        self,
        img_resolution: int,
        img_channels: int,
        label_dim: int,
        use_fp16: bool,
        model_type: str,
        model_kwargs: dict[str, Any],
        outputs: int = 1,
    ) -> None:
        super().__init__()
        if model_type not in RAW:
            raise ValueError(f"{type(self).__name__}: model_type must be one of {', '.join(RAW)}, got {model_type!r}")
        self.model = RAW[model_type](
            img_resolution=img_resolution,
            in_channels=img_channels,
            out_channels=outputs * img_channels,
            label_dim=label_dim,
            **model_kwargs,
        )
        self.sample_shape, self.label_dim, self.use_fp16 = self.model.sample_shape, label_dim, bool(use_fp16)

    def forward(
        self,
        x: Tensor,
        sigma: Tensor | float,
        labels: Tensor | None = None,
        *,
        force_fp32: bool = False,
        augment_labels: Tensor | None = None,
    ) -> Tensor:
        """The denoised images D(x; sigma).

        Args:
            x: [B, C, H, W] noisy images, of any floating dtype.
            sigma: [B], or one for all: noise levels above 0.
            labels: int64 [B], -1 for no class, or rows [B or 1, label_dim]; None is no class. Not looked at by a
                network without classes.
            force_fp32: no float16, whatever `use_fp16` says.
            augment_labels: [B or 1, augment_dim]; None is no augmentation.

        Returns:
            [B, C, H, W] in float32; in float64 if the parameters are.

        Raises:
            ValueError: an input of another shape.
        """
        weight = next(self.model.parameters())
        dtype = torch.promote_types(torch.float32, weight.dtype)
        x, s = x.to(dtype), torch.as_tensor(sigma, device=x.device).to(dtype).reshape(-1, 1, 1, 1)
        if s.shape[0] not in (1, x.shape[0]):
            raise ValueError(f"sigma must be [{x.shape[0]}] or a scalar, got {s.shape[0]} of them")
        c_skip, c_out, c_in = self.coefficients(s)
        if labels is not None:
            labels = self._labels(labels, dtype)
        with self._precision(x, force_fp32):
            output = self.model(
                (c_in * x).to(weight.dtype), self.c_noise(s.flatten()), labels, augment_labels=augment_labels
            )
        denoised: Tensor = c_skip * x + c_out * output[:, : x.shape[1]].to(dtype)
        return denoised

    def coefficients(self, s: Tensor) -> tuple[Tensor | float, Tensor, Tensor | float]:
        """(c_skip, c_out, c_in) of noise levels, elementwise."""
        raise NotImplementedError

    def c_noise(self, s: Tensor) -> Tensor:
        """What the raw network is told of noise levels [B] or [1]."""
        raise NotImplementedError

    def prediction(self) -> Prediction:
        """How the raw network's output is read."""
        raise NotImplementedError

    def round_sigma(self, sigma: Tensor | float, return_index: bool = False) -> Tensor:
        """The nearest levels that the network was trained at: all but iDDPM's at every one.

        Args:
            sigma: any shape.
            return_index: their numbers instead (iDDPM's only).

        Returns:
            As `sigma`, or int64.
        """
        if return_index:
            raise ValueError(f"return_index must be False: {type(self).__name__} was trained at every level")
        return torch.as_tensor(sigma)

    def reading(self) -> Reading:
        """For samplers: the raw network, between EDM's levels 0.002 and 80 as far as the network knows them."""
        least, most = self.sigma_min, self.sigma_max
        self.model.metadata = {name: self.metadata[name] for name in ("digest",) if name in self.metadata}
        process = EDM(max(LEAST, least), min(MOST, most), self._rounding())
        return in_ve(self.model, process, self.prediction(), (least, most))

    def _rounding(self) -> Any:
        """`round_sigma` for numbers on the host; None where it does nothing."""
        return None

    def _labels(self, labels: Tensor, dtype: torch.dtype) -> Tensor | None:
        """As the raw network takes them: rows of any type, or one row without its axis, are floating rows."""
        if not self.label_dim:
            return None
        if labels.ndim == 1 and not labels.is_floating_point():
            return labels.long()
        return labels.to(dtype).reshape(-1, self.label_dim)

    def _precision(self, x: Tensor, force_fp32: bool) -> AbstractContextManager[Any]:
        half = self.use_fp16 and x.is_cuda and not force_fp32
        return torch.autocast("cuda", torch.float16) if half else nullcontext()


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
