"""The emulator of CUDA graphs itself: bit-exact replays, and every mistake it is there to catch."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from fastdiff import ops

from .emulator import Emulator


@pytest.fixture
def emulator() -> Emulator:
    return Emulator("cpu")


def loop(x, net, steps=4):
    """An eager loop with a gradient inside."""
    for step in range(steps):
        with torch.enable_grad():
            leaf = x.detach().requires_grad_()
            gradient = torch.autograd.grad(net(leaf).square().sum(), leaf)[0]
        x = x + 0.1 * net(x) - 0.01 * (step + 1) * gradient
    return x.detach()


def test_a_replay_is_bit_equal_on_new_inputs(emulator):
    net = nn.Sequential(nn.Linear(5, 16), nn.SiLU(), nn.LayerNorm(16), nn.Linear(16, 5)).requires_grad_(False)
    x = torch.zeros(3, 5)
    graph, y = emulator.capture(lambda: loop(x, net))
    assert y.isnan().all(), "a capture computes nothing"
    for seed in range(3):
        x.copy_(torch.randn(3, 5, generator=torch.Generator().manual_seed(seed)))
        graph.replay()
        assert y.equal(loop(x, net))
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.mul_(1.5)
    graph.replay()
    assert y.equal(loop(x, net)), "weights changed in place are read by the graph"
    own = {x.data_ptr(), *(p.data_ptr() for p in net.parameters())}
    assert set(graph.external) == own and graph.written == []


def test_operators_of_fastdiff_and_convolutions(emulator):
    seeds, table = torch.arange(2), torch.tensor([[0.5, 2.0]])
    net = nn.Conv2d(3, 3, 3, padding=1).requires_grad_(False)

    def run(x):
        y = torch.empty(2, 3, 4, 4)
        torch.ops.fastdiff.combine_out(
            [net(x).relu_().contiguous(memory_format=torch.channels_last).contiguous()], table, None, seeds, [1], None,
            False, [y],
        )  # fmt: skip
        return y + ops.normal(seeds, y.shape, 3, backend="cpu")

    pytest.importorskip("fastdiff._C")
    x = torch.randn(2, 3, 4, 4)
    graph, y = emulator.capture(lambda: run(x))
    x.normal_()
    seeds += 7
    table *= -1.0
    graph.replay()
    assert y.equal(run(x))


def test_nodes_count_kernels(emulator):
    x = torch.ones(4, 4)
    graph, _ = emulator.capture(lambda: torch.empty(4).copy_((x.t()[0] * 2).view(2, 2).reshape(4)))
    assert graph.nodes == 2, "a product and a copy; views and allocations are none"


def test_a_stale_scalar_is_exposed(emulator):
    x, scale = torch.ones(2), {"value": 2.0}
    graph, y = emulator.capture(lambda: x * scale["value"])
    scale["value"] = 3.0
    graph.replay()
    assert y.tolist() == [2.0, 2.0]


MASK = torch.tensor([True, False])
REFUSED = {
    "if": lambda x: x + 1 if x.sum() > 0 else x,
    "item": lambda x: x.sum().item(),
    "float": lambda x: float(x[0]),
    "tolist": lambda x: x.tolist(),
    "numpy": lambda x: x.numpy(),
    "cpu": lambda x: x.cpu(),
    "tensor": lambda x: x + torch.tensor([1.0, 2.0]),
    "as_tensor": lambda x: x + torch.as_tensor(3.0),
    "list index": lambda x: x[[1, 0]],
    "nonzero": lambda x: x.nonzero(),
    "where": lambda x: torch.where(x > 0),
    "masked_select": lambda x: x.masked_select(MASK),
    "mask": lambda x: x[MASK],
    "mask assignment": lambda x: x.clone().index_put_((MASK,), torch.zeros(())),
    "unique": lambda x: x.unique(),
    "unique_consecutive": lambda x: x.unique_consecutive(),
    "equal": lambda x: x.equal(x + 1),
    "allclose": lambda x: torch.allclose(x, x),
    "repeat_interleave": lambda x: x.repeat_interleave(MASK.to(torch.int64)),
    "randperm": lambda x: x[torch.randperm(2)],
    "generator": lambda x: torch.randn(2, generator=torch.Generator()),
    "format": lambda x: f"{x.sum():.2f}",
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_a_capture_does_not_permit(name, emulator):
    x = torch.ones(2)
    MASK.to(torch.int64)
    with pytest.raises(RuntimeError, match="operation not permitted when stream is capturing: "):
        emulator.capture(lambda: REFUSED[name](x))
    graph, y = emulator.capture(lambda: x + 1)  # the next capture is not harmed
    graph.replay()
    assert y.tolist() == [2.0, 2.0]


@pytest.mark.parametrize(
    "function",
    [
        lambda x: x.masked_fill(x > 0, 0.0) + torch.where(x > 0, x, -x) + x[:, None].squeeze(1),
        lambda x: x.index_select(0, torch.arange(2)) + torch.full((), 3.0) + x.repeat_interleave(1),
        lambda x: x + torch.randn(2) * 0.0 + torch.zeros_like(x).bernoulli_(0.0),
    ],
)
def test_what_a_capture_permits(function, emulator):
    x = torch.ones(2)
    graph, y = emulator.capture(lambda: function(x))
    x.fill_(-3.0)
    graph.replay()
    assert y.equal(function(x))


def test_a_refusal_cannot_be_swallowed(emulator):
    def swallows():
        try:
            return torch.ones(1).item()
        except RuntimeError:
            return None

    with pytest.raises(RuntimeError, match="previous error during capture"):
        emulator.capture(swallows)


def test_each_replay_draws_anew_from_the_default_generator(emulator):
    torch.manual_seed(0)
    want = [torch.randn(2), torch.randn(2)]
    torch.manual_seed(0)
    graph, y = emulator.capture(lambda: torch.randn(2))
    for z in want:  # the capture drew nothing
        graph.replay()
        assert y.equal(z)


def test_a_capture_leaves_memory_outside_as_it_was(emulator):
    counter = torch.zeros(1)
    graph, _ = emulator.capture(lambda: counter.add_(1))
    assert counter.item() == 0 and graph.written == [counter.data_ptr()]
    graph.replay()
    graph.replay()
    assert counter.item() == 2


def test_an_uninitialised_read_shows(emulator):
    x = torch.ones(2)
    made = {}

    def reads_what_the_last_replay_left():
        buffer = made["buffer"] = torch.empty(4)
        buffer[:2] = x
        return buffer * 2

    graph, y = emulator.capture(reads_what_the_last_replay_left)
    graph.replay()
    assert y[:2].tolist() == [2.0, 2.0] and y[2:].isnan().all()
    made["buffer"].fill_(1.0)
    graph.replay()
    assert y[2:].isnan().all()


def test_memory_outside_is_not_kept_alive(emulator):
    weight = nn.Linear(2, 2).requires_grad_(False)
    x = torch.ones(1, 2)
    graph, _ = emulator.capture(lambda: weight(x))
    graph.replay()
    weight.double()
    with pytest.raises(RuntimeError, match="reads freed memory"):
        graph.replay()

    buffers = [torch.zeros(1, 2)]
    graph = emulator.capture(lambda: buffers[0].copy_(x))[0]
    buffers.clear()
    with pytest.raises(RuntimeError, match="writes freed memory"):
        graph.replay()


def test_shapes_and_views_of_freed_memory_are_no_reads(emulator):
    x, gone = torch.ones(2), [torch.ones(2)]

    def function():
        gone[0][:1].t()
        return torch.zeros_like(gone[0]) + torch.empty_like(gone[0]).copy_(x)

    graph, y = emulator.capture(function)
    gone.clear()
    graph.replay()
    assert y.tolist() == [1.0, 1.0] and graph.external == [x.data_ptr()]


def test_the_autocast_cache_is_outside_memory(emulator):
    """A weight cast in the warm-up and cached is freed when autocast ends."""
    net, x = nn.Linear(2, 2), torch.ones(1, 2)
    with torch.autocast("cpu", torch.bfloat16), torch.enable_grad():
        net(x)
        graph, _ = emulator.capture(lambda: net(x).detach())
    with pytest.raises(RuntimeError, match="reads freed memory"):
        graph.replay()


def test_autocast_is_not_applied_twice(emulator):
    net, x = nn.Linear(2, 2).requires_grad_(False), torch.randn(1, 2)

    def function():
        with torch.autocast("cpu", torch.bfloat16, cache_enabled=False):
            return net(x) + x.exp()

    graph, y = emulator.capture(function)
    with torch.autocast("cpu", torch.bfloat16):
        graph.replay()
    assert y.equal(function())


def test_results_die_when_another_graph_replays(emulator):
    x = torch.ones(2)
    a, y = emulator.capture(lambda: x + 1)
    b, z = emulator.capture(lambda: x + 2)
    a.replay()
    b.replay()
    assert z.tolist() == [3.0, 3.0] and y.tolist() == [2.0, 2.0], "in the order of capture, while held"
    copy = z.clone()
    a.replay()
    assert z.isnan().all() and copy.tolist() == [3.0, 3.0]
    other, w = Emulator("cpu").capture(lambda: x + 3)
    other.replay()
    assert y.tolist() == [2.0, 2.0] and w.tolist() == [4.0, 4.0], "another device, another pool"


def test_a_chain_of_graphs_reads_older_results(emulator):
    """As in step scope: state is dropped while the next step is captured; replays come in the order of captures."""
    x, slots = torch.ones(2), {}

    def step(read, write, drop):
        slots[write] = sum(slots[name] for name in read) + x
        slots.pop(drop, None)

    plan = [([], "a", ""), (["a"], "b", ""), (["b", "a"], "c", "a"), (["c", "b"], "d", "b")]
    chain = [emulator.capture(lambda item=item: step(*item))[0] for item in plan]
    later, _ = emulator.capture(lambda: x * 5)
    for value in (1.0, 2.0):
        x.fill_(value)
        for graph in chain:
            graph.replay()
        assert slots["d"].tolist() == [7 * value] * 2
        later.replay()
    chain[0].replay()
    later.replay()
    chain[1].replay()
    assert slots.keys() == {"c", "d"}
    chain[2].replay()
    assert slots["c"].isnan().all(), "another graph came between"
    chain[1].reset()
    with pytest.raises(RuntimeError, match="reads freed memory"):
        chain[2].replay()


def test_one_capture_at_a_time(emulator):
    with pytest.raises(RuntimeError, match="already under way"):
        emulator.capture(lambda: Emulator("cpu").capture(lambda: None))
    graph, _ = emulator.capture(lambda: torch.ones(1))
    for function in (graph.replay, graph.reset, emulator.synchronize, lambda: emulator.warm_up(int)):
        with pytest.raises(RuntimeError, match="not permitted when stream is capturing"):
            emulator.capture(function)


def test_branches(emulator):
    x = torch.ones(2)

    def function():
        with emulator.branch() as branch:
            gradient = x * 3
        y = x + 1
        branch.join()
        return y + gradient

    graph, y = emulator.capture(function)
    x.fill_(2.0)
    graph.replay()
    assert y.tolist() == [9.0, 9.0]
    assert emulator.warm_up(function).tolist() == [9.0, 9.0]
    assert [kind for kind, _ in emulator.log] == ["capture", "branch", "join", "replay", "warm_up", "branch", "join"]


def test_races_with_a_branch(emulator):
    x = torch.ones(2)

    def not_joined():
        with emulator.branch():
            return x * 3

    def reads_too_early():
        with emulator.branch() as branch:
            gradient = x * 3
        y = x + gradient
        branch.join()
        return y

    def overwrites():
        with emulator.branch() as branch:
            gradient = x * 3
        x.add_(1)
        branch.join()
        return gradient

    def frees():
        temporary = x + 1
        with emulator.branch() as branch:
            gradient = temporary * 3
        del temporary
        y = x + 1
        branch.join()
        return y + gradient

    with pytest.raises(RuntimeError, match="unjoined work"):
        emulator.capture(not_joined)
    for function in (reads_too_early, overwrites, frees):
        with pytest.raises(RuntimeError, match="race: "):
            emulator.capture(function)


def test_memory_behaves_like_a_shared_pool(emulator):
    x = torch.ones(1000)
    assert emulator.memory() == 0
    a, _ = emulator.capture(lambda: x.copy_((x * 2) + 1))
    one = emulator.memory()
    assert one >= 2 * 4000
    b, _ = emulator.capture(lambda: x.copy_((x * 2) + 1))
    assert emulator.memory() == one, "temporaries are shared"
    c, result = emulator.capture(lambda: x + 1)
    assert emulator.memory() == one + result.nbytes
    for graph in (b, c):
        graph.reset()
    assert emulator.memory() == one + result.nbytes, "the pool keeps what it has"
    a.reset()
    a.reset()
    assert emulator.memory() == 0
    for _ in range(20):
        graph, _ = emulator.capture(lambda: x + 1)
        del graph
    assert emulator.memory() == 0
    with pytest.raises(RuntimeError, match="was reset"):
        a.replay()


def test_failure_on_demand(emulator):
    emulator.fail_next_capture = MemoryError("no memory")
    with pytest.raises(MemoryError, match="no memory"):
        emulator.capture(lambda: torch.ones(1))
    graph, y = emulator.capture(lambda: torch.ones(1))
    graph.replay()
    assert y.item() == 1.0 and emulator.memory() > 0
