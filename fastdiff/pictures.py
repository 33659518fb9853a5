"""Images as files: grids of samples, PNG bytes."""

from __future__ import annotations

import io
import math

import numpy as np
from numpy.typing import NDArray
from PIL import Image

__all__ = ["grid", "pixels", "png_bytes"]

Pictures = NDArray[np.uint8]


def grid(images: Pictures, most: int = 400) -> Pictures:
    """Tiles images into one picture, as square as possible, small ones enlarged to about 64 pixels.

    Args:
        images: uint8 [N, H, W, C], N at least 1.
        most: only this many are shown.

    Returns:
        uint8 [rows * H', columns * W', C].
    """
    shown = images[:most]
    columns = math.ceil(math.sqrt(len(shown)))
    rows = math.ceil(len(shown) / columns)
    _, height, width, channels = shown.shape
    tiles = np.zeros((rows * columns, height, width, channels), np.uint8)
    tiles[: len(shown)] = shown
    sheet = tiles.reshape(rows, columns, height, width, channels).transpose(0, 2, 1, 3, 4)
    scale = max(1, 64 // height)
    return sheet.reshape(rows * height, columns * width, channels).repeat(scale, 0).repeat(scale, 1)


def png_bytes(picture: Pictures) -> bytes:
    """A uint8 [H, W, 1 or 3] picture as a PNG file."""
    buffer = io.BytesIO()
    Image.fromarray(picture[..., 0] if picture.shape[-1] == 1 else picture).save(buffer, "PNG")
    return buffer.getvalue()


def pixels(file: bytes) -> Pictures:
    """The picture of a PNG file, uint8 [H, W, 3]."""
    return np.asarray(Image.open(io.BytesIO(file)).convert("RGB"))
