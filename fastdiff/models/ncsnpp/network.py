"""NCSN++ and DDPM++ as score_sde published them (Song et al. 2021, appendix H): one class, many switches.

The modules stand in one flat list, in the order in which they run, so that tensors have the published names.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ..blocks import FourierFeatures, sinusoids, taps
from ..network import Network, architecture
from .layers import (
    ACTIVATIONS,
    AttnBlock,
    Combine,
    Downsample,
    ResnetBlockBigGAN,
    ResnetBlockDDPM,
    Upsample,
    added,
    conv,
    linear,
    norm,
)

__all__ = ["NCSNpp", "noise_levels"]

CHOICES = {
    "embedding_type": ("fourier", "positional"),
    "resblock_type": ("biggan", "ddpm"),
    "progressive": ("none", "output_skip", "residual"),
    "progressive_input": ("none", "input_skip", "residual"),
    "progressive_combine": ("sum", "cat"),
    "nonlinearity": tuple(ACTIVATIONS),
}
MOST_SCALES = 1 << 20  # its buffer is filled wherever the network is built
SWITCHES = ("centered", "conditional", "fir", "skip_rescale", "scale_by_sigma", "resamp_with_conv")


@architecture("denoiser", "Song et al. 2021, Score-Based Generative Modeling through SDEs (score_sde)")
class NCSNpp(Network):
    """The network `F(x, time)`: of VE the score, of VP and sub-VP the noise (see `importing.score_sde`).

    The arguments have the names of score_sde's configurations (sections data and model); the defaults are those of
    NCSN++ on CIFAR-10 with continuous VE.

    Args:
        image_size: height and width, a multiple of `2 ** (len(ch_mult) - 1)`.
        nf: channels of the first convolution.
        ch_mult: channels of each level over nf; each level after the first has half the resolution.
        num_res_blocks: residual blocks of a level on the way down; one more on the way up.
        attn_resolutions: resolutions, in pixels, with attention: after every block down, after the last one up.
        num_channels: of an image.
        centered: images are in [-1, 1]; otherwise in [0, 1], and taken to [-1, 1] here.
        conditional: whether the blocks are told the time.
        embedding_type: "fourier", of ln(time), which is sigma, or "positional", of 0 to 999.
        fir, fir_kernel: filters where the resolution changes, and which; otherwise nearest neighbours, 2 x 2 means.
        skip_rescale: sums over the square root of 2.
        scale_by_sigma: the output over sigma, which is the time itself ("fourier") or `sigmas[int(time)]`.
        resblock_type: "biggan" (changes the resolution itself) or "ddpm".
        progressive: "output_skip": every level adds to the output; "residual": the outputs are a residual path.
        progressive_input: "input_skip": the image itself goes to every level; "residual": as a residual path.
        progressive_combine: "sum" or "cat", of "input_skip".
        resamp_with_conv: with a convolution where blocks of type "ddpm" change the resolution.
        nonlinearity: "swish", "elu", "relu" or "lrelu".
        dropout: in [0, 1), in training.
        sigma_min, sigma_max, num_scales: of `sigmas`, the noise levels of VE's chain, from the largest down.
        fourier_scale, init_scale: how weights start.

    Attributes:
        sigmas: float64 [num_scales], a buffer; it stays float64 when the network is made half precision.

    Raises:
        ValueError: an argument is out of range, or asks for a convolution fused with FIR up-sampling ("residual" output
            or "ddpm" blocks with `resamp_with_conv`, with `fir`), which score_sde's own code fails at.
    """

    def __init__(
        self,
        image_size: int,
        nf: int,
        ch_mult: Sequence[int],
        num_res_blocks: int,
        attn_resolutions: Sequence[int],
        num_channels: int = 3,
        centered: bool = False,
        conditional: bool = True,
        embedding_type: str = "fourier",
        fir: bool = True,
        fir_kernel: Sequence[float] = (1, 3, 3, 1),
        skip_rescale: bool = True,
        scale_by_sigma: bool = True,
        resblock_type: str = "biggan",
        progressive: str = "none",
        progressive_input: str = "residual",
        progressive_combine: str = "sum",
        resamp_with_conv: bool = True,
        nonlinearity: str = "swish",
        dropout: float = 0.1,
        sigma_min: float = 0.01,
        sigma_max: float = 50.0,
        num_scales: int = 1000,
        fourier_scale: float = 16.0,
        init_scale: float = 0.0,
    ) -> None:
        super().__init__()
        _check({name: value for name, value in locals().items() if name not in ("self", "__class__")})
        self.sample_shape: tuple[int, ...] = (num_channels, image_size, image_size)
        self.nf, self.num_res_blocks = nf, num_res_blocks
        self.attention = [image_size >> level in attn_resolutions for level in range(len(ch_mult))]
        self.centered, self.conditional, self.scale_by_sigma = centered, conditional, scale_by_sigma
        self.embedding_type, self.resblock_type = embedding_type, resblock_type
        self.progressive, self.progressive_input = progressive, progressive_input
        self.skip_rescale = skip_rescale
        self.fir_kernel = [float(number) for number in fir_kernel] if fir else None
        self.act = ACTIVATIONS[nonlinearity]
        self.register_buffer("sigmas", noise_levels(sigma_min, sigma_max, num_scales))
        self.sigmas: Tensor

        modules: list[nn.Module] = []
        add = modules.append
        if embedding_type == "fourier":
            add(FourierFeatures(2 * nf, fourier_scale, name="W", frozen=True, order="sin_cos", factor_first=False))
        if conditional:
            modules += [linear(2 * nf if embedding_type == "fourier" else nf, 4 * nf), linear(4 * nf, 4 * nf)]

        common: dict[str, Any] = {"embedding": 4 * nf, "dropout": dropout, "rescale": skip_rescale, "scale": init_scale}
        biggan = resblock_type == "biggan"
        block: Callable[..., nn.Module] = partial(ResnetBlockBigGAN if biggan else ResnetBlockDDPM, self.act, **common)
        attention = partial(AttnBlock, rescale=skip_rescale, scale=init_scale)
        last = len(ch_mult) - 1

        add(conv(num_channels, nf))
        channels, pyramid, skips = nf, num_channels, [nf]
        for level, mult in enumerate(ch_mult):
            for _ in range(num_res_blocks):
                add(block(channels, nf * mult))
                channels = nf * mult
                if self.attention[level]:
                    add(attention(channels))
                skips.append(channels)
            if level == last:
                break
            add(block(channels, channels, resample="down") if biggan else
                Downsample(channels, channels, resamp_with_conv, fir))  # fmt: skip
            if progressive_input == "input_skip":
                modules += [Downsample(pyramid, pyramid, False, fir), Combine(pyramid, channels, progressive_combine)]
                channels *= 2 if progressive_combine == "cat" else 1
            elif progressive_input == "residual":
                add(Downsample(pyramid, channels, True, fir))
                pyramid = channels
            skips.append(channels)

        modules += [block(channels, channels), attention(channels), block(channels, channels)]

        for level in reversed(range(last + 1)):
            for _ in range(num_res_blocks + 1):
                add(block(channels + skips.pop(), nf * ch_mult[level]))
                channels = nf * ch_mult[level]
            if self.attention[level]:
                add(attention(channels))
            if progressive == "output_skip":
                if level < last:
                    add(Upsample(num_channels, num_channels, False))
                modules += [norm(channels), conv(channels, num_channels, scale=init_scale)]
            elif progressive == "residual":
                modules += (
                    [norm(channels), conv(channels, channels)] if level == last else [Upsample(pyramid, channels, True)]
                )
                pyramid = channels
            if level:
                add(block(channels, channels, resample="up") if biggan else
                    Upsample(channels, channels, resamp_with_conv))  # fmt: skip
        if progressive != "output_skip":
            modules += [norm(channels), conv(channels, num_channels, scale=init_scale)]
        self.all_modules = nn.ModuleList(modules)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Any:
        kept = self.sigmas
        super()._apply(fn, recurse)
        if self.sigmas.dtype.itemsize < kept.dtype.itemsize:
            self.sigmas = kept.to(self.sigmas.device)
        return self

    def forward(self, x: Tensor, time: Tensor, labels: Tensor | None = None) -> Tensor:
        """One evaluation.

        Args:
            x: [B, C, H, W] noisy images, of the parameters' dtype (any dtype under autocast).
            time: [B] (or [1], or a scalar tensor) of any dtype: sigma, or 999 t, or a step of the chain. Positive with
                "fourier"; with "positional" and `scale_by_sigma` its integer part is below num_scales. That is not
                checked here: it would read the tensor back from its device.
            labels: must be None: these networks have no classes.

        Returns:
            [B, C, H, W].

        Raises:
            ValueError: `x` or `time` has another shape, or labels were given.
        """
        channels, divisor = self.sample_shape[0], 1 << (len(self.attention) - 1)
        if x.ndim != 4 or x.shape[1] != channels or x.shape[2] % divisor or x.shape[3] % divisor:
            wanted = f"[B, {channels}, H, W] with H and W multiples of {divisor}"
            raise ValueError(f"NCSNpp: x must be {wanted}, got {list(x.shape)}")
        if time.ndim > 1 or time.numel() not in (1, x.shape[0]):
            raise ValueError(f"NCSNpp: time must be a scalar or [{x.shape[0]}], got {list(time.shape)}")
        if labels is not None:
            raise ValueError("NCSNpp: labels were given but the network has no classes")
        time = time.reshape(-1)
        modules = iter(self.all_modules)
        temb = self._embedding(time, x.dtype, modules)
        kernel = None if self.fir_kernel is None else taps(
            self.fir_kernel, x.device, torch.promote_types(x.dtype, torch.float32)
        )  # fmt: skip
        h = self._up(*self._down(x if self.centered else 2 * x - 1, temb, kernel, modules), temb, kernel, modules)
        if not self.scale_by_sigma:
            return h
        sigma = time if self.embedding_type == "fourier" else self.sigmas[time.long()]
        return h / sigma.to(h.dtype).reshape(-1, 1, 1, 1)

    def _embedding(self, time: Tensor, dtype: torch.dtype, modules: Iterator[Any]) -> Tensor | None:
        """[B or 1, 4 nf], None if not `conditional`; takes the first modules."""
        fourier = next(modules) if self.embedding_type == "fourier" else None
        if not self.conditional:
            return None
        if fourier is not None:
            features = fourier(time.to(torch.promote_types(time.dtype, torch.float32)).log())
        else:
            features = sinusoids(time, self.nf, denominator="half-1", order="sin_cos", formula="product", pad_odd=True)
        first, second = next(modules), next(modules)
        embedding: Tensor = second(self.act(first(features.to(dtype))))
        return embedding

    def _down(
        self, x: Tensor, temb: Tensor | None, kernel: Tensor | None, modules: Iterator[Any]
    ) -> tuple[Tensor, list[Tensor]]:
        """(output of the middle blocks, what the way up is to be joined with)."""
        pyramid = x
        h = next(modules)(x)
        skips = [h]
        for level, attention in enumerate(self.attention):
            for _ in range(self.num_res_blocks):
                h = next(modules)(h, temb)
                if attention:
                    h = next(modules)(h)
                skips.append(h)
            if level + 1 == len(self.attention):
                break
            h = self._resampled(h, temb, kernel, modules)
            if self.progressive_input != "none":
                pyramid = next(modules)(pyramid, kernel)
                if self.progressive_input == "input_skip":
                    h = next(modules)(pyramid, h)
                else:
                    h = pyramid = added(pyramid, h, self.skip_rescale)
            skips.append(h)
        first, between, second = next(modules), next(modules), next(modules)
        return second(between(first(h, temb)), temb), skips

    def _up(
        self, h: Tensor, skips: list[Tensor], temb: Tensor | None, kernel: Tensor | None, modules: Iterator[Any]
    ) -> Tensor:
        pyramid = None
        for level in reversed(range(len(self.attention))):
            for _ in range(self.num_res_blocks + 1):
                h = next(modules)(torch.cat([h, skips.pop()], dim=1), temb)
            if self.attention[level]:
                h = next(modules)(h)
            if self.progressive != "none":
                below = None if pyramid is None else next(modules)(pyramid, kernel)
                if self.progressive == "output_skip" or below is None:
                    pyramid = self._normed(h, modules)
                    pyramid = pyramid if below is None else below + pyramid
                else:
                    h = pyramid = added(below, h, self.skip_rescale)
            if level:
                h = self._resampled(h, temb, kernel, modules)
        return pyramid if self.progressive == "output_skip" and pyramid is not None else self._normed(h, modules)

    def _resampled(self, h: Tensor, temb: Tensor | None, kernel: Tensor | None, modules: Iterator[Any]) -> Tensor:
        module = next(modules)
        y: Tensor = module(h, temb, kernel) if self.resblock_type == "biggan" else module(h, kernel)
        return y

    def _normed(self, h: Tensor, modules: Iterator[Any]) -> Tensor:
        """Norm, activation, convolution."""
        norm, convolution = next(modules), next(modules)
        y: Tensor = convolution(self.act(norm(h)))
        return y


def noise_levels(sigma_min: float, sigma_max: float, num_scales: int) -> Tensor:
    """float64 [num_scales], geometric from sigma_max down to sigma_min (Song & Ermon 2020)."""
    levels = np.exp(np.linspace(math.log(sigma_max), math.log(sigma_min), num_scales))
    return torch.tensor(levels, dtype=torch.float64)


def _check(given: dict[str, Any]) -> None:
    """Refuses arguments that make no network; the message names the argument."""
    for name, known in CHOICES.items():
        if given[name] not in known:
            raise ValueError(f"NCSNpp: {name} must be one of {', '.join(known)}, got {given[name]!r}")
    for name in SWITCHES:
        if not isinstance(given[name], bool):
            raise ValueError(f"NCSNpp: {name} must be True or False, got {given[name]!r}")
    for name, least in {"image_size": 1, "nf": 1, "num_res_blocks": 0, "num_channels": 1, "num_scales": 1}.items():
        if isinstance(given[name], bool) or not isinstance(given[name], int) or given[name] < least:
            raise ValueError(f"NCSNpp: {name} must be an integer of at least {least}, got {given[name]!r}")
    if given["num_scales"] > MOST_SCALES:
        raise ValueError(f"NCSNpp: num_scales must be at most {MOST_SCALES}, got {given['num_scales']}")
    mults = given["ch_mult"]
    for name, values in (("ch_mult", mults), ("attn_resolutions", given["attn_resolutions"])):
        if isinstance(values, str) or not all(isinstance(each, int) and each >= 1 for each in values):
            raise ValueError(f"NCSNpp: {name} must be a list of positive integers, got {values!r}")
    if not mults:
        raise ValueError("NCSNpp: ch_mult must have an entry for each level, got none")
    divisor = 1 << (len(mults) - 1)
    if given["image_size"] % divisor:
        wanted = f"a multiple of {divisor} for {len(mults)} levels"
        raise ValueError(f"NCSNpp: image_size must be {wanted}, got {given['image_size']}")
    if not 0.0 <= given["dropout"] < 1.0:
        raise ValueError(f"NCSNpp: dropout must be in [0, 1), got {given['dropout']}")
    if not 0.0 < given["sigma_min"] < given["sigma_max"] < math.inf:
        limits = f"{given['sigma_min']} and {given['sigma_max']}"
        raise ValueError(f"NCSNpp: sigma_min must be positive and below sigma_max, both finite, got {limits}")
    if not given["fir"]:
        return
    kernel = [float(number) for number in given["fir_kernel"]]
    if len(kernel) < 2 or not math.isfinite(sum(kernel)) or sum(kernel) == 0:
        raise ValueError(f"NCSNpp: fir_kernel must be 2 numbers or more whose sum is not 0, got {kernel}")
    fused = None
    if given["progressive"] == "residual":
        fused = "progressive must not be 'residual'"
    elif given["resblock_type"] == "ddpm" and given["resamp_with_conv"]:
        fused = "resamp_with_conv must not be True for blocks of type 'ddpm'"
    if fused and len(mults) > 1:
        why = (
            "score_sde's own code fails at a convolution fused with FIR up-sampling, so there is nothing to agree with"
        )
        raise ValueError(f"NCSNpp: with fir, {fused}: {why}")
