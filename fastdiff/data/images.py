"""One image as pixels: files of any format Pillow reads, `.npy` arrays, Pillow images, tensors."""

from __future__ import annotations

from typing import Any, BinaryIO

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

__all__ = ["SUFFIXES", "BadSample", "channels_last", "decode", "pixels"]

SUFFIXES = frozenset(".png .jpg .jpeg .webp .bmp .gif .tif .tiff .ppm .pgm .npy".split())
_MODES = {1: "L", 3: "RGB"}
_NATIVE = {"1": 1, "L": 1, "P": 3, "RGB": 3}


class BadSample(Exception):
    """A sample that cannot be used, and why."""


def decode(file: BinaryIO, suffix: str, size: int | None, channels: int | None) -> Tensor:
    """The pixels of an open file, as of `pixels`.

    Raises:
        BadSample: whatever the decoder cannot read, or `pixels` refuses.
    """
    try:
        if suffix == ".npy":
            return pixels(np.load(file, allow_pickle=False), size, channels)
        with Image.open(file) as image:
            return pixels(image, size, channels)
    except BadSample:
        raise
    except UnidentifiedImageError:
        raise BadSample("not an image") from None
    except Exception as error:  # decoders raise OSError, SyntaxError, ValueError, EOFError, struct.error ...
        raise BadSample(f"cannot be read ({' '.join(str(error).split()) or type(error).__name__})") from None


def pixels(image: Any, size: int | None = None, channels: int | None = None) -> Tensor:
    """An image as a tensor.

    Args:
        image: a Pillow image of 8 bits a channel (its first frame, turned as its EXIF says); an array or tensor, uint8
            [H, W], [H, W, C] or [C, H, W], or floating [C, H, W] in [-1, 1] or [D].
        size: crop the largest square at the centre and resize it (Lanczos) to size x size; default as it is.
        channels: 1 or 3: convert to grey or RGB (transparency is dropped); default as it is.

    Returns:
        uint8 [C, H, W], or float32 as it came.

    Raises:
        BadSample: no such image.
    """
    if not isinstance(image, Image.Image):
        values = image if isinstance(image, Tensor) else torch.from_numpy(np.array(image))
        floating = values.is_floating_point() and values.ndim in (1, 3)
        if not floating and (values.dtype != torch.uint8 or values.ndim not in (2, 3)):
            raise BadSample(f"expected uint8 [H, W], [H, W, C] or [C, H, W], got {values.dtype} {list(values.shape)}")
        if values.ndim == 2:
            values = values[None]
        elif not floating and channels_last(tuple(values.shape)):
            values = values.permute(2, 0, 1)
        if values.ndim == 1 or values.shape == (
            channels or values.shape[0],
            size or values.shape[1],
            size or values.shape[2],
        ):
            return (values.to(torch.float32) if floating else values).contiguous()
        if floating:
            raise BadSample(f"a floating image, {list(values.shape)}, is neither resized nor converted")
        if values.shape[0] not in _MODES:
            raise BadSample(f"an array of {values.shape[0]} channels is neither resized nor converted")
        array = values.permute(1, 2, 0).contiguous().numpy()
        image = Image.fromarray(array[..., 0] if array.shape[2] == 1 else array)
    if image.mode not in _NATIVE and (channels is None or image.mode.startswith(("I", "F"))):
        how = "convert it to 8 bits" if image.mode.startswith(("I", "F")) else "channels=3 or channels=1 converts it"
        raise BadSample(f"mode {image.mode} where 8-bit grey or RGB is wanted ({how})")
    image = ImageOps.exif_transpose(image)
    mode = _MODES[_NATIVE[image.mode] if channels is None else channels]
    if image.mode != mode:
        image = image.convert(mode)
    if size is not None and image.size != (size, size):
        side = min(image.size)
        left, top = ((length - side) // 2 for length in image.size)
        image = image.crop((left, top, left + side, top + side)).resize((size, size), Image.Resampling.LANCZOS)
    array = np.array(image)
    return torch.from_numpy(array[None] if array.ndim == 2 else array.transpose(2, 0, 1).copy())


def channels_last(shape: tuple[int, ...]) -> bool:
    """Whether an image of this shape is [H, W, C]: its last axis can hold the channels, and its first cannot."""
    return shape[-1] in (1, 3, 4) and shape[0] not in (1, 3)
