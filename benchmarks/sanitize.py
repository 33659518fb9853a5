"""A program for compute-sanitizer: `python -m benchmarks.sanitize eager|graph` runs the kernels on small tensors.

eager   every operator with every dtype, odd sizes and misaligned views, and two-step sampler runs.
graph   two-step sampler runs captured in one graph and replayed.

Only fastdiff's kernels are checked (by name: PyTorch's would drown the report), and initcheck knows only of
memory written by copies and by kernels it checks. So everything that fastdiff reads here was copied from the host: the
networks are stored tensors.

With PYTORCH_NO_CUDA_MEMORY_CACHING=1 every tensor is an allocation of its own, so that memcheck sees its ends. A
capture needs the caching allocator.
"""

from __future__ import annotations

import sys

import torch
from torch import Tensor

from fastdiff import Sampler, ops
from fastdiff.ops import native

SHAPES = ((1, 1), (2, 3), (3, 127), (2, 1023), (3, 4, 257), (2, 3, 32, 32), (1, 70_001))
DEVICE = "cuda"
DTYPES = (torch.float32, torch.float64, torch.float16, torch.bfloat16)


def on_gpu(shape: tuple[int, ...], dtype: torch.dtype = torch.float32) -> Tensor:
    """Random values made on the host."""
    return torch.randn(shape).to(dtype).to(DEVICE)


def misaligned(shape: tuple[int, ...], dtype: torch.dtype = torch.float32) -> Tensor:
    """The same one element off a 16-byte boundary."""
    count = torch.Size(shape).numel()
    return on_gpu((count + 1,), dtype)[1:].view(shape)


def operators(backend: str) -> None:
    """combine, sum_squares and normal in every form."""
    for shape in SHAPES:
        seeds = torch.arange(shape[0]).to(DEVICE)
        rows = torch.zeros(shape[0], dtype=torch.int64).to(DEVICE)
        for dtype in (torch.float32, torch.float64):
            narrow = [d for d in DTYPES if d != torch.float64 or dtype == torch.float64]
            inputs = [make(shape, d) for make in (on_gpu, misaligned) for d in narrow]
            # Triton compiles every combination anew, which takes a second each.
            for x in (inputs[:1], inputs[:3], inputs) if backend == "cuda" else (inputs,):
                for draws in ([], [1], [1, 2]) if backend == "cuda" else ([1],):
                    table = on_gpu((1, len(x) + len(draws)), dtype)
                    given = {"seeds": seeds, "draws": draws, "rows": rows, "backend": backend}
                    ops.combine(x, table, out_dtypes=[dtype], **given)
                    ops.sum_squares(x, table, **given)
            k, outputs = 4, 3  # three inputs and a draw
            table = on_gpu((1, outputs * k + k + 2 + outputs + 2 + outputs * k), dtype)
            learned = {"learned_variance": on_gpu(shape), "clip": True, "seeds": seeds, "draws": [3]}
            out_dtypes = [dtype, torch.float16, torch.bfloat16]
            ops.combine(inputs[:3], table, out_dtypes=out_dtypes, backend=backend, **learned)
        for dtype in DTYPES:
            ops.normal(seeds, shape, 7, dtype, backend)


class Stored:
    """A network that returns what was copied from the host."""

    def __init__(self, *shape: int):
        self.output = on_gpu(shape)

    def __call__(self, x: Tensor, t: Tensor) -> Tensor:
        return self.output


def samplers(backend: str, graph: str) -> None:
    """Two-step runs: deterministic, guided, with churn in float64, with a bfloat16 network, ancestral ones."""
    batch = (2, 3, 8, 8)
    guidance = Stored(*batch)
    runs = [
        (Stored(*batch), {"solver": "heun", "steps": 2}),
        (Stored(*batch), {"solver": "heun", "steps": 2, "guidance": lambda x, level: guidance.output}),
        (Stored(*batch), {"solver": "heun", "steps": 2, "S_churn": 1.0, "dtype": torch.float64}),
        (Stored(*batch), {"solver": "heun", "steps": 2, "model_dtype": torch.bfloat16}),
        (Stored(2, 6, 8, 8), {"process": "vp", "prediction": "eps", "solver": "ddpm", "steps": 2}
         | {"variance": "learned_range", "clip_denoised": True}),
        (Stored(*batch), {"process": "vp", "prediction": "eps", "solver": "ddim", "steps": 2, "eta": 1.0}),
    ]  # fmt: skip
    for network, options in runs:
        sampler = Sampler(network, device=DEVICE, backend=backend, graph=graph, check=False, **options)
        for seed in (0, 5):
            sampler(batch, seeds=seed)
        if graph != "off" and sampler.stats().hits == 0:
            raise SystemExit(f"benchmarks.sanitize: nothing was replayed: {sampler.stats().reasons}")


def filters() -> list[str]:
    """compute-sanitizer's filters that let fastdiff's kernels through: by namespace, and Triton's by their names."""
    found = ["kns=fastdiff"]
    if native.available("triton", "cuda"):
        from fastdiff.ops import triton_kernels

        names = [name for name in vars(triton_kernels) if name.endswith("_kernel")]
        found += [f"kne={name}" for name in names]
    return found


def main() -> int:
    mode = sys.argv[1]
    for backend in ("cuda", "triton"):
        if not native.available(backend, "cuda"):
            print(f"{backend} was not checked: {native.reason(backend, 'cuda')}")
            continue
        if mode == "eager":
            operators(backend)
        samplers(backend, "off" if mode == "eager" else "loop")
    torch.cuda.synchronize()
    return 0


if __name__ == "__main__":
    sys.exit(main())
