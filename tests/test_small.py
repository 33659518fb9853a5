"""The short way of small states: the operator's bits without the operator, and everything else left to it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from fastdiff import VP, Sampler, executor
from fastdiff.ops import native
from tests.solvers.every import PLANNED, network, short_run

_host = pytest.importorskip("fastdiff._host")

pytestmark = [
    pytest.mark.skipif(not native.available("cpu"), reason="the C++ backend is not built"),
    pytest.mark.skipif(not hasattr(torch.Tensor, "__dlpack_c_exchange_api__"), reason="PyTorch lends no tensors to C"),
]


@pytest.fixture
def ways(monkeypatch: pytest.MonkeyPatch) -> dict[str, int]:
    """How many launches took which way."""
    counts = {"short": 0, "refused": 0, "operator": 0}
    prepare, operation = native.small_launch, native.operation

    class Counted:
        def __init__(self, launch: Any):
            self._launch = launch

        def then(self, following: Counted) -> None:
            self._launch.then(following._launch)

        def run(self, slots: list[Any], seeds: Tensor) -> int:
            done = self._launch.run(slots, seeds)
            counts["short"] += done
            counts["refused"] += not done
            return done

    def small_launch(*arguments: Any) -> Counted | None:
        launch = prepare(*arguments)
        return launch and Counted(launch)

    def counting(name: str, backend: str) -> Callable[..., Any]:
        def counted(*arguments: Any) -> Any:
            counts["operator"] += 1
            return operation(name, backend)(*arguments)

        return counted

    monkeypatch.setattr(native, "small_launch", small_launch)
    monkeypatch.setattr(native, "operation", counting)
    return counts


def run(sampler: Sampler, shape: tuple[int, ...] = (3, 2, 7), **arguments: Any) -> Tensor:
    return sampler(shape, seeds=11, **arguments)


def by_operator(sampler: Sampler, monkeypatch: pytest.MonkeyPatch, *arguments: Any, **named: Any) -> Tensor:
    with monkeypatch.context() as patch:
        patch.setattr(native, "unobserved", lambda: False)
        return run(sampler, *arguments, **named)


@pytest.mark.parametrize("name", PLANNED)
@pytest.mark.parametrize(
    "kinds", [(torch.float64, torch.float64), (torch.float32, torch.bfloat16)], ids=["f64", "bf16"]
)
def test_every_solver_has_the_operators_bits(name, kinds, ways, monkeypatch):
    dtype, model_dtype = kinds
    sampler = short_run(name, backend="cpu").replace(dtype=dtype, model_dtype=model_dtype, check=False)
    given = {"x_init": torch.linspace(-1, 1, 42).reshape(3, 2, 7)} if name == "ddim_inversion" else {}
    expected = by_operator(sampler, monkeypatch, **given)
    assert ways["short"] == 0 < ways["operator"]
    assert torch.equal(run(sampler, **given), expected)
    assert ways["short"] > 0
    assert ways["refused"] == 0


@pytest.mark.parametrize("shape", [(1, 2), (5, 3), (2, 3, 5), (1, 4099), (7, 1, 1, 33), (2, 4096)])
@pytest.mark.parametrize("options", [{"solver": "heun", "S_churn": 9.0}, {"solver": "ddim", "eta": 0.5}], ids=str)
def test_sizes(shape, options, ways, monkeypatch):
    sampler = Sampler(network, steps=4, backend="cpu", clip_denoised=True, **options)
    x = torch.linspace(-9, 9, torch.Size(shape).numel()).reshape(shape)
    expected = by_operator(sampler, monkeypatch, shape, x_init=x)
    launched = ways["operator"]
    assert torch.equal(run(sampler, shape, x_init=x), expected)
    assert ways == {"short": launched, "refused": 0, "operator": launched}


@pytest.mark.parametrize("shape", [(4,), (0, 5), (3, 1), (5, 8192)])
def test_left_to_the_operator(shape, ways):
    sampler = Sampler(network, solver="euler_ancestral", steps=3, backend="cpu")
    assert run(sampler, shape).shape == shape
    assert ways["short"] == 0 < ways["operator"]


class _Kind(Tensor):
    """A subclass that does what a tensor does."""


@pytest.mark.parametrize(
    ("change", "refused"),
    [
        (lambda y: y.transpose(1, 2).contiguous().transpose(1, 2), True),
        (lambda y: y.as_subclass(_Kind), True),
        (lambda y: torch.complex(y, -y).conj().imag, True),
        (lambda y: y[:, :, :1].expand(y.shape), True),
        (lambda y: torch.cat([y, y])[:3], False),
        (lambda y: torch.cat([y, y], 1)[:, :2], False),
        (lambda y: y[:1].expand(3, -1, -1), False),
        (lambda y: y.half(), False),
        (lambda y: y.bfloat16(), False),
        (lambda y: y.double(), False),
        (lambda y: y.detach().requires_grad_(), False),
    ],
)
def test_outputs_of_a_network(change, refused, ways, monkeypatch):
    sampler = Sampler(lambda x, t: change(network(x, t)), steps=3, solver="dpmpp_2m", backend="cpu")
    expected = by_operator(sampler, monkeypatch)
    assert torch.equal(run(sampler), expected)
    assert (ways["refused"] > 0) == refused
    assert ways["short"] > 0


def test_who_observes_operators_sees_them(ways):
    sampler = Sampler(network, steps=3, backend="cpu")
    expected = run(sampler)
    short = dict(ways)
    with FlopCounterMode(display=False):
        assert torch.equal(run(sampler), expected)
    with torch.inference_mode():
        assert torch.equal(run(sampler), expected)
    with torch.autograd.profiler.profile() as profile:
        assert torch.equal(run(sampler), expected)
    assert ways["short"] == short["short"]
    assert "fastdiff::combine_out" in {event.name for event in profile.function_events}


def test_learned_variance_and_given_noise(ways, monkeypatch):
    def both(x: Tensor, t: Tensor) -> Tensor:
        return torch.cat([0.1 * x, x.tanh()], 1)

    learned = {"process": VP.linear(100), "prediction": "eps", "solver": "ddpm", "variance": "learned_range"}
    sampler = Sampler(both, steps=5, backend="cpu", **learned)
    assert torch.equal(run(sampler), by_operator(sampler, monkeypatch))
    noise = lambda draw, step: torch.full((3, 2, 7), 0.1 * draw)  # noqa: E731
    given = Sampler(network, solver="euler_ancestral", steps=5, backend="cpu")
    before = ways["short"]
    assert torch.equal(run(given, noise=noise), by_operator(given, monkeypatch, noise=noise))
    assert ways["short"] > before


def test_a_network_that_writes_to_its_time():
    def careless(x: Tensor, t: Tensor) -> Tensor:
        return x * t.mul_(0.5).reshape(-1, 1, 1).sin()

    for batch in (1, 3):
        sampler = Sampler(careless, steps=4, backend="cpu")
        first = run(sampler, (batch, 2, 7))
        assert torch.equal(run(sampler, (batch, 2, 7)), first)


@pytest.mark.parametrize("kept", [1, 10**6])
def test_batches_that_change(kept, ways, monkeypatch):
    monkeypatch.setattr(executor, "KEPT", kept)
    sampler = Sampler(network, steps=4, backend="cpu")
    whole = run(sampler, (4, 2, 7))
    for batch in (1, 3, 1, 2, 3):
        assert torch.equal(run(sampler, (batch, 2, 7)), whole[:batch])
    (one,) = sampler.compiled_runs.values()
    assert len(one._ways) == len(one._batches) == (1 if kept == 1 else 4)
    assert ways["operator"] == 0 < ways["short"]


def test_states_of_a_run_are_nobody_elses():
    seen: list[Tensor] = []
    sampler = Sampler(lambda x, t: seen.append(x) or network(x, t), steps=5, backend="cpu")  # type: ignore[func-returns-value]
    run(sampler)
    copies = [x.clone() for x in seen]
    sampler((3, 2, 7), seeds=99)
    assert all(torch.equal(x, copy) for x, copy in zip(seen, copies))
    assert len({x.data_ptr() for x in seen}) == len(seen) and all(x.is_contiguous() for x in seen)


@pytest.mark.parametrize(
    ("change", "error"),
    [
        ({"inputs": [-1]}, None),
        ({"inputs": [7]}, None),
        ({"inputs": [0] * 9}, ValueError),
        ({"outputs": [1, 2]}, ValueError),
        ({"table": torch.ones(1, 2)}, ValueError),
        ({"table": torch.ones(1, 1, dtype=torch.int32)}, ValueError),
        ({"table": [1.0]}, AttributeError),
    ],
)
def test_launches_that_cannot_be(change, error):
    arguments = {"table": torch.ones(1, 1), "inputs": [0], "draws": [], "like": [torch.empty(2, 3)], "outputs": [1]}
    given = {**arguments, "clip": False, "make": torch.empty_like}
    slots = [torch.arange(6.0).reshape(2, 3), None]
    assert _host.SmallLaunch(**given).run(slots, torch.zeros(2, dtype=torch.int64)) == 1
    assert torch.equal(slots[1], slots[0])
    if error is None:
        assert not _host.SmallLaunch(**{**given, **change}).run(slots, torch.zeros(2, dtype=torch.int64))
    else:
        with pytest.raises(error):
            _host.SmallLaunch(**{**given, **change})


def small(**change: Any) -> Any:
    given = {"inputs": [0], "draws": [], "like": [torch.empty(2, 3)], "outputs": [1], "clip": False}
    return _host.SmallLaunch(**{**given, "make": torch.empty_like, **change})


def test_rows_and_measurements_are_lists():
    x, seeds = torch.arange(6.0).reshape(2, 3), torch.zeros(2, dtype=torch.int64)
    table = torch.tensor([[2.0], [3.0], [-1.0]])
    chosen, measured = small(table=table, rows=2), small(table=table, rows=2, measured=True)
    slots: list[Any] = [x, None, [2, 1]]
    assert chosen.run(slots, seeds) == 1 and torch.equal(slots[1], x * torch.tensor([[-1.0], [3.0]]))
    slots[2] = [[0.5, 1.0], [2.0, 4.0]]
    assert measured.run(slots, seeds) == 1
    assert torch.equal(slots[1], x * torch.tensor([[2 + 1.5 - 2], [2 + 3.0 - 4]]))
    for launch, wrong in (
        (chosen, [[2, 3], [-1, 0], [1], ["a", 0], [1.5, 0], None, torch.tensor([2, 1])]),
        (measured, [[[0.5, 1.0]], [[0.5], [2.0]], [[0.5, 1.0], [2.0, "a"]], [0.5, 1.0], None, torch.ones(2, 2)]),
    ):
        for rows in wrong:
            slots[1:] = [None, rows]
            assert launch.run(slots, seeds) == 0 and slots[1] is None
    with pytest.raises(ValueError, match="table must be"):
        small(table=torch.ones(3, 2)[:, :1])


def test_sums_of_squares_are_the_operators(monkeypatch):
    for shape in ((2, 3), (3, 5000), (1, 4096)):
        x, seeds = torch.randn(shape, generator=torch.Generator().manual_seed(0)), torch.arange(shape[0])
        table = torch.tensor([[0.7, -0.3]])
        slots: list[Any] = [x, None]
        assert small(table=table, draws=[3], like=[x], squares=True).run(slots, seeds) == 1
        assert slots[1] == torch.ops.fastdiff.sum_squares([x], table, None, seeds, [3]).tolist()


def test_launches_that_follow_at_once_stop_where_the_operator_must_see_to_one():
    first, second = small(table=torch.full((1, 1), 2.0)), small(table=torch.full((1, 1), 3.0), inputs=[2], outputs=[3])
    first.then(second)
    x, seeds = torch.ones(2, 3), torch.zeros(2, dtype=torch.int64)
    slots: list[Any] = [x, None, x.double(), None]
    assert first.run(slots, seeds) == 1 and slots[1].unique().tolist() == [2.0] and slots[3] is None
    slots[2] = x
    assert first.run(slots, seeds) == 2 and slots[3].unique().tolist() == [3.0]
