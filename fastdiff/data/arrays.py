"""`.npz` files: an array of samples, and one of classes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from .images import BadSample, channels_last, pixels
from .samples import DataError

__all__ = ["open_arrays"]

_SAMPLES = ("images", "arr_0", "x")
_LABELS = ("labels", "arr_1", "y")


def open_arrays(path: Path, split: str, size: int | None, channels: int | None) -> tuple[Tensor, Tensor | None, bool]:
    """The samples of an `.npz` file, read whole.

    Args:
        path: a file that holds `images`, `arr_0` (ADM's) or `x`: uint8 [N, H, W, C], [N, C, H, W] or [N, H, W], or
            floating [N, C, H, W] in [-1, 1] or [N, D]; and maybe `labels`, `arr_1` or `y`: integers [N]. Or
            `x_train`, `y_train`, `x_test` and `y_test`.

    Returns:
        (uint8 [N, C, H, W] or float32, labels int64 [N] or None, whether the file has splits of its own).

    Raises:
        DataError: not such a file.
    """
    own = False
    try:
        with np.load(path, allow_pickle=False) as file:
            own = f"x_{split}" in file
            keys = [key for key in (f"x_{split}", *_SAMPLES) if key in file]
            if not keys:
                raise DataError(f"{path}: none of {', '.join((*_SAMPLES, f'x_{split}'))} among {', '.join(file)}")
            values = file[keys[0]]
            named = [key for key in ((f"y_{split}",) if own else _LABELS) if key in file]
            labels = file[named[0]] if named else None
    except DataError:
        raise
    except Exception as error:  # numpy raises OSError, ValueError, BadZipFile, EOFError ...
        raise DataError(f"{path}: not a readable .npz file ({error})") from None
    if labels is not None and (labels.ndim != 1 or labels.dtype.kind not in "iu" or len(labels) != len(values)):
        wanted = f"{path}: {named[0]} must be {len(values)} integers, one per sample"
        raise DataError(f"{wanted}, got {labels.dtype} {list(labels.shape)}")
    samples = _samples(f"{path}: {keys[0]}", values, size, channels)
    return samples, None if labels is None else torch.from_numpy(labels.astype(np.int64)), own


def _samples(name: str, values: np.ndarray, size: int | None, channels: int | None) -> Tensor:
    """The array as uint8 [N, C, H, W] or float32."""
    if not len(values):
        raise DataError(f"{name}: no samples")
    if values.dtype.kind == "f" and values.ndim in (2, 4):
        if not np.isfinite(values).all() or (values.ndim == 4 and np.abs(values).max() > 1.001):
            raise DataError(f"{name}: floating images must be in [-1, 1], got {values.min():.4g} to {values.max():.4g}")
    elif values.dtype != np.uint8 or values.ndim not in (3, 4):
        wanted = "uint8 [N, H, W, C], [N, C, H, W] or [N, H, W], or floating [N, C, H, W] in [-1, 1] or [N, D]"
        raise DataError(f"{name}: must be {wanted}, got {values.dtype} {list(values.shape)}")
    samples = torch.from_numpy(values)
    if samples.dtype == torch.uint8:
        if samples.ndim == 3:
            samples = samples[:, None]
        elif channels_last(tuple(samples.shape[1:])):
            samples = samples.permute(0, 3, 1, 2)
    given = tuple(samples.shape[1:])
    try:
        if len(given) == 3 and given != (channels or given[0], size or given[1], size or given[2]):
            samples = torch.stack([pixels(image, size, channels) for image in samples])
    except BadSample as error:
        raise DataError(f"{name}: {error}") from None
    return samples.float().contiguous() if samples.is_floating_point() else samples.contiguous()
