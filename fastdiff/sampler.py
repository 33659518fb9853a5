"""The sampler: traces a solver once, then walks the plan with the user's network."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from . import ops
from .arguments import (
    clip_range,
    compile_network,
    dtype_of_model,
    explicit_levels,
    graph_mode,
    model_device,
    resolve_device,
    resolve_shape,
)
from .brownian import NOISES
from .calls import make_request
from .differentiable import run_differentiably
from .encoding import encode
from .errors import check_choice, check_count, check_finite
from .exposure.schedules import LinearScale, as_scale, epsilon_scales
from .graphs import GraphCache, GraphStats
from .graphs.buckets import bucket_of, bucket_sizes, filled
from .guidance import Guidance, guidance_terms
from .latents import Decoding
from .log_prob import log_prob, log_prob_of_call
from .planning import Planner
from .prediction import Prediction, get_prediction
from .process import Level, Process, get_process
from .readable import run_on_tensors
from .reporting import Progress, StepInfo, all_finite, blame
from .request import Request
from .solvers import SOLVERS, Driver, Solver, check_options, ddpm, get_solver
from .thresholding import DynamicThresholding, compose, get_thresholding
from .tune import Tuning, tune

if TYPE_CHECKING:
    from .exposure.choice import Calibration

NoiseFunction = Callable[[int, int], Tensor]


class Sampler(Planner):
    """Draws samples from a diffusion model.

    Args:
        model: any callable `(x, t, **cond) -> output` that does not write to x, nor to outputs it returned before
            (multistep solvers read them); x is [B, ...] of any rank, t is [B]: sigma (VE, EDM), the timestep (VP) or
            ln(sigma)/4 (prediction "edm"). An output of twice the channels (dim 1) has a variance half.
        process: "edm", "ve", "vp", "vp_cosine", "flow" or a `Process`.
        prediction: what the output means: "x0", "eps", "v", "score", "flow", "previous_x", "edm" or a `Prediction`.
        solver: the name of one of `fastdiff.solvers.SOLVERS` ("heun", "ddim", "dpmpp_2m", ...; the command
            `fastdiff solvers` lists them) or a generator function of their form.
        steps: number of steps, default 18 (VP: all of the process's); for VP also "10,5,5" or "ddim50".
        schedule: sigma schedule by name or function, for VE and EDM; default: the process's own.
        sigmas, timesteps: explicit levels, strictly decreasing, in place of steps and schedule.
        epsilon_scale: lambda, by which the predicted noise is divided (ADM-ES, EDM-ES): a number, one per step in
            sampling order, a `LinearScale`, or what `exposure.calibrate` chose or the path of its JSON file.
        epsilon_scale_mode: "every" evaluation; "first" of each step only (EDM-ES's ablation sampler with Heun leaves
            the second slope unscaled); "eps": only where the network predicts eps (ADM-ES leaves other predictions
            unscaled).
        guidance, guidance_scale: term or terms of `fastdiff.guidance`, or functions `(x, level, **cond) -> gradient`,
            and what their weights are multiplied by.
        clip_denoised: clamp the predicted x_0 to [-1, 1] (True) or (lo, hi).
        denoised_fn: any function of the predicted x_0, applied before clipping.
        thresholding: dynamic thresholding of the predicted x_0 (Imagen): True, (ratio, maximum) or a
            `thresholding.DynamicThresholding`; after `denoised_fn`.
        decode: what turns final states into results, `latents.Latent(vae)` for latent diffusion, so many samples at a
            time (`decode_batch`; default: all). Trajectories, callbacks and log-probabilities stay in the latents.
        noise: "independent" draws, or "brownian": solvers of SDEs get increments of one Brownian path of each sample,
            so that a sample refines when its steps become more (`fastdiff.brownian`).
        dtype: of the state, float32 or float64.
        model_dtype: of the network's input; default: that of its parameters, else `dtype`.
        device: of the state; default: where the model's parameters are, the CPU for a plain callable.
        backend: "auto", "reference", "cpu", "cuda" or "triton"; default: FASTDIFF_BACKEND, else auto.
        compiled: False runs the solver's own lines on tensors, the readable reference.
        compile: call the network through torch.compile.
        graph: on a GPU, "loop" captures the whole run, the network and the guidance terms' autograd included, as one
            CUDA graph for every signature (shapes, plan, conditioning, weights' places, PyTorch's switches), "step" one
            a step, "off" none. "auto" captures what is called a second time: the loop, or steps if it has very many
            operations. Callbacks, trajectories and progress bars need steps; `noise` or `generator` an eager run.
            A graph freezes Python values that the model reads from elsewhere than its arguments.
        buckets: batch sizes that batches are filled up to for a graph, or "auto" (1, 2, 4, 8, 16, 24, 32, 48, ...);
            tensors in `cond` whose first size is the batch are filled up too. Not for networks that mix samples.
        max_graphs: kept, the least recently used goes first.
        max_graph_bytes: that the graphs' memory pool may hold; runs that need more are eager.
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
        solver: str | Solver | Driver = "heun",
        steps: int | str | None = None,
        schedule: str | Callable[..., Any] | None = None,
        sigmas: Sequence[float] | None = None,
        timesteps: Sequence[int] | None = None,
        epsilon_scale: float | Sequence[float] | LinearScale | Calibration | str | os.PathLike[str] = 1.0,
        epsilon_scale_mode: str = "every",
        guidance: Guidance | Sequence[Guidance] | None = None,
        guidance_scale: float | Sequence[float] = 1.0,
        clip_denoised: bool | Sequence[float] = False,
        denoised_fn: Callable[[Tensor], Tensor] | None = None,
        thresholding: DynamicThresholding | bool | tuple[float, float] | None = None,
        decode: Callable[[Tensor], Tensor] | None = None,
        decode_batch: int | None = None,
        noise: str = "independent",
        dtype: torch.dtype = torch.float32,
        model_dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
        backend: str | None = None,
        compiled: bool = True,
        compile: bool = False,
        graph: str = "auto",
        buckets: str | Sequence[int] | None = None,
        max_graphs: int = 8,
        max_graph_bytes: int = 4 << 30,
        shape: Sequence[int] | None = None,
        check: bool = True,
        **options: Any,
    ):
        self._arguments = {k: v for k, v in locals().items() if k not in ("self", "options")} | options
        if not callable(model):
            raise TypeError(f"model must be callable (x, t, **cond) -> output, got {type(model).__name__}")
        self.model = model
        self.process = get_process(process)
        self.prediction = get_prediction(prediction)
        self.solver = get_solver(solver)
        self.noise = check_choice("noise", noise, NOISES)
        self.dtype = check_choice("dtype", dtype, ops.STATE_DTYPES)
        self.model_dtype = check_choice("model_dtype", model_dtype or dtype_of_model(model, dtype), ops.DTYPES)
        self.device = resolve_device(device) if device is not None else model_device(model)
        self.backend = ops.resolve_backend(backend, self.device)
        self.compiled, self.check = compiled, check
        self.graph = "off" if isinstance(self.solver, Driver) else graph_mode(graph, self.device, compiled)
        self._buckets = bucket_sizes(buckets)
        self._graphs = GraphCache(
            check_count("max_graphs", max_graphs), check_count("max_graph_bytes", max_graph_bytes)
        )
        self._compile = compile
        self._compiled_network: tuple[Any, Callable[..., Tensor]] | None = None
        self._waits = graph == "auto"  # with capturing, until a signature comes a second time
        self._tuned: dict[torch.Size, tuple[Any, Sampler]] = {}
        self.shape = shape if shape is not None else getattr(model, "sample_shape", None)
        if denoised_fn is not None and not callable(denoised_fn):
            raise TypeError(f"denoised_fn must be a function of the predicted x_0, got {denoised_fn!r}")
        self.clip = clip_range(clip_denoised)
        self.denoised_fn = compose(denoised_fn, get_thresholding(thresholding))
        self._decoded = Decoding(decode, decode_batch, check)
        self.guidance, self.guidance_scale = guidance_terms(guidance, guidance_scale)
        if (
            self.solver in SOLVERS.values()
            and self.solver is not ddpm
            and "mean" in [getattr(term, "rule", None) for term in self.guidance]
        ):
            raise ValueError(f"guidance with rule='mean' moves the mean of solver 'ddpm', got solver {solver!r}")
        self.epsilon_scale = self._arguments["epsilon_scale"] = as_scale(epsilon_scale)  # a file may change
        self.epsilon_scale_mode = check_choice("epsilon_scale_mode", epsilon_scale_mode, ("every", "first", "eps"))
        grid: dict[str, Any] = {
            name: options.pop(name) for name in ("rho", "sigma_min", "sigma_max") if name in options
        }
        check_options(self.solver, options)
        self.options = options
        self._explicit, self._grid = explicit_levels(self.process, sigmas, timesteps), (schedule, grid)
        if self._explicit is not None and (schedule is not None or grid):
            raise ValueError("schedule and its options must be left out when sigmas or timesteps give the levels")
        self.levels = self._levels(steps)
        self.compiled_runs = {}
        epsilon_scales(self.epsilon_scale, self.levels.steps)
        if compiled and not isinstance(self.solver, Driver):
            self.executor()

    def __reduce__(self) -> tuple[Any, ...]:
        return _make, (type(self), {**self._arguments, "model": self.model})  # a copy has plans and graphs of its own

    # -- graphs -------------------------------------------------------------------------------------------------------

    def replace(self, **changes: Any) -> Sampler:
        """A sampler with some arguments changed, on the same graphs; assigning to attributes would not do it.

        Where the plan keeps its structure, one captured loop serves other sigmas, lambdas and guidance weights.

        Args:
            changes: arguments of `Sampler`; all others are those it was made with, and its present model. New sigmas or
                timesteps take the place of steps, schedule and its options.
        """
        arguments = {**self._arguments, "model": self.model}
        if changes.get("sigmas") is not None or changes.get("timesteps") is not None:
            explicit = ("steps", "schedule", "rho", "sigma_min", "sigma_max", "sigmas", "timesteps")
            arguments = {k: v for k, v in arguments.items() if k not in explicit}
        other = Sampler(**{**arguments, **changes})
        if other.device == self.device and not {"max_graphs", "max_graph_bytes"} & changes.keys():
            other._graphs = self._graphs
        if other.model is self.model:
            other._compiled_network = self._compiled_network
        return other

    def capture(self, batches: int | Sequence[int], **arguments: Any) -> None:
        """Capture graphs ahead of time, the largest batch first: the smaller ones then fit into its memory.

        Args:
            batches: batch sizes; the shape of a sample must be known.
            arguments: of the calls to come (labels, cond, return_trajectory, ...).
        """
        if self.graph == "off":
            raise ValueError("graph must not be 'off' to capture (it is 'off' by itself where there are no graphs)")
        now = object.__new__(Sampler)  # the same sampler, but that it does not wait
        vars(now).update(vars(self), _waits=False)
        wanted = batches if isinstance(batches, Sequence) else [batches]
        for batch in sorted({check_count("batches", batch) for batch in wanted}, reverse=True):
            now(batch, **arguments)

    def stats(self) -> GraphStats:
        """How many calls found a graph, what was captured and given up, what it cost, and why a capture failed."""
        return self._graphs.stats()

    def tune(self, shape: int | Sequence[int], *, seconds: float = 1.0, **arguments: Any) -> Tuning:
        """Measure eager, compiled network, network graph and loop graph on calls of one shape, and keep the fastest.

        Args:
            shape: as in a call.
            seconds: spent on measuring, compilation and capture apart.
            arguments: of the calls: seeds, labels, cond.

        Returns:
            What was found; "no gain expected" if nothing is at least 3 % faster than eager.
        """
        size = resolve_shape(shape, self.shape)
        tuning, variant = tune(self, size, check_finite("seconds", seconds), arguments)
        self._tuned[size] = self.model, variant
        return tuning

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
        image: Tensor | None = None,
        mask: Tensor | None = None,
        strength: float | None = None,
        start: int | None = None,
        noise: NoiseFunction | None = None,
        generator: torch.Generator | None = None,
        callback: Callable[[StepInfo], None] | None = None,
        return_trajectory: bool = False,
        return_log_prob: bool = False,
        progress: bool = False,
    ) -> Any:
        """Draw one batch.

        Args:
            shape: [B, ...], or B when the shape of a sample is known.
            seeds: one integer per sample; an int s means s, s+1, ...; None takes fresh ones from PyTorch's generator.
                A sample depends on its seed, not on the batch, its place in it or the threads; its noise not on the
                backend either.
            labels: class indices [B] (or one for all), or one-hot rows; passed to the model as `labels=`.
            cond: further keyword arguments of the model and the guidance terms.
            x_init: the starting state, already scaled to the first level; default: prior noise.
            image: [B, ...] clean data to start from (img2img), noised by draw 0, or to keep a part of (`mask`).
            mask: 1 where `image` is kept, exactly if the last level is clean, 0 where it is made anew, or between; its
                shape broadcasts to [B, ...]. Inpainting by replacement, see `fastdiff.inpainting`.
            strength: the fraction of the steps that are made, the last ones: 1 starts from the noisiest level (with a
                mask, from noise alone).
            start: in place of `strength`, the number of the first step made, for a state `x_init` at its level too.
            noise: `(draw, step) -> tensor [B, ...]` in place of the seeds' noise; draw 0 is the initial latent, those
                from 2^30 on noise the part that a mask keeps.
            generator: PyTorch's noise instead: one `randn` of the batch per draw, in order.
            callback: called with a `StepInfo` at the end of every step.
            return_trajectory: also return all states [N+1, B, ...] (fewer after `start`), the starting state first.
            return_log_prob: also return the log-probabilities of the steps, float64 [N, B], as `log_prob` has them, but
                from the draws: no evaluation more. Not with a learned variance, nor with a mask.
            progress: show a progress bar.

        Returns:
            [B, ...] in the state's dtype (what `decode` makes of it), or (that, trajectory), (that, log_prob) or
            (that, trajectory, log_prob).

        Raises:
            ValueError, TypeError: a bad argument, before any work.
            FloatingPointError: the result is not finite (with `check`); names the first bad step and the seeds.
        """
        size = resolve_shape(shape, self.shape)
        arguments: dict[str, Any] = {"seeds": seeds, "labels": labels, "cond": cond, "x_init": x_init, "image": image}
        arguments |= {"mask": mask, "strength": strength, "start": start, "noise": noise, "generator": generator}
        model, variant = self._tuned.get(size, (None, None))
        if variant is not None and model is self.model:
            wanted: dict[str, Any] = {"return_trajectory": return_trajectory, "return_log_prob": return_log_prob}
            return variant(size, **arguments, callback=callback, **wanted, progress=progress)
        state = None if generator is None else generator.get_state()
        request = make_request(self, size, **arguments)
        log_prob = log_prob_of_call(self, request) if return_log_prob else None
        trajectory: list[Tensor] = []

        def report(step: int, level: Level | None, x: Tensor, denoised: Tensor | None) -> None:
            if return_trajectory:
                trajectory.append(x)
            if callback is not None and level is not None and denoised is not None:
                callback(StepInfo(step, level, x, denoised))

        request.report = report if callback is not None or return_trajectory else None
        x = self.run(request, progress)
        if self.check and not all_finite(x):
            if generator is not None and state is not None:
                generator.set_state(state)
            blame(lambda look: self._run_eagerly(replace(request, report=look, tick=None)), request.seeds)
        x = self._decoded(x)
        more = [torch.stack(trajectory)] if return_trajectory else []
        more += [] if log_prob is None else [log_prob()]
        return (x, *more) if more else x

    def log_prob(
        self,
        trajectory: Tensor,
        *,
        steps: Sequence[int] | None = None,
        start: int = 0,
        labels: Any = None,
        cond: dict[str, Any] | None = None,
        checkpoint: bool = True,
    ) -> Tensor:
        """Log-probabilities of the steps of recorded runs, ln N(x_(i+1); mean_i, std_i^2), with gradients.

        For steps that add Gaussian noise at their end (ddpm, ddim with eta > 0, ancestral and multistep SDE solvers,
        ...), whatever their mean is made of. `fastdiff.log_prob` has the definition and the papers.

        Args:
            trajectory: [N + 1, B, ...], from a call with `return_trajectory`, of this model or another.
            steps: numbers of the steps wanted, which must draw noise; only what they need is evaluated. Default: all,
                with 0 for those that draw none (a last step to clean data).
            start: of the call that made the trajectory.
            labels, cond: of that call.
            checkpoint: as in `differentiable`; for one step at a time False is faster.

        Returns:
            Natural logarithms, summed over the elements: float64 [N, B], or [len(steps), B].

        Raises:
            ValueError, TypeError: a bad argument, or a solver whose steps have no such density; the message says why.
        """
        return log_prob(self, trajectory, steps, start, labels, cond, checkpoint)

    def encode(self, x: Tensor, *, labels: Any = None, cond: dict[str, Any] | None = None) -> Tensor:
        """The noise that a deterministic solver makes data of: its own steps, on the levels in reverse.

        Sampling from it (`x_init`) returns the data up to the error of the solver's order, and of the first level
        above clean data, at which the data are taken to be.

        Args:
            x: [B, ...] clean data; labels, cond: as in a call.

        Returns:
            [B, ...], the state at the noisiest level.

        Raises:
            ValueError, TypeError: a bad argument, or a solver that draws noise or chooses its own steps.
        """
        return encode(self, x, labels, cond)

    def differentiable(
        self, shape: int | Sequence[int], *, checkpoint: bool = True, return_trajectory: bool = False, **arguments: Any
    ) -> Any:
        """Draw one batch with gradients: in the model's parameters, `x_init`, `image` and tensors of `cond`.

        The guidance terms' own parameters get none; what samples choose (boosting, a time shift) has none.

        Args:
            checkpoint: networks keep their inputs alone and are called once more in the backward pass: the memory then
                grows with the states, not with the networks' activations.
            shape, return_trajectory, arguments: as in a call: seeds, labels, cond, x_init, image, mask, ...

        Returns:
            [B, ...], or (that, trajectory [N+1, B, ...]), with their autograd graph.

        Raises:
            ValueError, TypeError: a bad argument, or a solver that has no gradient.
        """
        request = make_request(self, resolve_shape(shape, self.shape), **arguments)
        states: list[Tensor] = []
        if return_trajectory:
            request.report = lambda step, level, x, denoised: states.append(x)
        x = self._decoded(run_differentiably(self, request, checkpoint), checkpoint)
        return (x, torch.stack(states)) if return_trajectory else x

    @property
    def network(self) -> Callable[..., Tensor]:
        """The model, or what torch.compile made of it."""
        if not self._compile:
            return self.model
        if self._compiled_network is None or self._compiled_network[0] is not self.model:
            self._compiled_network = self.model, compile_network(self.model, self.device)
        return self._compiled_network[1]

    def run(self, request: Request, progress: bool = False) -> Tensor:
        """The final state of a request: from a graph, if one is wanted and can be had."""
        with Progress(progress, self.levels.steps, request.start) as request.tick:
            x = None
            if self.graph != "off" and request.noise is None and 0 not in request.shape:
                x = self._run_graph(request)
            return x if x is not None else self._run_eagerly(request)

    def _run_graph(self, request: Request) -> Tensor | None:
        scope = "step" if request.tick is not None else self.graph
        size = bucket_of(request.rows, self._buckets)
        return self._graphs.run(self.executor(**request.kind), filled(request, size), scope, self._waits)

    def _run_eagerly(self, request: Request) -> Tensor:
        if isinstance(self.solver, Driver):
            return self.solver(self, request, **self.options)
        if not self.compiled:
            return run_on_tensors(self, request)
        return self.executor(**request.kind).run(request)


def _make(kind: type[Sampler], arguments: dict[str, Any]) -> Sampler:
    return kind(**arguments)
