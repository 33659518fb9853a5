#!/usr/bin/env bash
# On a machine with an NVIDIA GPU, nvcc and a CUDA build of torch in the current Python (PYTHON=...): build for the GPU
# that is there, run the GPU tests, compute-sanitizer and the benchmarks -> benchmarks/results/GPU.json. Nine minutes;
# nothing is installed, fetched or set. Arguments: see `--help`; what it does not know goes to `benchmarks.matrix`.
#
#   benchmarks/gpu.sh --stages build,operators,graphs
#   benchmarks/gpu.sh --stages benchmarks --seconds 300 --only mlp
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
exec </dev/null
python=${PYTHON:-python3}

"$python" - <<'CHECK' || exit 1
import importlib.util, os, shutil, sys

def stop(reason):
    sys.exit(f"benchmarks/gpu.sh: {reason}")

if importlib.util.find_spec("torch") is None:
    stop(f"{sys.executable} has no torch; name a Python that has one: PYTHON=... benchmarks/gpu.sh")
import torch

if torch.version.cuda is None:
    stop(f"torch {torch.__version__} of {sys.executable} is no CUDA build")
if not torch.cuda.is_available():
    stop(f"torch {torch.__version__} sees no GPU")
home = os.environ.get("CUDA_HOME", "/usr/local/cuda")
if not (shutil.which("nvcc") or os.path.exists(os.path.join(home, "bin", "nvcc"))):
    stop(f"there is no nvcc on PATH, and none in {home}/bin")
if importlib.util.find_spec("pytest") is None:
    stop(f"{sys.executable} has no pytest")
CHECK

exec "$python" -m benchmarks.stages "$@"
