"""The engine that runs a solver's own lines on tensors, and what models and functions of states must return."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from .brownian import increment
from .process import Level


class TensorEngine:
    """Runs a solver on tensors: the readable reference, one small PyTorch operation after the other.

    Args:
        network: (x, time) -> output.
        noise: (draw, step) -> tensor.
        terms: what the guidance terms are asked, as `executor.TermCalls` but told numbers; None where there are none.
        tensors: that the call brings, by name.
        brownian: noise of an interval is an increment of one path.
    """

    def __init__(
        self,
        network: Callable[[Tensor, float], Tensor],
        noise: Callable[[int, int], Tensor],
        terms: Any = None,
        tensors: Mapping[str, Tensor] | None = None,
        brownian: bool = False,
    ):
        self._network, self._noise, self._terms, self._tensors = network, noise, terms, tensors or {}
        self._brownian = brownian
        self.step, self.draw = 0, 0

    def given(self, name: str) -> Tensor:
        """A tensor that the call brings; a copy, because a solver may write to it."""
        return self._tensors[name].clone()

    def latent(self) -> Tensor:
        """Draw 0."""
        return self._noise(0, -1)

    def drawn(self, k: int, start: Level | None = None, end: Level | None = None, eta: float = 1.0) -> Tensor:
        """Draw number k; of an interval, if noise is Brownian, the standardised increment of the sample's path."""
        if not self._brownian or start is None or end is None:
            return self._noise(k, self.step)
        draws, weights = increment(start.sigma_ve, end.sigma_ve, eta)
        first, *others = (weight * self._noise(n, self.step) for n, weight in zip(draws, weights))
        return sum(others, start=first)

    def outside_mask(self, value: Tensor) -> Tensor:
        """(1 - m) value, for the mask m that the call brings as log(1 - m)."""
        return torch.exp(self._tensors["mask"]) * value

    @staticmethod
    def put(x: Tensor, value: Tensor) -> None:
        """From here on x is `value`, for the solver that holds it too."""
        x.copy_(value)

    def noise(self, start: Level | None = None, end: Level | None = None, eta: float = 1.0) -> Tensor:
        """The next draw; draw 0 is the initial latent."""
        self.draw += 1
        return self.drawn(self.draw, start, end, eta)

    def network(
        self, x: Tensor, c_in: float, time: float, level: Level, pair: int | None = None
    ) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """F, if the model has it the variance half, and with `pair` that term's opinion, in the state's dtype."""
        y, second = c_in * x if c_in != 1.0 else x, None
        if pair is None:
            output = self._network(y, time)
        else:
            output, second = self._terms.both(pair, y, time)
            second = split_variance(second, x.shape)[0].to(x.dtype)
        mean, variance = split_variance(output, x.shape)
        return mean.to(x.dtype), None if variance is None else variance.to(x.dtype), second

    def opinion(self, term: int, x: Tensor, c_in: float, time: float, level: Level) -> Tensor:
        """The second opinion of guidance term `term`."""
        output = self._terms.opinion(term, c_in * x if c_in != 1.0 else x, time)
        return split_variance(output, x.shape)[0].to(x.dtype)

    def guide(self, term: int, y: Tensor, dtype: torch.dtype | None, told: Sequence[float], how: Hashable) -> Tensor:
        """Gradient of guidance term `term` at y."""
        gradient = self._terms.gradient(term, y.to(dtype or y.dtype), told, how)
        return require_shape("guidance", gradient, y.shape).to(y.dtype)

    def apply(self, function: Callable[..., Tensor], *values: Tensor, told: Sequence[float] = ()) -> Tensor:
        """function(*values, *told), with numbers as tensors [B]."""
        x = values[0]
        numbers = [torch.full(x.shape[:1], number, dtype=x.dtype, device=x.device) for number in told]
        return require_shape("denoised_fn", function(*values, *numbers), x.shape).to(x.dtype)

    def choose(
        self, selector: Callable[..., Tensor], values: Sequence[Tensor], told: Sequence[float], term: int | None = None
    ) -> int:
        """The choice of the one sample there is; any, if there is none."""
        things = values if term is None else [self._terms.memory[term]]
        numbers = torch.tensor(told, dtype=values[0].dtype, device=values[0].device) if told else torch.empty(0)
        rows = selector(*things, numbers)
        return int(rows) if len(rows) else 0

    def number(self, rows: int, values: Sequence[float]) -> float:
        """The chosen one."""
        return values[rows]

    def measure(
        self,
        function: Callable[..., Tensor],
        values: Sequence[Tensor],
        count: int,
        told: Sequence[float],
        read: Sequence[Tensor] = (),
    ) -> list[Tensor]:
        """The numbers of `Denoiser.measure`, each [B, 1, ...]."""
        squares = torch.stack([torch.linalg.vector_norm(flat(v), dim=1, dtype=torch.float64) for v in values]).square()
        numbers = torch.tensor(told, dtype=torch.float64, device=squares.device)
        measured = require_measured(function(squares, numbers, *read), count, values[0].shape[0])
        measured = measured.to(values[0].dtype)
        return list(measured.reshape(count, -1, *(1,) * (values[0].ndim - 1)))

    def keep(self, value: Tensor) -> Tensor:
        """It is in memory."""
        return value

    store = keep

    def clip(self, x0: Tensor, lo: float, hi: float) -> Tensor:
        """clamp(x_0, lo, hi)."""
        return x0.clamp(lo, hi)

    def exp_scale(self, a: float, variance: Tensor | None, b: float, value: Tensor) -> Tensor:
        """exp(a variance + b) value."""
        return torch.exp(a * require_variance(variance, value.shape) + b) * value


def flat(x: Tensor) -> Tensor:
    """A state [B, ...] as [B, n]; n = 1 where samples are numbers, [B]."""
    return x.flatten(1) if x.ndim > 1 else x[:, None]


def split_variance(output: Tensor, shape: Sequence[int]) -> tuple[Tensor, Tensor | None]:
    """Split a model's output [B, 2C, ...] into mean and variance halves; [B, C, ...] has no variance half.

    Raises:
        ValueError, TypeError: the output has neither shape, or is no tensor.
    """
    if not isinstance(output, Tensor):
        raise TypeError(f"model must return a tensor, got {type(output).__name__}")
    if output.shape == tuple(shape):
        return output, None
    if len(shape) > 1 and output.shape == torch.Size((shape[0], 2 * shape[1], *shape[2:])):
        return output[:, : shape[1]], output[:, shape[1] :]
    raise ValueError(
        f"model must return a tensor of shape {list(shape)} (or twice its channels), got {list(output.shape)}"
    )


def require_shape(name: str, result: Any, shape: Sequence[int]) -> Tensor:
    """What a user's function returned, if it is a tensor of the state's shape (nothing is broadcast)."""
    if not isinstance(result, Tensor) or result.shape != torch.Size(shape):
        came = list(result.shape) if isinstance(result, Tensor) else type(result).__name__
        raise ValueError(f"{name} must return a tensor of shape {list(shape)}, got {came}")
    return result


def require_measured(result: Any, count: int, batch: int) -> Tensor:
    """What a measuring function returned, if it is a tensor [count, batch]."""
    if not isinstance(result, Tensor) or result.shape != (count, batch):
        came = list(result.shape) if isinstance(result, Tensor) else type(result).__name__
        raise ValueError(f"a measuring function must return a tensor of shape {[count, batch]}, got {came}")
    return result


def require_variance(variance: Tensor | None, shape: Sequence[int]) -> Tensor:
    """The variance half, or one clear error."""
    if variance is None:
        raise ValueError(
            "a learned variance needs a model with a variance head (output [B, 2C, ...]), "
            f"got an output of shape {list(shape)}"
        )
    return variance
