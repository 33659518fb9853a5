"""Replays EDM-G++ and SEDM-G++ (edm/SPEC.md, sections 4, 8 and 9) through fastdiff."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

import fastdiff
from fastdiff.guidance import Boosting, DiscriminatorGuidance, vp

from . import dg_loop
from .analytic import Denoiser, Discriminator, per_sample
from .cases import Case, as_array, compare_results, error
from .edm_family import EDM_DEFAULTS, GUIDANCE_PREFIXES
from .replay import Calls, check_float32_state, run

DG_DEFAULTS = EDM_DEFAULTS | {
    "dg_weight_1st_order": 2.0,
    "dg_weight_2nd_order": 0.0,
    "boosting": 0,
    "time_min": 0.01,
    "time_max": 1.0,
}
SEDM_DEFAULTS = DG_DEFAULTS | {"eps_scaler": 1.0, "kappa": 0.0, "use_euler": False}
OTHER_READING_DEFAULTS = SEDM_DEFAULTS | {"solver": "heun"}
DEFAULTS = {"dg": DG_DEFAULTS, "sedm": SEDM_DEFAULTS, "sedm_b": OTHER_READING_DEFAULTS}

INPUTS = ("latents", "labels", "noise")
OUTSIDE = 1e7
"""The log ratio that the reference gives samples it does not guide."""


class Watch(DiscriminatorGuidance):
    """Discriminator guidance that remembers, for the calls of one model, everything the reference records."""

    def __init__(self, calls: Calls, discriminator: Discriminator, *weights: Any, **options: Any):
        super().__init__(self._look, *weights, **options)
        self._calls, self._network = calls, discriminator
        self._seen: tuple[Tensor, Tensor, Tensor] | None = None
        self.records: list[dict[str, Any]] = []
        self.evaluations: list[int] = []

    def _look(self, y: Tensor, tau: Tensor, labels: Tensor | None) -> Tensor:
        out = self._network(y, tau, labels)
        self._seen = y.detach().clone(), tau.clone(), out.detach()
        return out

    def gradient(self, y, told, how, memory, cond):  # type: ignore[no-untyped-def]
        gradient = super().gradient(y, told, how, memory, cond)
        assert self._seen is not None
        y, tau, out = self._seen
        evaluation = len(self._calls.times) - 1  # the network is called first
        sigma = self._calls.times[evaluation].double()
        m = 1 / (1 + sigma**2).sqrt()
        ratio, active, boost = self.log_ratio(y, tau, cond.get("labels")), True, torch.ones_like(sigma)
        if how.remember:
            now = memory["log_ratio"].clone()
            assert torch.equal(torch.where(now == OUTSIDE, now, ratio.to(now.dtype)), now)
            ratio, active = now, not bool((now == OUTSIDE).all())
            boost = torch.where(now < 0, how.factor, 1.0)
        self.evaluations.append(evaluation)
        self.records.append(
            {
                "y": y,
                "x": y.double() / per_sample(m, y),
                "guidance": -per_sample(sigma**2 * m / boost, y) * gradient,
                "log_ratio": ratio,
                "tau": tau,
                "prob": out.double().sigmoid(),
                "active": active,
            }
        )
        return gradient

    def arrays(self, calls: Calls, orders: list[int], wanted: set[int]) -> dict[str, Any]:
        """The reference's guidance arrays, for a run whose evaluations are the first, second, ... of their step."""
        found = dict(zip(reversed(self.evaluations), reversed(self.records)))
        rows: dict[str, list[Any]] = {name: [] for name in "x sigma order active guidance log_ratio tau prob".split()}
        for evaluation, order in enumerate(orders):
            if order not in wanted:
                assert evaluation not in found, "guided with weight 0"
                continue
            x, sigma = calls.inputs[evaluation].double(), calls.times[evaluation].double()
            nothing = {"x": x, "guidance": torch.zeros_like(x), "log_ratio": torch.full_like(sigma, OUTSIDE)}
            record = found.get(evaluation, {**nothing, "active": False})
            ratio = record["log_ratio"] if order == 1 else torch.full_like(sigma, torch.nan)  # returned for the first
            rows["active"].append(int(record["active"]))
            rows["log_ratio"].append(ratio)
            for name, value in {
                "sigma": sigma,
                "order": order,
                "x": record["x"],
                "guidance": record["guidance"],
            }.items():
                rows[name].append(value)
            if record["active"]:
                rows["tau"].append(record["tau"])
                rows["prob"].append(record["prob"])
        arrays = {}
        for name, values in rows.items():
            if values:
                stacked = torch.stack(values) if isinstance(values[0], Tensor) else np.array(values)
                arrays[("disc_" if name in ("tau", "prob") else "dg_") + name] = stacked
        return arrays


def as_is(case: Case) -> bool:
    """Whether the reference ran with its float32 casts."""
    return case.entry["precision"].startswith("as-is")


def arguments(case: Case) -> dict[str, Any]:
    """The reference's arguments with its defaults."""
    a = case.arguments(**DEFAULTS[case.family])
    if a.pop("solver", "heun") == "euler":
        a["use_euler"] = True
    return {**{name: SEDM_DEFAULTS[name] for name in ("eps_scaler", "kappa", "use_euler")}, **a}


def discriminator(case: Case) -> tuple[Discriminator, bool]:
    """The discriminator of a case, and whether it is told the cosine time."""
    described = case.entry.get("discriminator") or {"kind": "base"}
    return Discriminator(case.model["set"], described["kind"]), described.get("img_resolution_attribute") == 64


def window(case: Case, a: dict[str, Any]) -> dict[str, float]:
    """The time window: the sampler's argument, which the description repeats."""
    described = case.entry.get("discriminator") or {}
    for name in ("time_min", "time_max"):
        if described.get(name, a[name]) != a[name]:
            raise ValueError(f"{case.id}: {name} is {a[name]} for the sampler, {described[name]} for the discriminator")
    return {name: a[name] for name in ("time_min", "time_max")}


def guidance(case: Case, a: dict[str, Any], calls: Calls, weight: Any = None, **changes: Any) -> Watch | None:
    """The guidance term that means what the reference's arguments mean."""
    if a["dg_weight_1st_order"] == 0 and a["dg_weight_2nd_order"] == 0:
        return None
    network, cosine = discriminator(case)
    options: dict[str, Any] = {
        "time": "cosine" if cosine else "vp",
        "batch_window": True,
        "boosting": Boosting() if a["boosting"] else None,
        "dtype": torch.float32 if as_is(case) else None,
        **window(case, a),
    }
    weights = a["dg_weight_1st_order"] if weight is None else weight, a["dg_weight_2nd_order"]
    return Watch(calls, network, *weights, **{**options, **changes})


def sampler_options(a: dict[str, Any], net: Denoiser) -> dict[str, Any]:
    """The other arguments of `fastdiff.Sampler` that mean what the reference's arguments mean."""
    return {
        "process": fastdiff.EDM(
            sigma_min=max(0.002 if a["sigma_min"] is None else a["sigma_min"], net.sigma_min),
            sigma_max=min(80.0 if a["sigma_max"] is None else a["sigma_max"], net.sigma_max),
            round_sigma=net.round_sigma,
        ),
        "prediction": "x0",
        "steps": a["num_steps"],
        "rho": a["rho"],
        "solver": "euler" if a["use_euler"] else "heun",
        "epsilon_scale": scales(a),
        **{name: a[name] for name in ("S_churn", "S_min", "S_max", "S_noise")},
    }


def scales(a: dict[str, Any]) -> list[float]:
    """lambda of each step: SEDM-G counts kappa's steps from the noisiest."""
    return [a["eps_scaler"] + a["kappa"] * i for i in range(a["num_steps"])]


def orders(steps: int, euler: bool) -> list[int]:
    """Of every evaluation of a run, its number in its step."""
    return [1] * steps if euler else [1, 2] * (steps - 1) + [1]


def replay(
    case: Case,
    route: str,
    dtype: torch.dtype = torch.float64,
    rounded: bool = False,
    weight: Any = None,
    **changes: Any,
) -> dict[str, Any]:
    """Everything the reference records of a run; `weight` in place of w_1st, `changes` of the guidance term."""
    a, net, data = arguments(case), Denoiser.of(case), case.arrays
    calls = Calls(net, rounded)
    term, options = guidance(case, a, calls, weight, **changes), sampler_options(a, net)
    grid = options["process"].levels(options["steps"], rho=options["rho"]).sigmas
    done = run(
        calls,
        route,
        data["latents"] * grid[0],
        noise=data.get("noise"),
        labels=data.get("labels"),
        dtype=dtype,
        rounded=rounded,
        guidance=term,
        **options,
    )
    kinds = orders(a["num_steps"], a["use_euler"])
    assert len(kinds) == len(calls.inputs)
    sigma = torch.stack(calls.times).double()
    if data["call_sigma"].ndim == 1:
        assert (sigma == sigma[:, :1]).all(), "levels that differ inside the batch"
        sigma = sigma[:, 0]
    guided = {order for order, name in ((1, "1st"), (2, "2nd")) if a[f"dg_weight_{name}_order"] != 0}
    return {
        "states": done.states,
        "final": done.final,
        "sigmas": done.sampler.levels.sigmas,
        "sigma_hat": sigma[[i for i, order in enumerate(kinds) if order == 1]],
        "call_x": torch.stack(calls.inputs),
        "call_sigma": sigma,
        "call_denoised": torch.stack(calls.outputs),
        **({} if term is None else term.arrays(calls, kinds, guided)),
    }


def without_nan(got: dict[str, Any], want: dict[str, np.ndarray]) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Both with zeros where both have NaN: what the reference does not return, or did not evaluate."""
    left, right = dict(got), dict(want)
    for name, array in want.items():
        if name in got and np.isnan(array).any():
            mine = as_array(got[name]).astype(np.float64)
            assert (np.isnan(mine) == np.isnan(array)).all(), f"{name} has NaN in other places"
            left[name], right[name] = np.nan_to_num(mine), np.nan_to_num(array)
    return left, right


def compare_all(case: Case, got: dict[str, Any], *, label: str = "") -> None:
    """Every recorded array that is not an input."""
    wanted = {name: array for name, array in case.arrays.items() if name not in INPUTS}
    missing = sorted(set(wanted) - set(got))
    assert not missing, f"{case.id}: recorded but not computed: {', '.join(missing)}"
    compare_results(case, *without_nan(got, wanted), case.tolerance, label=label)


def one_by_one(case: Case) -> bool:
    """Whether the readable route runs samples alone, where the reference's window is that of the whole batch."""
    return bool(case.entry["args"].get("boosting", 0))


def check(case: Case, route: str) -> None:
    """edm/dg and edm/sedm."""
    compare_all(case, replay(case, route), label=f"{route}, as is" if as_is(case) else route)


def check_float32(case: Case, route: str) -> None:
    """The same cases with a float32 state."""
    check_float32_state(case, route, replay, "states")


# --- the loops of edm/SPEC.md -----------------------------------------------------------------------------------------


def loop(case: Case, scale_guidance: bool) -> dict[str, Any]:
    """What the plain loop says of a case, by one of the two readings."""
    a, data, net = arguments(case), case.arrays, Denoiser.of(case)
    network, cosine = discriminator(case)
    noise = data.get("noise")
    grid = sampler_options(a, net)["process"].levels(a["num_steps"], rho=a["rho"]).sigmas
    got = dg_loop.sedm_gpp(
        net,
        network,
        torch.as_tensor(data["latents"]),
        grid.tolist(),
        lambda step: torch.as_tensor(noise[step]),  # type: ignore[index]
        labels=torch.as_tensor(data["labels"]) if "labels" in data else None,
        w_1st=a["dg_weight_1st_order"],
        w_2nd=a["dg_weight_2nd_order"],
        boosting=dg_loop.Boost() if a["boosting"] else None,
        cosine=cosine,
        as_is=as_is(case),
        scale_guidance=scale_guidance,
        round_sigma=net.round_sigma,
        **{k: a[k] for k in "S_churn S_min S_max S_noise time_min time_max eps_scaler kappa use_euler".split()},
    )
    for name in ("call_sigma", "sigma_hat"):
        got[name] = got[name][:, 0] if data[name].ndim == 1 else got[name]
    return {**got, "sigmas": grid}


def check_loop(case: Case) -> None:
    """The plain loop against the records."""
    compare_all(case, loop(case, case.family == "sedm_b"), label="plain loop")


def check_other_reading(case: Case, route: str) -> None:
    """edm/sedm_b, the negative control: w / lambda is that sampler, w is SEDM-G++ and a different one."""
    a = arguments(case)
    weights = [a["dg_weight_1st_order"] / scale for scale in scales(a)]
    compare_all(case, replay(case, route, weight=weights), label=route)
    ours = replay(case, route)
    official = loop(case, scale_guidance=False)
    compare_results(case, {"final": ours["final"]}, {"final": official["final"].numpy()}, case.tolerance, label=route)
    assert error(case.folder, ours["final"], case.arrays["final"]) > 1e4 * case.tolerance


# --- family model -----------------------------------------------------------------------------------------------------


def _guided_by(case: Case, kind: str, route: str) -> dict[str, Any]:
    """The guidance arrays of one discriminator at every recorded state, from Euler steps from sigma to 0.

    Such a step returns the guided prediction D + sigma^2 grad log_ratio = D - g.
    """
    name, _, resolution = kind.partition("_")
    if resolution not in ("", "res64"):
        raise ValueError(f"{case.id}: no rule for the discriminator {kind!r}")
    data, cosine = case.arrays, resolution == "res64"
    rows: dict[str, list[Any]] = {k: [] for k in ("dg_guidance", "dg_log_ratio", "disc_tau", "disc_prob", "disc_x")}
    for x, sigma in zip(data["x"], data["sigma"]):
        calls = Calls(lambda x, sigma, labels: torch.zeros_like(x))
        network = Discriminator(case.model["set"], name)
        term = Watch(calls, network, 1.0, time="cosine" if cosine else "vp", batch_window=True)
        levels = [float(sigma), 0.0]
        done = run(calls, route, x, labels=data["labels"], solver="euler", sigmas=levels, guidance=term)
        arrays = term.arrays(calls, [1], {1})
        assert torch.allclose(-done.final, arrays["dg_guidance"][0], rtol=1e-12, atol=1e-12)
        nothing = np.full(len(x), np.nan)
        rows["dg_guidance"].append(-done.final)
        rows["dg_log_ratio"].append(arrays["dg_log_ratio"][0])
        rows["disc_tau"].append(arrays["disc_tau"][0] if "disc_tau" in arrays else nothing)
        rows["disc_prob"].append(arrays["disc_prob"][0] if "disc_prob" in arrays else nothing)
        rows["disc_x"].append(term.records[0]["y"] if term.records else np.full_like(x, np.nan))
    return {k: np.stack([np.asarray(row) for row in values]) for k, values in rows.items()}


def check_model(case: Case, route: str) -> None:
    """edm/model: guidance vectors of every discriminator, and its times, at every recorded state."""
    wanted = {name: array for name, array in case.arrays.items() if name.startswith(GUIDANCE_PREFIXES)}
    sigma = case.arrays["sigma"]
    m = vp.vp_scale(sigma)
    got: dict[str, Any] = {
        "tau": vp.tau_of_sigma(sigma),
        "tau_cos": vp.cosine_time(sigma),
        "vp_mean": m,
        "vp_std": sigma * m,
    }
    for kind in sorted({name.removeprefix("dg_guidance_") for name in wanted if name.startswith("dg_guidance_")}):
        found = _guided_by(case, kind, route)
        got["disc_x"] = found.pop("disc_x")
        got |= {f"{name}_{kind}": array for name, array in found.items()}
    unknown = sorted(set(wanted) - set(got))
    assert not unknown, f"{case.id}: no rule for the array(s) {', '.join(unknown)}"
    compare_results(case, *without_nan(got, wanted), case.tolerance, label=f"guidance, {route}")
    np.testing.assert_allclose(vp.sigma_of_tau(vp.tau_of_sigma(sigma)), sigma, rtol=1e-9)
