"""`python -m fastdiff.cli`, for launchers that start a module: `torchrun --nproc-per-node 2 -m fastdiff.cli train`."""

from . import main

main(prog_name="fastdiff")
