"""What a solver sees of the model: `denoise(x, level)` returns the predicted x_0.

Prediction type, epsilon scaling, guidance, `denoised_fn` and clipping are all applied here, once, with the same
lines for tensors and for symbols. Engines do what is not arithmetic: `engine.TensorEngine` calls the model,
`trace.Recorder` records.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import pairwise
from typing import TYPE_CHECKING, Any, NamedTuple

from torch import Tensor

from .guidance.term import Contrast, Gradient, Position
from .prediction import Coefficients, Prediction, PreviousX
from .process import Level, Levels
from .symbols import Chosen, chosen_by, each

if TYPE_CHECKING:
    from .guidance.discriminator import Boosting

State = Any  # a Tensor, or a trace.Combination while tracing


class Evaluation(NamedTuple):
    """One network evaluation.

    Attributes:
        x0: predicted x_0; output: the raw output F (its mean half); variance: the handle of the variance half.
        pushes: (weight, gradient) of the guidance terms with rule "mean".
        moved: what terms added to x_0 and not to `output`, for means that do not come from x_0; None for nothing.
        unclipped: x_0 before `denoised_fn` and clipping.
    """

    x0: State
    output: State
    variance: Any
    pushes: Sequence[tuple[Any, State]] = ()
    moved: State | None = None
    unclipped: State = None


class Choice(NamedTuple):
    """What every sample chose among a few candidates; its level and numbers are used like any others."""

    engine: Any
    rows: Any

    def number(self, values: Sequence[float]) -> Any:
        """The one of `values`, one for each candidate, that a sample chose. Use np.sqrt on it, and compare nothing."""
        return self.engine.number(self.rows, [float(value) for value in values])

    def level(self, candidates: Sequence[Level]) -> Level:
        """The level that a sample chose."""
        return Level(*(self.number(values) for values in zip(*candidates)))


@dataclass
class Denoiser:
    """Callable `denoise(x, level) -> x_0`.

    Attributes:
        engine: `engine.TensorEngine` or `trace.Recorder`.
        epsilon_scale: lambda of each step, noisiest first; the predicted noise is divided by it (ADM-ES, EDM-ES).
        epsilon_scale_mode: "every" evaluation of a step, its "first" only, or only an "eps" prediction.
        terms, weights: guidance terms, and what their own weights are multiplied by.
        clip: (lo, hi) for the predicted x_0, or None.
        upwards: the solver visits the levels from the cleanest up.
    """

    engine: Any
    prediction: Prediction
    levels: Levels
    epsilon_scale: Sequence[float]
    epsilon_scale_mode: str = "every"
    terms: Sequence[Gradient | Contrast] = ()
    weights: Sequence[float] = ()
    denoised_fn: Callable[[Tensor], Tensor] | None = None
    clip: tuple[float, float] | None = None
    upwards: bool = False
    step: int = 0
    evaluations: int = 0
    last_x0: State = None
    first_level: Level | None = None
    _asked: set[int] = field(default_factory=set)  # gradient terms called in the last first evaluation

    def __call__(self, x: State, level: Level) -> State:
        return self.evaluate(x, level).x0

    def evaluate(self, x: State, level: Level) -> Evaluation:
        """Call the model at `level` and return everything it said."""
        at = Position(self.place, self.levels.steps, self.evaluations, level)
        x0, output, variance, added = self._predict(x, at)
        scale = self._scale()
        if scale != 1.0:
            if 0 in each(level.alpha):
                raise ValueError(
                    "epsilon_scale must be 1 (a list can begin so) at alpha = 0 (zero terminal SNR), where noise says "
                    f"nothing of x_0, got {scale}"
                )
            u = x / level.alpha
            x0 = u - (u - x0) / scale
        gradients = self._gradients(x, at)
        moves = {rule: self._moved(gradients, rule, level) for rule in ("x0", "clipped")}
        if moves["x0"] is not None:
            x0 = x0 + moves["x0"]
        unclipped = x0
        if self.denoised_fn is not None:
            x0 = self.engine.apply(self.denoised_fn, x0)
        if self.clip is not None:
            x0 = self.engine.clip(x0, *self.clip)
        if moves["clipped"] is not None:
            x0 = x0 + moves["clipped"]
            again = self._scale_of_step()
            if again != 1.0 and any(term.scaled_again for term, *_ in gradients):  # whatever the network predicts
                x0 = x / level.alpha - (x / level.alpha - x0) / again
        if self.evaluations == 0:
            alike = not chosen_by(level)
            self.first_level = level if alike else self.levels[self.step]
        self.evaluations += 1
        self.last_x0 = x0
        pushes = [(weight, gradient) for term, weight, gradient in gradients if term.rule == "mean"]
        moved = [*added, *(move for move in moves.values() if move is not None)]
        return Evaluation(x0, output, variance, pushes, sum(moved[1:], moved[0]) if moved else None, unclipped)

    @staticmethod
    def _moved(gradients: Sequence[tuple[Gradient, Any, State]], rule: str, level: Level) -> State | None:
        """What the gradients of the terms with a rule add to x_0."""
        moves = [(w * level.sigma**2 / level.alpha) * g for term, w, g in gradients if term.rule == rule]
        return sum(moves[1:], moves[0]) if moves else None

    def _predict(self, x: State, at: Position) -> tuple[State, State, Any, Sequence[State]]:
        """The network's x_0, pushed by the terms with a second opinion: (x_0, F, the variance half, what is in that x_0
        and not in F)."""
        contrasts = {}
        for k, (term, weight) in enumerate(zip(self.terms, self.weights)):
            if isinstance(term, Contrast):
                w = 1 + weight * (term.weight(at) - 1)
                if any(value != 1 for value in each(w)):
                    contrasts[k] = term, w
        pair = next((k for k, (term, _) in contrasts.items() if term.batched), None)
        coefficients = self._coefficients(self.prediction, at.level)
        time = self.prediction.time(at.level)
        output, variance, second = self.engine.network(x, coefficients.c_in, time, at.level, pair)
        pushed, others = output, []
        for k, (term, w) in contrasts.items():
            prediction = term.prediction or self.prediction
            c = self._coefficients(prediction, at.level)
            opinion = second if k == pair else self.engine.opinion(k, x, c.c_in, prediction.time(at.level), at.level)
            if term.prediction is not None:
                others.append((w, c.c_skip * x + c.c_out * opinion))
            elif term.rescale:
                mixed = self.engine.apply(term.mix, output, opinion, told=(w, term.rescale))
                pushed = mixed if pushed is output else pushed + (mixed - output)
            else:
                pushed = pushed + (w - 1) * (output - opinion)
        x0 = coefficients.c_skip * x + coefficients.c_out * pushed
        own = coefficients.c_skip * x + coefficients.c_out * output if others else None
        added = [(w - 1) * (own - other) for w, other in others]
        return sum(added, x0), pushed, variance, added

    def _coefficients(self, prediction: Prediction, level: Level) -> Coefficients:
        if isinstance(prediction, PreviousX):
            return prediction.coefficients_between(level, self._following(level))
        return prediction.coefficients(level)

    def _gradients(self, x: State, at: Position) -> list[tuple[Gradient, Any, State]]:
        """(term, the weight of its gradient with respect to x, gradient) of all terms that are called here."""
        found = []
        pure_noise = not isinstance(at.level.alpha, Chosen) and at.level.alpha == 0
        for k, (term, weight) in enumerate(zip(self.terms, self.weights)):
            if not isinstance(term, Gradient):
                continue
            call = term.call(at) if weight and not pure_noise else None
            if at.order == 0:
                self._asked = self._asked - {k} if call is None else self._asked | {k}
            if call is not None:
                y = x * call.c_in if isinstance(call.c_in, Chosen) or call.c_in != 1.0 else x
                gradient = self.engine.guide(k, y, term.dtype, call.told, call.how)
                found.append((term, weight * call.weight * call.c_in, gradient))
        return found

    def learned(self, evaluation: Evaluation, a: float, b: float, value: State) -> State:
        """exp(a v + b) value, with the variance half v of the network's output."""
        return self.engine.exp_scale(a, evaluation.variance, b, value)

    def choose(
        self, selector: Callable[..., Tensor], states: Sequence[State] = (), told: Sequence[float] = ()
    ) -> Choice:
        """Let every sample choose among candidates by what it holds.

        Args:
            selector: (*states, told) -> int64 [B] on the states' device, without reading anything back. With a method
                `small`, the same as a list, or None, that is called for few samples on a CPU.
            told: numbers about the candidates; the selector receives them as a tensor [n].
        """
        return Choice(self.engine, self.engine.choose(selector, states, told))

    def measure(
        self,
        function: Callable[..., Tensor],
        states: Sequence[State],
        count: int = 1,
        told: Sequence[float] = (),
        read: Sequence[State] = (),
    ) -> Sequence[Any]:
        """Numbers that depend on the norms of states, computed on the device: a Langevin step size.

        Args:
            function: (squares [M, B], told [n], *read) -> [count, B], without reading anything back; squares are the
                sums of the squares of each sample's elements, float64. A function of a module, or a frozen dataclass:
                CUDA graphs know it by identity or by its fields. With a method `small`, the same of lists of Python's
                (squares [M][B], told [n]) and tensors (read), that is called for few samples on a CPU.
            states: M of them, noise() included; they are not written to memory for this.
            told: numbers known on the host.
            read: states that the function reads as they are.

        Returns:
            `count` numbers per sample, to be added and to scale states (no product of two, no quotient by one).
        """
        return self.engine.measure(function, states, count, told, read)

    def keep(self, value: State) -> State:
        """A value that later steps read: from memory, if it depends on what samples chose in this one."""
        return self.engine.keep(value)

    def store(self, value: State) -> State:
        """A value that later steps read from memory instead of computing it again from the states it is made of."""
        return self.engine.store(value)

    def boosting(self, x: State) -> tuple[Boosting, Callable[[], Choice]] | None:
        """How a guidance term boosts the churn of this step, and the choice (0: as it is, 1: boosted) that it leaves to
        the samples; None in steps that it leaves alone."""
        for k, term in enumerate(self.terms):
            boosting = getattr(term, "boosting", None)
            if boosting is not None and self.step > 0 and self.step % boosting.period == 0 and k in self._asked:
                # The state is written before a choice only where its last step was one: a launch reads by one choice.
                states = [x] if boosting.period == 1 else []
                return boosting, partial(self._choice, boosting.select, states, k)
        return None

    def _choice(self, selector: Callable[..., Tensor], states: Sequence[State], term: int) -> Choice:
        return Choice(self.engine, self.engine.choose(selector, states, (), term))

    def _following(self, level: Level) -> Level:
        """The next level of the run, for predictions that are defined between two."""
        for here, following in pairwise(self.levels):
            if not chosen_by(level) and here == level:
                return following
        raise ValueError(
            'prediction must not be "previous_x" where the model is evaluated between the levels of the chain: no step '
            f"starts from sigma {level.sigma_ve:.4g}; leave out churn, or use another solver or prediction"
        )

    @property
    def scaled(self) -> bool:
        """Whether epsilon scaling changes an x_0 of this run."""
        eps_only = self.epsilon_scale_mode == "eps" and self.prediction.name != "eps"
        return not eps_only and any(scale != 1.0 for scale in self.epsilon_scale)

    def _scale(self) -> float:
        if self.epsilon_scale_mode == "eps" and self.prediction.name != "eps":
            return 1.0
        return self._scale_of_step()

    def _scale_of_step(self) -> float:
        if self.epsilon_scale_mode == "first" and self.evaluations:
            return 1.0
        return float(self.epsilon_scale[min(self.place, len(self.epsilon_scale) - 1)])

    @property
    def place(self) -> int:
        """The number of the step, counted from the noisiest."""
        return self.levels.steps - 1 - self.step if self.upwards else self.step

    def finish_step(self) -> None:
        """Called by the driver when the solver has yielded."""
        self.step += 1
        self.evaluations = 0
