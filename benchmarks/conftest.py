"""One table for a whole run: benchmarks of a group are compared with the group's baselines."""

from __future__ import annotations

import time

import pytest
import torch

SECONDS = 0.4  # spent on each benchmark


@pytest.fixture
def measure(benchmark):  # type: ignore[no-untyped-def]
    """measure(function, elements, bytes_per_element, threads): in enough rounds."""

    def run(function, elements, bytes_per_element=None, threads=None):  # type: ignore[no-untyped-def]
        before = torch.get_num_threads()
        if threads is not None:
            torch.set_num_threads(threads)

        try:
            with torch.no_grad():
                for _ in range(4):
                    start = time.perf_counter()
                    function()
                    once = time.perf_counter() - start
                    if once > SECONDS:
                        break
                iterations = max(1, min(1000, int(2e-4 / once)))
                rounds = max(3 if once > SECONDS else 10, min(300, int(SECONDS / (once * iterations))))
                benchmark.extra_info.update(elements=elements, bytes_per_element=bytes_per_element)
                benchmark.pedantic(function, rounds=rounds, iterations=iterations)
        finally:
            torch.set_num_threads(before)

    return run
