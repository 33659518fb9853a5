"""`python -m benchmarks.solvers [--out FILE]`: every solver's launches, bytes and host time per step, beside the
operations, bytes and host time of k-diffusion and diffusers for the same step, taken in the same run.

The state is a robot policy's (1, 4, 7) in float32 on the CPU, the network one that returns what it was given, so that
all of the host time is the sampler's. Per step is the slope between runs of 20 and 40 steps, which leaves out what a
call costs once. Times are the fastest of many calls, the ways interleaved.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import time
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import fastdiff
from benchmarks.counting import count
from benchmarks.others import k_diffusion_sampling
from benchmarks.system import describe
from benchmarks.tables import markdown
from fastdiff.energy import OneLevel
from fastdiff.solvers import FACTS, SOLVERS, Driver

SHAPE = (1, 4, 7)
ELEMENTS = 28
STEPS = (20, 40)
CALLS = 8  # in a row: the first after another library's finds its caches cold
# Solvers that need another process than EDM's, or something given; an energy that costs nothing, as the network.
CHAIN = {"process": "vp", "prediction": "eps"}
ENERGY = torch.zeros(1)
LEVEL = {"process": OneLevel(), "prediction": "score"}
GIVEN: dict[str, dict[str, Any]] = {
    **dict.fromkeys(("ddpm", "f_pndm", "pndm", "s_pndm", "time_shift"), CHAIN),
    "langevin": LEVEL,
    "mala": {**LEVEL, "energy": lambda x: ENERGY},
}
DIFFUSERS: dict[str, tuple[str, dict[str, Any]]] = {
    "ddpm": ("DDPMScheduler", {}),
    "ddim": ("DDIMScheduler", {}),
    "euler": ("EulerDiscreteScheduler", {}),
    "euler_ancestral": ("EulerAncestralDiscreteScheduler", {}),
    "heun": ("HeunDiscreteScheduler", {}),
    "dpm_2": ("KDPM2DiscreteScheduler", {}),
    "dpm_2_ancestral": ("KDPM2AncestralDiscreteScheduler", {}),
    "lms": ("LMSDiscreteScheduler", {}),
    "dpmpp_2m": ("DPMSolverMultistepScheduler", {}),
    "dpmpp_2m_sde": ("DPMSolverMultistepScheduler", {"algorithm_type": "sde-dpmsolver++"}),
    "unipc": ("UniPCMultistepScheduler", {}),
    "deis": ("DEISMultistepScheduler", {}),
    "ipndm": ("IPNDMScheduler", {}),
    "pndm": ("PNDMScheduler", {"skip_prk_steps": True}),
}
Run = Callable[[], Any]


def installed(library: str) -> bool:
    """Whether a library is there to be compared with."""
    return importlib.util.find_spec(library) is not None


def network(x: Tensor, t: Any, **cond: Any) -> Tensor:
    return x


def own(name: str, steps: int) -> tuple[fastdiff.Sampler, Run]:
    """A sampler of fastdiff and its run."""
    sampler = fastdiff.Sampler(network, solver=name, steps=steps, check=False, **GIVEN.get(name, {}))
    start, seeds = torch.zeros(SHAPE), torch.zeros(1, dtype=torch.int64)
    given: dict[str, Any] = {"x_init": start} if name in ("ddim_inversion",) else {}
    return sampler, partial(sampler, SHAPE, seeds=seeds, **given)


def k_diffusion(name: str, steps: int) -> Run | None:
    """k-diffusion's sampler of that name; noise is drawn by randn_like, without its Brownian tree."""
    if not installed("k_diffusion"):
        return None
    module = k_diffusion_sampling()
    function = getattr(module, f"sample_{name}", None)
    if function is None:
        return None
    x = torch.randn(SHAPE)
    if name in ("dpm_fast", "dpm_adaptive"):
        return partial(function, network, x, 0.002, 80.0, **({"n": steps} if name == "dpm_fast" else {}), disable=True)
    options = {"noise_sampler": lambda s, following: torch.randn_like(x)} if "sde" in name else {}
    sigmas = module.get_sigmas_karras(steps, 0.002, 80.0)
    return partial(function, network, x, sigmas, disable=True, **options)


def diffusers(name: str, steps: int) -> Run | None:
    """The loop over diffusers' scheduler."""
    if name not in DIFFUSERS or not installed("diffusers"):
        return None
    import diffusers as library

    kind, options = DIFFUSERS[name]
    scheduler = getattr(library, kind)(**options)
    x = torch.randn(SHAPE)

    def loop() -> Tensor:
        scheduler.set_timesteps(steps)
        state = x
        for t in scheduler.timesteps:
            output = network(scheduler.scale_model_input(state, t), t)
            state = scheduler.step(output, t, state, return_dict=False)[0]
        return state

    return loop


def fastest(runs: dict[str, Run], seconds: float) -> dict[str, float]:
    """The fastest of many calls of each, in microseconds, in turns of a few calls."""
    best, end = dict.fromkeys(runs, float("inf")), time.monotonic() + seconds
    while time.monotonic() < end:
        for name, run in runs.items():
            for _ in range(CALLS):
                begin = time.perf_counter()
                run()
                best[name] = min(best[name], 1e6 * (time.perf_counter() - begin))
    return best


def measure(name: str, seconds: float) -> dict[str, Any]:
    """One solver's row."""
    few, many = STEPS
    between = many - few
    ways: dict[str, Callable[[int], Run | None]] = {
        "fastdiff": lambda steps: own(name, steps)[1],
        "k-diffusion": partial(k_diffusion, name),
        "diffusers": partial(diffusers, name),
    }
    row: dict[str, Any] = {"solver": name, "evaluations": FACTS[name].evaluations}
    runs: dict[str, Run] = {}
    for way, make in ways.items():
        pair = [make(steps) for steps in STEPS]
        for steps, run in zip(STEPS, pair):
            if run is not None:
                runs[f"{way} {steps}"] = run
        if way != "fastdiff" and pair[0] is not None and pair[1] is not None:
            counts = [count(run, ELEMENTS) for run in pair if run is not None]
            for what in ("operations", "bytes", "reads"):
                difference = getattr(counts[1], what) - getattr(counts[0], what)
                row[f"{way} {what}"] = difference / between / (ELEMENTS if what == "bytes" else 1)
    plans = [own(name, steps)[0].plan(x_init=name == "ddim_inversion") for steps in STEPS]
    row["fastdiff launches"] = (len(plans[1].launches) - len(plans[0].launches)) / between
    row["fastdiff bytes"] = 4 * (traffic(plans[1]) - traffic(plans[0])) / between
    row["fastdiff evaluations"] = (plans[1].evaluations - plans[0].evaluations) / between
    times = fastest(runs, seconds)
    for way in ways:
        if f"{way} {few}" in times:
            row[f"{way} us"] = (times[f"{way} {many}"] - times[f"{way} {few}"]) / between
    return row


def traffic(plan: fastdiff.Plan) -> int:
    """Tensors of a state's size that the launches read and write."""
    read = sum(len(launch.inputs) + (launch.variance is not None) for launch in plan.launches)
    return read + sum(len(launch.outputs) for launch in plan.launches if not launch.squares)


def table(rows: list[dict[str, Any]]) -> str:
    """The result as markdown."""
    head = ["solver", "evaluations", "launches", "bytes", "us"]
    head += [f"{way} {what}" for way in ("k-diffusion", "diffusers") for what in ("ops", "bytes", "us")]

    def cell(row: dict[str, Any], what: str, form: str = ".0f") -> str:
        return format(row[what], form) if what in row else ""

    lines = []
    for row in rows:
        mine = [cell(row, "fastdiff evaluations", ".1f"), cell(row, "fastdiff launches", ".1f")]
        mine += [cell(row, "fastdiff bytes"), cell(row, "fastdiff us", ".1f")]
        others = [
            cell(row, f"{way} {what}") for way in ("k-diffusion", "diffusers") for what in ("operations", "bytes", "us")
        ]
        lines.append([row["solver"], *mine, *others])
    return markdown(head, lines)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.solvers", description=(__doc__ or "").split("\n\n")[0])
    default = Path(__file__).parent / "results" / "solvers.json"
    parser.add_argument("--out", type=Path, default=default, help="where the numbers go")
    parser.add_argument("--seconds", type=float, default=3.5, help="of measuring, per solver")
    parser.add_argument("--only", nargs="*", help="solvers; default: all that have a plan")
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    for missing in (library for library in ("k_diffusion", "diffusers") if not installed(library)):
        print(f"{missing} is not installed: its columns stay empty (pip install --no-deps k-diffusion; diffusers)")
    names = arguments.only or [name for name, solver in SOLVERS.items() if not isinstance(solver, Driver)]
    rows = [measure(name, arguments.seconds) for name in names]
    print(table(rows))
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    system = describe(torch.device("cpu"))
    arguments.out.write_text(json.dumps({"system": system, "steps": STEPS, "shape": SHAPE, "rows": rows}, indent=1))


if __name__ == "__main__":
    main()
