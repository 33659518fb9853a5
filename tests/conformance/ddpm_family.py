"""Replays guided-diffusion's samplers and ADM-ES (ddpm/SPEC.md, section 3) through fastdiff."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

import fastdiff
from fastdiff import ops
from fastdiff.denoiser import Denoiser
from fastdiff.engine import TensorEngine
from fastdiff.guidance import ClassifierGuidance
from fastdiff.prediction import PreviousX, get_prediction
from fastdiff.process import GaussianTables
from fastdiff.solvers.ddpm import log_variance

from .analytic import Classifier, DiscreteModel
from .cases import Case, compare
from .expressions import function_of_x
from .replay import ROUTES, Calls, check_float32_state, run
from .tables import chain, gaussian_tables

CHAIN_DEFAULTS = {
    "beta_schedule": None,
    "T": None,
    "respacing": "",
    "mean_type": "eps",
    "var_type": "fixed_small",
    "clip_denoised": True,
}
LOOP_DEFAULTS = CHAIN_DEFAULTS | {
    "eta": None,
    "classifier_scale": None,
    "denoised_fn": None,
    "rescale_timesteps": False,
    "spaced": True,
}
ES_DEFAULTS = LOOP_DEFAULTS | {"eps_scaler": None, "eps_scaler_kind": "constant"}

PREDICTIONS = {"eps": "eps", "x0": "x0", "xprev": "previous_x", "v": "v"}
SOLVERS = {"p_sample": "ddpm", "ddim": "ddim", "ddim_reverse": "ddim_inversion"}


def loop_arguments(case: Case) -> dict[str, Any]:
    """The reference's arguments with its defaults."""
    return case.arguments(**(ES_DEFAULTS if case.family.startswith("es_") else LOOP_DEFAULTS))


class Watch(ClassifierGuidance):
    """guided-diffusion's classifier guidance: of the mean (p_sample) or of eps (ddim). Remembers what was recorded."""

    def __init__(self, scale: float, solver: str):
        """ADM-ES converts eps to x_0 twice in a guided DDIM step, each time with the scaling."""
        options = {"rule": "mean"} if solver == "ddpm" else {"rule": "eps", "scaled_again": True}
        super().__init__(Classifier(), scale, **options)
        self.calls: list[tuple[Tensor, Tensor, Tensor]] = []

    def gradient(self, y, told, how, memory, cond):  # type: ignore[no-untyped-def]
        gradient = super().gradient(y, told, how, memory, cond)
        self.calls.append((y.clone(), told[0].clone(), self.scale * gradient))
        return gradient

    def arrays(self, count: int) -> dict[str, Tensor]:
        """The first `count` calls."""
        return dict(zip(("cond_x", "cond_t", "cond_grad"), map(torch.stack, zip(*self.calls[:count]))))


def epsilon_scale(a: dict[str, Any]) -> Any:
    """ADM-ES's `sampling_scaler`: a constant, [k, b] of b + k i, or a list whose index 0 is the least noisy step."""
    kind, value = str(a.get("eps_scaler_kind", "constant")), a.get("eps_scaler")
    if value is None:
        return 1.0
    if kind.startswith("constant"):
        return float(value)
    if kind.startswith("linear"):
        k, b = value
        return fastdiff.LinearScale(k, b)
    if kind.startswith(("list", "table")):
        return [float(v) for v in reversed(value)]
    raise ValueError(f"no rule for the epsilon scaler kind {kind!r}")


def sampler_options(case: Case) -> dict[str, Any]:
    """The arguments of `fastdiff.Sampler` that mean what the reference's arguments mean."""
    a = loop_arguments(case)
    if not a["spaced"] and a["respacing"]:
        raise ValueError(f"{case.id}: an unspaced chain with respacing {a['respacing']!r}")
    process, steps = chain(a["beta_schedule"], a["T"], a["respacing"], a["rescale_timesteps"])
    solver = SOLVERS[case.family.split("_", 1)[1]]
    options: dict[str, Any] = {
        "process": process,
        "prediction": PREDICTIONS[a["mean_type"]],
        "solver": solver,
        "steps": steps,
        "clip_denoised": a["clip_denoised"],
        "denoised_fn": None if a["denoised_fn"] is None else function_of_x(a["denoised_fn"]),
        "epsilon_scale": epsilon_scale(a),
        "epsilon_scale_mode": "eps",  # ADM-ES leaves predictions of x_0 and of the previous x unscaled
    }
    if solver == "ddpm":
        options["variance"] = a["var_type"]
    elif solver == "ddim":
        options["eta"] = a["eta"] or 0.0
    else:
        options["terminal"] = True  # guided-diffusion's last reverse step goes to alpha = 0
    if a["classifier_scale"] is not None:
        options["guidance"] = Watch(a["classifier_scale"], solver)
    return options


def replay(case: Case, route: str, dtype: torch.dtype | None = None, rounded: bool = False) -> dict[str, Any]:
    """Everything the reference records of a run: states, predicted x_0, calls of the model, tables."""
    options = sampler_options(case)
    data = case.arrays
    done = run(
        DiscreteModel(case.model),
        route,
        data["x_init"],
        noise=data.get("noise"),
        labels=data.get("y"),
        dtype=dtype or (torch.float32 if case.float32 else torch.float64),
        rounded=rounded,
        **options,
    )
    scales = fastdiff.exposure.epsilon_scales(options["epsilon_scale"], done.sampler.levels.steps)
    return {
        "x_steps": done.states[1:],
        "pred_xstart": done.denoised,
        "model_x": torch.stack(done.calls.inputs),
        "model_t": torch.stack(done.calls.times),
        "model_out": torch.stack(done.calls.outputs),
        "sampling_scaler": np.array(scales[::-1]),
        **gaussian_tables(options["process"], options["steps"]),
        **(options["guidance"].arrays(len(done.calls.times)) if "guidance" in options else {}),
    }


def check(case: Case, route: str) -> None:
    """gd_p_sample, gd_ddim, gd_ddim_reverse, es_p_sample and es_ddim."""
    label = f"{route}, reference in float32" if case.float32 else route
    compare(case, replay(case, route), case.tolerance, inputs=("x_init", "noise", "y"), label=label)


def check_float32(case: Case, route: str) -> None:
    """The same cases with a float32 state."""
    check_float32_state(case, route, replay, "x_steps")


# --- p_mean_variance: one step, every sample at a level of its own ----------------------------------------------------


def _no_noise(draw: int, step: int) -> Tensor:
    raise AssertionError("nothing is drawn here")


class PosteriorRows:
    """p(x_(t-1) | x_t) with a time per sample: one coefficient row per step of the chain, row t[b] for sample b."""

    def __init__(self, a: dict[str, Any], dtype: torch.dtype):
        self.process, steps = chain(a["beta_schedule"], a["T"], a["respacing"])
        self.levels = self.process.levels(steps)
        self.q = GaussianTables(self.levels.alphas_cumprod)
        self.prediction = get_prediction(PREDICTIONS[a["mean_type"]])
        self.clip = (-1.0, 1.0) if a["clip_denoised"] else (-np.inf, np.inf)
        self.variance, self.dtype = a["var_type"], dtype
        self.log_a, self.log_b = log_variance(self.q, self.variance)

    def level(self, i: int) -> Any:
        """Level of step i, i = 0 the cleanest."""
        return self.levels[self.levels.steps - 1 - i]

    def rows(self, values: list[list[float]]) -> Tensor:
        """A coefficient table on the host's float64, rounded once."""
        return torch.tensor(values, dtype=torch.float64).to(self.dtype)

    def mean_rows(self) -> Tensor:
        """Rows that make (mean, x_0) from (x, F): C [2, 2], P [2], lo, hi, c [2]."""
        rows = []
        for i, (c1, c2) in enumerate(zip(self.q.posterior_mean_coef1, self.q.posterior_mean_coef2)):
            level, following = self.level(i), self.levels[self.levels.steps - i]
            if isinstance(self.prediction, PreviousX):
                skip, out, _ = self.prediction.coefficients_between(level, following)
                linear = [0.0, 1.0, 0.0, 0.0, skip, out, *self.clip, 0.0, 1.0]
            else:
                skip, out, _ = self.prediction.coefficients(level)
                linear = [c2, 0.0, 0.0, 0.0, skip, out, *self.clip, c1, 1.0]
            rows.append(linear)
        return self.rows(rows)

    def compiled(self, x: Tensor, output: Tensor, head: Tensor | None, t: Tensor, backend: str) -> dict[str, Tensor]:
        """The four results from launches of the kernel with `rows=t`."""
        mean, x0 = ops.combine(
            [x, output], self.mean_rows(), rows=t, clip=True, out_dtypes=[self.dtype] * 2, backend=backend
        )
        ones = torch.ones_like(x)
        if head is None:
            table = self.rows([[b] for b in self.log_b])
            (log_var,) = ops.combine([ones], table, rows=t, backend=backend)
            (variance,) = ops.combine([ones], self.rows([[v] for v in self.fixed_variance()]), rows=t, backend=backend)
        else:
            table = self.rows([[b, a] for a, b in zip(self.log_a, self.log_b)])
            (log_var,) = ops.combine([ones, head], table, rows=t, backend=backend)
            table = self.rows([[0.0, a, b, 1.0] for a, b in zip(self.log_a, self.log_b)])
            (variance,) = ops.combine([ones], table, rows=t, learned_variance=head, backend=backend)
        return {"mean": mean, "variance": variance, "log_variance": log_var, "pred_xstart": x0}

    def readable(self, x: Tensor, output: Tensor, head: Tensor | None, t: Tensor) -> dict[str, Tensor]:
        """The four results on tensors, sample by sample, through the library's denoiser."""
        results: dict[str, list[Tensor]] = {"mean": [], "variance": [], "log_variance": [], "pred_xstart": []}
        for b, i in enumerate(t.tolist()):
            state, raw = x[b : b + 1], output[b : b + 1]
            engine = TensorEngine(lambda x, time, raw=raw: raw, _no_noise)
            denoise = Denoiser(engine, self.prediction, self.levels, [1.0], clip=self.clip)
            x0 = denoise(state, self.level(i))
            mean = raw if isinstance(self.prediction, PreviousX) else self.q.posterior_mean_coef1[i] * x0
            if not isinstance(self.prediction, PreviousX):
                mean = mean + self.q.posterior_mean_coef2[i] * state
            log_var = (
                torch.full_like(state, self.log_b[i])
                if head is None
                else self.log_a[i] * head[b : b + 1] + self.log_b[i]
            )
            variance = torch.full_like(state, self.fixed_variance()[i]) if head is None else log_var.exp()
            for name, value in zip(results, (mean, variance, log_var, x0)):
                results[name].append(value)
        return {name: torch.cat(values) for name, values in results.items()}

    def fixed_variance(self) -> np.ndarray:
        """guided-diffusion's `variance`: 0 at step 0 for fixed_small, though its log variance is finite there."""
        return self.q.posterior_variance if self.variance == "fixed_small" else np.exp(self.log_b)


def check_mean_variance(case: Case, route: str) -> None:
    """gd_p_mean_variance."""
    a = case.arguments(**CHAIN_DEFAULTS)
    dtype = torch.float32 if case.float32 else torch.float64
    posterior = PosteriorRows(a, dtype)
    x, t = torch.as_tensor(case.arrays["x"], dtype=dtype), torch.as_tensor(case.arrays["t"])
    kept = gaussian_tables(*chain(a["beta_schedule"], a["T"], a["respacing"]))
    calls = Calls(DiscreteModel(case.model))
    out = calls(x, torch.as_tensor(kept["timestep_map"])[t])
    output, head = out[:, : x.shape[1]], out[:, x.shape[1] :]
    used = head if a["var_type"].startswith("learned") else None
    if route == "readable":
        got = posterior.readable(x, output, used, t)
    else:
        got = posterior.compiled(x, output.contiguous(), used, t, ROUTES[route]["backend"])
    recorded = {"model_x": calls.inputs, "model_t": calls.times, "model_out": calls.outputs}
    got |= {name: torch.stack(values) for name, values in recorded.items()}
    compare(case, {**kept, **got}, case.tolerance, inputs=("x", "t"), label=route)
