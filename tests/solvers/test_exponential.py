"""The exponential integrator in lambda: phi functions, exactness, limits, published steps in closed form."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy.integrate import quad

from fastdiff.process import CLEAN, Level
from fastdiff.solvers.exponential import PREDICTIONS, Exponential, Past, log_snr, predicted, quadrature, z_phi
from fastdiff.symbols import Buffer, Chosen
from tests.tolerances import CLOSED_FORM

START, END = Level(0.5, 0.8, 0.0), Level(0.7, 0.4, 0.0)
PURE = Level(0.0, 1.0, 0.0)


@pytest.mark.parametrize("k", [1, 2, 3, 4])
@pytest.mark.parametrize("z", [-40.0, -3.0, -1.0 - 1e-9, -1.0, -1e-3, -1e-12, 1e-12, 0.3, 1.0, 1.0 + 1e-9, 6.0])
def test_phi_is_its_integral(k, z):
    """phi_k(z) = the integral over (0, 1) of e^((1 - t) z) t^(k-1) / (k-1)!."""
    phi = quad(lambda t: math.exp((1 - t) * z) * t ** (k - 1) / math.factorial(k - 1), 0, 1, epsabs=0, epsrel=1e-13)[0]
    assert z_phi(k, z) == pytest.approx(z * phi, rel=1e-11)


def test_phi_at_its_ends():
    assert [z_phi(k, 0.0) for k in (1, 2, 3)] == [0, 0, 0]
    assert [z_phi(k, -math.inf) for k in (1, 2, 3)] == [-1, -1, -0.5]


def test_a_number_chosen_per_sample_goes_through():
    rows = Buffer("choice")
    levels = Level(Chosen([0.5, 0.6], rows), Chosen([0.8, 0.7], rows), 0.0)
    step = Exponential(levels, END, "x0", 0.5)
    for i, level in enumerate([START, Level(0.6, 0.7, 0.0)]):
        one = Exponential(level, END, "x0", 0.5)
        for mine, wanted in [(step.h, one.h), (step.carry, one.carry), (step.std, one.std)]:
            assert mine.values[i] == pytest.approx(wanted, rel=1e-14)
        chosen, alone = (s.weights([0.0, 0.4]) for s in (step, one))
        assert [w.values[i] for w in chosen] == pytest.approx(alone, rel=1e-13)


@pytest.mark.parametrize("nodes", [[0.0], [0.0, -1.3], [0.0, 0.5, 1.0], [0.0, -0.7, -2.0, 1.0]])
def test_quadrature_is_exact_for_polynomials(nodes):
    moments = [0.3, -1.0, 2.0, 0.7][: len(nodes)]
    weights = quadrature(nodes, moments)
    for k, moment in enumerate(moments):
        assert sum(w * node**k for w, node in zip(weights, nodes)) == pytest.approx(moment, rel=1e-12)


@pytest.mark.parametrize("eta", [0.0, 0.4, 1.0])
@pytest.mark.parametrize("predict", PREDICTIONS)
@pytest.mark.parametrize("degree", [0, 1, 2])
def test_a_step_solves_the_equation_of_a_polynomial_model(predict, eta, degree):
    """du/ds = (1 + eta) (u - D) / s, or (1 + eta) e, with D or e a polynomial in lambda: the mean is exact."""
    step = Exponential(START, END, predict, eta)
    nodes = [0.0, -0.6, 0.5][: degree + 1]

    def model(theta):
        return 0.7 - 0.4 * theta * (degree > 0) + 0.9 * theta**2 * (degree > 1)

    s, t = START.sigma_ve, END.sigma_ve

    def integrand(sigma):
        """The variation of constants, in s."""
        m = model(math.log(s / sigma) / step.h)
        return (1 + eta) * (m if predict == "eps" else -m / sigma * (t / sigma) ** (1 + eta))

    linear = 1.0 if predict == "eps" else (t / s) ** (1 + eta)
    u = linear * (1.5 / START.alpha) + quad(integrand, s, t, epsabs=0, epsrel=1e-12)[0]
    assert step(1.5, [model(node) for node in nodes], nodes) == pytest.approx(END.alpha * u, rel=1e-11)


@pytest.mark.parametrize("eta", [0.3, 1.0])
@pytest.mark.parametrize("predict", PREDICTIONS)
def test_noise_has_the_variance_of_the_equation(predict, eta):
    """The integral of 2 eta s ds, carried through the linear part."""
    s, t = START.sigma_ve, END.sigma_ve
    power = 0.0 if predict == "eps" else 2 * (1 + eta)
    variance = quad(lambda sigma: 2 * eta * sigma * (t / sigma) ** power, t, s, epsabs=0, epsrel=1e-12)[0]
    step = Exponential(START, END, predict, eta)
    assert step.std == pytest.approx(END.alpha * math.sqrt(variance), rel=1e-11)
    c = step.clock  # variance = k (t^(-2c) - s^(-2c)): an increment of Brownian motion in that time
    middle = Level(1.0, 0.8, 0.0)
    parts = [Exponential(START, middle, predict, eta), Exponential(middle, END, predict, eta)]
    carried = (parts[0].std * parts[1].carry) ** 2 / step.std**2
    m = middle.sigma_ve
    assert carried == pytest.approx((m ** (-2 * c) - s ** (-2 * c)) / (t ** (-2 * c) - s ** (-2 * c)), rel=1e-11)


@pytest.mark.parametrize("eta", [0.0, 1.0])
@pytest.mark.parametrize("predict", PREDICTIONS)
def test_a_step_to_clean_data_is_x0_without_noise(predict, eta):
    """Where the official codes divide by sigma = 0."""
    step, x, x0 = Exponential(START, CLEAN, predict, eta), 1.5, 0.25
    m = predicted(lambda x, level: x0, x, START, predict)
    assert step.std == 0 and step.h == math.inf
    assert step(x, [m]) == pytest.approx(x0, rel=1e-14)


@pytest.mark.parametrize("eta", [0.0, 0.5])
def test_a_step_from_pure_noise(eta):
    """alpha = 0: DDIM's step, or with eta noise that has forgotten x."""
    step = Exponential(PURE, END, "x0", eta)
    assert step.carry == (0.0 if eta else END.sigma) and step.std == (END.sigma if eta else 0.0)
    assert step.weights() == [END.alpha]
    with pytest.raises(ValueError, match='predict must be "x0"'):
        Exponential(PURE, END, "eps", eta)


def test_a_step_of_nothing_changes_nothing():
    for predict in PREDICTIONS:
        assert Exponential(START, START, predict, 0.5)(1.5, [0.3]) == 1.5


def test_the_published_second_order_steps():
    """Lu et al. 2022b, Algorithm 1 (2S, r = 1/2) and 2022a, Algorithm 1, by their own formulas."""
    h = log_snr(END) - log_snr(START)
    for predict, m0, m1 in (("x0", 0.3, 0.7), ("eps", -0.2, 0.4)):
        step = Exponential(START, END, predict)
        mine = step(1.5, [m0, m1], [0.0, 0.5], [step.moment(0), step.moment(0) / 2])
        if predict == "x0":
            published = END.sigma / START.sigma * 1.5 - END.alpha * (math.exp(-h) - 1) * m1
        else:
            published = END.alpha / START.alpha * 1.5 - END.sigma * (math.exp(h) - 1) * m1
        assert mine == pytest.approx(published, rel=CLOSED_FORM)


def test_the_past_keeps_only_nodes():
    """Not pure noise, not a level that a grid repeats; the latest first; as many as were asked for."""
    past = Past(2)
    past.add(PURE, "a")
    past.add(START, "b")
    assert past.values(3) == ["b"]
    past.add(START, "c")
    assert past.values(3) == ["c"]
    past.add(Level(0.6, 0.6, 0.0), "d")
    past.add(END, "e")
    assert past.values(3) == ["e", "d"] and len(past) == 2
    step = Exponential(END, Level(0.9, 0.1, 0.0))
    assert past.nodes(step, 1) == [0.0]
    assert past.nodes(step, 2) == pytest.approx([0.0, np.log(0.4 / 0.7) / step.h])


def test_the_past_stores_its_values():
    past = Past(2, store=lambda value: f"stored {value}")
    past.add(START, "a")
    assert past.values(1) == ["stored a"]
