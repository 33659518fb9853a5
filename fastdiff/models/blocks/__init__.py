"""What the networks of the field share: attention, resampling, embeddings of times and classes, norms, initialisation.

Nothing here makes tensors on the host during a call, reads one back or branches on its values, so that whatever is
built of it can be compiled whole and captured in CUDA graphs.
"""

from __future__ import annotations

from .attention import attend, attend_separately
from .embedding import FourierFeatures, sinusoids
from .init import variance_scaling_, zero_
from .labels import class_index, class_rows
from .norm import edm_groups
from .resample import down2, fir_down2, fir_up2, taps, up2, upfirdn2d

__all__ = [
    "FourierFeatures",
    "attend",
    "attend_separately",
    "class_index",
    "class_rows",
    "down2",
    "edm_groups",
    "fir_down2",
    "fir_up2",
    "sinusoids",
    "taps",
    "up2",
    "upfirdn2d",
    "variance_scaling_",
    "zero_",
]
