"""Which solvers there are, what is known of them, and what a solver may be."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Iterator
from numbers import Real
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

if TYPE_CHECKING:
    from torch import Tensor

    from ..request import Request
    from ..sampler import Sampler

Solver = Callable[..., Iterator[Any]]


class Facts(NamedTuple):
    """What `fastdiff solvers` prints of one.

    Attributes:
        order: of convergence in the step size, of the moments if it is stochastic; None where there is no such thing.
        evaluations: of the network per step, as text.
        stochastic: whether it draws noise at its default options.
        source: paper and equation, or the code whose convention it is.
    """

    order: int | None
    evaluations: str
    stochastic: bool
    source: str


class Driver:
    """A solver whose steps depend on what it finds in the states, such as an adaptive one.

    The sampler calls it in place of walking a plan: it looks at tensors, and traces and runs what it needs itself.

    Attributes:
        encodes: whether it also goes from data to noise (`Sampler.encode`).
    """

    encodes = False

    def __call__(self, sampler: Sampler, request: Request) -> Tensor:
        """The final state [B, ...]. Keyword-only parameters are its options."""
        raise NotImplementedError


SOLVERS: dict[str, Solver | Driver] = {}
FACTS: dict[str, Facts] = {}
S = TypeVar("S", bound="Solver | Driver")


def register(
    *, order: int | None, evaluations: str, stochastic: bool, source: str, name: str | None = None
) -> Callable[[S], S]:
    """Give a solver a name in `SOLVERS`, its function's if none is given, and its `Facts`."""

    def named(solver: S) -> S:
        key = name or solver.__name__  # type: ignore[union-attr]
        assert key not in SOLVERS
        SOLVERS[key], FACTS[key] = solver, Facts(order, evaluations, stochastic, source)
        return solver

    return named


def get_solver(solver: str | Solver | Driver) -> Solver | Driver:
    """A solver by name, or any generator function of the form in `fastdiff.solvers`."""
    if callable(solver):
        return solver
    if solver not in SOLVERS:
        raise ValueError(f"solver must be one of {', '.join(SOLVERS)} or a generator function, got {solver!r}")
    return SOLVERS[solver]


def options_of(solver: Solver | Driver) -> list[str]:
    """The names of a solver's own options: its keyword-only parameters."""
    return [p.name for p in inspect.signature(solver).parameters.values() if p.kind is p.KEYWORD_ONLY]


def check_options(solver: Solver | Driver, options: dict[str, Any]) -> None:
    """Refuse an option the solver does not have, and (of the solvers here) what is no number, negative or NaN."""
    known = options_of(solver)
    anything = any(p.kind is p.VAR_KEYWORD for p in inspect.signature(solver).parameters.values())
    for name in options:
        if name not in known and not anything:
            takes = f"takes {', '.join(known)}" if known else "takes no options"
            raise TypeError(f"solver {name_of(solver)!r} {takes}, got {name!r}")
        if solver in SOLVERS.values():
            _check_number(name, options[name], inspect.signature(solver).parameters[name].default)


def _check_number(name: str, value: Any, default: Any) -> None:
    if isinstance(default, (int, float)) and not isinstance(value, Real):
        kind = "True or False" if isinstance(default, bool) else "a number"
        raise ValueError(f"{name} must be {kind}, got {value!r}")
    if isinstance(value, Real) and not float(value) >= 0:  # NaN included
        raise ValueError(f"{name} must be a number of at least 0, got {value!r}")
    if name in ("eta", "S_noise") and value == math.inf:
        raise ValueError(f"{name} must be finite, got {value!r}")


def name_of(solver: Solver | Driver) -> str:
    """The name a solver is known by: that of its function, if it is a user's."""
    for name, known in SOLVERS.items():
        if known is solver:
            return name
    return str(getattr(solver, "__name__", type(solver).__name__))
