"""The sampler: traces a solver once, then walks the plan with the user's network."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from . import ops
from .arguments import (
    check_noise,
    check_x_init,
    clip_range,
    label_tensor,
    model_device,
    resolve_shape,
)
from .arguments import (
    model_dtype as dtype_of_model,
)
from .compiler import compile_plan
from .denoiser import Denoiser, TensorEngine
from .errors import check_choice
from .executor import Callbacks, Executor
from .exposure import LinearScale, epsilon_scales
from .guidance import Guidance, guidance_terms
from .plan import Plan
from .prediction import Prediction, get_prediction
from .process import Level, Levels, Process, get_process
from .random import seed_tensor
from .solvers import Solver, check_options, ddim_inversion, get_solver
from .trace import Recorder

NoiseFunction = Callable[[int, int], Tensor]


class StepInfo(NamedTuple):
    """What a callback receives at the end of a step."""

    step: int
    level: Level
    x: Tensor
    denoised: Tensor


class Sampler:
    """Draws samples from a diffusion model.

    Args:
        model: any callable `(x, t, **cond) -> output` that does not write to x; x is [B, ...] of any rank, t is [B]:
            sigma (VE, EDM), the timestep (VP) or ln(sigma)/4 (prediction "edm"). An output of twice the channels
            (dim 1) has a variance half.
        process: "edm", "ve", "vp", "vp_cosine" or a `Process`.
        prediction: what the output means: "x0", "eps", "v", "score", "previous_x", "edm" or a `Prediction`.
        solver: "heun", "euler", "ddim", "ddim_inversion", "ddpm" or a generator function (see `fastdiff.solvers`).
        steps: number of steps, default 18 (VP: all of the process's); for VP also "10,5,5" or "ddim50".
        schedule: sigma schedule by name or function, for VE and EDM; default: the process's own.
        sigmas, timesteps: explicit levels, strictly decreasing, in place of steps and schedule.
        epsilon_scale: lambda, by which the predicted noise is divided (ADM-ES, EDM-ES): a number, one per step in
            sampling order, or a `LinearScale`.
        epsilon_scale_mode: "every" evaluation; "first" of each step only (EDM-ES's ablation sampler with Heun leaves
            the second slope unscaled); "eps": only where the network predicts eps (ADM-ES leaves other predictions
            unscaled).
        guidance, guidance_scale: term or terms `(x, level, **cond) -> gradient`, and their weights.
        clip_denoised: clamp the predicted x_0 to [-1, 1] (True) or (lo, hi).
        denoised_fn: any function of the predicted x_0, applied before clipping.
        dtype: of the state, float32 or float64.
        model_dtype: of the network's input; default: that of its parameters, else `dtype`.
        device: of the state; default: where the model's parameters are, the CPU for a plain callable.
        backend: "auto", "reference", "cpu" or "cuda"; default: FASTDIFF_BACKEND, else auto.
        compiled: False runs the solver's own lines on tensors, the readable reference.
        shape: shape of one sample, so that a batch size is enough; default: the model's `sample_shape`.
        check: raise if the result is not finite.
        options: the solver's own (S_churn, eta, variance, ...) and the schedule's (rho, sigma_min, sigma_max).

    Raises:
        ValueError, TypeError: an argument that cannot be used; the message names it, what was wanted and what came.
        NotLinearError: the solver does something with a state that is not linear; the message names the line.
    """

    def __init__(
        self,
        model: Callable[..., Tensor],
        *,
        process: str | Process = "edm",
        prediction: str | Prediction = "x0",
        solver: str | Solver = "heun",
        steps: int | str | None = None,
        schedule: str | Callable[..., Any] | None = None,
        sigmas: Sequence[float] | None = None,
        timesteps: Sequence[int] | None = None,
        epsilon_scale: float | Sequence[float] | LinearScale = 1.0,
        epsilon_scale_mode: str = "every",
        guidance: Guidance | Sequence[Guidance] | None = None,
        guidance_scale: float | Sequence[float] = 1.0,
        clip_denoised: bool | Sequence[float] = False,
        denoised_fn: Callable[[Tensor], Tensor] | None = None,
        dtype: torch.dtype = torch.float32,
        model_dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
        backend: str | None = None,
        compiled: bool = True,
        shape: Sequence[int] | None = None,
        check: bool = True,
        **options: Any,
    ):
        if not callable(model):
            raise TypeError(f"model must be callable (x, t, **cond) -> output, got {type(model).__name__}")
        self.model = model
        self.process = get_process(process)
        self.prediction = get_prediction(prediction)
        self.solver = get_solver(solver)
        self.dtype = check_choice("dtype", dtype, ops.STATE_DTYPES)
        self.model_dtype = check_choice("model_dtype", model_dtype or dtype_of_model(model, dtype), ops.DTYPES)
        self.device = torch.device(device) if device is not None else model_device(model)
        self.backend = ops.resolve_backend(backend, self.device)
        self.compiled, self.check = compiled, check
        self.shape = shape if shape is not None else getattr(model, "sample_shape", None)
        if denoised_fn is not None and not callable(denoised_fn):
            raise TypeError(f"denoised_fn must be a function of the predicted x_0, got {denoised_fn!r}")
        self.clip, self.denoised_fn = clip_range(clip_denoised), denoised_fn
        self.guidance, self.guidance_scale = guidance_terms(guidance, guidance_scale)
        self.epsilon_scale = epsilon_scale
        self.epsilon_scale_mode = check_choice("epsilon_scale_mode", epsilon_scale_mode, ("every", "first", "eps"))
        grid = {name: options.pop(name) for name in ("rho", "sigma_min", "sigma_max") if name in options}
        check_options(self.solver, options)
        self.options = options
        self._explicit, self._grid = _explicit(self.process, sigmas, timesteps), (schedule, grid)
        if self._explicit is not None and (schedule is not None or grid):
            raise ValueError("schedule and its options must be left out when sigmas or timesteps give the levels")
        self.levels = self._levels(steps)
        self._executors: dict[tuple[Any, ...], Executor] = {}
        epsilon_scales(epsilon_scale, self.levels.steps)
        if compiled:
            self._executor(x_init=False, noise=False, observe=False)

    # -- plans ------------------------------------------------------------------------------------------------------

    def plan(
        self,
        steps: int | str | None = None,
        *,
        x_init: bool = False,
        noise: bool = False,
        observe: bool = False,
    ) -> Plan:
        """The compiled run; `print(sampler.plan(steps=18))` shows what every launch reads, draws and writes.

        Args:
            steps: another number of steps than the sampler's.
            x_init: the run starts from a given state.
            noise: noise comes as tensors (`noise=` or `generator=`).
            observe: states and predicted x_0 are written for a callback or a trajectory.
        """
        levels = self.levels if steps is None else self._levels(steps)
        engine = Recorder(noise)
        denoise = self._denoiser(engine, levels)
        x = engine.start(self.process.prior_std(levels[0]), x_init, observe)
        for state in self.solver(denoise, x, levels, engine.noise, **self.options):
            engine.finish_step(state, denoise.last_x0, denoise.first_level, observe)
            denoise.finish_step()
        if not engine.trace.states:
            raise self._nothing_yielded()
        return compile_plan(engine.trace, self.model_dtype == self.dtype)

    def _levels(self, steps: int | str | None) -> Levels:
        if self._explicit is not None:
            if steps is not None:
                raise ValueError(f"steps must be left out when sigmas or timesteps give the levels, got {steps!r}")
            return self.process.levels_at(self._explicit)
        schedule, options = self._grid
        return self.process.levels(steps, schedule, **options)

    def _denoiser(self, engine: Any, levels: Levels) -> Denoiser:
        scales = epsilon_scales(self.epsilon_scale, levels.steps)
        if self.solver is ddim_inversion:  # it visits the levels from the cleanest up
            scales.reverse()
        return Denoiser(
            engine,
            self.prediction,
            levels,
            scales,
            self.epsilon_scale_mode,
            self.guidance_scale,
            self.denoised_fn,
            self.clip,
        )

    def _executor(self, **kind: bool) -> Executor:
        key = tuple(kind.values())
        if key not in self._executors:
            self._executors[key] = Executor(
                self.plan(**kind), self.dtype, self.model_dtype, self._time_dtype, self.device, self.backend
            )
        return self._executors[key]

    @property
    def _time_dtype(self) -> torch.dtype:
        integers = self.process.integer_time and self.prediction.name != "edm"
        return torch.int64 if integers else self.dtype

    # -- sampling ---------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def __call__(
        self,
        shape: int | Sequence[int],
        *,
        seeds: int | Sequence[int] | Tensor | None = None,
        labels: Any = None,
        cond: dict[str, Any] | None = None,
        x_init: Tensor | None = None,
        noise: NoiseFunction | None = None,
        generator: torch.Generator | None = None,
        callback: Callable[[StepInfo], None] | None = None,
        return_trajectory: bool = False,
        progress: bool = False,
    ) -> Any:
        """Draw one batch.

        Args:
            shape: [B, ...], or B when the shape of a sample is known.
            seeds: one integer per sample; an int s means s, s+1, ...; None takes fresh ones from PyTorch's generator.
                A sample depends on its seed, not on the batch, its place in it, the backend or the threads.
            labels: class indices [B] (or one for all), or one-hot rows; passed to the model as `labels=`.
            cond: further keyword arguments of the model and the guidance terms.
            x_init: the starting state, already scaled to the first level; default: prior noise.
            noise: `(draw, step) -> tensor [B, ...]` in place of the seeds' noise; draw 0 is the initial latent.
            generator: PyTorch's noise instead: one `randn` of the batch per draw, in order.
            callback: called with a `StepInfo` at the end of every step.
            return_trajectory: also return all states [N+1, B, ...], the starting state first.
            progress: show a progress bar.

        Returns:
            [B, ...] in the state's dtype, or (that, trajectory).

        Raises:
            ValueError, TypeError: a bad argument, before any work.
            FloatingPointError: the result is not finite (with `check`); names the first bad step and the seeds.
        """
        size = resolve_shape(shape, self.shape)
        seed = seed_tensor(seeds, size[0], self.device)
        if x_init is not None:
            check_x_init(x_init, size, self.device)
            x_init = x_init.to(self.dtype).contiguous()
        elif self.solver is ddim_inversion:
            raise ValueError("x_init must be given to solver 'ddim_inversion': the data to invert")
        if noise is not None and generator is not None:
            raise ValueError("generator must be left out when noise is given")
        cond = dict(cond or {})
        if labels is not None:
            cond["labels"] = label_tensor(labels, size[0], getattr(self.model, "label_dim", None), self.device)
        guides = [lambda x, level, term=term: term(x, level, **cond) for term in self.guidance]
        trajectory: list[Tensor] = []
        observe = callback is not None or return_trajectory

        def report(step: int, level: Level | None, x: Tensor, denoised: Tensor | None) -> None:
            if return_trajectory:
                trajectory.append(x)
            if callback is not None and level is not None and denoised is not None:
                callback(StepInfo(step, level, x, denoised))

        def run(observe: bool, report: Any, progress: bool, state: Tensor | None) -> Tensor:
            source = self._noise_source(noise, generator, state, size)
            with _Progress(progress, self.levels.steps) as tick:
                calls = Callbacks(lambda x, t: self.model(x, t, **cond), guides, source, report, tick)
                if self.compiled:
                    executor = self._executor(x_init=x_init is not None, noise=source is not None, observe=observe)
                    return executor.run(size, seed, x_init, calls)
                return self._run_on_tensors(size, seed, x_init, calls)

        state = None if generator is None else generator.get_state()
        x = run(observe, report, progress, None)
        if self.check and x.numel() and not bool(torch.isfinite(x).all()):
            self._blame(lambda r: run(True, r, False, state), seed)
        return (x, torch.stack(trajectory)) if return_trajectory else x

    def _noise_source(
        self,
        noise: NoiseFunction | None,
        generator: torch.Generator | None,
        state: Tensor | None,
        size: torch.Size,
    ) -> NoiseFunction | None:
        if generator is not None:
            if state is not None:
                generator.set_state(state)
            place = generator.device
            noise = lambda draw, step: torch.randn(size, generator=generator, device=place)  # noqa: E731
        return None if noise is None else check_noise(noise, size, self.dtype, self.device)

    def _run_on_tensors(self, size: torch.Size, seed: Tensor, x_init: Tensor | None, calls: Callbacks) -> Tensor:
        """The solver's own lines on tensors, one small operation after the other."""

        def noise(draw: int, step: int) -> Tensor:
            if calls.noise is not None:
                return calls.noise(draw, step)
            return ops.normal(seed, size, draw, self.dtype, self.backend)

        def network(x: Tensor, time: float) -> Tensor:
            if calls.tick is not None:
                calls.tick(engine.step)
            t = torch.full((size[0],), time, dtype=torch.float64).to(self._time_dtype).to(self.device)
            return calls.network(x.to(self.model_dtype), t)

        engine = TensorEngine(network, calls.guides, noise)
        denoise = self._denoiser(engine, self.levels)
        x = x_init.clone() if x_init is not None else self.process.prior_std(self.levels[0]) * noise(0, -1)
        assert calls.report is not None
        calls.report(-1, None, x, None)
        state = None
        for state in self.solver(denoise, x, self.levels, engine.noise, **self.options):
            calls.report(engine.step, denoise.first_level, state, denoise.last_x0)
            engine.step += 1
            denoise.finish_step()
        if state is None:
            raise self._nothing_yielded()
        return state

    def _nothing_yielded(self) -> ValueError:
        return ValueError(f"solver {getattr(self.solver, '__name__', self.solver)!r} must yield at least one state")

    def _blame(self, rerun: Callable[[Any], Tensor], seeds: Tensor) -> None:
        """The result is not finite: run again, looking at every state, and raise."""
        found: list[str] = []

        def look(step: int, level: Level | None, x: Tensor, denoised: Tensor | None) -> None:
            bad = ~torch.isfinite(x).reshape(len(x), -1).all(1)
            if not found and bool(bad.any()):
                where = (
                    "in the starting state" if level is None else f"first in step {step} (sigma {level.sigma_ve:.4g})"
                )
                listed = seeds[bad].tolist()
                more = f" and {len(listed) - 8} more" if len(listed) > 8 else ""
                found.append(f"{where}, in the samples with seeds {listed[:8]}{more}")

        rerun(look)
        where = (
            found[0]
            if found
            else "in the final state, but not when the run was repeated: the model is not deterministic"
        )
        raise FloatingPointError(f"the result has NaN or Inf, {where}. check=False returns it as it is.")


def _explicit(process: Process, sigmas: Sequence[float] | None, timesteps: Sequence[int] | None) -> Any:
    """The explicit levels a process understands."""
    discrete = hasattr(process, "betas")
    if sigmas is not None and discrete:
        raise ValueError("sigmas must be left out for a VP process; give timesteps")
    if timesteps is not None and not discrete:
        raise ValueError("timesteps must be left out for a VE process; give sigmas")
    return sigmas if sigmas is not None else timesteps


class _Progress:
    """A tqdm bar over steps, or nothing."""

    def __init__(self, show: bool, steps: int):
        self._show, self._steps, self._done = show, steps, 0

    def __enter__(self) -> Callable[[int], None] | None:
        if not self._show:
            return None
        from tqdm.auto import tqdm

        self._bar = tqdm(total=self._steps, unit="step")
        return self._tick

    def _tick(self, step: int) -> None:
        self._bar.update(step - self._done)
        self._done = step

    def __exit__(self, kind: Any, *_: Any) -> None:
        if self._show:
            self._bar.update(self._steps - self._done if kind is None else 0)
            self._bar.close()
