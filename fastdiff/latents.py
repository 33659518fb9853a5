"""Latent diffusion: samples of a network that lives in an autoencoder's latents, decoded in chunks.

Rombach et al. 2022, "High-Resolution Image Synthesis with Latent Diffusion Models", section 3.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from .arguments import dtype_of_model
from .errors import check_count, check_finite, check_positive
from .reporting import all_finite

__all__ = ["BATCH", "Latent", "decode_in_chunks", "latent_of"]

BATCH = 8  # samples that are decoded at a time where nothing else is said


def decode_in_chunks(decode: Callable[[Tensor], Tensor], x: Tensor, batch: int | None = None) -> Tensor:
    """decode(x), so many samples at a time: the memory is that of one chunk, the result the same.

    Args:
        decode: [b, ...] -> [b, ...], which treats every sample alike.
        x: [B, ...].
        batch: samples in one call, at least 1; None: all of them.

    Returns:
        [B, ...]: what `decode` made of all samples.

    Raises:
        TypeError, ValueError: `decode` returned something else.
    """
    parts = [x] if batch is None else x.split(check_count("decode_batch", batch))
    done = []
    for part in parts:
        made = decode(part)
        if not isinstance(made, Tensor):
            raise TypeError(f"decode must return a tensor, got {type(made).__name__}")
        if made.ndim == 0 or len(made) != len(part):
            raise ValueError(f"decode must return {len(part)} samples for as many, got shape {list(made.shape)}")
        done.append(made)
    return done[0] if len(done) == 1 else torch.cat(done)


class Decoding:
    """What becomes of a sampler's final state: itself, or what `decode` makes of it.

    Args:
        decode, batch: as in `decode_in_chunks`; None: nothing is decoded.
        check: whether a result that is not finite is an error.

    Raises:
        TypeError, ValueError: a bad argument.
    """

    def __init__(self, decode: Callable[[Tensor], Tensor] | None, batch: int | None, check: bool):
        if decode is not None and not callable(decode):
            raise TypeError(f"decode must be a function of the final state, got {decode!r}")
        if decode is None and batch is not None:
            raise ValueError(f"decode_batch must be left out without decode, got {batch!r}")
        self.decode, self.check = decode, check
        self.batch = None if batch is None else check_count("decode_batch", batch)

    def __call__(self, x: Tensor, recompute: bool = False) -> Tensor:
        """The result of a run; `recompute`: a chunk's activations are made once more in the backward pass.

        Raises:
            FloatingPointError: it is not finite (with `check`).
        """
        decode = self.decode
        if decode is None:
            return x
        call = partial(checkpoint, decode, use_reentrant=False) if recompute else decode
        made = decode_in_chunks(call, x, self.batch)
        if self.check and not all_finite(made.detach()):
            bad = (~made.detach().isfinite().reshape(len(made), -1).all(1)).nonzero().flatten().tolist()
            raise FloatingPointError(
                f"decode made NaN or Inf of finite states, in the samples at {bad[:8]} of the batch; some autoencoders "
                "overflow in float16. check=False returns it as it is."
            )
        return made


class Latent:
    """The way from latents, as a network sees them, to images and back: `Sampler(..., decode=Latent(vae))`.

    diffusers' convention: latents are scale (z - shift), or with a mean and a deviation of each channel
    scale (z - mean) / std, of the autoencoder's own z.

    Args:
        vae: diffusers' AutoencoderKL, VQModel, AutoencoderTiny or the like: `encode`, `decode` and `config`. In
            evaluation mode, on the sampler's device; it is called in the dtype of its own parameters.
        scale: positive; default: `config.scaling_factor`, 1 where there is none.
        shift: a number, or one for each channel; default: `config.latents_mean` or `config.shift_factor`, else 0.

    Raises:
        TypeError, ValueError: a bad argument.
    """

    def __init__(self, vae: Any, scale: float | None = None, shift: float | Sequence[float] | None = None):
        if not callable(getattr(vae, "decode", None)):
            raise TypeError(f"vae must have a method decode, as diffusers' autoencoders, got {type(vae).__name__}")
        self.vae = vae
        told = _setting(vae, "scaling_factor")
        self.scale = check_positive("scale", scale if scale is not None else 1.0 if told is None else told)
        mean, std = _setting(vae, "latents_mean"), _setting(vae, "latents_std")
        if shift is None:
            shift = mean if mean is not None and std is not None else _setting(vae, "shift_factor") or 0.0
            self.std = [1.0] if std is None or mean is None else [check_positive("latents_std", each) for each in std]
        else:
            self.std = [1.0]
        self.shift = [check_finite("shift", each) for each in (shift if isinstance(shift, Sequence) else [shift])]

    def __call__(self, x: Tensor) -> Tensor:
        """Images of latents.

        Args:
            x: [B, c, h, w] latents of the network.

        Returns:
            [B, C, H, W] in the dtype of x, by habit in [-1, 1], not clipped.
        """
        z = x * self._channels(self.std, x) / self.scale + self._channels(self.shift, x)
        made: Tensor = self.vae.decode(z.to(dtype_of_model(self.vae, x.dtype)), return_dict=False)[0]
        return made.to(x.dtype)

    def encode(self, images: Tensor) -> Tensor:
        """Latents of images, to start from (`image=`, `Sampler.encode`): the mode of the autoencoder's distribution.

        Args:
            images: [B, C, H, W], by habit in [-1, 1].

        Returns:
            [B, c, h, w] in the dtype of the images.
        """
        found = self.vae.encode(images.to(dtype_of_model(self.vae, images.dtype)), return_dict=False)[0]
        z: Tensor = (found if isinstance(found, Tensor) else found.mode()).to(images.dtype)
        return (z - self._channels(self.shift, z)) / self._channels(self.std, z) * self.scale

    def _channels(self, values: list[float], x: Tensor) -> Tensor:
        if len(values) not in (1, x.shape[1]):
            raise ValueError(f"shift must be a number or one for each of {x.shape[1]} channels, got {len(values)}")
        return x.new_tensor(values).reshape(1, -1, *[1] * (x.ndim - 2))


def latent_of(model: Any) -> Latent | None:
    """The way out of the latents of a network that came with its autoencoder (`model.vae`), or None."""
    vae = getattr(model, "vae", None)
    return None if vae is None else Latent(vae)


def _setting(vae: Any, name: str) -> Any:
    return getattr(getattr(vae, "config", None), name, None)
