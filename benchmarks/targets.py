"""The figures to reach on an H200-class GPU, looked up in a result file."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from benchmarks.tables import cell_name, floor, kernel_time, latency, of_copy

Result = dict[str, Any]
Figure = tuple[str, float]  # where it was measured, and what


@dataclass(frozen=True)
class Target:
    """One figure: at least (or at most) `bound` wherever it was measured."""

    name: str
    bound: float
    figures: Callable[[Result], Iterator[Figure]]
    most: bool = False

    def lines(self, result: Result) -> list[str]:
        """A line for every figure of a file: reached or missed; one line if there is none."""
        found = []
        for where, value in self.figures(result):
            reached = value <= self.bound if self.most else value >= self.bound
            wanted = f"at {'most' if self.most else 'least'} {self.bound:g}"
            found.append(f"{'reached' if reached else 'MISSED '}  {self.name}: {value:.3f}, wanted {wanted} ({where})")
        return found or [f"not measured  {self.name}"]


def _loops(result: Result, workload: str, test: Callable[[Result], bool] = lambda cell: True) -> list[Result]:
    return [cell for cell in result.get("loops", []) if cell["workload"] == workload and test(cell)]


def _bandwidth(kernel: str) -> Callable[[Result], Iterator[Figure]]:
    def figures(result: Result) -> Iterator[Figure]:
        for record in result.get("kernels", []):
            if record["kernel"] == kernel and record["precision"] != "bf16" and record["elements"] >= 2**26:
                for backend in ("cuda", "triton"):
                    if (share := of_copy(result, record, backend)) is not None:
                        yield f"{backend}, {record['precision']}, {record['elements']:,} elements", share

    return figures


def _against_compile(result: Result) -> Iterator[Figure]:
    for record in result.get("kernels", []):
        times = [kernel_time(record, name) for name in ("compile", "cuda")]
        if record["kernel"] == "K2" and record["elements"] >= 2**26 and all(times):
            yield f"{record['precision']}, {record['elements']:,} elements", times[0] / times[1]  # type: ignore[operator]


def _above_floor(*workloads: str) -> Callable[[Result], Iterator[Figure]]:
    def figures(result: Result) -> Iterator[Figure]:
        for cell in [cell for workload in workloads for cell in _loops(result, workload)]:
            own, alone = latency(cell, "fastdiff-loop"), floor(cell)
            if own and alone:
                yield cell_name(cell), own / alone

    return figures


def _speedup(workload: str, test: Callable[[Result], bool]) -> Callable[[Result], Iterator[Figure]]:
    """Against diffusers' loop where it was measured, and else against the eager loop, which is the leaner one."""

    def figures(result: Result) -> Iterator[Figure]:
        for cell in _loops(result, workload, test):
            base = "diffusers" if latency(cell, "diffusers") else "eager"
            own, other = latency(cell, "fastdiff-loop"), latency(cell, base)
            if own and other:
                yield f"{base} loop, {cell_name(cell)}", other / own

    return figures


def _memory(result: Result) -> Iterator[Figure]:
    """Peak of the one graph over 1.10 x eager's peak + 64 MiB."""
    for cell in result.get("loops", []):
        peaks = [cell["ways"].get(way, {}).get("peak_mib") for way in ("fastdiff-loop", "fastdiff")]
        if None not in peaks:
            yield cell_name(cell), peaks[0] / (1.10 * peaks[1] + 64)


TARGETS = (
    Target("deterministic update, share of copy bandwidth", 0.95, _bandwidth("K1")),
    Target("noise update, share of copy bandwidth", 0.92, _bandwidth("K2")),
    Target("noise update, speed against torch.compile's", 1.4, _against_compile),
    Target("U-Net loops over their floor", 1.03, _above_floor("unet", "guided", "unet1d"), most=True),
    Target("MLP loop over its floor", 1.25, _above_floor("mlp"), most=True),
    Target("MLP, batch <= 64, against an eager loop", 8.0, _speedup("mlp", lambda c: c["batch"] <= 64)),
    Target("1-D U-Net, batch 1, against an eager loop", 4.0, _speedup("unet1d", lambda c: c["batch"] == 1)),
    Target("CIFAR U-Net, batch 1, against an eager loop", 2.5, _speedup("unet", lambda c: c["batch"] == 1)),
    Target("CIFAR U-Net, batch 512, against an eager loop", 0.99, _speedup("unet", lambda c: c["batch"] == 512)),
    Target("discriminator-guided, batch 1, against the eager loop", 2.5, _speedup("guided", lambda c: c["batch"] == 1)),
    Target("memory over 1.10 x eager's peak + 64 MiB", 1.0, _memory, most=True),
)


def report(result: Result) -> str:
    """Every target of a file, line by line."""
    return "\n".join(line for target in TARGETS for line in target.lines(result))
