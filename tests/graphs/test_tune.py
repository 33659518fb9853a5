"""Choosing how to run: what is measured, what is kept, and when nothing is gained."""

from __future__ import annotations

import pytest
import torch

from fastdiff import Sampler, tune

GRAPHS = {"eager", "compile", "network graph", "loop graph", "compile + loop graph"}


@pytest.fixture
def cheap_compile(monkeypatch):
    """torch.compile without its compiler."""
    monkeypatch.setattr(torch, "compile", lambda model, **_: lambda *a, **k: model(*a, **k))


def fixed_times(monkeypatch, times):
    """Every variant takes the time given here, after it was really run."""

    def milliseconds(variants, size, seconds, arguments):
        return {
            name: times.get(name, 10.0) for name, variant in variants.items() if variant(size, **arguments) is not None
        }

    monkeypatch.setattr(tune, "_milliseconds", milliseconds)


@pytest.mark.parametrize("best", sorted(GRAPHS - {"eager"}))
def test_the_fastest_is_kept_for_that_shape(best, graphs, monkeypatch, cheap_compile):
    fixed_times(monkeypatch, {best: 4.0})
    sampler = graphs.sampler(graph="auto")
    want = sampler(2, seeds=5)
    found = sampler.tune(2, seeds=0)
    assert found.choice == best and found.milliseconds[best] == 4.0 and set(found.milliseconds) == GRAPHS
    assert "2.50 times" in found.message and not found.failed
    torch.testing.assert_close(sampler(2, seeds=5), want, rtol=1e-5, atol=1e-5)
    states = sampler(2, seeds=5, return_trajectory=True)[1]
    torch.testing.assert_close(states[-1], want, rtol=1e-5, atol=1e-5)
    before = sampler.stats().captures
    sampler(3, seeds=5)  # of another shape nothing is known
    assert sampler.stats().captures == before


def test_no_gain_is_said(graphs, monkeypatch, cheap_compile):
    fixed_times(monkeypatch, {"loop graph": 9.8})
    found = graphs.sampler().tune(2)
    assert found.choice == "eager" and "no gain expected" in found.message


def test_a_network_that_cannot_be_captured(graphs, monkeypatch, cheap_compile):
    fixed_times(monkeypatch, {"eager": 5.0, "compile": 4.0})
    net = graphs.net()
    found = graphs.sampler(lambda x, t: net(x, t) * float(x.mean() < 1e9)).tune(2)
    assert found.choice == "compile" and set(found.failed) == {"network graph", "loop graph", "compile + loop graph"}


def test_another_model_forgets_the_choice(graphs, monkeypatch, cheap_compile):
    fixed_times(monkeypatch, {"network graph": 1.0})
    sampler = graphs.sampler()
    before = sampler(2, seeds=1)
    sampler.tune(2)
    net = sampler.model
    sampler.model = lambda x, t: net(x, t) + 1.0
    assert not sampler(2, seeds=1).equal(before)


def test_the_graph_of_a_network_follows_its_weights(graphs, monkeypatch, cheap_compile):
    """In place they are read anew; weights that moved make it call the network."""
    fixed_times(monkeypatch, {"network graph": 1.0})
    sampler = graphs.sampler()
    sampler.tune(2)
    for change in (
        lambda net: net.last.weight.mul_(0.5),
        lambda net: setattr(net.last, "weight", torch.nn.Parameter(-net.last.weight)),
    ):
        with torch.no_grad():
            change(sampler.model)
        assert sampler(2, seeds=1).equal(sampler.replace(graph="off")(2, seeds=1))


def test_where_there_are_no_graphs(cheap_compile):
    sampler = Sampler(lambda x, t: 0.5 * x, steps=3, shape=(4,))
    found = sampler.tune(2, seconds=0.01)
    assert set(found.milliseconds) == {"eager", "compile"} and found.milliseconds["eager"] > 0
    with pytest.raises(ValueError, match="graph='loop' needs a device that has graphs"):
        sampler.replace(graph="loop")
    with pytest.raises(ValueError, match="graph must not be 'off' to capture"):
        sampler.capture([1])
