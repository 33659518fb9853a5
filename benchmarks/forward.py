"""`python -m benchmarks.forward [--device cuda] [--batch 16 64]`: forward time of the EDM CIFAR-10 network.

55.7 M parameters, 3 x 32 x 32 (Karras et al. 2022, Table 7), random weights. The first line is a plain build of it in
float32 and NCHW (`benchmarks.networks.DDPMpp`), the others are `fastdiff.models.SongUNet` with one change each, then
with all of them. float32 is IEEE float32 unless PyTorch's flags, which are kept with the result, say otherwise.
"""

from __future__ import annotations

import argparse
import json
import math
from pathlib import Path
from typing import Any

import torch
from torch import nn

from benchmarks.measure import Function, first_call, interleaved, spread, timed
from benchmarks.networks import DDPMpp
from benchmarks.system import describe, slug
from benchmarks.tables import markdown
from fastdiff.models import SongUNet

CIFAR10: dict[str, Any] = {"img_resolution": 32, "in_channels": 3, "out_channels": 3, "channel_mult": [2, 2, 2]}
PLAIN = "plain build, float32, NCHW"
WAYS: dict[str, tuple[str, ...]] = {
    "SongUNet, float32, NCHW": (),
    "SongUNet, channels_last": ("channels_last",),
    "SongUNet, bfloat16": ("bfloat16",),
    "SongUNet, compile": ("compile",),
    "SongUNet, channels_last, bfloat16": ("channels_last", "bfloat16"),
    "SongUNet, channels_last, bfloat16, compile": ("channels_last", "bfloat16", "compile"),
}


def lively(network: nn.Module) -> nn.Module:
    """Weights of He's variance in every layer: those that start at zero would make what follows trivial."""
    torch.manual_seed(0)
    for parameter in network.parameters():
        if parameter.ndim > 1:
            nn.init.normal_(parameter, 0.0, 1 / math.sqrt(parameter[0].numel()))
    return network.eval().requires_grad_(False)


def build(device: torch.device, config: dict[str, Any]) -> tuple[nn.Module, nn.Module]:
    """The plain build and ours, of the same sizes."""
    ours = SongUNet(**config)
    width, mults = ours.config["model_channels"], ours.config["channel_mult"]
    options = (ours.config["num_blocks"], ours.config["attn_resolutions"], ours.config["in_channels"])
    plain = DDPMpp(config["img_resolution"], width, mults, *options)
    return lively(plain).to(device), lively(ours).to(device)


def call(network: nn.Module, changes: tuple[str, ...], batch: int, device: torch.device, shape: list[int]) -> Function:
    """One evaluation of a network, changed in these ways; the network itself is changed."""
    x, c_noise = torch.randn(batch, *shape, device=device), torch.linspace(-1.5, 1.0, batch, device=device)
    if "bfloat16" in changes:
        network, x = network.to(torch.bfloat16), x.to(torch.bfloat16)
    if "channels_last" in changes:
        network = network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        x = x.to(memory_format=torch.channels_last)
    run: Any = torch.compile(network, fullgraph=True) if "compile" in changes else network

    def once() -> torch.Tensor:
        with torch.inference_mode():
            return run(x, c_noise)

    return once


def measure(
    batch: int, device: torch.device, seconds: float, ways: list[str], config: dict[str, Any] = CIFAR10
) -> list[dict[str, Any]]:
    """A row for each way at one batch size, the plain build's first."""
    shape = [config["in_channels"], config["img_resolution"], config["img_resolution"]]
    plain, ours = build(device, config)
    state = ours.state_dict()
    calls = {PLAIN: call(plain, (), batch, device, shape)}
    for way in ways:
        own = SongUNet(**config).to(device)
        own.load_state_dict(state)
        calls[way] = call(own.eval().requires_grad_(False), WAYS[way], batch, device, shape)
    first = {way: first_call(once, device) for way, once in calls.items()}
    slow: dict[str, dict[str, Any]] = {}  # without hardware for bfloat16 a call may take minutes: it is timed once
    for way in [way for way in calls if way != PLAIN]:
        if (alone := timed(calls[way], device)[1]) > seconds / 4 / len(calls):
            slow[way] = {"latency_ms": spread([alone])}
    times = interleaved({way: once for way, once in calls.items() if way not in slow}, device, seconds) | slow
    reference = times[PLAIN]["latency_ms"]["median"]
    return [
        {
            "way": way,
            "batch": batch,
            **times[way],
            **first[way],
            "speed": reference / times[way]["latency_ms"]["median"],
        }
        for way in calls
    ]


def table(rows: list[dict[str, Any]]) -> str:
    """The result as markdown: milliseconds of a call that is waited for, median and 10th to 90th percentile."""
    lines = []
    for row in rows:
        at = row["latency_ms"]
        between = f"{at['p10']:.1f} to {at['p90']:.1f}" if at["count"] > 1 else "one call"
        cells = (row["batch"], row["way"], f"{at['median']:.1f}", between, f"{row['speed']:.2f}x")
        lines.append((*cells, f"{row['first_call_ms'] / 1e3:.1f}"))
    return markdown(("batch", "network", "ms", "10% to 90%", "speed", "first call, s"), lines)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.forward", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--device", type=torch.device, default=torch.device("cpu"))
    parser.add_argument("--batch", type=int, nargs="+", default=[1], help="batch sizes")
    parser.add_argument("--seconds", type=float, default=60.0, help="of measuring, per batch size")
    parser.add_argument("--threads", type=int, default=None, help="of the CPU; default: PyTorch's")
    parser.add_argument("--only", nargs="*", default=list(WAYS), choices=list(WAYS), help="lines beside the first")
    parser.add_argument("--out", type=Path, help="default: results/forward-DEVICE.json")
    arguments = parser.parse_args()
    if arguments.threads is not None:
        torch.set_num_threads(arguments.threads)
    rows: list[dict[str, Any]] = []
    for batch in arguments.batch:
        torch.compiler.reset()
        rows += measure(batch, arguments.device, arguments.seconds, arguments.only)
    print(table(rows))
    out = arguments.out or Path(__file__).parent / "results" / f"forward-{slug(arguments.device)}.json"
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps({"system": describe(arguments.device), "config": CIFAR10, "rows": rows}, indent=1))


if __name__ == "__main__":
    main()
