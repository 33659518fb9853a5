"""What a result was measured on: device, driver, versions, clocks, precision flags. Everything is read, nothing set.

`python -m benchmarks.system` prints it for the current GPU as JSON.
"""

from __future__ import annotations

import importlib.metadata
import json
import platform
import shutil
import subprocess
from typing import Any

import torch

CLOCKS = "clocks.sm,clocks.mem,clocks.max.sm,clocks.max.mem,temperature.gpu,power.draw,clocks_event_reasons.active"
PACKAGES = ("torch", "triton", "numpy", "diffusers", "k-diffusion")


def clocks() -> dict[str, str]:
    """Clocks, temperature and power of the first GPU as nvidia-smi shows them now; empty without nvidia-smi."""
    return _query(CLOCKS)


def describe(device: torch.device) -> dict[str, Any]:
    """Device, driver, versions and flags, for a result file."""
    import fastdiff  # late: `benchmarks.stages` needs this module before the compiled part is built
    from fastdiff.ops import native

    info: dict[str, Any] = {
        "device": _device(device),
        "python": platform.python_version(),
        "fastdiff": fastdiff.__version__,
        "backends": native.explain(),
        "packages": {name: version for name in PACKAGES if (version := _version(name))},
        "flags": flags(),
    }
    if device.type == "cuda":
        info |= {"cuda": torch.version.cuda, "cudnn": torch.backends.cudnn.version(), "smi": _query("driver_version")}
        info["nvcc"] = _last_line(["nvcc", "--version"])
    return info


def flags() -> dict[str, Any]:
    """The precision and determinism flags everything was measured under."""
    return {
        "matmul_fp32_precision": torch.backends.cuda.matmul.fp32_precision,
        "conv_fp32_precision": torch.backends.cudnn.conv.fp32_precision,
        "cudnn_benchmark": torch.backends.cudnn.benchmark,
        "cudnn_deterministic": torch.backends.cudnn.deterministic,
        "autocast": torch.is_autocast_enabled("cuda"),
        "threads": torch.get_num_threads(),
    }


def slug(device: torch.device) -> str:
    """The device's name as a file name."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"
    return name.lower().replace(" ", "-").replace("/", "-")


def _device(device: torch.device) -> dict[str, Any]:
    if device.type != "cuda":
        return {"name": platform.processor() or platform.machine(), "type": device.type}
    p = torch.cuda.get_device_properties(device)
    memory, l2 = p.total_memory // 2**20, p.L2_cache_size // 2**20
    capability = f"{p.major}.{p.minor}"
    return {
        "name": p.name,
        "type": "cuda",
        "capability": capability,
        "sms": p.multi_processor_count,
        "memory_mib": memory,
        "l2_mib": l2,
    }


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _query(fields: str) -> dict[str, str]:
    line = _last_line(["nvidia-smi", "-i", "0", f"--query-gpu={fields}", "--format=csv,noheader"])
    return dict(zip(fields.split(","), map(str.strip, line.split(",")))) if line else {}


def _last_line(command: list[str]) -> str:
    """The last line a command prints; empty if there is no such command, or it fails."""
    if shutil.which(command[0]) is None:
        return ""
    done = subprocess.run(command, capture_output=True, text=True, timeout=20, check=False)
    lines = done.stdout.strip().splitlines()
    return lines[-1] if lines and done.returncode == 0 else ""


if __name__ == "__main__":
    print(json.dumps(describe(torch.device("cuda", torch.cuda.current_device()))))
