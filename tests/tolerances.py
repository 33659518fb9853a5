"""Every numerical tolerance of the test suite that is not written in the recorded cases themselves."""

import torch

FLOAT32_STATE = 2e-5
"""Largest difference between a run with a float32 state and the same run in float64, relative to the largest value."""

FLOAT32_FLOOR_FACTOR = 4
"""How many times the change caused by rounding only what a run and its network exchange a float32 run may differ."""

OTHERS_FLOAT32_FACTOR = 2
"""How many times as far from float64 as another library's recorded float32 run ours may end."""

FLOAT32_GRID = 2e-6
"""A float64 noise schedule against the reference's own float32 evaluation (edm/SPEC.md, section 12)."""

CLOSED_FORM = 1e-12
"""Samples of a closed-form float64 model across batch sizes, thread counts and backends."""

NORMAL = 1e-6
"""A normal of the noise contract against a float64 evaluation of the same formula."""

ROUNDING = {torch.float32: 4e-6, torch.float64: 1e-14}
"""A short sum of products against float64, relative to the largest value."""

LIKELIHOOD = 1e-9
"""Log probability of a bin in float64 against 50 digits, where the bin is not far narrower than the Gaussian."""

SDE_DERIVATIVE = 1e-9
"""Derivatives of an SDE's moments by autograd against its coefficients; near t = 0 sigma^2 is 1e-6."""

FINE_CHAIN = 1e-3
"""N times a step of a chain of N = 100000 against the SDE in continuous time, relative."""

LOSS = {torch.float32: 2e-5, torch.float64: 1e-12}
"""A loss, or a score in it, against its formula in float64, relative."""

LOSS_GRADIENT = 1e-6
"""A gradient of a loss against central differences in float64, relative to the largest entry."""

LOG_DENSITY = 1e-6
"""A log-density (nats) by the ODE at tolerances of 1e-8, and the state at its end, against a closed form."""

LOG_DENSITY_MIXTURE = 1e-5
"""The same of a mixture, whose prior is only nearly the ODE's; or with tolerances of 1e-7."""

LOG_DENSITY_FLOAT32 = 5e-3
"""The same at the default tolerances of 1e-5, or with a network in float32."""

BOUND = 1e-8
"""A loss, a term of a bound or a gradient in float64 against the same formula written another way."""

FLOAT32_LOSS = 1e-4
"""The same in float32 against float64."""

CUBIC_SHIFT = 0.06
"""Pixels by which PyTorch's cubic kernel (a = -0.75) moves a ramp: (1 + 2 a)(2 s^3 - 3 s^2 + s) is at most 0.0482."""

TRAINING_SPLIT = 1e-6
"""A batch in parts, or on several processes, against the whole: losses relatively, weights absolutely (issue 5)."""

TRAINED_WEIGHTS = 2e-5
"""Weights after a few steps of Adam at rates of 2e-3: it divides gradients by their size, and so what rounding is to a
gradient near 0 is a hundredth of a step to its weight."""

DEFAULT_SOLVER = 1e-3
"""An ODE at score_sde's default tolerances against the same by another adaptive solver (ddpm/SPEC.md, section 1)."""

SWISS_ROLL_DISTANCE = 0.12
"""Sliced Wasserstein-2 distance to unseen points, in standard deviations of the data, of as many samples (2000) of
examples/swiss_roll.py after 400 iterations. Other data are at 0.03, a Gaussian at 0.22; 3000 iterations reach 0.02."""

NUMERICAL_DERIVATIVE = 1e-6
"""A derivative in closed form against a central difference in float64, relative."""

SMALL_SIGMA = 1e-7
"""A float64 run in two equal forms, one of which divides differences of states by a small sigma^2."""

DIRECTIONAL_DERIVATIVE = 1e-6
"""A gradient through a run in float64 along a direction, against a central difference of step 1e-5, relative."""

LOG_PROB = 1e-9
"""Log-probabilities of steps and their gradients in float64 against the same density written another way, relative to
the largest: means and states that are nearly equal are subtracted and divided by narrow widths."""

FLOAT32_LOG_PROB = 2e-3
"""Log-probabilities of steps with a network and states in float32 against float64, relative to the largest: the last
steps are narrow beside the rounding of their means."""

BROWNIAN_WEIGHTS = 1e-10
"""Weights of a Brownian increment: log2 of a level says where it is to 1e-11 of the tree's cells."""

ORDER = 0.25
"""An order of convergence measured by one doubling of the steps (tests/solvers/test_order.py); they are 1 apart."""

LAYOUT = 1e-4
"""A network in another memory layout, or compiled: float32 sums in another order."""

CASCADE_LAW = 1e-3
"""Mean and covariance of a two-stage cascade on Gaussian data against the data's: the solver's error (100 steps)."""

LATENT_PIPELINE = 1e-5
"""Images in [0, 1] of a latent pipeline of diffusers: float32 networks on states that differ by rounding."""

SAMPLED_NETWORK = 1e-5
"""Samples of a preconditioned float32 network, by any route, against a float64 loop around D, relative to the largest
(issue 7)."""

SAMPLED_NETWORK_FLOAT64 = 1e-9
"""The same in float64."""
