"""Running a solver on symbols instead of tensors.

Given `Combination` symbols a solver's own lines record which linear combination every network input is, where a
predicted x_0 is clipped, which noise is drawn, what is called in between. `compiler.compile_plan` turns the recording
into launches of the one kernel.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch

from .brownian import increment
from .process import Level
from .symbols import (
    DUST,
    Atom,
    Buffer,
    Chosen,
    Clip,
    Combination,
    Draw,
    Measured,
    NoiseBuffer,
    Number,
    Point,
    Scaled,
    chosen_by,
    describe,
)


@dataclass(eq=False)
class Event:
    """Something between launches that needs values written to memory and may make new tensors."""

    step: int
    values: list[Combination]
    dtype: torch.dtype | None = field(default=None, kw_only=True)  # in which the values are written; None: the state's

    @property
    def numbers(self) -> Sequence[Number]:
        """What the thing called is told, as tensors with a number per sample."""
        return ()


@dataclass(eq=False)
class Evaluate(Event):
    """Call the network on values[0] (c_in x, in its dtype) at `time`; makes `output` and, if used, `variance`.

    With `term`, a second opinion for that guidance term: another network or other conditioning, on the same terms. With
    `second`, one call that gives both: the term's opinion beside the network's.
    """

    level: Level
    time: Number
    output: Buffer
    variance: Buffer
    uses_variance: bool = False
    term: int | None = None
    second: Buffer | None = None

    @property
    def numbers(self) -> Sequence[Number]:
        return (self.time,)


@dataclass(eq=False)
class Guide(Event):
    """Ask guidance term number `term` for its gradient at values[0]; makes `output`.

    `told` are numbers it receives as tensors [B]; `how` is all else that it is told, and part of what a graph is for.
    """

    term: int
    told: Sequence[Number]
    how: Hashable
    output: Buffer

    @property
    def numbers(self) -> Sequence[Number]:
        return self.told


@dataclass(eq=False)
class Apply(Event):
    """Call any function of the values; makes `output`. A launch before it is split in two."""

    function: Callable[..., torch.Tensor]
    output: Buffer
    told: Sequence[Number] = ()

    @property
    def numbers(self) -> Sequence[Number]:
        return self.told


@dataclass(eq=False)
class Choose(Event):
    """Let every sample choose among candidates: selector(*values, told) -> int64 [B]; makes `output`.

    `told` are numbers about the candidates, a tensor [n]. With `term`, the selector gets what that guidance term
    remembers of the run instead of values.
    """

    selector: Callable[..., torch.Tensor]
    told: Sequence[float]
    term: int | None
    output: Buffer

    @property
    def numbers(self) -> Sequence[Number]:
        return self.told


@dataclass(eq=False)
class Measure(Event):
    """Compute numbers from the sums of squares of the first M values, which are not written for it, and from the others
    as they are: function(squares [M, B], told [n], *others) -> [K, B]; makes `output`."""

    function: Callable[..., torch.Tensor]
    told: Sequence[float]
    count: int
    squares: int
    output: Buffer

    @property
    def numbers(self) -> Sequence[Number]:
        return self.told


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
    """The engine a `Denoiser` drives while a solver is traced; `engine.TensorEngine` is its twin for tensors."""

    def __init__(self, noise_is_tensor: bool = False, brownian: bool = False):
        self.trace = Trace()
        self.step = 0
        self._draws = 0
        self._noise_is_tensor, self._brownian = noise_is_tensor, brownian
        self._nodes: dict[int, Draw] = {}
        self._given: dict[str, Buffer] = {}

    def start(self, prior_std: float, x_init: bool, observe: bool = False) -> Combination:
        """The symbol a run starts from: prior_std * (draw 0), or the tensor the user gave."""
        return self.begin(self.given("x_init") if x_init else self.latent() * prior_std, observe)

    def begin(self, x: Combination, observe: bool = False) -> Combination:
        """The run starts from x."""
        if not all(isinstance(atom, Buffer) and c == 1.0 for atom, c in x.terms.items()):
            self._named(x, f"x[{self.step}]")
        if observe:
            self.trace.events.append(Report(self.step - 1, [Combination(x.terms)], None))
        return x

    def given(self, name: str) -> Combination:
        """A tensor that the call brings."""
        return Combination({self._given.setdefault(name, Buffer(name)): 1.0})

    def latent(self) -> Combination:
        """Draw 0."""
        return self._draw(0, -1)

    def drawn(self, k: int, start: Level | None = None, end: Level | None = None, eta: float = 1.0) -> Combination:
        """Draw number k; of an interval, if noise is Brownian, the standardised increment of the sample's path."""
        if not self._brownian or start is None or end is None:
            return self._draw(k, self.step)
        draws, weights = increment(start.sigma_ve, end.sigma_ve, eta)
        return Combination({self._nodes.setdefault(n, Draw(n)): weight for n, weight in zip(draws, weights)})

    def outside_mask(self, value: Combination) -> Combination:
        """(1 - m) value, for the mask m that the call brings."""
        (mask,) = self.given("mask").terms
        atom = Scaled(value, mask, 1.0, 0.0)  # type: ignore[arg-type]
        self.trace.atoms.append(atom)
        return Combination({atom: 1.0})

    @staticmethod
    def put(x: Combination, value: Combination) -> None:
        """From here on x is `value`, for the solver that holds it too."""
        x.terms = value.terms

    def noise(self, start: Level | None = None, end: Level | None = None, eta: float = 1.0) -> Combination:
        """The next draw; draw 0 is the initial latent, whether or not it is used."""
        self._draws += 1
        return self.drawn(self._draws, start, end, eta)

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

    def network(
        self, x: Combination, c_in: Number, time: Number, level: Level, pair: int | None = None
    ) -> tuple[Combination, Buffer, Combination | None]:
        """Record a network call on c_in x; a point that carries fresh noise becomes a named value.

        Returns:
            The output, the handle of the variance half, and with `pair` that term's opinion from the same call.
        """
        if any(isinstance(atom, (Draw, NoiseBuffer, Scaled)) for atom in x.terms):
            self._named(x, f"x_hat[{self.step}]")
        return self._evaluate(x * c_in, time, level, None, pair)

    def opinion(self, term: int, x: Combination, c_in: Number, time: Number, level: Level) -> Combination:
        """Record the second opinion of a guidance term on c_in x."""
        return self._evaluate(x * c_in, time, level, term, None)[0]

    def _evaluate(
        self, x: Combination, time: Number, level: Level, term: int | None, pair: int | None
    ) -> tuple[Combination, Buffer, Combination | None]:
        output = self._made("F" if term is None else "U", Evaluate)
        variance = Buffer(output.name.replace("F", "V"), output.event)
        event = Evaluate(self.step, [x], level, time, output, variance, term=pair if term is None else term)
        if pair is not None:
            event.second = Buffer(output.name.replace("F", "U"), output.event)
        self.trace.events.append(event)
        second = None if event.second is None else Combination({event.second: 1.0})
        return Combination({output: 1.0}), variance, second

    def guide(
        self, term: int, y: Combination, dtype: torch.dtype | None, told: Sequence[Number], how: Hashable
    ) -> Combination:
        """Record a guidance gradient at y, written in `dtype` (None: the state's)."""
        output = self._made("G", Guide)
        self.trace.events.append(Guide(self.step, [y], term, told, how, output, dtype=dtype))
        return Combination({output: 1.0})

    def apply(
        self, function: Callable[..., torch.Tensor], *values: Combination, told: Sequence[Number] = ()
    ) -> Combination:
        """Record any function of states or outputs."""
        output = self._made("A", Apply)
        self.trace.events.append(Apply(self.step, list(values), function, output, told))
        return Combination({output: 1.0})

    def choose(
        self,
        selector: Callable[..., torch.Tensor],
        values: Sequence[Combination],
        told: Sequence[float] = (),
        term: int | None = None,
    ) -> Buffer:
        """Record a choice per sample."""
        output = self._made("choice", Choose)
        self.trace.events.append(Choose(self.step, list(values), selector, tuple(told), term, output))
        return output

    def measure(
        self,
        function: Callable[..., torch.Tensor],
        values: Sequence[Combination],
        count: int,
        told: Sequence[float],
        read: Sequence[Combination] = (),
    ) -> list[Measured]:
        """Record a measurement."""
        output = self._made("m", Measure)
        self.trace.events.append(
            Measure(self.step, [*values, *read], function, tuple(told), count, len(values), output)
        )
        return [Measured(row, output) for row in np.eye(1 + count)[1:]]

    def number(self, rows: Buffer, values: Sequence[float]) -> Number:
        """The one of `values` that a sample chose."""
        return float(values[0]) if len(set(values)) == 1 else Chosen(values, rows)

    def keep(self, value: Combination) -> Combination:
        """Name a value that depends on a choice, so that later gaps read it from memory."""
        return self._named(value, f"kept[{self.step}]") if chosen_by(value.terms.values()) else value

    def store(self, value: Combination) -> Combination:
        """Name a value, so that later gaps read it from memory; a number times one buffer is read from that."""
        largest = max((abs(c) for c in value.terms.values() if not isinstance(c, Chosen)), default=0.0)
        kept = {a: c for a, c in value.terms.items() if isinstance(c, Chosen) or abs(c) > DUST * largest}
        if [type(atom) for atom in kept] == [Buffer]:
            return Combination(kept)
        return self._named(value, f"stored[{self.step}]")

    def clip(self, x0: Combination, lo: float, hi: float) -> Combination:
        """Record clamp(x_0, lo, hi)."""
        atom = Clip(x0, lo, hi)
        self.trace.atoms.append(atom)
        return Combination({atom: 1.0})

    def exp_scale(self, a: float, variance: Buffer, b: float, value: Combination) -> Combination:
        """Record exp(a variance + b) value: noise or a gradient, scaled by a learned variance."""
        self.trace.events[variance.event].uses_variance = True  # type: ignore[attr-defined]
        atom = Scaled(value, variance, a, b)
        self.trace.atoms.append(atom)
        return Combination({atom: 1.0})

    def finish_step(self, x: Combination, x0: Combination | None, level: Level | None, observe: bool) -> None:
        """The solver yielded x at the end of a step."""
        if not isinstance(x, Combination):
            raise TypeError(f"a solver must yield its state, got {describe(x)}")
        self.step += 1
        self._named(x, f"x[{self.step}]")
        self.trace.states.append(x)
        if observe:
            values = [Combination(x.terms)] if x0 is None else [Combination(x.terms), x0]
            self.trace.events.append(Report(self.step - 1, values, level))
