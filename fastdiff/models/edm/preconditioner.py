"""What EDM's four preconditioners have in common (Karras et al. 2022, Eq. 7 and Table 1)."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor

from ...prediction import Prediction
from ...process import EDM
from ...reading import Reading, in_ve
from ..network import Network
from .dhariwal import DhariwalUNet
from .song import SongUNet

__all__ = ["Preconditioner"]

RAW: dict[str, type[SongUNet] | type[DhariwalUNet]] = {"SongUNet": SongUNet, "DhariwalUNet": DhariwalUNet}
LEAST, MOST = 0.002, 80.0  # the levels that EDM samples between, where the network knows them


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
