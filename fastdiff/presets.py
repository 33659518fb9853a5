"""Published settings as data: what to give a `Sampler`, the FID that was published with it, and where.

    preset = fastdiff.presets.sedm_gpp(discriminator)
    sampler = fastdiff.Sampler(denoiser, **preset.arguments)        # or preset.sampler(denoiser)

A preset settles the sampler, not the network: EDM's take its denoiser D(x, sigma) (`prediction="edm"` for the raw
network), ADM's a guided-diffusion network that predicts eps and a variance. FIDs are those of the sources, measured
with their networks on 50,000 images.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from .errors import check_choice
from .exposure import LinearScale

if TYPE_CHECKING:
    from .sampler import Sampler

__all__ = [
    "Preset", "adm", "adm_es", "adm_ip", "ddim", "ddim_ip", "edm", "edm_es", "edm_gpp", "get", "presets", "sedm_gpp",
]  # fmt: skip

_EDM = "Karras et al. 2022 (EDM)"
_ES = "Ning et al. 2024 (EDM-ES), table of CIFAR-10"
_ADM_ES = "Ning et al. 2024 (ADM-ES), table of results"
_GPP = "Kim et al. 2023 (EDM-G++), repository"
_IP = "Ning et al. 2023 (DDPM-IP)"


@dataclass(frozen=True)
class Preset:
    """One published setting.

    Attributes:
        name: for `fastdiff presets` and `get`.
        data: the data set of the published figure.
        settings: arguments of `Sampler`, guidance apart.
        nfe: evaluations of the denoiser per image.
        fid: published, or None where the source gives none.
        baseline_fid: without the correction, by the same source.
        source: paper or repository.
        guidance: arguments of the guidance term; empty for none. `kind` says which: "discriminator" or "classifier".
        training: what the network's training must have had, such as DDPM-IP's gamma.
        note: what else to know.
        guide: the discriminator or classifier.
    """

    name: str
    data: str
    settings: dict[str, Any]
    nfe: int
    fid: float | None
    baseline_fid: float | None
    source: str
    guidance: dict[str, Any] = field(default_factory=dict)
    training: dict[str, Any] = field(default_factory=dict)
    note: str = ""
    guide: Callable[..., Any] | None = field(default=None, repr=False)

    @property
    def arguments(self) -> dict[str, Any]:
        """Arguments of `Sampler`, the guidance term included.

        Raises:
            ValueError: the preset needs a discriminator or a classifier that it was not given.
        """
        if not self.guidance:
            return dict(self.settings)
        options = dict(self.guidance)
        kind = options.pop("kind")
        if self.guide is None:
            raise ValueError(f"preset {self.name} needs a {kind}: give one to its function, or to with_guide()")
        from . import guidance as terms

        if kind == "classifier":
            return {**self.settings, "guidance": terms.ClassifierGuidance(self.guide, **options)}
        if "boosting" in options:
            options["boosting"] = terms.Boosting(**options["boosting"])
        return {**self.settings, "guidance": terms.DiscriminatorGuidance(self.guide, **options)}

    def with_guide(self, guide: Callable[..., Any]) -> Preset:
        """The preset with its discriminator or classifier.

        Raises:
            ValueError: the preset has no guidance.
        """
        if not self.guidance:
            raise ValueError(f"guide must be left out, since preset {self.name} has no guidance, got {guide!r}")
        return replace(self, guide=guide)

    def sampler(self, model: Callable[..., Any], **changes: Any) -> Sampler:
        """`Sampler(model, **arguments)`, with some arguments changed."""
        from .sampler import Sampler

        return Sampler(model, **{**self.arguments, **changes})


# --- EDM and its corrections -----------------------------------------------------------------------------------------

_CHURN = {"S_churn": 40.0, "S_min": 0.05, "S_max": 50.0, "S_noise": 1.003}
_EDM_ROWS: dict[str, tuple[int, dict[str, float], float, str]] = {  # data: steps of Heun, churn, FID, where
    "ffhq64": (40, {}, 2.39, "Table 2"),
    "afhqv2-64": (40, {}, 1.96, "Table 2"),
    "imagenet64": (256, _CHURN, 1.36, "abstract"),
}
_CIFAR = ("cifar10", "cifar10-cond")
_STEPS = {"heun": {35: 18, 21: 11, 13: 7}, "euler": {35: 35, 21: 21, 13: 13}}  # of an NFE
_ES_ROWS = {  # (data, solver, NFE): FID of EDM, FID of EDM-ES, lambda
    ("cifar10", "heun", 35): (1.97, 1.95, 1.0005),
    ("cifar10", "heun", 21): (2.33, 2.24, 0.9985),
    ("cifar10", "heun", 13): (7.16, 6.54, 1.0060),
    ("cifar10", "euler", 35): (3.81, 2.80, 1.0034),
    ("cifar10", "euler", 21): (6.29, 4.32, 1.0043),
    ("cifar10", "euler", 13): (12.28, 8.39, 1.0048),
    ("cifar10-cond", "heun", 35): (1.82, 1.80, 1.0006),
    ("cifar10-cond", "heun", 21): (2.17, 2.08, 0.9983),
    ("cifar10-cond", "heun", 13): (6.69, 6.16, 1.0070),
    ("cifar10-cond", "euler", 35): (3.74, 2.59, 1.0035),
    ("cifar10-cond", "euler", 21): (5.91, 3.74, 1.0045),
    ("cifar10-cond", "euler", 13): (10.66, 6.59, 1.0051),
}


def _edm_settings(solver: str, steps: int, **options: Any) -> dict[str, Any]:
    return {"process": "edm", "solver": solver, "steps": steps, "rho": 7.0, **options}


def edm(data: str = "cifar10", solver: str = "heun", nfe: int = 35) -> Preset:
    """EDM without a correction.

    Args:
        data: "cifar10" or "cifar10-cond" (with solver "heun" or "euler" and 35, 21 or 13 evaluations); "ffhq64",
            "afhqv2-64" or "imagenet64", of which there is one setting each.
    """
    if check_choice("data", data, (*_CIFAR, *_EDM_ROWS)) in _EDM_ROWS:
        steps, churn, fid, where = _EDM_ROWS[data]
        source = f"{_EDM}, {where}"
        return Preset(f"edm-{data}", data, _edm_settings("heun", steps, **churn), 2 * steps - 1, fid, None, source)
    steps, fid = _steps(solver, nfe), _ES_ROWS[data, solver, nfe][0]
    note = "1.97 and 1.79 in EDM's abstract, 2.03 and 1.82 by EDM-G++" if (solver, nfe) == ("heun", 35) else ""
    return Preset(f"edm-{data}-{solver}-{nfe}", data, _edm_settings(solver, steps), nfe, fid, None, _ES, note=note)


def edm_es(data: str = "cifar10", solver: str = "heun", nfe: int = 35) -> Preset:
    """EDM-ES: one constant lambda in every evaluation.

    Args:
        data: "cifar10" or "cifar10-cond".
        solver: "heun" or "euler".
        nfe: 35, 21 or 13.
    """
    check_choice("data", data, _CIFAR)
    settings = _edm_settings(solver, _steps(solver, nfe))
    baseline, fid, scale = _ES_ROWS[data, solver, nfe]
    settings["epsilon_scale"] = scale
    return Preset(f"edm-es-{data}-{solver}-{nfe}", data, settings, nfe, fid, baseline, _ES)


def edm_gpp(data: str = "cifar10", discriminator: Callable[..., Any] | None = None) -> Preset:
    """EDM-G++: discriminator guidance on the first slope of EDM's 18 Heun steps.

    Args:
        data: "cifar10", or "cifar10-cond", which boosts samples that look generated.
        discriminator: `(y, tau, labels) -> logit`, see `fastdiff.guidance.DiscriminatorGuidance`.
    """
    conditional = check_choice("data", data, _CIFAR) == "cifar10-cond"
    guidance: dict[str, Any] = {"kind": "discriminator", "w_1st": 1.0 if conditional else 2.0, "w_2nd": 0.0}
    if conditional:
        guidance["boosting"] = {"period": 5, "churn": 4.0, "noise": 1.0, "factor": 2.0, "factor_period": 2}
    fid, baseline = (1.64, 1.82) if conditional else (1.77, 2.03)
    note = f"discriminator of epoch {250 if conditional else 60}"
    settings = _edm_settings("heun", 18)
    return Preset(f"edm-gpp-{data}", data, settings, 35, fid, baseline, _GPP, guidance, note=note, guide=discriminator)


def sedm_gpp(discriminator: Callable[..., Any] | None = None) -> Preset:
    """SEDM-G++ on CIFAR-10: lambda 1.0004, w_1st 1.67, w_2nd 0, 18 Heun steps.

    Args:
        discriminator: as for `edm_gpp`.
    """
    guidance = {"kind": "discriminator", "w_1st": 1.67, "w_2nd": 0.0}
    settings = _edm_settings("heun", 18, epsilon_scale=1.0004)
    source = "SEDM-G++ thesis; FID of the repository's abstract"
    note = "the repository's command has lambda 1.004 in place of the text's 1.0004; baseline by EDM-G++"
    return Preset(
        "sedm-gpp-cifar10", "cifar10", settings, 35, 1.73, 2.03, source, guidance, note=note, guide=discriminator
    )


def _steps(solver: str, nfe: int) -> int:
    check_choice("solver", solver, _STEPS)
    return _STEPS[solver][check_choice("nfe", nfe, _STEPS[solver])]


# --- ADM and its corrections -----------------------------------------------------------------------------------------

_ADM_ROWS: dict[str, dict[int, tuple[float, float, float]]] = {  # data: steps: FID of ADM, FID of ADM-ES, lambda
    "cifar10": {100: (3.37, 2.17, 1.017), 50: (4.43, 2.49, 1.017), 20: (10.36, 5.15, 1.017)},
    "lsun-tower64": {100: (3.59, 2.91, 1.006), 50: (7.28, 3.68, 1.007), 20: (23.92, 8.22, 1.011)},
    "ffhq128": {100: (14.52, 6.77, 1.005), 50: (26.15, 9.50, 1.007), 20: (59.35, 26.14, 1.008)},
    "imagenet64": {100: (2.71, 2.39, 1.006), 50: (3.75, 3.07, 1.006), 20: (10.96, 7.52, 1.006)},
    "imagenet128-guided": {100: (3.55, 3.37, 1.004), 50: (5.15, 4.33, 1.004), 20: (12.48, 9.95, 1.005)},
}
_LINEAR_ROWS = {  # 20 steps: FID, k, b of lambda_i = b + k i, i = 0 the least noisy step
    "cifar10": (4.31, 0.0025, 1.0),
    "lsun-tower64": (7.60, 0.0008, 1.0034),
    "ffhq128": (24.83, 0.0004, 1.0042),
    "imagenet64": (7.37, 0.0002, 1.0041),
    "imagenet128-guided": (9.86, 0.00022, 1.00291),
}
_ADM_STEPS = (100, 50, 20)


def _adm_settings(data: str, steps: int, **options: Any) -> dict[str, Any]:
    process = "vp" if data == "imagenet128-guided" else "vp_cosine"
    return {
        "process": process, "prediction": "eps", "solver": "ddpm", "steps": str(steps), "variance": "learned_range",
        "clip_denoised": True, **options,
    }  # fmt: skip


def _adm(name: str, data: str, steps: int, fids: tuple[float, float | None], guide: Any, **scale: Any) -> Preset:
    guidance = {"kind": "classifier", "scale": 0.5, "rule": "mean"} if data == "imagenet128-guided" else {}
    if guide is not None and not guidance:
        raise ValueError(f"classifier must be left out for data={data!r}, which is not guided, got {guide!r}")
    return Preset(name, data, _adm_settings(data, steps, **scale), steps, *fids, _ADM_ES, guidance, guide=guide)


def adm(data: str = "cifar10", steps: int = 100, classifier: Callable[..., Any] | None = None) -> Preset:
    """ADM's ancestral sampler without a correction: the baseline of `adm_es`, with its arguments."""
    fid = _ADM_ROWS[check_choice("data", data, _ADM_ROWS)][check_choice("steps", steps, _ADM_STEPS)][0]
    return _adm(f"adm-{data}-{steps}", data, steps, (fid, None), classifier)


def adm_es(
    data: str = "cifar10", steps: int = 100, linear: bool = False, classifier: Callable[..., Any] | None = None
) -> Preset:
    """ADM-ES: a constant lambda, or one that grows with the noise.

    Args:
        data: "cifar10", "lsun-tower64", "ffhq128", "imagenet64" (conditional) or "imagenet128-guided".
        steps: 100, 50 or 20 ancestral steps.
        linear: the linear schedule, which was published for 20 steps.
        classifier: of the guided data set: `(x, t) -> logits`, see `fastdiff.guidance.ClassifierGuidance`.

    Raises:
        ValueError: no such row.
    """
    baseline, fid, b = _ADM_ROWS[check_choice("data", data, _ADM_ROWS)][check_choice("steps", steps, _ADM_STEPS)]
    if not linear:
        return _adm(f"adm-es-{data}-{steps}", data, steps, (fid, baseline), classifier, epsilon_scale=b)
    if steps != 20:
        raise ValueError(f"steps must be 20 for the linear schedule, got {steps}")
    fid, k, b = _LINEAR_ROWS[data]
    name, scale = f"adm-es-linear-{data}-{steps}", LinearScale(k, b)
    return _adm(name, data, steps, (fid, baseline), classifier, epsilon_scale=scale)


_BEST = "FIDs are the best of the training curves, read off a figure to about 0.05"
_IP_ROWS: dict[str, tuple[float, float | None, float | None, str]] = {  # data: gamma, FID, FID of ADM, note
    "cifar10": (0.15, None, 3.39, "baseline by the author, 2.99 at 1000 steps"),
    "imagenet32": (0.1, 2.72, 3.53, _BEST),
    "lsun-tower64": (0.1, 2.68, 3.39, _BEST),
    "celeba64": (0.1, 1.31, 1.60, f"{_BEST}; the abstract has 1.27"),
    "ffhq128": (0.1, 5.9, 14.5, _BEST),
}
_DDIM_ROWS: dict[float, dict[int, tuple[float, float]]] = {  # eta: steps: FID of DDIM, FID of DDIM-IP
    0.0: {10: (14.21, 10.54), 20: (7.5, 5.7), 50: (5.17, 4.66), 100: (4.66, 4.52), 1000: (4.29, 4.27)},
    0.5: {10: (17.24, 10.06), 20: (8.87, 5.53), 50: (5.59, 3.95), 100: (4.88, 3.66), 1000: (4.45, 3.56)},
}


def adm_ip(data: str = "cifar10") -> Preset:
    """ADM-IP: a network trained with input perturbation gamma (`training`), sampled as ADM is, in 100 steps.

    Args:
        data: "cifar10", "imagenet32", "lsun-tower64", "celeba64" or "ffhq128".
    """
    gamma, fid, baseline, note = _IP_ROWS[check_choice("data", data, _IP_ROWS)]
    training = {"input_perturbation": gamma}
    return Preset(f"adm-ip-{data}", data, _adm_settings(data, 100), 100, fid, baseline, _IP, {}, training, note)


def ddim(steps: int = 100, eta: float = 0.0) -> Preset:
    """DDIM on CIFAR-10: the baseline of `ddim_ip`, with its arguments."""
    return _ddim("ddim", steps, eta, with_ip=False)


def ddim_ip(steps: int = 100, eta: float = 0.0) -> Preset:
    """DDIM-IP on CIFAR-10: a network trained with input perturbation (`training`), sampled by DDIM.

    Args:
        steps: 10, 20, 50, 100 or 1000.
        eta: 0 or 0.5.
    """
    return _ddim("ddim-ip", steps, eta, with_ip=True)


def _ddim(name: str, steps: int, eta: float, with_ip: bool) -> Preset:
    plain, perturbed = _DDIM_ROWS[check_choice("eta", eta, _DDIM_ROWS)][check_choice("steps", steps, _DDIM_ROWS[eta])]
    settings = {"process": "vp", "prediction": "eps", "solver": "ddim", "steps": f"ddim{steps}", "eta": eta}
    fid, baseline = (perturbed, plain) if with_ip else (plain, None)
    training = {"input_perturbation": 0.15} if with_ip else {}
    name, note = f"{name}-cifar10-{steps}-eta{eta:g}", "FIDs read off a figure"
    return Preset(name, "cifar10", settings, steps, fid, baseline, _IP, {}, training, note)


# --- all of them -----------------------------------------------------------------------------------------------------


def presets() -> list[Preset]:
    """Every preset, corrections beside their baselines; those with guidance lack their discriminator or classifier."""
    return list(_all())


def get(name: str) -> Preset:
    """The preset of that name.

    Raises:
        ValueError: there is none.
    """
    known = {preset.name: preset for preset in _all()}
    if name not in known:
        near = ", ".join(difflib.get_close_matches(name, known, cutoff=0.0))
        raise ValueError(f"name must be a preset, such as {near}, got {name!r}")
    return known[name]


def _all() -> Iterator[Preset]:
    for data, solver, nfe in _ES_ROWS:
        yield edm(data, solver, nfe)
        yield edm_es(data, solver, nfe)
    for data in _EDM_ROWS:
        yield edm(data)
    for data in _CIFAR:
        yield edm_gpp(data)
    yield sedm_gpp()
    for data, rows in _ADM_ROWS.items():
        for steps in rows:
            yield adm(data, steps)
            yield adm_es(data, steps)
        yield adm_es(data, 20, linear=True)
    for data in _IP_ROWS:
        yield adm_ip(data)
    for eta, by_steps in _DDIM_ROWS.items():
        for steps in by_steps:
            yield ddim(steps, eta)
            yield ddim_ip(steps, eta)
