"""The fused update alone, against the copy bandwidth of the same run, PyTorch's eager operators and torch.compile.

    K1  deterministic update          y = a x + b f
    K2  noise update                  y = a x + b f + s z
    K3  guidance-free combination     y = a x + b f + c g
    K4  multistep, three old slopes   y = a x + b f + c g + d h
    K5  Heun's second stage           y = a x + b f + c g,  network input w = e y
    K6  churn                         y = x + s z,          network input w = e y
    K7  noising a training batch      y = z,                network input w = a[t] x + s[t] z
    K8  with input perturbation       y = z,                network input w = a[t] x + s[t] (z + c u)
    K9  a Brownian path's increment   y = a x + b f + s W, W the weighted sum of 28 draws; PyTorch's takes one

x and y are the state (of K7 and K8 clean data and the target), f, g, h and w what the network gives and takes; z and u
are noise, and t a step of 1000 for every sample. K7, K8 and K9 have not been measured on a GPU yet.

Precisions: all float32; float32 state beside a bfloat16 network; all bfloat16. Bytes are those of every tensor read or
written once.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from benchmarks import measure
from benchmarks.measure import Budget
from fastdiff.ops import native

BATCH = 16
CHECKED = 2**26  # larger ones, in float64, would need more memory than some GPUs have
SIZES = tuple(2**n for n in (26, 28, 20, 24, 16, 12))  # the most telling first: a budget may end before the list
COMPILED = {"K1": 2, "K2": 2}  # sizes of a kernel that torch.compile, which takes seconds each, takes part in; else 1
A, B, C, D, E, S = 0.9, -0.2, 0.15, -0.05, 0.7, 0.3

Outputs = tuple[Tensor, ...]


@dataclass(frozen=True)
class Kernel:
    """One update: how many tensors it reads and draws, its coefficient row [M, K], and its formula.

    With `levels` its table has a row for each of them, `row` times a level, and the formula is given (table, rows).
    """

    name: str
    reads: int
    draws: int
    row: tuple[float, ...]
    formula: Callable[..., Outputs]
    levels: int = 0

    @property
    def writes(self) -> int:
        return len(self.row) // (self.reads + self.draws)


def _k2(x: Tensor, f: Tensor) -> Outputs:
    return (A * x + B * f + S * torch.randn_like(x),)


def _k5(x: Tensor, f: Tensor, g: Tensor) -> Outputs:
    y = A * x + B * f + C * g
    return y, (E * y).to(f.dtype)


def _k6(x: Tensor, f: Tensor) -> Outputs:
    y = x + S * torch.randn_like(x)
    return y, (E * y).to(f.dtype)


def _k7(x: Tensor, like: Tensor, table: Tensor, t: Tensor) -> Outputs:
    z = torch.randn_like(x)
    return z, (table[t, 2:3] * x + table[t, 3:4] * z).to(like.dtype)


def _k8(x: Tensor, like: Tensor, table: Tensor, t: Tensor) -> Outputs:
    z = torch.randn_like(x)
    return z, (table[t, 3:4] * x + table[t, 4:5] * (z + C * torch.randn_like(x))).to(like.dtype)


KERNELS = (
    Kernel("K1", 2, 0, (A, B), lambda x, f: (A * x + B * f,)),
    Kernel("K2", 2, 1, (A, B, S), _k2),
    Kernel("K3", 3, 0, (A, B, C), lambda x, f, g: (A * x + B * f + C * g,)),
    Kernel("K4", 4, 0, (A, B, C, D), lambda x, f, g, h: (A * x + B * f + C * g + D * h,)),
    Kernel("K5", 3, 0, (A, B, C, E * A, E * B, E * C), _k5),
    Kernel("K6", 1, 1, (1.0, S, E, E * S), _k6),
    Kernel("K7", 1, 1, (0.0, 1.0, A, S), _k7, levels=1000),
    Kernel("K8", 1, 2, (0.0, 1.0, 0.0, A, S, C * S), _k8, levels=1000),
    Kernel("K9", 2, 28, (A, B, *28 * [S * 28**-0.5]), _k2),
)
PRECISIONS = {  # of the state, of the network
    "fp32": (torch.float32, torch.float32),
    "fp32+bf16": (torch.float32, torch.bfloat16),
    "bf16": (torch.bfloat16, torch.bfloat16),
}


class Case:
    """One kernel at one size and precision: rotating sets of random buffers, and the launches on them."""

    def __init__(self, kernel: Kernel, size: int, precision: str, device: torch.device):
        self.kernel, self.size, self.precision, self.device = kernel, size, precision, device
        state, network = PRECISIONS[precision]
        self.reads = [state] + [network] * (kernel.reads - 1)
        self.writes = [state, network][: kernel.writes]
        self.bytes = size * sum(dtype.itemsize for dtype in self.reads + self.writes)
        self.sets = measure.rotation(self.bytes, device)
        shape = (BATCH, size // BATCH)
        count = max(1, self.sets)
        self.inputs = [[torch.randn(shape, device=device).to(d) for d in self.reads] for _ in range(count)]
        self.outputs = [[torch.empty(shape, dtype=d, device=device) for d in self.writes] for _ in range(count)]
        self.table = torch.tensor([kernel.row], device=device)
        self.rows = None
        if kernel.levels:  # the target's coefficients are those of every level
            levels = torch.linspace(0.1, 1, kernel.levels, device=device)[:, None]
            half = len(kernel.row) // 2
            self.table = torch.cat([self.table[:, :half].repeat(len(levels), 1), levels * self.table[:, half:]], 1)
            self.rows = torch.arange(0, kernel.levels, kernel.levels // BATCH, device=device)[:BATCH]
        self.seeds = torch.arange(BATCH, device=device) if kernel.draws else None
        # Where the state is all that is read, the formula takes a tensor of the network's dtype to know what to write.
        self._more = [torch.empty(0, dtype=network, device=device)] if kernel.reads == 1 else []
        self._more += [] if self.rows is None else [self.table, self.rows]

    def combine(self, backend: str) -> Callable[[int], Any]:
        operation = native.operation("combine_out", backend)
        draws, rows = list(range(1, 1 + self.kernel.draws)), self.rows
        return lambda i: operation(self.inputs[i], self.table, rows, self.seeds, draws, None, False, self.outputs[i])

    def eager(self) -> Callable[[int], Any]:
        return lambda i: self.kernel.formula(*self.inputs[i], *self._more)

    def compiled(self) -> Callable[[int], Any]:
        torch.compiler.reset()
        function = torch.compile(self.kernel.formula, dynamic=False)
        return lambda i: function(*self.inputs[i], *self._more)

    def check(self, backends: list[str]) -> dict[str, Any]:
        """Whether the backends agree bit for bit, and how far they are from the formula where nothing is drawn."""
        found = []
        for backend in backends:
            for out in self.outputs[0]:
                out.fill_(float("nan"))
            self.combine(backend)(0)
            found.append([out.clone() for out in self.outputs[0]])
        equal = all(a.equal(b) for others in found for a, b in zip(others, found[0]))
        result: dict[str, Any] = {"backends_bit_equal": equal}
        if not self.kernel.draws and self.size <= CHECKED:
            wanted = self.kernel.formula(*(x.double() for x in self.inputs[0]))
            result["max_abs_error"] = max(float((a.double() - b).abs().max()) for a, b in zip(found[0], wanted))
        return result


def backends(device: torch.device) -> tuple[list[str], list[dict[str, str]]]:
    """The compiled backends that can run on the device, and what is missing with the reason."""
    wanted = ["cuda", "triton"] if device.type == "cuda" else ["cpu"]
    usable, missing = [], []
    for name in wanted:
        if native.available(name, device.type):
            usable.append(name)
        else:
            missing.append({"what": f"kernels, backend {name}", "why": native.reason(name, device.type)})
    return usable, missing


def copies(sizes: tuple[int, ...], device: torch.device, seconds: float = 0.1) -> dict[str, dict[str, Any]]:
    """A plain copy of as many float32 elements, by size: the ceiling of all bandwidths."""
    result = {}
    for size in sizes:
        sets = measure.rotation(8 * size, device)
        pairs = [(torch.randn(size, device=device), torch.empty(size, device=device)) for _ in range(max(1, sets))]
        times = measure.hot_and_cold(lambda i, pairs=pairs: pairs[i][1].copy_(pairs[i][0]), sets, device, seconds)
        result[str(size)] = times | _rates(8 * size, times)
    return result


def _rates(bytes_moved: int, times: dict[str, dict[str, float]]) -> dict[str, float]:
    return {f"{kind[:-3]}_gbs": bytes_moved / time["median"] * 1e-3 for kind, time in times.items()}


def run(
    device: torch.device,
    budget: Budget,
    sizes: tuple[int, ...] = SIZES,
    seconds: float = 0.06,
    compile_too: bool = True,
) -> Iterator[dict[str, Any]]:
    """Measurements of every kernel, one record each; records of what was skipped have `why` and no figures."""
    usable, missing = backends(device)
    yield from missing
    plan = [(size, kernel, precision) for size in sizes for kernel in KERNELS for precision in PRECISIONS]
    for done, (size, kernel, precision) in enumerate(plan):
        if budget.left <= 0:
            yield {"what": f"kernels, the last {len(plan) - done} of {len(plan)} cases", "why": "time budget"}
            return
        name = f"{kernel.name}, {precision}, {size} elements"
        try:
            case = Case(kernel, size, precision, device)
            calls = {backend: case.combine(backend) for backend in usable} | {"eager": case.eager()}
            if compile_too and size in sizes[: COMPILED.get(kernel.name, 1)]:
                calls["compile"] = case.compiled()
            check = case.check(usable) if usable else {}
        except Exception as error:  # too little memory, a kernel that does not compile
            yield {"what": name, "why": f"{type(error).__name__}: {str(error)[:500]}"}
            continue
        record: dict[str, Any] = {"kernel": kernel.name, "precision": precision, "elements": size}
        record |= {"bytes": case.bytes, "sets": case.sets, "check": check, "times": {}}
        for way, launch in calls.items():
            try:
                times = measure.hot_and_cold(launch, case.sets, device, seconds)
            except Exception as error:  # a compiler that fails must not cost the others
                yield {"what": f"{name}, {way}", "why": f"{type(error).__name__}: {str(error)[:500]}"}
                continue
            record["times"][way] = times | _rates(case.bytes, times)
        yield record
        del case, calls
