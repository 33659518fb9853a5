"""A discriminator of real and generated samples at every noise level, for discriminator guidance (Kim et al. 2023).

It reads VP-scaled states y = x / sqrt(1 + sigma^2) at VP times tau, as the published discriminators do, and can start
as the way down of a trained denoiser, which on small data is what lets it learn at all.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from ..guidance.vp import BETA_0, BETA_1
from .network import architecture
from .unet import UNet

__all__ = ["Discriminator", "Encoder"]

EXTERNAL = "given to load"
"""In a discriminator's configuration: an extractor that its file does not hold."""

_FIRST_TAU = 1e-5  # where Kim et al. begin: sigma = 1e-3


def _sigma(tau: Tensor) -> Tensor:
    """The VE noise level of a VP time: `fastdiff.guidance.vp.sigma_of_tau` on tensors, away from sigma = 0."""
    tau = tau.to(torch.promote_types(tau.dtype, torch.float32)).clamp_min(_FIRST_TAU)
    return torch.expm1(tau * (BETA_0 + tau * ((BETA_1 - BETA_0) / 2))).sqrt()


class Encoder(UNet):
    """The way down of a `UNet`, read at its middle block.

    Args:
        sigma_data: the input is a VP-scaled state, turned into what an EDM denoiser with this `sigma_data` reads. None:
            the input is used as it is (features of an extractor).
        architecture: arguments of `UNet`.

    Raises:
        ValueError: an argument is out of range; the message names it.
    """

    def __init__(self, sigma_data: float | None = 0.5, **architecture: Any) -> None:
        super().__init__(**architecture)
        del self.decoder, self.norm, self.out
        self.config["sigma_data"] = self.sigma_data = sigma_data

    @classmethod
    def from_denoiser(
        cls, denoiser: UNet, sigma_data: float | None = None, conditional: bool = False, dropout: float = 0.0
    ) -> Encoder:
        """A copy of a denoiser's way down.

        Args:
            denoiser: a `UNet` trained with EDM's preconditioning.
            sigma_data: of its preconditioning; default: what its file says.
            conditional: keep the class embedding; otherwise the denoiser's null class becomes part of the noise's.
            dropout: of the copy's residual blocks.

        Raises:
            ValueError: `sigma_data` is not known, `conditional` with an unconditional denoiser, or a denoiser that is
                told sigma itself.
        """
        if conditional and not denoiser.label_dim:
            raise ValueError("conditional must be False for a denoiser without classes")
        known = denoiser.metadata.get("sigma_data") if sigma_data is None else sigma_data
        if not known:
            raise ValueError("sigma_data must be given for a denoiser that was not loaded from a file")
        classes = denoiser.label_dim if conditional else 0
        if denoiser.log_time or denoiser.scale_by_sigma:
            raise ValueError("denoiser must be told EDM's ln(sigma) / 4, not sigma (log_time, scale_by_sigma)")
        changes = {"label_dim": classes, "dropout": dropout, "augment_dim": 0, "learned_variance": False}
        encoder = cls(float(known), **{**denoiser.config, **changes})
        weights = {name: tensor.detach().clone() for name, tensor in denoiser.state_dict().items()}
        if denoiser.label_embedding is not None and not conditional:
            last = f"noise_embedding.{len(denoiser.noise_embedding) - 1}.bias"
            weights[last] += weights["label_embedding.weight"][-1]
        encoder.load_state_dict({name: weights[name] for name in encoder.state_dict()}, assign=True)
        return encoder.requires_grad_(True)

    def forward(  # type: ignore[override]  # no augment_labels
        self, y: Tensor, tau: Tensor, labels: Tensor | None = None
    ) -> Tensor:
        """Features [B, width * mults[-1], h, w] of states y [B, C, H, W] at times tau [B]; labels as for `UNet`."""
        sigma = _sigma(tau)
        if self.sigma_data is not None:
            total = (sigma.square() + self.sigma_data**2).sqrt()
            scale = (1 + sigma.square()).sqrt() / total  # back to VE, then EDM's c_in
            y = y * scale.to(y.dtype).reshape(-1, 1, 1, 1)
        return self.encode(y, sigma.log() / 4, labels)[0]


@architecture("discriminator", "Kim et al. 2023 (discriminator guidance)")
class Discriminator(nn.Module):
    """The log-odds that a noisy state began as real data rather than as a generated sample.

    An `Encoder`, the mean and maximum over its pixels, and two linear layers, the last of which starts at zero.

    Args:
        hidden: width of the first linear layer.
        dropout: in the encoder's residual blocks and between the linear layers, in [0, 1).
        sigma_data: see `Encoder`; None where an extractor comes first.
        extractor: a frozen module `(y, tau) -> features [B, C, H, W]` whose output the encoder reads in place of y, as
            in Kim et al. 2023: `channels` and `image_size` are then those of the features. An `Encoder` (or its
            configuration) is stored in the discriminator's file; any other module has to be given again to `load`.
        architecture: the other arguments of `UNet`; `label_dim` classes, or 0: labels are accepted and not looked at.

    Attributes:
        label_dim, config, metadata: as of `UNet`.
        sample_shape: (C, H, W) of one state; None with an extractor that is not an `Encoder`.

    Raises:
        ValueError: an argument is out of range; the message names it.
    """

    def __init__(
        self,
        *,
        hidden: int = 128,
        dropout: float = 0.1,
        sigma_data: float | None = 0.5,
        extractor: nn.Module | dict[str, Any] | None = None,
        **architecture: Any,
    ) -> None:
        super().__init__()
        if hidden < 1:
            raise ValueError(f"Discriminator: hidden must be at least 1, got {hidden}")
        if isinstance(extractor, dict):
            extractor = Encoder(**extractor)
        self.encoder = Encoder(None if extractor is not None else sigma_data, dropout=dropout, **architecture)
        self.extractor = None if extractor is None else extractor.eval()
        for parameter in [] if extractor is None else extractor.parameters():
            parameter.requires_grad_(False)
        pooled = 2 * self.encoder.config["width"] * self.encoder.config["mults"][-1]
        self.head = nn.Sequential(nn.Linear(pooled, hidden), nn.SiLU(), nn.Dropout(dropout))
        self.out = nn.Linear(hidden, 1)
        nn.init.zeros_(self.out.weight)
        nn.init.zeros_(self.out.bias)
        stored: Any = None
        self.sample_shape: tuple[int, ...] | None = self.encoder.sample_shape
        if isinstance(extractor, Encoder):
            stored, self.sample_shape = extractor.config, extractor.sample_shape
        elif extractor is not None:
            stored, self.sample_shape = EXTERNAL, None
            self.register_state_dict_post_hook(_without_extractor)
        self.config: dict[str, Any] = {**self.encoder.config, "hidden": hidden, "extractor": stored}
        self.metadata: dict[str, Any] = {}
        self.label_dim = self.encoder.label_dim

    @classmethod
    def from_denoiser(
        cls,
        denoiser: UNet,
        conditional: bool = False,
        dropout: float = 0.1,
        *,
        hidden: int = 128,
        sigma_data: float | None = None,
        frozen: bool = False,
    ) -> Discriminator:
        """A discriminator that starts as the way down of a trained denoiser.

        Args:
            denoiser, conditional, sigma_data: see `Encoder.from_denoiser`.
            dropout, hidden: see `Discriminator`.
            frozen: the denoiser's way down stays as it is, as the extractor of a small new encoder.

        Raises:
            ValueError: see `Encoder.from_denoiser`.
        """
        if frozen:
            extractor = Encoder.from_denoiser(denoiser, sigma_data)
            old = extractor.config
            size = old["image_size"] // old["patch"] // 2 ** (len(old["mults"]) - 1)
            width = old["width"] * old["mults"][-1]
            small = {"image_size": size, "channels": width, "width": width, "mults": [1], "attention": [0], "patch": 1}
            classes = denoiser.label_dim if conditional else 0
            return cls(
                hidden=hidden, dropout=dropout, extractor=extractor, label_dim=classes, heads=old["heads"], **small
            )
        encoder = Encoder.from_denoiser(denoiser, sigma_data, conditional, dropout)
        model = cls(**{**encoder.config, "hidden": hidden})
        model.encoder = encoder
        return model

    def forward(self, y: Tensor, tau: Tensor, labels: Tensor | None = None) -> Tensor:
        """The logit of each state.

        Args:
            y: [B, C, H, W] VP-scaled states, of any floating dtype (turned into that of the parameters).
            tau: [B] (or a scalar tensor) VP times in [0, 1].
            labels: int64 [B], -1 for "no class", or one-hot [B, label_dim]; None is "no class" for every sample.

        Returns:
            [B], of the parameters' dtype.

        Raises:
            ValueError: `y` or `labels` has another shape or dtype.
        """
        y = y.to(self.out.weight.dtype)
        if self.extractor is not None:
            y = self.extractor(y, tau)
        if labels is not None:
            labels = None if not self.label_dim else labels.argmax(1) if labels.dim() == 2 else labels
        features = self.encoder(y, tau, labels)
        pooled = torch.cat([features.mean((2, 3)), features.amax((2, 3))], dim=1)
        logit: Tensor = self.out(self.head(pooled)).squeeze(1)
        return logit

    def train(self, mode: bool = True) -> Discriminator:
        """Sets the mode of everything but the extractor, which stays in evaluation mode."""
        super().train(mode)
        if self.extractor is not None:
            self.extractor.eval()
        return self


def _without_extractor(module: nn.Module, state: dict[str, Tensor], prefix: str, _: Any) -> None:
    """Drops the tensors of an extractor that the file does not hold."""
    for name in [name for name in state if name.startswith(f"{prefix}extractor.")]:
        del state[name]
