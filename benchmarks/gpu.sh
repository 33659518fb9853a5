#!/usr/bin/env bash
# On a machine with an NVIDIA GPU, nvcc and a CUDA build of torch in the current Python: build for the GPU that is
# there, run the CUDA tests, compute-sanitizer if it is there, and the benchmarks -> benchmarks/results/GPU.json.
#
# NOT YET RUN: the CUDA backend was written and compiled where there is no GPU. Its arithmetic was run on the host
# (tests/test_cuda_build.py); its launches were not. Trust its speed and its launch code only after this script passed.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
python=${PYTHON:-python3}

"$python" -c 'import torch; assert torch.cuda.is_available(), "torch sees no GPU"'
TORCH_CUDA_ARCH_LIST=$("$python" -c 'import torch; print("{}.{}".format(*torch.cuda.get_device_capability()))')
name=$("$python" -c 'import torch; print(torch.cuda.get_device_name().lower().replace(" ", "-").replace("/", "-"))')
export TORCH_CUDA_ARCH_LIST FASTDIFF_BUILD=cuda
"$python" setup.py -q build_ext --inplace
"$python" -m fastdiff

"$python" -m pytest -m cuda
if command -v compute-sanitizer >/dev/null; then
  for tool in memcheck racecheck initcheck; do
    compute-sanitizer --tool "$tool" --error-exitcode 1 "$python" -m pytest -q -m cuda tests/ops
  done
else
  echo "compute-sanitizer is not on PATH: memory accesses were not checked"
fi

mkdir -p benchmarks/results
"$python" -m benchmarks --device cuda --out "benchmarks/results/$name.json"
