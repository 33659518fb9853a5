"""What tensors and numbers are while a solver is traced: linear combinations of atoms, and numbers chosen per sample.

A solver adds, subtracts and scales states. Given `Combination` symbols the same lines record what they do. What a
combination is made of are atoms:
    Buffer   a tensor that exists: the start state, a network output or its variance half, a guidance gradient
    Draw     noise number k of the contract, made in registers
    Point    a named value (a state, or a noisy point where the network is evaluated), written to memory if needed later
    Clip     clamp(combination, lo, hi)                   the two things that are
    Scaled   exp(a * variance + b) * combination          not linear

A coefficient is a number known on the host; where every sample chooses among a few candidates by what it holds, a
`Chosen`: one number per candidate; where it is computed from norms of states (Langevin's step size), a `Measured`.
Launches then read a row of coefficients per sample.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from numbers import Real
from typing import Any, NoReturn

import numpy as np
import torch
from numpy.lib.mixins import NDArrayOperatorsMixin
from numpy.typing import NDArray

DUST = 8 * float(np.finfo(np.float64).eps)  # coefficients this small beside the largest are rounding of an exact 0


class Atom:
    """A leaf of a combination; compared by identity."""


@dataclass(eq=False)
class Buffer(Atom):
    """A tensor made outside the launches: by event number `event`, or there from the start (-1)."""

    name: str
    event: int = -1


@dataclass(eq=False)
class NoiseBuffer(Buffer):
    """Draw k of `step` (-1: the initial latent), handed in as a tensor by `noise=` or `generator=`."""

    k: int = 0
    step: int = 0


@dataclass(eq=False)
class Draw(Atom):
    """Draw number k of the noise contract; 0 is the initial latent."""

    k: int


@dataclass(eq=False)
class Point(Atom):
    """A value with a name, so that later launches can read it from memory."""

    name: str
    value: Combination


@dataclass(eq=False)
class Clip(Atom):
    """clamp(value, lo, hi)."""

    value: Combination
    lo: float
    hi: float


@dataclass(eq=False)
class Scaled(Atom):
    """exp(a * variance + b) * value, elementwise."""

    value: Combination
    variance: Buffer
    a: float
    b: float


class Chosen(NDArrayOperatorsMixin):
    """A number that depends on which candidate a sample chose: float64 [V], and the buffer of the choices [B].

    Arithmetic and NumPy's functions work on all candidates at once. Its value is not known while tracing, so it cannot
    be compared or made a float.
    """

    def __init__(self, values: Sequence[float] | NDArray[np.float64], rows: Buffer):
        self.values, self.rows = np.asarray(values, dtype=np.float64), rows

    def __array_ufunc__(self, ufunc: Any, method: str, *inputs: Any, **options: Any) -> Any:
        known = all(isinstance(i, (float, Chosen, Real)) for i in inputs)  # Real is slow to ask for
        if method != "__call__" or not known or options:
            return NotImplemented
        if any(isinstance(i, Chosen) and i.rows is not self.rows for i in inputs):
            _refuse("scaled by numbers of two choices", "yield, or evaluate, between one choice and the next")
        values = ufunc(*(i.values if isinstance(i, Chosen) else i for i in inputs))
        return Chosen(values, self.rows)

    def _unknown(self, *_: Any) -> NoReturn:
        _refuse("scaled by a chosen number that was compared or made a float", "use arithmetic and np.sqrt")

    __bool__ = __float__ = __int__ = _unknown

    def __format__(self, form: str) -> str:
        return f"one of {', '.join(format(v, form) for v in self.values[:4])}{', ...' if len(self.values) > 4 else ''}"

    def __repr__(self) -> str:
        return f"{self:.4g}"


class Measured(Chosen):
    """A number computed on the device from norms of states: values[0] + sum_k values[k] m_k, float64 [1 + K], with
    m [K, B] in the buffer `rows`.

    It can be added, and multiplied or divided by numbers known on the host; anything else is to be measured itself.
    """

    def __array_ufunc__(self, ufunc: Any, method: str, *inputs: Any, **options: Any) -> Any:
        if method != "__call__" or options or not all(isinstance(i, (Real, Chosen)) for i in inputs):
            return NotImplemented
        measured = [isinstance(i, Chosen) for i in inputs]
        known = all(isinstance(i, Real) or (isinstance(i, Measured) and i.rows is self.rows) for i in inputs)
        linear = ufunc in (np.add, np.subtract, np.negative, np.positive)
        linear = linear or (ufunc is np.multiply and sum(measured) == 1)
        if not known or not (linear or (ufunc is np.true_divide and measured == [True, False])):
            what = (
                "scaled by a product, a quotient or a function of measured numbers, or by numbers of two measurements"
            )
            _refuse(what, "measure that number itself")
        constant = np.eye(1, len(self.values))[0]
        scaling = ufunc in (np.multiply, np.true_divide)
        parts = [i.values if isinstance(i, Measured) else i if scaling else i * constant for i in inputs]
        return Measured(ufunc(*parts), self.rows)


Number = float | Chosen


def each(number: Any) -> Sequence[float]:
    """The numbers of all candidates; one, if it is the same for all samples."""
    return number.values.tolist() if isinstance(number, Chosen) else (float(number),)


def chosen_by(numbers: Iterable[Any]) -> dict[Buffer, None]:
    """The choices that any of these numbers depends on."""
    return dict.fromkeys(number.rows for number in numbers if isinstance(number, Chosen))


class Combination:
    """A linear combination of atoms with float64 coefficients: what a tensor is while a solver is traced."""

    __slots__ = ("terms",)
    __array_ufunc__ = None  # a NumPy scalar on the left defers to __rmul__ and friends

    def __init__(self, terms: Mapping[Atom, Any]):
        self.terms: dict[Atom, Any] = dict(terms)

    def name(self, point: Point) -> None:
        """From here on this symbol is read from `point`, whose definition is the symbol's value so far."""
        self.terms = {point: 1.0}

    def __add__(self, other: Any) -> Combination:
        if not isinstance(other, Combination):
            if isinstance(other, Real) and other == 0:  # where sum() starts
                return Combination(self.terms)
            _refuse(f"added to {describe(other)}", "only other states, or noise(), can be added to it")
        terms = dict(self.terms)
        for atom, coefficient in other.terms.items():
            terms[atom] = terms.get(atom, 0.0) + coefficient
        return Combination(terms)

    def __mul__(self, scalar: Any) -> Combination:
        if isinstance(scalar, float) and math.isfinite(scalar):
            factor = float(scalar)
            return Combination({atom: coefficient * factor for atom, coefficient in self.terms.items()})
        if isinstance(scalar, Combination):
            _refuse("multiplied by another state", "only numbers known on the host can scale it")
        if not isinstance(scalar, (Real, Chosen)):
            _refuse(f"multiplied by {describe(scalar)}", "only numbers known on the host can scale it")
        if not all(map(math.isfinite, each(scalar))):
            raise ValueError(f"a traced state was multiplied by {scalar} in {_where()}")
        if isinstance(scalar, Measured):  # what is not there stays free for another measurement
            return Combination({atom: c * scalar for atom, c in self.terms.items() if isinstance(c, Chosen) or c != 0})
        known = scalar if isinstance(scalar, Chosen) else float(scalar)
        return Combination({atom: coefficient * known for atom, coefficient in self.terms.items()})

    def __truediv__(self, scalar: Any) -> Combination:
        if isinstance(scalar, Measured):
            _refuse("divided by a measured number", "measure its inverse")
        if not isinstance(scalar, (Real, Chosen)):
            _refuse(f"divided by {describe(scalar)}", "only numbers known on the host can divide it")
        if 0.0 in each(scalar):
            raise ZeroDivisionError(f"a traced state was divided by zero in {_where()}")
        if not all(map(math.isfinite, each(scalar))):
            raise ValueError(f"a traced state was divided by {scalar} in {_where()}")
        divisor = scalar if isinstance(scalar, Chosen) else float(scalar)
        return Combination({atom: coefficient / divisor for atom, coefficient in self.terms.items()})

    __rmul__ = __mul__

    def __radd__(self, other: Any) -> Combination:
        return self + other

    def __sub__(self, other: Any) -> Combination:
        return self + (-other if isinstance(other, Combination) else other)

    def __rsub__(self, other: Any) -> Combination:
        return -self + other

    def __neg__(self) -> Combination:
        return self * -1.0

    def __pos__(self) -> Combination:
        return self * 1.0

    def __repr__(self) -> str:
        return " + ".join(f"{c:.4g} {getattr(atom, 'name', type(atom).__name__)}" for atom, c in self.terms.items())

    # Everything else a tensor can do would not be linear, or would need its value.
    def __getattr__(self, attribute: str) -> NoReturn:
        if attribute.startswith("__"):
            raise AttributeError(attribute)
        _refuse(f"asked for .{attribute}", "its value is not known while tracing")

    def _not_linear(self, *_: Any) -> NoReturn:
        _refuse("used in arithmetic that is not linear, or compared", "its value is not known while tracing")

    __pow__ = __rpow__ = __abs__ = __mod__ = __matmul__ = __rtruediv__ = __floordiv__ = _not_linear
    __lt__ = __le__ = __gt__ = __ge__ = __bool__ = __float__ = __int__ = __len__ = __iter__ = _not_linear
    __eq__ = __ne__ = __getitem__ = __setitem__ = _not_linear
    __hash__ = None  # type: ignore[assignment]

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> NoReturn:
        _refuse(f"passed to torch.{getattr(func, '__name__', func)}", "only + - * / are traced")


class NotLinearError(TypeError):
    """A traced solver did something with a state that is not a linear combination."""


def describe(value: Any) -> str:
    if isinstance(value, torch.Tensor):
        return f"a tensor of shape {list(value.shape)}"
    return "another state" if isinstance(value, Combination) else f"{value!r} of type {type(value).__name__}"


def _where() -> str:
    """File, line and function of the innermost frame outside this module and torch."""
    frame = sys._getframe(1)
    inside = (__file__, "/torch/", "/numpy/")
    while frame and any(part in frame.f_code.co_filename for part in inside):
        frame = frame.f_back  # type: ignore[assignment]
    return f"{frame.f_code.co_filename}:{frame.f_lineno} ({frame.f_code.co_name})"


def _refuse(what: str, why: str) -> NoReturn:
    raise NotLinearError(
        f"{_where()}: a traced state was {what}; {why}. A solver is linear in its states: use + - * / with numbers, "
        "denoise(x, level) and noise(), or run it on tensors with Sampler(..., compiled=False)."
    )
