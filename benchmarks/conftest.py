"""One table for a whole run: benchmarks of a group are compared with the group's baselines."""

from __future__ import annotations

import pytest
import torch


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--device", default="cpu", help="device to measure on: cpu or cuda")


@pytest.fixture(scope="session")
def device(request: pytest.FixtureRequest) -> torch.device:
    return torch.device(request.config.getoption("--device"))


@pytest.fixture
def measure(benchmark, device):  # type: ignore[no-untyped-def]
    """measure(function, bytes_moved=None, threads=None): run with enough rounds, device synchronised in every call."""

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
                rounds = 200 if elements < 1 << 20 else 30
                benchmark.extra_info.update(elements=elements, bytes_per_element=bytes_per_element)
                benchmark.pedantic(call, rounds=rounds, iterations=10 if elements < 1 << 17 else 1, warmup_rounds=3)
        finally:
            torch.set_num_threads(before)

    return run
