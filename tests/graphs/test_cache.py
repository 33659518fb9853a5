"""Which graphs are kept and what they cost: LRU order, bounds, failures, stats, threads, nested calls."""

from __future__ import annotations

import gc
import math
import threading
import warnings

import pytest
import torch

from fastdiff import Sampler
from fastdiff.graphs import GraphedNetwork

from .conftest import SHAPE, counts, linear, quick

# --- keeping ---------------------------------------------------------------------------------------------------------


def test_the_least_recently_used_graph_goes_first(graphs):
    sampler = quick(graphs, max_graphs=2)
    for batch in (1, 2, 1, 3):  # 3 takes the place of 2
        sampler(batch, seeds=0)
    assert counts(sampler, "captures", "hits", "misses", "evictions", "graphs") == (3, 1, 3, 1, 2)
    sampler(1, seeds=0)
    sampler(3, seeds=0)
    assert counts(sampler, "captures", "hits") == (3, 3)
    sampler(2, seeds=0)  # takes the place of 1
    assert counts(sampler, "captures", "evictions") == (4, 2)
    sampler(3, seeds=0)
    sampler(1, seeds=0)
    assert counts(sampler, "captures", "hits", "graphs") == (5, 4, 2)


@pytest.mark.parametrize("scope", ["loop", "step"])
def test_interleaved_graphs_do_not_disturb_each_other(scope, graphs):
    sampler = graphs.sampler(graph=scope, S_churn=10.0)
    other = graphs.sampler(lambda x, t: 0.25 * x, graph=scope)
    eager = [s.replace(graph="off") for s in (sampler, other)]
    for seed in range(4):
        for batch in (2, 3):
            assert sampler(batch, seeds=seed).equal(eager[0](batch, seeds=seed))
        assert other(2, seeds=seed).equal(eager[1](2, seeds=seed))
        path, want = (s(2, seeds=seed, return_trajectory=True)[1] for s in (sampler, eager[0]))
        assert path.equal(want)
    assert counts(sampler, "captures", "hits") == (3, 9) and counts(other, "captures", "hits") == (1, 3)


def test_a_hundred_evictions_with_flat_memory(graphs):
    sampler, memory = quick(graphs, max_graphs=1, shape=(64,)), []
    for _ in range(51):
        for batch in (32, 64):
            sampler(batch, seeds=0)
        memory.append(graphs.machine.memory())
    assert counts(sampler, "captures", "evictions", "graphs") == (102, 101, 1)
    assert memory[-1] <= memory[1]
    if graphs.emulated:
        assert len(graphs.machine.graphs) == 1


def test_the_bytes_of_the_pool_are_bounded(emulated):
    small, large = 8, 512
    sampler = quick(emulated, shape=(1000,))
    sampler(large, seeds=0)
    needed = sampler.stats().bytes
    assert needed == emulated.machine.memory() > 4000 * large
    del sampler

    sampler = quick(emulated, shape=(1000,), max_graph_bytes=needed)
    eager = sampler.replace(graph="off")
    with warnings.catch_warnings():
        warnings.simplefilter("error", RuntimeWarning)
        for batch in (small, large, small, large):
            assert sampler(batch, seeds=0).equal(eager(batch, seeds=0))
            assert sampler.stats().bytes <= needed
    with pytest.warns(RuntimeWarning, match="max_graph_bytes"):
        x = sampler(2 * large, seeds=0)
    assert x.equal(eager(2 * large, seeds=0)) and emulated.machine.memory() <= needed
    assert sampler(small, seeds=3).equal(eager(small, seeds=3))


def test_a_sampler_that_goes_away_gives_its_graphs_back(graphs):
    for _ in range(3):
        sampler = quick(graphs)
        with warnings.catch_warnings():
            warnings.simplefilter("error", RuntimeWarning)
            sampler(2, seeds=0)
        assert counts(sampler, "captures") == (1,) and graphs.machine.memory() > 0
        del sampler
        gc.collect()
        assert graphs.machine.memory() == 0
        if graphs.emulated:
            log = graphs.machine
            assert log.graphs == [] and len(log.events("reset")) == len(log.events("capture"))


def test_nothing_is_freed_before_the_device_is_done(emulated):
    """Destroying a graph waits for its last replay: CUDA's reset does, so nothing else has to be in the log; but no
    reset may come in the middle of a capture."""
    sampler = quick(emulated, max_graphs=1)
    for batch in (1, 2, 3):
        sampler(batch, seeds=0)
    kinds = [kind for kind, _ in emulated.machine.events("capture", "reset", "replay")]
    assert kinds == ["capture", "replay"] + ["capture", "reset", "replay"] * 2


def test_a_warm_up_comes_before_every_capture(emulated):
    sampler = quick(emulated)
    sampler(2, seeds=0)
    sampler(2, seeds=1)
    kinds = [kind for kind, _ in emulated.machine.events("warm_up", "capture", "replay")]
    assert kinds[0] == "warm_up" and kinds[-3:] == ["capture", "replay", "replay"]
    assert set(kinds[:-3]) == {"warm_up"}


# --- auto ------------------------------------------------------------------------------------------------------------


def test_auto_captures_at_the_second_call_of_a_signature(graphs):
    sampler = quick(graphs, graph="auto")
    eager = sampler.replace(graph="off")
    for number, batch in enumerate((2, 3, 2, 2, 3), 1):
        assert sampler(batch, seeds=number).equal(eager(batch, seeds=number))
    assert counts(sampler, "captures", "misses", "hits") == (2, 4, 1)


def test_auto_takes_one_graph_a_step_for_long_loops(emulated, monkeypatch):
    from fastdiff.graphs import captured

    for most, graphs_kept in ((10**6, 1), (1, 2)):
        monkeypatch.setattr(captured, "MAX_LOOP_NODES", most)
        sampler = quick(emulated, graph="auto")
        eager = sampler.replace(graph="off")
        for seed in range(3):
            assert sampler(2, seeds=seed).equal(eager(2, seeds=seed))
        assert len(emulated.machine.graphs) == graphs_kept and counts(sampler, "captures") == (1,)
        del sampler, eager
        gc.collect()


def test_without_graphs_everything_is_eager():
    """A plain CPU: auto says nothing, and a graph that was asked for is refused in one line."""
    sampler = Sampler(linear, steps=2, shape=(3,), device="cpu")
    for _ in range(3):
        sampler(2, seeds=0)
    assert counts(sampler, "captures", "fallbacks", "graphs") == (0, 0, 0)
    with pytest.raises((ValueError, RuntimeError), match="graph"):
        Sampler(linear, steps=2, shape=(3,), device="cpu", graph="loop")
    with pytest.raises(ValueError, match="graph"):
        Sampler(linear, steps=2, shape=(3,), graph="sometimes")


# --- failures --------------------------------------------------------------------------------------------------------


def synchronises(x, t, labels=None):
    return 0.5 * x if t[0].item() > 1 else 0.4 * x


@pytest.mark.parametrize("scope", ["loop", "step", "auto"])
def test_a_failed_capture_falls_back_with_one_warning_and_is_not_retried(scope, graphs):
    sampler = quick(graphs, synchronises, graph=scope)
    eager = sampler.replace(graph="off")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for seed in range(4):
            assert sampler(2, seeds=seed).equal(eager(2, seeds=seed))
    (warning,) = [w for w in caught if issubclass(w.category, RuntimeWarning)]
    assert "not permitted when stream is capturing" in str(warning.message)
    assert warning.filename == __file__, "it points at the call"
    stats = sampler.stats()
    assert stats.captures == stats.hits == stats.graphs == 0 and stats.fallbacks >= 1 and len(stats.reasons) == 1
    if graphs.emulated:
        assert graphs.captures() == 1 and graphs.machine.memory() == 0


def test_a_capture_that_runs_out_of_memory_falls_back(emulated):
    sampler = quick(emulated)
    eager = sampler.replace(graph="off")
    emulated.machine.fail_next_capture = torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
    with pytest.warns(RuntimeWarning, match="out of memory"):
        assert sampler(2, seeds=0).equal(eager(2, seeds=0))
    assert sampler(2, seeds=1).equal(eager(2, seeds=1)), "not tried again"
    assert sampler(3, seeds=0).equal(eager(3, seeds=0)) and counts(sampler, "captures") == (1,)


def test_an_error_of_the_models_own_is_raised(graphs):
    def broken(x, t):
        raise KeyError("no such layer")

    sampler = quick(graphs, broken)
    for _ in range(2):
        with pytest.raises(KeyError, match="no such layer"):
            sampler(2, seeds=0)
    wrong = quick(graphs, lambda x, t: x[:, :1])
    with pytest.raises(ValueError, match="model must return"):
        wrong(2, seeds=0)


@pytest.mark.filterwarnings("error:.*:RuntimeWarning")
def test_one_failed_signature_leaves_the_others(graphs):
    def sometimes(x, t):
        return 0.5 * x if x.shape[0] > 2 or bool((t > 0).all()) else x

    sampler = quick(graphs, sometimes)
    eager = sampler.replace(graph="off")
    with pytest.warns(RuntimeWarning):
        sampler(2, seeds=0)
    for batch in (3, 2, 3):
        assert sampler(batch, seeds=1).equal(eager(batch, seeds=1))
    assert counts(sampler, "captures", "hits") == (1, 1)


@pytest.mark.filterwarnings("error:.*:RuntimeWarning")
def test_conditioning_of_any_kind(graphs):
    """Values that cannot be compared: the call is eager, or right, but never stale."""

    class Knob:
        def __init__(self, value):
            self.value = value

        def __eq__(self, other):
            return self.value == other.value

        __hash__ = None

    def model(x, t, knob):
        return knob.value * x

    sampler = quick(graphs, model)
    eager, knob = sampler.replace(graph="off"), Knob(0.5)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for value in (0.5, 0.25, 0.5):
            knob.value = value
            assert sampler(2, seeds=0, cond={"knob": knob}).equal(eager(2, seeds=0, cond={"knob": knob}))


def test_numbers_that_python_takes_for_equal(graphs):
    """1, 1.0 and True are equal, and so are 0.0 and -0.0."""

    def model(x, t, value):
        kind = {bool: 0.1, int: 0.2, float: 0.3}[type(value)]
        return x * (0.5 + kind + 0.2 * math.copysign(1.0, value))

    sampler = quick(graphs, model)
    eager = sampler.replace(graph="off")
    for value in (0.0, -0.0, 1, 1.0, True, -0.0, 0.0):
        assert sampler(2, seeds=0, cond={"value": value}).equal(eager(2, seeds=0, cond={"value": value})), value


def test_nan_in_cond_is_one_signature(graphs):
    """NaN is not equal to itself, but one graph is enough."""
    sampler = quick(graphs, lambda x, t, value: 0.5 * x if math.isnan(value) else value * x)
    for seed in range(3):
        sampler(2, seeds=seed, cond={"value": float("nan")})
    assert counts(sampler, "captures") == (1,)


# --- nested calls and threads ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("scope", ["loop", "step", "auto"])
def test_a_callback_may_sample_too(scope, graphs):
    sampler = quick(graphs, graph=scope)
    eager, inner = sampler.replace(graph="off"), []
    for _ in range(3):
        inner.clear()
        x = sampler(2, seeds=0, callback=lambda info: inner.append(sampler(2, seeds=5)))
        assert x.equal(eager(2, seeds=0)) and len(inner) == 2
        assert all(y.equal(eager(2, seeds=5)) for y in inner)
        assert sampler(2, seeds=5).equal(inner[0])


@pytest.mark.parametrize("scope", ["loop", "auto"])
def test_a_model_that_samples_itself(scope, graphs):
    """The inner run cannot be captured inside the outer one, nor replayed there."""
    inner = quick(graphs, graph=scope)
    inner(2, seeds=0)
    inner(2, seeds=0)

    def model(x, t):
        return 0.5 * x + 0.1 * inner(2, x_init=x.clone(), seeds=torch.arange(2, device=x.device))

    outer = quick(graphs, model, graph=scope, check=False)
    inner.check = False
    eager = outer.replace(graph="off")
    want = eager(2, seeds=0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        for _ in range(3):
            assert outer(2, seeds=0).equal(want)


@pytest.mark.parametrize("shared", [True, False], ids=["one sampler", "two samplers"])
def test_two_threads(shared, graphs):
    sampler = quick(graphs)
    samplers = [sampler, sampler if shared else quick(graphs)]
    eager, wrong = sampler.replace(graph="off"), []
    wanted = {(batch, seed): eager(batch, seeds=seed) for batch in (2, 3) for seed in range(40)}
    barrier = threading.Barrier(2)

    def work(sampler, seeds):
        barrier.wait()
        try:
            for seed in seeds:
                for batch in (2, 3):
                    if not sampler(batch, seeds=seed).equal(wanted[batch, seed]):
                        wrong.append((batch, seed))
        except BaseException as error:
            wrong.append(error)

    with warnings.catch_warnings():
        warnings.simplefilter("error", RuntimeWarning)
        threads = [
            threading.Thread(target=work, args=(s, seeds)) for s, seeds in zip(samplers, (range(20), range(20, 40)))
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
    assert not wrong and not any(thread.is_alive() for thread in threads)
    assert sum(s.stats().captures for s in set(samplers)) == (2 if shared else 4)


def test_streams_that_wait_for_each_other():
    """CUDA: results are right when calls come from different streams."""
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device is visible")
    sampler = Sampler(linear, steps=20, shape=(4096,), device="cuda", graph="loop")
    eager = sampler.replace(graph="off")
    want = [eager(64, seeds=seed) for seed in range(4)]
    streams, results = [torch.cuda.Stream() for _ in range(4)], []
    for seed, stream in enumerate(streams):
        with torch.cuda.stream(stream):
            results.append(sampler(64, seeds=seed))
    torch.cuda.synchronize()
    assert all(x.equal(y) for x, y in zip(results, want))


# --- numbers ---------------------------------------------------------------------------------------------------------


def test_stats_are_numbers_of_what_happened(graphs):
    sampler = graphs.sampler()
    empty = sampler.stats()
    assert (empty.hits, empty.captures, empty.graphs, empty.bytes, empty.milliseconds) == (0, 0, 0, 0, 0.0)
    for seed in range(3):
        sampler(2, seeds=seed)
    stats = sampler.stats()
    assert (stats.hits, stats.misses, stats.captures, stats.graphs) == (2, 1, 1, 1)
    assert (stats.evictions, stats.fallbacks, stats.padded, stats.reasons) == (0, 0, 0, [])
    assert stats.milliseconds > 0 and stats.bytes == graphs.machine.memory() > 0
    assert stats.nodes > sampler.plan().evaluations + len(sampler.plan().launches)
    assert empty.hits == 0, "a snapshot, not a view"
    assert graphs.sampler(graph="off").stats() == empty


def test_graphs_of_other_shapes_of_tensors(graphs):
    """The same batch with samples of other shapes, in one cache."""
    sampler = graphs.sampler(shape=None)
    eager = sampler.replace(graph="off")
    for size in ((2, *SHAPE), (2, 3, 8, 4), (2, 3, 4, 8), (2, *SHAPE)):
        assert sampler(size, seeds=0).equal(eager(size, seeds=0))
    assert counts(sampler, "captures", "hits") == (3, 1)


def test_one_network_alone(graphs):
    """`GraphedNetwork`, the floor that loops are measured against."""
    net, device = graphs.net().requires_grad_(False), graphs.device
    x, t, labels = (
        torch.zeros(2, *SHAPE, device=device),
        torch.ones(2, device=device),
        torch.zeros(2, device=device).long(),
    )
    network = GraphedNetwork(net, x, t, labels=labels)
    outputs = []
    for seed in range(3):
        x.normal_(generator=torch.Generator(device).manual_seed(seed))
        t.fill_(seed + 0.5)
        labels.fill_(seed)
        outputs.append((network(x, t, labels=labels), net(x, t, labels=labels)))
    assert all(a.equal(b) for a, b in outputs)
    assert network.replay().equal(outputs[-1][1])
    network.reset()
    assert graphs.machine.memory() == 0
