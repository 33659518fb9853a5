"""What is measured: networks, solvers, steps and batches, and the ways of running each.

Every way of running belongs to one of two tables that are never mixed:

    same    the same network callable everywhere, only the loop around it differs
    best    each side with what makes it fast: a compiled or graphed network, preconditioning folded into the update

Names of ways: eager (the published loop, EDM's with a float64 state on the device), lean (the same update with all that
eager PyTorch can leave out), diffusers, k-diffusion, fastdiff, fastdiff-step, fastdiff-loop; network-graph, compile and
reduce-overhead (these with the lean loop), fastdiff-raw, fastdiff-compiled (a network compiled by its user) and
fastdiff-compile (`compile=True`).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property, partial
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks import loops
from benchmarks.guides import DiscriminatorGradient
from benchmarks.networks import MLP, DDPMpp, Denoiser, Discriminator, Encoder, UNet1d
from fastdiff import VP, Sampler, ops
from fastdiff.graphs import GraphedNetwork, has_graphs
from fastdiff.guidance import DiscriminatorGuidance
from fastdiff.process import Levels

POLICIES = ("mlp", "unet1d")
TRAINED = 100  # steps of the chain a policy was trained on
WEIGHT = 2.0  # of the discriminator's gradient


@dataclass(frozen=True)
class Cell:
    """One block of the tables: a workload, its solver and steps, and a batch.

    Attributes:
        seconds: planned for it on a GPU.
        kind: "full"; "brief": the published loop and fastdiff's alone, where one call takes long; "compiled": those and
            what torch.compile takes part in.
    """

    workload: str
    solver: str
    steps: int
    batch: int
    seconds: float = 2.0
    kind: str = "full"


@dataclass
class Way:
    """One way of running a cell.

    Attributes:
        table: "same" or "best".
        build: () -> call, which returns a sample; building may capture or compile.
        equal_to: the way whose result must be the same bits, if there is one.
        sampler: of fastdiff's ways, for its statistics, once built.
    """

    table: str
    build: Callable[[], Callable[[], Tensor]]
    equal_to: str = ""
    sampler: Sampler | None = field(default=None)


ESSENTIAL = ("eager", "fastdiff", "fastdiff-loop")  # measured in every cell, whatever the time
COMPILED = (*ESSENTIAL, "network-graph", "compile", "reduce-overhead", "fastdiff-compiled", "fastdiff-compile")

# The targets' first: the time may end before the list. Steps do not change the time of an evaluation, so where 35 take
# seconds fewer are measured.
CELLS = (
    Cell("mlp", "ddpm", 100, 1, 3),
    Cell("mlp", "ddpm", 100, 64, 3),
    Cell("unet1d", "ddpm", 100, 1, 6),
    Cell("unet", "heun", 18, 1, 12),
    Cell("guided", "heun", 18, 1, 18),
    Cell("unet", "heun", 4, 512, 24, "brief"),
    Cell("unet", "heun", 18, 16, 14),
    Cell("mlp", "ddpm", 100, 1, 25, "compiled"),
    Cell("unet", "heun", 18, 64, 16, "brief"),
    Cell("guided", "heun", 18, 16, 16, "brief"),
    *(Cell("mlp", "ddim", 20, batch) for batch in (1, 64)),
    Cell("unet1d", "ddim", 10, 1),
    *(Cell("mlp", "ddpm", 100, batch) for batch in (16, 512, 4096)),
    *(Cell("unet1d", "ddpm", 100, batch, 4) for batch in (16, 64, 256)),
    *(Cell("mlp", "ddim", 20, batch) for batch in (16, 512, 4096)),
    *(Cell("unet1d", "ddim", 10, batch) for batch in (16, 64, 256)),
    Cell("unet1d", "ddpm", 100, 1, 30, "compiled"),
    Cell("guided", "heun", 6, 64, 16, "brief"),
    Cell("unet", "heun", 18, 1, 70, "compiled"),
)
QUICK = (
    Cell("mlp", "ddpm", 4, 2, kind="compiled"),
    Cell("mlp", "ddim", 4, 1),
    Cell("unet1d", "ddpm", 3, 1),
    Cell("unet", "heun", 3, 2),
    Cell("unet", "heun", 2, 2, kind="brief"),
    Cell("guided", "heun", 2, 1),
)


def cells(device: torch.device, quick: bool = False, only: str = "") -> tuple[Cell, ...]:
    """What is measured on a device: on a CPU the policies alone, in small batches, as image networks take minutes.

    Args:
        quick: cells for tiny networks.
        only: of one workload.
    """
    every = QUICK if quick else CELLS
    if device.type == "cpu" and not quick:
        every = tuple(cell for cell in CELLS if cell.workload in POLICIES and cell.kind == "full" and cell.batch <= 64)
    return tuple(cell for cell in every if only in ("", cell.workload))


class Workload:
    """A network with random weights, what it is conditioned on, and every way to sample from it.

    Args:
        name: mlp, unet1d, unet or guided.
        tiny: a network of the same form that a CPU runs in milliseconds.
    """

    def __init__(self, name: str, device: torch.device, tiny: bool = False):
        torch.manual_seed(0)
        self.name, self.device, self.tiny = name, device, tiny
        self.policy = name in POLICIES
        raw, self.shape, observed = _network(name, tiny)
        self.raw = raw.to(device).eval().requires_grad_(False)
        self.network = self.raw if self.policy else Denoiser(self.raw).eval()
        self.guide = None
        if name == "guided":
            discriminator = _discriminator(tiny).to(device).eval().requires_grad_(False)
            self.guide = DiscriminatorGradient(discriminator)
            # In every evaluation and at every level, so that an evaluation's time is the floor of a loop's.
            self.term = DiscriminatorGuidance(
                lambda y, tau, labels: discriminator(y, tau), WEIGHT, WEIGHT, time_min=0.0, dtype=torch.float32
            )
        self.observed = observed

    @cached_property
    def parameters(self) -> int:
        """Of the network, without the discriminator."""
        return sum(p.numel() for p in self.raw.parameters())

    def cond(self, batch: int) -> dict[str, Tensor]:
        """Random conditioning: a policy's observations."""
        generator = torch.Generator().manual_seed(1)
        return {"state": torch.randn(batch, self.observed, generator=generator).to(self.device)} if self.policy else {}

    def sampler(self, cell: Cell, raw: bool = False, model: nn.Module | None = None, **options: Any) -> Sampler:
        """fastdiff's sampler of a cell; `raw`: it does EDM's preconditioning, not the network."""
        if self.policy:
            steps = f"ddim{cell.steps}" if cell.solver == "ddim" and TRAINED % cell.steps == 0 else cell.steps
            options |= {"process": VP.cosine(TRAINED), "prediction": "eps", "clip_denoised": True, "steps": steps}
        else:
            options |= {"prediction": "edm" if raw else "x0", "steps": cell.steps}
        if self.guide is not None:
            options["guidance"] = self.term
        network = model or (self.raw if raw else self.network)
        place = {"device": self.device, "shape": self.shape}
        return Sampler(network, solver=cell.solver, check=False, **place, **options)

    def loop(self, cell: Cell, lean: bool, levels: Levels) -> Callable[..., Tensor]:
        """The baseline loop(network, noise=) of a cell."""
        if self.policy:
            return partial(loops.ddpm if cell.solver == "ddpm" else loops.ddim, levels=levels)
        loop = loops.lean_heun if lean else loops.edm_heun
        return partial(loop, levels=levels, guide=self.guide, weight=WEIGHT)

    def time(self, batch: int) -> Tensor:
        """An example of the network's time argument."""
        return torch.full((batch,), 3, device=self.device) if self.policy else torch.ones(batch, device=self.device)

    def evaluation(self) -> Callable[..., Any]:
        """One evaluation as (x, t, **cond): the network, and the discriminator's gradient beside it."""
        if self.guide is None:
            return self.network
        return lambda x, t: (self.network(x, t), self.guide.at(x, 1.0))

    def floor(self, batch: int) -> GraphedNetwork:
        """That evaluation as a graph."""
        x = torch.randn(batch, *self.shape, device=self.device)
        return GraphedNetwork(self.evaluation(), x, self.time(batch), **self.cond(batch))

    def chain(self, batch: int, evaluations: int) -> GraphedNetwork:
        """All evaluations of a loop in one graph, with nothing between them."""
        one = self.evaluation()

        def several(x: Tensor, t: Tensor, **cond: Tensor) -> Any:
            for _ in range(evaluations):
                result = one(x, t, **cond)
            return result

        x = torch.randn(batch, *self.shape, device=self.device)
        return GraphedNetwork(several, x, self.time(batch), **self.cond(batch))


def ways(work: Workload, cell: Cell) -> tuple[dict[str, Way], list[dict[str, str]]]:
    """Every way of running a cell that this machine has, and what is missing with the reason.

    The loop's graph is the first of the graphs: memory is measured as they are made, and they share a pool.
    """
    batch, cond = cell.batch, work.cond(cell.batch)
    shape = (batch, *work.shape)
    levels = work.sampler(cell, graph="off").levels
    noise = lambda k: torch.randn(shape, device=work.device)  # noqa: E731
    published, lean = work.loop(cell, False, levels), work.loop(cell, True, levels)
    network = partial(work.network, **cond) if cond else work.network
    graphs = has_graphs(work.device)

    def own(name: str, table: str, **options: Any) -> Way:
        way = Way(table, lambda: None)  # type: ignore[arg-type, return-value]

        def build() -> Callable[[], Tensor]:
            sampler = way.sampler = work.sampler(cell, **options)
            return lambda: sampler(batch, seeds=0, cond=cond)

        way.build = build
        if name in ("fastdiff-step", "fastdiff-loop"):
            way.equal_to = "fastdiff"
        return way

    def baseline(loop: Callable[..., Tensor], table: str, wrap: Callable[[], Callable[..., Tensor]]) -> Way:
        def build() -> Callable[[], Tensor]:
            wrapped = wrap()
            return lambda: loop(wrapped, noise=noise)

        return Way(table, build)

    def compiled(mode: str) -> Callable[[], Callable[..., Tensor]]:
        def wrap() -> Callable[..., Tensor]:
            function = torch.compile(work.network, mode=mode, dynamic=False)

            def call(x: Tensor, t: Tensor) -> Tensor:
                torch.compiler.cudagraph_mark_step_begin()
                return function(x, t, **cond)

            return call

        return wrap

    def graphed() -> Callable[..., Tensor]:
        one = GraphedNetwork(work.network, torch.randn(shape, device=work.device), work.time(batch), **cond)
        return lambda x, t: one.replay(x, t, **cond)  # no loop keeps an output beyond the next evaluation

    found = {"eager": baseline(published, "same", lambda: network), "fastdiff": own("fastdiff", "same", graph="off")}
    missing = []
    if graphs:
        found["fastdiff-loop"] = own("fastdiff-loop", "same", graph="loop")
    if not work.policy:
        found["lean"] = baseline(lean, "same", lambda: network)
    for name, module, loop in _libraries(work, cell, levels):
        if work.guide is not None:
            continue
        if why := loops.missing(module):
            missing.append({"what": f"{name} loop", "why": why})
        else:
            found[name] = baseline(loop, "same", lambda: network)
    if graphs:
        found["fastdiff-step"] = own("fastdiff-step", "same", graph="step")
    if graphs and work.guide is None:
        found["network-graph"] = baseline(lean, "best", graphed)
    if graphs and not work.policy:
        found["fastdiff-raw"] = own("fastdiff-raw", "best", raw=True, graph="loop")
    if cell.kind == "compiled":
        found["compile"] = baseline(lean, "best", compiled("default"))
    if cell.kind == "compiled" and graphs:
        found["reduce-overhead"] = baseline(lean, "best", compiled("reduce-overhead"))
        model = torch.compile(work.network, dynamic=False)
        found["fastdiff-compiled"] = own("fastdiff-compiled", "best", model=model, graph="loop")
        if work.policy:  # its autotuning takes minutes for an image network
            found["fastdiff-compile"] = own("fastdiff-compile", "best", compile=True, graph="loop")
    wanted = {"full": tuple(found), "brief": ESSENTIAL, "compiled": COMPILED}[cell.kind]
    return {name: way for name, way in found.items() if name in wanted}, missing if cell.kind == "full" else []


def check(work: Workload, cell: Cell) -> dict[str, dict[str, float]]:
    """The baselines' samples against fastdiff's from the same noise: largest difference and largest value."""
    shape, seeds = (cell.batch, *work.shape), torch.arange(cell.batch, device=work.device)
    cond = work.cond(cell.batch)
    sampler = work.sampler(cell, graph="off")
    noise = lambda k: ops.normal(seeds, shape, k)  # noqa: E731
    network = partial(work.network, **cond) if cond else work.network
    own = sampler(cell.batch, seeds=0, cond=cond)
    given = {"eager": own, "lean": own}
    calls = {name: partial(work.loop(cell, name == "lean", sampler.levels), noise=noise) for name in given}
    for name, module, loop in _libraries(work, cell, sampler.levels):
        if work.guide is not None or loops.missing(module) or (name == "diffusers" and not work.policy):
            continue  # diffusers' Heun has another grid
        calls[name], given[name] = partial(loop, noise=noise), own
        if name == "diffusers" and cell.solver == "ddpm":  # it draws from the generator, after the latent
            generator = torch.Generator(work.device)
            draw = lambda k, g=generator: torch.randn(shape, generator=g, device=work.device)  # noqa: E731
            calls[name] = partial(loop, noise=draw, generator=generator.manual_seed(0))
            twin = torch.Generator(work.device).manual_seed(0)
            given[name] = sampler(cell.batch, generator=twin, cond=cond)
    results = {}
    for name, call in calls.items():
        difference = (call(network).double() - given[name].double()).abs().max()
        results[name] = {"max_abs_difference": float(difference), "max_abs": float(own.abs().max())}
    return results


def _libraries(work: Workload, cell: Cell, levels: Levels) -> list[tuple[str, str, Callable[..., Tensor]]]:
    """(way, module, loop(network, noise=)) of the other libraries."""
    if not work.policy:
        heun = partial(loops.diffusers_heun, levels=levels), partial(loops.k_diffusion_heun, levels=levels)
        return [("diffusers", "diffusers", heun[0]), ("k-diffusion", "k_diffusion", heun[1])]

    def loop(network: Callable[..., Tensor], noise: Any, generator: torch.Generator | None = None) -> Tensor:
        if not made:
            made.append(loops.diffusers_policy(cell.solver, TRAINED, levels, work.device))
        return made[0](network, noise, generator)

    made: list[Callable[..., Tensor]] = []
    return [("diffusers", "diffusers", loop)]


def _network(name: str, tiny: bool) -> tuple[nn.Module, tuple[int, ...], int]:
    """(raw network, shape of a sample, numbers of an observation)."""
    if name == "mlp":
        return (MLP(2, 3, 5, 16, 2), (2, 3), 5) if tiny else (MLP(), (4, 7), 11)
    if name == "unet1d":
        return (UNet1d(3, 5, (8, 16), 8), (3, 8), 5) if tiny else (UNet1d(), (14, 16), 40)
    return (DDPMpp(8, 16, (1, 2), 1, (4,)), (3, 8, 8), 0) if tiny else (DDPMpp(), (3, 32, 32), 0)


def _discriminator(tiny: bool) -> Discriminator:
    if not tiny:
        return Discriminator()
    return Discriminator(Encoder(8, 3, 32, 1, (1, 2), (4,), 0, 32), Encoder(4, 64, 32, 1, (1,), (4,), 1, 32))
