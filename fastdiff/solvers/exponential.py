"""The exponential integrator in lambda = -log(sigma / alpha): one core for every DPM-Solver, DPM-Solver++ and UniPC.

With D the predicted x_0, e the predicted noise, and eta the share of Langevin noise (0: probability flow, 1: the
reverse SDE), in VE terms u = x / alpha, s = sigma / alpha:

    du = (1 + eta) (u - D) ds / s + sqrt(2 eta s) dW      predict="x0":  linear part (1 + eta) u / s (Lu et al. 2022b)
       = (1 + eta) e ds           + sqrt(2 eta s) dW      predict="eps": no linear part              (Lu et al. 2022a)

The linear part and the noise are solved exactly. What is left is an integral over the step of a known weight times D
or e, which a polynomial in theta = (lambda - lambda_start) / h replaces: interpolated where the model was evaluated,
in this step (Runge-Kutta) or before it (multistep). Its moments are the phi functions of exponential integrators.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np

from ..denoiser import Denoiser, State
from ..process import Level
from ..symbols import Chosen, Number

PREDICTIONS = ("x0", "eps")


def z_phi(k: int, z: Number) -> Number:
    """z phi_k(z), phi_0 = e^z and phi_k = (phi_(k-1) - 1 / (k-1)!) / z; near 0 by its series, -1 / (k-1)! at z = -inf.

    Args:
        k: at least 1.
        z: below inf; a number chosen per sample too.
    """
    if isinstance(z, Chosen):
        return Chosen(np.array([z_phi(k, float(v)) for v in z.values]), z.rows)
    if abs(z) <= 1:
        return math.fsum(z ** (j + 1) / math.factorial(j + k) for j in range(20))
    value = math.expm1(z)
    for i in range(1, k):
        value = value / z - 1 / math.factorial(i)
    return value


def log_snr(level: Level) -> Number:
    """lambda = log(alpha / sigma): inf for clean data, -inf for pure noise."""
    s = level.sigma_ve
    if isinstance(s, Chosen):
        return -np.log(s)
    return -math.log(s) if s > 0 else math.inf


def quadrature(nodes: Sequence[float], moments: Sequence[Number]) -> list[Number]:
    """Weights w_j with sum_j w_j theta_j^k = moments[k] for every k < n: exact for polynomials of degree below n."""
    lagrange = np.linalg.inv(np.vander(nodes, increasing=True))  # column j: the coefficients of the j-th polynomial
    return [sum((c * m for c, m in zip(column, moments)), 0.0) for column in lagrange.T]


def predicted(denoise: Denoiser, x: State, level: Level, predict: str) -> State:
    """One evaluation: the predicted x_0, or the predicted noise of that (clipped, guided) x_0."""
    x0 = denoise(x, level)
    return x0 if predict == "x0" else (x - level.alpha * x0) / level.sigma


class Exponential:
    """The step between two levels: x' = carry x + sum_j w_j m(theta_j) + std z, with m the predicted x_0 or noise.

    A step to clean data (h = inf) adds no noise and takes one value of m, whatever is predicted: x' is then x_0. A step
    from pure noise (alpha = 0) takes one value of x_0.

    Attributes:
        h: lambda_end - lambda_start, above 0; below it without noise (eta = 0), towards more noise: encoding.
        carry, std: coefficients of x and of a standard normal z.
        clock: z is a Brownian increment in the time sigma_ve^(-2 clock): noise(start, end, clock).
    """

    def __init__(self, start: Level, end: Level, predict: str = "x0", eta: float = 0.0):
        self.start, self.end, self.predict = start, end, predict
        self.h: Number = log_snr(end) - log_snr(start)
        clean = not isinstance(end.sigma, Chosen) and end.sigma == 0
        self.eta = eta = 0.0 if clean else eta
        self.clock = -1.0 if predict == "eps" else eta
        if predict == "eps":
            if not isinstance(start.alpha, Chosen) and start.alpha == 0:
                raise ValueError('predict must be "x0" for a step from alpha = 0, where noise says nothing of x_0')
            self.carry: Number = end.alpha / start.alpha
            self.std: Number = end.alpha * np.sqrt(eta * (start.sigma_ve**2 - end.sigma_ve**2))
        else:
            self.carry = end.sigma / start.sigma * (np.exp(-eta * self.h) if eta else 1.0)
            self.std = end.sigma * np.sqrt(-np.expm1(-2 * eta * self.h)) if eta else 0.0

    def moment(self, k: int) -> Number:
        """The integral of the step's weight times theta^k.

        k! alpha_end H phi_(k+1)(-H) with H = (1 + eta) h for "x0", -k! (1 + eta) sigma_end h phi_(k+1)(h) for "eps".
        """
        start, end = self.start, self.end
        if self.predict == "x0":
            return -math.factorial(k) * end.alpha * z_phi(k + 1, -(1 + self.eta) * self.h)
        if k == 0:  # sigma_end (e^h - 1), which has a limit at sigma_end = 0
            return -(1 + self.eta) * end.alpha * (start.sigma_ve - end.sigma_ve)
        return -(1 + self.eta) * math.factorial(k) * end.sigma * z_phi(k + 1, self.h)

    def node(self, level: Level) -> float:
        """theta of a level: 0 at the start of the step, 1 at its end, negative before it."""
        return float((log_snr(level) - log_snr(self.start)) / self.h)

    @property
    def smooth(self) -> bool:
        """Whether the step has nodes beside its start: h is neither 0 nor infinite."""
        return 0 < abs(self.h) < math.inf

    def weights(self, nodes: Sequence[float] = (0.0,), moments: Sequence[Number] | None = None) -> list[Number]:
        """w_j for values of the model at `nodes` (theta): of the integral of the polynomial through them.

        Args:
            moments: what a rule replaces the exact moments by.
        """
        return quadrature(nodes, moments or [self.moment(k) for k in range(len(nodes))])

    def __call__(
        self,
        x: State,
        values: Sequence[State],
        nodes: Sequence[float] = (0.0,),
        moments: Sequence[Number] | None = None,
    ) -> State:
        """The mean of x' from the model's `values` at `nodes`; noise is the solver's to add, std times it."""
        return sum((w * m for w, m in zip(self.weights(nodes, moments), values)), self.carry * x)


class Past:
    """The model's values at the levels visited, the latest first, as a multistep method interpolates them.

    Args:
        order: how many are kept at most.
        store: where each is made one tensor in memory (`Denoiser.store`); else it is read from what it is made of.
    """

    def __init__(self, order: int, store: Callable[[State], State] | None = None):
        self._order, self._store = order, store
        self._kept: list[tuple[Level, State]] = []

    def add(self, level: Level, value: State) -> None:
        """The latest value. One at the same level (a grid may repeat it) or at pure noise is no node beside it."""
        value = self._store(value) if self._store else value
        before = [(old, m) for old, m in self._kept if log_snr(old) not in (log_snr(level), -math.inf)]
        self._kept = [(level, value), *before][: self._order]

    def __len__(self) -> int:
        return len(self._kept)

    def values(self, order: int) -> list[State]:
        """The latest ones."""
        return [value for _, value in self._kept[:order]]

    def nodes(self, step: Exponential, order: int) -> list[float]:
        """Their theta in a step from the latest level: 0, and negative ones."""
        return [0.0, *(step.node(level) for level, _ in self._kept[1:order])]
