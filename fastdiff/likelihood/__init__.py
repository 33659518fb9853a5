"""Likelihood of data under a model: by the probability-flow ODE, and by the variational bound of a chain.

The ODE carries data to noise, and ln p(data) = ln prior(z) + (integral of the velocity's divergence along the way)
(Song et al. 2021, section 4.3 and appendix D.2; Chen et al. 2018). The divergence is estimated with Hutchinson's
probes, v^T J v with E[v v^T] = I (Grathwohl et al. 2019), or is exact at one backward pass per dimension.

Discrete data need noise first: a density can be as high as one likes on points. `dequantise` adds uniform noise as wide
as a level; what is then reported is -log2(density x that width) per dimension, whose mean over that noise is at least
the bits per dimension of the discrete data under the model (Theis et al. 2016, Eq. 3). The variational bound needs no
noise: its last term is the likelihood of a level.
"""

from .bound import nll_bound
from .integration import ADAPTIVE, FIXED, PROBES
from .ode import Likelihood, nll_network, nll_ode
from .quantisation import dequantise

__all__ = ["ADAPTIVE", "FIXED", "PROBES", "Likelihood", "dequantise", "nll_bound", "nll_network", "nll_ode"]
