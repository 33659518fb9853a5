"""One table for a whole run: benchmarks of a group are compared with the group's baselines."""

from __future__ import annotations

import time

import pytest
import torch

SECONDS = 0.4  # spent on each benchmark


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--device", default="cpu", help="device to measure on: cpu or cuda")


@pytest.fixture(scope="session")
def device(request: pytest.FixtureRequest) -> torch.device:
    return torch.device(request.config.getoption("--device"))


@pytest.fixture
def measure(benchmark, device):  # type: ignore[no-untyped-def]
    """measure(function, elements, bytes_per_element, threads): enough rounds, the device synchronised in every call."""

    def run(function, elements, bytes_per_element=None, threads=None):  # type: ignore[no-untyped-def]
        before = torch.get_num_threads()
        if threads is not None:
            torch.set_num_threads(threads)

        def call() -> None:
            function()
            if device.type == "cuda":
                torch.cuda.synchronize(device)

        try:
            with torch.no_grad():
                for _ in range(3):
                    call()
                start = time.perf_counter()
                call()
                once = time.perf_counter() - start
                iterations = max(1, min(1000, int(2e-4 / once)))
                rounds = max(10, min(300, int(SECONDS / (once * iterations))))
                benchmark.extra_info.update(elements=elements, bytes_per_element=bytes_per_element)
                benchmark.pedantic(call, rounds=rounds, iterations=iterations)
        finally:
            torch.set_num_threads(before)

    return run
