"""Running a solver on symbols instead of tensors.

A solver adds, subtracts and scales states. Given `Combination` symbols the same lines record what they do: which
linear combination every network input is, where a predicted x_0 is clipped, which noise is drawn.
`compiler.compile_plan` turns the recording into launches of the one kernel.

What a combination is made of are atoms:
    Buffer   a tensor that exists: the start state, a network output or its variance half, a guidance gradient
    Draw     noise number k of the contract, made in registers
    Point    a named value (a state, or a noisy point where the network is evaluated), written to memory if needed later
    Clip     clamp(combination, lo, hi)                   the two things that are
    Scaled   exp(a * variance + b) * combination          not linear
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from numbers import Real
from typing import Any, NoReturn

import torch

from .process import Level


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


class Combination:
    """A linear combination of atoms with float64 coefficients: what a tensor is while a solver is traced."""

    __slots__ = ("terms",)
    __array_ufunc__ = None  # a NumPy scalar on the left defers to __rmul__ and friends

    def __init__(self, terms: Mapping[Atom, float]):
        self.terms: dict[Atom, float] = dict(terms)

    def name(self, point: Point) -> None:
        """From here on this symbol is read from `point`, whose definition is the symbol's value so far."""
        self.terms = {point: 1.0}

    def __add__(self, other: Any) -> Combination:
        if isinstance(other, Real) and other == 0:  # where sum() starts
            return Combination(self.terms)
        if not isinstance(other, Combination):
            _refuse(f"added to {_describe(other)}", "only other states, or noise(), can be added to it")
        terms = dict(self.terms)
        for atom, coefficient in other.terms.items():
            terms[atom] = terms.get(atom, 0.0) + coefficient
        return Combination(terms)

    def __mul__(self, scalar: Any) -> Combination:
        if isinstance(scalar, Combination):
            _refuse("multiplied by another state", "only numbers known on the host can scale it")
        if not isinstance(scalar, Real):
            _refuse(f"multiplied by {_describe(scalar)}", "only numbers known on the host can scale it")
        if not math.isfinite(scalar):
            raise ValueError(f"a traced state was multiplied by {float(scalar)} in {_where()}")
        return Combination({atom: coefficient * float(scalar) for atom, coefficient in self.terms.items()})

    def __truediv__(self, scalar: Any) -> Combination:
        if isinstance(scalar, Combination) or not isinstance(scalar, Real):
            _refuse(f"divided by {_describe(scalar)}", "only numbers known on the host can divide it")
        if float(scalar) == 0.0:
            raise ZeroDivisionError(f"a traced state was divided by zero in {_where()}")
        if not math.isfinite(scalar):
            raise ValueError(f"a traced state was divided by {float(scalar)} in {_where()}")
        return Combination({atom: coefficient / float(scalar) for atom, coefficient in self.terms.items()})

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


def _describe(value: Any) -> str:
    if isinstance(value, torch.Tensor):
        return f"a tensor of shape {list(value.shape)}"
    return "another state" if isinstance(value, Combination) else f"{value!r} of type {type(value).__name__}"


def _where() -> str:
    """File, line and function of the innermost frame outside this module and torch."""
    frame = sys._getframe(1)
    while frame and (frame.f_code.co_filename == __file__ or "/torch/" in frame.f_code.co_filename):
        frame = frame.f_back  # type: ignore[assignment]
    return f"{frame.f_code.co_filename}:{frame.f_lineno} ({frame.f_code.co_name})"


def _refuse(what: str, why: str) -> NoReturn:
    raise NotLinearError(
        f"{_where()}: a traced state was {what}; {why}. A solver is linear in its states: use + - * / with numbers, "
        "denoise(x, level) and noise(), or run it on tensors with Sampler(..., compiled=False)."
    )


# --- the recording ---------------------------------------------------------------------------------------------------


@dataclass(eq=False)
class Event:
    """Something between launches that needs values written to memory and may make new tensors."""

    step: int
    values: list[Combination]


@dataclass(eq=False)
class Evaluate(Event):
    """Call the network on values[0] (c_in x, in its dtype) at `time`; makes `output` and, if used, `variance`."""

    level: Level
    time: float
    output: Buffer
    variance: Buffer
    uses_variance: bool = False


@dataclass(eq=False)
class Guide(Event):
    """Call guidance term number `term` on values[0] (the state) at `level`; makes `output`."""

    term: int
    level: Level
    output: Buffer


@dataclass(eq=False)
class Apply(Event):
    """Call any function of a predicted x_0; makes `output`. The one thing that splits a launch in two."""

    function: Callable[[torch.Tensor], torch.Tensor]
    output: Buffer


@dataclass(eq=False)
class Report(Event):
    """The end of a step that began at `level`: values are the state and, if there is one, the last x_0. Step -1 is the
    start."""

    level: Level | None


@dataclass
class Trace:
    """A recorded run: events in order, every named or non-linear atom in order of birth, the state after each step, and
    the noise that comes as tensors in the order of the draws."""

    events: list[Event] = field(default_factory=list)
    atoms: list[Atom] = field(default_factory=list)
    states: list[Combination] = field(default_factory=list)
    noise: list[NoiseBuffer] = field(default_factory=list)


class Recorder:
    """The engine a `Denoiser` drives while a solver is traced; `denoiser.TensorEngine` is its twin for tensors."""

    def __init__(self, noise_is_tensor: bool = False):
        self.trace = Trace()
        self.step = 0
        self._draws = 0
        self._noise_is_tensor = noise_is_tensor

    def start(self, prior_std: float, x_init: bool, observe: bool = False) -> Combination:
        """The symbol a run starts from: prior_std * (draw 0), or the tensor the user gave."""
        if x_init:
            x = Combination({Buffer("x_init"): 1.0})
        else:
            x = self._named(self._draw(0, -1) * prior_std, "x[0]")
        if observe:
            self.trace.events.append(Report(-1, [Combination(x.terms)], None))
        return x

    def noise(self) -> Combination:
        """The next draw; draw 0 is the initial latent, whether or not it is used."""
        self._draws += 1
        return self._draw(self._draws, self.step)

    def _draw(self, k: int, step: int) -> Combination:
        if not self._noise_is_tensor:
            return Combination({Draw(k): 1.0})
        self.trace.noise.append(NoiseBuffer(f"z{k}", k=k, step=step))
        return Combination({self.trace.noise[-1]: 1.0})

    def _named(self, x: Combination, name: str) -> Combination:
        point = Point(name, Combination(x.terms))
        self.trace.atoms.append(point)
        x.name(point)
        return x

    def _made(self, letter: str, kind: type[Event]) -> Buffer:
        """What the event recorded next makes, numbered among its kind."""
        number = sum(isinstance(event, kind) for event in self.trace.events)
        return Buffer(f"{letter}{number}", len(self.trace.events))

    def network(self, x: Combination, c_in: float, time: float, level: Level) -> tuple[Combination, Buffer]:
        """Record a network call on c_in x; a point that carries fresh noise becomes a named value."""
        if any(isinstance(atom, (Draw, NoiseBuffer, Scaled)) for atom in x.terms):
            self._named(x, f"x_hat[{self.step}]")
        output = self._made("F", Evaluate)
        variance = Buffer(output.name.replace("F", "V"), output.event)
        self.trace.events.append(Evaluate(self.step, [x * c_in], level, time, output, variance))
        return Combination({output: 1.0}), variance

    def guide(self, term: int, x: Combination, level: Level) -> Combination:
        """Record a guidance gradient at state x."""
        output = self._made("G", Guide)
        self.trace.events.append(Guide(self.step, [x], term, level, output))
        return Combination({output: 1.0})

    def apply(self, function: Callable[[torch.Tensor], torch.Tensor], x0: Combination) -> Combination:
        """Record any function of x_0."""
        output = self._made("A", Apply)
        self.trace.events.append(Apply(self.step, [x0], function, output))
        return Combination({output: 1.0})

    def clip(self, x0: Combination, lo: float, hi: float) -> Combination:
        """Record clamp(x_0, lo, hi)."""
        atom = Clip(x0, lo, hi)
        self.trace.atoms.append(atom)
        return Combination({atom: 1.0})

    def exp_scale(self, a: float, variance: Buffer, b: float, z: Combination) -> Combination:
        """Record exp(a variance + b) z, the noise of a learned variance."""
        self.trace.events[variance.event].uses_variance = True  # type: ignore[attr-defined]
        atom = Scaled(z, variance, a, b)
        self.trace.atoms.append(atom)
        return Combination({atom: 1.0})

    def finish_step(self, x: Combination, x0: Combination | None, level: Level | None, observe: bool) -> None:
        """The solver yielded x at the end of a step."""
        if not isinstance(x, Combination):
            raise TypeError(f"a solver must yield its state, got {_describe(x)}")
        self.step += 1
        self._named(x, f"x[{self.step}]")
        self.trace.states.append(x)
        if observe:
            values = [Combination(x.terms)] if x0 is None else [Combination(x.terms), x0]
            self.trace.events.append(Report(self.step - 1, values, level))
