"""Which noise levels to visit, and the discrete processes' betas. Everything is float64 NumPy on the host.

Sigma grids return `n` levels, noisiest first, followed by 0. Their names are k-diffusion's and EDM's.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from .errors import check_choice, check_count, check_positive

Array = NDArray[np.float64]


def _ramp(n: int) -> Array:
    return np.arange(n) / (n - 1) if n > 1 else np.zeros(1)


def _limits(n: int, sigma_min: float, sigma_max: float) -> None:
    check_count("n", n)
    check_positive("sigma_min", sigma_min)
    check_positive("sigma_max", sigma_max)
    if sigma_min > sigma_max:
        raise ValueError(f"sigma_min must not exceed sigma_max={sigma_max}, got {sigma_min}")


def _terminated(sigmas: Array) -> Array:
    return np.append(sigmas, 0.0)


def karras(n: int, sigma_min: float = 0.002, sigma_max: float = 80.0, rho: float = 7.0) -> Array:
    """Karras et al. 2022, Eq. 5: (sigma_max^(1/rho) + i/(n-1) (sigma_min^(1/rho) - sigma_max^(1/rho)))^rho, then 0.

    `n` = 1 gives [sigma_max, 0] (the formula itself is 0/0 there).
    """
    _limits(n, sigma_min, sigma_max)
    check_positive("rho", rho)
    hi, lo = sigma_max ** (1 / rho), sigma_min ** (1 / rho)
    return _terminated((hi + _ramp(n) * (lo - hi)) ** rho)


def exponential(n: int, sigma_min: float, sigma_max: float) -> Array:
    """Levels spaced evenly in log sigma (k-diffusion's get_sigmas_exponential)."""
    return polyexponential(n, sigma_min, sigma_max, 1.0)


def polyexponential(n: int, sigma_min: float, sigma_max: float, rho: float = 1.0) -> Array:
    """log sigma = log sigma_min + ramp^rho (log sigma_max - log sigma_min), ramp from 1 to 0 (k-diffusion)."""
    _limits(n, sigma_min, sigma_max)
    check_positive("rho", rho)
    lo, hi = math.log(sigma_min), math.log(sigma_max)
    return _terminated(np.exp(lo + (1 - _ramp(n)) ** rho * (hi - lo)))


def sigma_vp(t: Array | float, beta_d: float = 19.9, beta_min: float = 0.1) -> Array:
    """The VP SDE's noise in VE terms at time t: sqrt(exp(beta_d t^2 / 2 + beta_min t) - 1) (Karras et al., Table 1)."""
    return np.sqrt(np.expm1(0.5 * beta_d * np.square(t) + beta_min * np.asarray(t, dtype=np.float64)))


def vp(n: int, beta_d: float = 19.9, beta_min: float = 0.1, eps_s: float = 1e-3) -> Array:
    """The VP SDE's levels at times evenly spaced from 1 to eps_s (k-diffusion's get_sigmas_vp)."""
    check_count("n", n)
    check_positive("eps_s", eps_s)
    return _terminated(sigma_vp(1 + _ramp(n) * (eps_s - 1), beta_d, beta_min))


def vp_limits(n: int, sigma_min: float, sigma_max: float, eps_s: float = 1e-3) -> Array:
    """As `vp` with the beta_d and beta_min of `vp_betas`: the grid ends at the limits (EDM's ablation sampler)."""
    _limits(n, sigma_min, sigma_max)
    return vp(n, *vp_betas(sigma_min, sigma_max, eps_s), eps_s)


def vp_betas(sigma_min: float, sigma_max: float, eps_s: float = 1e-3) -> tuple[float, float]:
    """(beta_d, beta_min) for which `sigma_vp` is sigma_min at eps_s and sigma_max at 1 (EDM's ablation sampler).

    beta_min is below 0, and sigma_vp no number near t = 0, where log(1 + sigma_min^2) < eps_s^2 log(1 + sigma_max^2).
    """
    beta_d = 2 * (math.log1p(sigma_min**2) / eps_s - math.log1p(sigma_max**2)) / (eps_s - 1)
    return beta_d, math.log1p(sigma_max**2) - 0.5 * beta_d


def ve(n: int, sigma_min: float = 0.02, sigma_max: float = 100.0) -> Array:
    """The VE SDE's geometric levels, sigma_i^2 = sigma_max^2 (sigma_min^2 / sigma_max^2)^(i/(n-1)) (ibid., Table 1)."""
    _limits(n, sigma_min, sigma_max)
    return _terminated(np.sqrt(sigma_max**2 * (sigma_min**2 / sigma_max**2) ** _ramp(n)))


def iddpm(
    n: int,
    sigma_min: float = 0.002,
    sigma_max: float = 81.0,
    M: int = 1000,
    C_1: float = 0.001,
    C_2: float = 0.008,
    float32_table: bool = False,
) -> Array:
    """Of iDDPM's levels (see `iddpm_table`) inside the limits, `n` at evenly spaced, rounded indices."""
    _limits(n, sigma_min, sigma_max)
    u = iddpm_table(M, C_1, C_2, float32_table)
    kept = u[(u >= sigma_min) & (u <= sigma_max)]
    stride = (len(kept) - 1) / max(n - 1, 1)
    return _terminated(kept[np.round(stride * np.arange(n)).astype(int)])


def iddpm_table(M: int = 1000, C_1: float = 0.001, C_2: float = 0.008, float32_table: bool = False) -> Array:
    """iDDPM's levels u_M = 0, u_(j-1) = sqrt((u_j^2 + 1) / max(abar(j-1)/abar(j), C_1) - 1) (Karras et al., Table 1).

    Args:
        float32_table: evaluate the cosine table abar in float32, as EDM's published code does (a relative change of
            about 1e-6), and with the sine of PyTorch, whose last bit is not NumPy's.

    Returns:
        [M + 1], decreasing.
    """
    j = torch.arange(M + 1, dtype=torch.float32 if float32_table else torch.float64, device="cpu")
    abar = (0.5 * math.pi * j / M / (C_2 + 1)).sin() ** 2
    ratios = (abar[:-1] / abar[1:]).tolist()
    u = np.zeros(M + 1)
    for i in range(M, 0, -1):
        u[i - 1] = math.sqrt((u[i] ** 2 + 1) / max(ratios[i - 1], C_1) - 1)
    return u


class LevelTable:
    """The noise levels that a network was trained at, decreasing to 0; distances are taken in float32, as EDM's are.

    Args:
        u: [M + 1], at least 2.

    Raises:
        ValueError: they are not that.
    """

    def __init__(self, u: Sequence[float] | Array):
        self._u = np.asarray(u, dtype=np.float32)
        if self._u.ndim != 1 or len(self._u) < 3 or self._u[-1] != 0 or not (np.diff(self._u) < 0).all():
            raise ValueError(f"u must be three or more levels that decrease to 0, got {list(self._u)[:3]}...")

    def __len__(self) -> int:
        return len(self._u)

    def __getitem__(self, i: int) -> float:
        return float(self._u[i])

    def index(self, sigma: float) -> int:
        """Of the nearest level."""
        return int(np.abs(self._u - np.float32(sigma)).argmin())

    def round(self, sigma: float) -> float:
        """The nearest level."""
        return self[self.index(sigma)]


def beta_quantiles(n: int, sigma_min: float, sigma_max: float, alpha: float = 0.6, beta: float = 0.6) -> Array:
    """Levels at quantiles of a beta distribution over [sigma_min, sigma_max], dense at both ends (Lee et al. 2024,
    "Beta Sampling is All You Need"; diffusers' use_beta_sigmas). Needs SciPy."""
    _limits(n, sigma_min, sigma_max)
    check_positive("alpha", alpha)
    check_positive("beta", beta)
    try:
        from scipy.special import betaincinv
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError('schedule "beta" needs SciPy: pip install scipy') from error
    return _terminated(sigma_min + betaincinv(alpha, beta, 1 - _ramp(n)) * (sigma_max - sigma_min))


def laplace(n: int, sigma_min: float, sigma_max: float, mu: float = 0.0, scale: float = 0.5) -> Array:
    """log sigma at evenly spaced quantiles of a Laplace distribution, dense around log sigma = mu, both limits kept
    (Hang et al. 2024, "Improved Noise Schedule for Diffusion Training", Table 1).

    Args:
        mu, scale: location and scale of log sigma.
    """
    _limits(n, sigma_min, sigma_max)
    check_positive("scale", scale)
    ends = np.log([sigma_min, sigma_max]) - mu
    low, high = 0.5 * (1 - np.sign(ends) * np.expm1(-np.abs(ends) / scale))  # of the distribution function
    half = low + (1 - _ramp(n)) * (high - low) - 0.5
    with np.errstate(divide="ignore"):  # a limit so far out that its quantile is 1
        sigmas = np.exp(mu - scale * np.sign(half) * np.log1p(-2 * np.abs(half)))
    return _terminated(sigmas.clip(sigma_min, sigma_max))


ALIGNED = {
    "sd": (14.615, 6.475, 3.861, 2.697, 1.886, 1.396, 0.963, 0.652, 0.399, 0.152, 0.029),
    "sdxl": (14.615, 6.315, 3.771, 2.181, 1.342, 0.862, 0.555, 0.380, 0.234, 0.113, 0.029),
    "svd": (700.0, 54.5, 15.886, 7.977, 4.248, 1.789, 0.981, 0.403, 0.173, 0.034, 0.002),
}
"""Published levels of Sabour et al. 2024 for Stable Diffusion 1.5, Stable Diffusion XL and Stable Video Diffusion."""


def align_your_steps(n: int, table: str = "sd") -> Array:
    """The optimised levels of Sabour et al. 2024, "Align Your Steps", for a published model, 10 steps of it exactly;
    other numbers of steps by interpolation of log sigma, as the authors do. For `Sampler(sigmas=...)`.

    Args:
        table: "sd", "sdxl" or "svd".
    """
    levels = np.log(ALIGNED[check_choice("table", table, ALIGNED)])
    at = np.linspace(0, len(levels) - 1, check_count("n", n) + 1)
    return _terminated(np.exp(np.interp(at, np.arange(len(levels)), levels))[:-1])


# --- discrete processes ----------------------------------------------------------------------------------------------


def linear_betas(T: int = 1000) -> Array:
    """guided-diffusion's linear schedule: 0.1/T to 20/T, which is DDPM's 1e-4 to 0.02 at T = 1000; T > 20."""
    check_count("T", T, 21)
    return np.linspace(0.1 / T, 20 / T, T)


def cosine_betas(T: int = 1000) -> Array:
    """Nichol & Dhariwal 2021, Eq. 17: min(1 - f((i+1)/T) / f(i/T), 0.999), f(u) = cos^2((u + .008) / 1.008 * pi/2)."""
    check_count("T", T)
    f = np.cos((np.arange(T + 1) / T + 0.008) / 1.008 * math.pi / 2) ** 2
    return np.minimum(1 - f[1:] / f[:-1], 0.999)


def betas(name: str, T: int = 1000, beta_start: float = 1e-4, beta_end: float = 0.02) -> Array:
    """The beta schedules of the DDPM and DDIM repositories: linear, quad, const, jsd, sigmoid, warmup10, warmup50."""
    check_count("T", T)
    if name == "linear":
        return np.linspace(beta_start, beta_end, T)
    if name == "quad":
        return np.linspace(beta_start**0.5, beta_end**0.5, T) ** 2
    if name == "const":
        return np.full(T, float(beta_end))
    if name == "jsd":
        return 1.0 / np.linspace(T, 1, T)
    if name == "sigmoid":
        return (beta_end - beta_start) / (1 + np.exp(-np.linspace(-6, 6, T))) + beta_start
    if name in ("warmup10", "warmup50"):
        warm = int(T * int(name[6:]) / 100)
        return np.append(np.linspace(beta_start, beta_end, warm), np.full(T - warm, float(beta_end)))
    known = "linear, quad, const, jsd, sigmoid, warmup10, warmup50"
    raise ValueError(f"name must be one of {known}, got {name!r}")


def sigmoid_betas(T: int = 1000, start: float = -3.0, end: float = 3.0, tau: float = 1.0) -> Array:
    """Jabri et al. 2023, "Scalable adaptive computation", Alg. 3: alpha_bar falls as a sigmoid, scaled to 1 at t = 0
    and 0 at t = 1; betas are at most 0.999.

    Args:
        start, end: the part of the sigmoid, start < end; tau: its temperature.
    """
    check_count("T", T)
    check_positive("tau", tau)
    if not start < end:
        raise ValueError(f"start must be below end={end}, got {start}")
    v = 1 / (1 + np.exp(-(start + (end - start) * np.arange(T + 1) / T) / tau))
    abar = (v[-1] - v) / (v[-1] - v[0])
    return np.minimum(1 - abar[1:] / abar[:-1], 0.999)


def laplace_betas(T: int = 1000, mu: float = 0.0, scale: float = 0.5) -> Array:
    """Hang et al. 2024, "Improved Noise Schedule for Diffusion Training": log SNR at evenly spaced quantiles of a
    Laplace distribution, mu - scale sign(1/2 - t) ln(1 - 2 |1/2 - t|) at t = (i + 1/2) / T; betas at most 0.999."""
    check_count("T", T)
    check_positive("scale", scale)
    half = 0.5 - (np.arange(T) + 0.5) / T
    abar = 1 / (1 + np.exp(-(mu - scale * np.sign(half) * np.log1p(-2 * np.abs(half)))))
    return np.minimum(1 - abar / np.append(1.0, abar[:-1]), 0.999)


def zero_terminal_snr(betas: Array) -> Array:
    """The betas of the same process shifted and scaled in sqrt(alpha_bar) so that its last step is pure noise: beta = 1
    there (Lin et al. 2024, Algorithm 1). Predictions "v" and "x0" have a meaning there, "eps" has none.

    Args:
        betas: [T], T >= 2.
    """
    root = np.sqrt(np.cumprod(1 - np.asarray(betas, dtype=np.float64)))
    if root.ndim != 1 or len(root) < 2:
        raise ValueError(f"betas must be a 1-D list of two or more, got shape {list(root.shape)}")
    abar = ((root - root[-1]) * root[0] / (root[0] - root[-1])) ** 2
    return 1 - abar / np.append(1.0, abar[:-1])


def ddim_subsequence(T: int, n: int, kind: str = "uniform") -> list[int]:
    """The times that the DDIM repository samples at, ascending (Song et al. 2021, Appendix D.2).

    uniform: 0, s, 2s, ... with s = T // n, which can be more than n times. quad: floor of linspace(0, sqrt(0.8 T), n)
    squared, which repeats 0 from about sqrt(0.8 T) times on: drop equal ones for `timesteps=`.

    Args:
        T, n: at least 1, n <= T; kind: "uniform" or "quad".
    """
    if check_count("n", n) > check_count("T", T):
        raise ValueError(f"n must be at most T={T}, got {n}")
    if check_choice("kind", kind, ("uniform", "quad")) == "uniform":
        return list(range(0, T, T // n))
    return [int(s) for s in np.linspace(0, math.sqrt(0.8 * T), n) ** 2]


def space_timesteps(T: int, sections: str | int | Sequence[int]) -> list[int]:
    """Which of `T` original steps a respaced process keeps, ascending: exactly guided-diffusion's rule.

    "a,b,c" (or a list) splits the process into equal sections with that many steps each, both ends of a section kept;
    "ddimN" keeps 0, s, 2s, ... with the smallest integer stride s that gives N steps; "" keeps all.

    Raises:
        ValueError: no integer stride gives N steps, or a section is shorter than its count.
    """
    check_count("T", T)
    if isinstance(sections, str) and sections.startswith("ddim"):
        wanted = _parse_counts(sections[4:], sections)[0]
        for stride in range(1, T):
            if len(range(0, T, stride)) == wanted:
                return list(range(0, T, stride))
        raise ValueError(f"steps={sections!r}: no integer stride through {T} steps gives exactly {wanted}")
    if sections == "":
        sections = [T]
    counts = _parse_counts(sections, sections) if isinstance(sections, str) else sections
    counts = list(counts) if isinstance(counts, Iterable) else [counts]
    for count in counts:
        check_count("steps", count)
    kept: set[int] = set()
    start = 0
    size_all, longer = divmod(T, len(counts))
    for section, count in enumerate(counts):
        size = size_all + (section < longer)
        if count > size:
            raise ValueError(f"steps={sections!r}: cannot take {count} steps from a section of {size} (of {T})")
        step = (size - 1) / (count - 1) if count > 1 else 1.0
        cur = 0.0
        for _ in range(count):
            kept.add(start + round(cur))
            cur += step
        start += size
    return sorted(kept)


def _parse_counts(text: str, whole: str) -> list[int]:
    try:
        return [int(part) for part in text.split(",")]
    except ValueError:
        raise ValueError(f'steps must look like "100", "10,5,5" or "ddim50", got {whole!r}') from None
