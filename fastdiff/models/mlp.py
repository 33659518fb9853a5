"""A small residual multilayer perceptron for vectors: the raw network of two-dimensional examples."""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .network import architecture
from .times import phases, sinusoids

__all__ = ["MLP"]


class _Block(nn.Module):
    """Residual block: modulated layer norm, SiLU, linear, SiLU, dropout, linear (zero at the start)."""

    def __init__(self, width: int, embedding: int, dropout: float) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width, elementwise_affine=False)
        self.modulation = nn.Linear(embedding, 2 * width)
        self.linear1 = nn.Linear(width, width)
        self.dropout = nn.Dropout(dropout)
        self.linear2 = nn.Linear(width, width)
        nn.init.zeros_(self.linear2.weight)
        nn.init.zeros_(self.linear2.bias)

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        scale, shift = self.modulation(embedding).chunk(2, dim=1)
        y = self.linear1(F.silu(self.norm(x) * (1 + scale) + shift))
        return x + self.linear2(self.dropout(F.silu(y)))


@architecture("denoiser", "fastdiff: an MLP for points")
class MLP(nn.Module):
    """The raw network `F(x, time, labels=None)` of samples that are vectors; see `UNet` for images.

    Args:
        dim: elements of one sample.
        width: of the hidden layers, even.
        depth: residual blocks.
        embedding: channels of the time and class embedding.
        label_dim: number of classes, or 0 for an unconditional network.
        dropout: dropout probability inside the residual blocks, in [0, 1).
        learned_variance: two outputs an element, the second half for the variance (Nichol & Dhariwal 2021).
        time_scale, log_time, scale_by_sigma: how the time is read, as for `UNet`.

    Attributes:
        label_dim: number of classes (0: the network takes no labels).
        sample_shape: `(dim,)`.
        config: the constructor's arguments, JSON-serialisable; `MLP(**config)` builds the same network.
        metadata: what `fastdiff.models.load` read beside the weights; empty for a fresh network.

    Raises:
        ValueError: an argument is out of range; the message names it.
    """

    def __init__(
        self,
        dim: int = 2,
        width: int = 128,
        depth: int = 3,
        embedding: int = 64,
        label_dim: int = 0,
        dropout: float = 0.0,
        learned_variance: bool = False,
        time_scale: float = 250.0,
        log_time: bool = False,
        scale_by_sigma: bool = False,
    ) -> None:
        super().__init__()
        for name, value in {"dim": dim, "width": width, "depth": depth, "embedding": embedding}.items():
            if value < 1:
                raise ValueError(f"MLP: {name} must be at least 1, got {value}")
        if width % 2:
            raise ValueError(f"MLP: width must be even, got {width}")
        if label_dim < 0:
            raise ValueError(f"MLP: label_dim must be 0 (unconditional) or positive, got {label_dim}")
        if not 0.0 <= dropout < 1.0:
            raise ValueError(f"MLP: dropout must be in [0, 1), got {dropout}")
        switches = {"learned_variance": learned_variance, "log_time": log_time, "scale_by_sigma": scale_by_sigma}
        for name, switch in switches.items():
            if not isinstance(switch, bool):
                raise ValueError(f"MLP: {name} must be True or False, got {switch!r}")
        if scale_by_sigma and learned_variance:
            raise ValueError("MLP: scale_by_sigma must be False with learned_variance, got True")
        if not 0.0 < time_scale < math.inf:
            raise ValueError(f"MLP: time_scale must be positive and finite, got {time_scale}")
        self.config: dict[str, Any] = {
            "dim": dim, "width": width, "depth": depth, "embedding": embedding, "label_dim": label_dim, "dropout":
            dropout, **switches, "time_scale": time_scale,
        }  # fmt: skip
        self.metadata: dict[str, Any] = {}
        self.label_dim = label_dim
        self.sample_shape = (dim,)
        self.width, self.time_scale, self.log_time = width, time_scale, log_time
        self.scale_by_sigma = scale_by_sigma

        self.time_embedding = nn.Sequential(nn.Linear(width, embedding), nn.SiLU(), nn.Linear(embedding, embedding))
        # The last row is the class of samples without a label (classifier-free training and sampling).
        self.label_embedding = nn.Embedding(label_dim + 1, embedding) if label_dim else None
        self.stem = nn.Linear(dim, width)
        self.blocks = nn.ModuleList(_Block(width, embedding, dropout) for _ in range(depth))
        self.norm = nn.LayerNorm(width)
        self.out = nn.Linear(width, dim * (1 + learned_variance))
        nn.init.zeros_(self.out.weight)
        nn.init.zeros_(self.out.bias)

    def forward(self, x: Tensor, time: Tensor, labels: Tensor | None = None) -> Tensor:
        """One evaluation.

        Args:
            x: [B, dim] scaled noisy samples, of the parameters' dtype (any dtype under autocast).
            time: [B] (or a scalar tensor), as `time_scale` and `log_time` say.
            labels: int64 [B] class indices in [0, label_dim), -1 for "no class"; None is -1 for every sample.
                Values are not checked here: that would read the tensor back from its device.

        Returns:
            [B, dim] raw output, or [B, 2 dim] with a learned variance.

        Raises:
            ValueError: `x` or `labels` has another shape or dtype, or labels were given to an unconditional network.
        """
        if x.dim() != 2 or tuple(x.shape[1:]) != self.sample_shape:
            raise ValueError(f"MLP: x must be [B, {self.sample_shape[0]}], got {list(x.shape)}")
        phase = phases(time, self.time_scale, self.log_time).expand(x.shape[0])
        embedding = self.time_embedding(sinusoids(phase, self.width).to(x.dtype))
        if self.label_embedding is not None:
            embedding = embedding + self.label_embedding(self._classes(labels, x))
        elif labels is not None:
            raise ValueError("MLP: labels were given but the network is unconditional (label_dim = 0)")
        embedding = F.silu(embedding)
        y = self.stem(x)
        for block in self.blocks:
            y = block(y, embedding)
        output: Tensor = self.out(F.silu(self.norm(y)))
        return output / time.to(output.dtype).reshape(-1, 1) if self.scale_by_sigma else output

    def _classes(self, labels: Tensor | None, x: Tensor) -> Tensor:
        """Rows of the label embedding: `labels`, with -1 (or None) turned into the null class."""
        if labels is None:
            return torch.full((x.shape[0],), self.label_dim, device=x.device)
        if labels.dtype != torch.int64 or labels.shape != x.shape[:1]:
            raise ValueError(f"MLP: labels must be int64 [{x.shape[0]}], got {labels.dtype} {list(labels.shape)}")
        return torch.where(labels == -1, self.label_dim, labels)
