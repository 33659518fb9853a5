"""What a run depends on beyond its own arguments and weights: found, or the run is eager; never stale."""

from __future__ import annotations

import copy
import threading
import warnings

import pytest
import torch
from torch import nn

from fastdiff.graphs import GraphedNetwork

from .conftest import SHAPE, counts, linear, quick

pytestmark = pytest.mark.filterwarnings("error:.*:RuntimeWarning")


class Plain:
    """No module, but keeps one."""

    def __init__(self, device):
        self.net = nn.Linear(3, 3).to(device)

    def act(self, x, t, **cond):
        return self.net(x)


class Holder(nn.Module):
    def __init__(self, device):
        super().__init__()
        self.plain, self.act = Plain(device), nn.Tanh()

    def forward(self, x, t):
        return self.act(self.plain.net(x))


def doubled(net):
    net.weight.data = 2 * net.weight.data


def same_as_eager(sampler, seeds=0, **arguments):
    return sampler(2, seeds=seeds, **arguments).equal(sampler.replace(graph="off")(2, seeds=seeds, **arguments))


CHANGES = {
    "weights": lambda holder: doubled(holder.plain.net),
    "a layer": lambda holder: setattr(holder, "act", nn.ReLU()),
    "forward": lambda holder: setattr(holder, "forward", lambda x, t: 0.5 * x),
}


@pytest.mark.parametrize("name", CHANGES)
def test_what_a_module_keeps(name, graphs):
    holder = Holder(graphs.device)
    sampler = quick(graphs, holder)
    assert same_as_eager(sampler)
    CHANGES[name](holder)
    assert same_as_eager(sampler) and counts(sampler, "captures") == (2,)


def test_a_method_of_a_plain_object(graphs):
    plain = Plain(graphs.device)
    sampler = quick(graphs, plain.act)
    assert same_as_eager(sampler)
    doubled(plain.net)
    assert same_as_eager(sampler) and counts(sampler, "captures") == (2,)


class Agent:
    """Its network is behind a decorator, a method, a function and a property; what lies beside it does not count."""

    def __init__(self, device):
        self._net, self.seen = nn.Linear(3, 3).to(device), []

    @property
    def net(self):
        return self._net

    def denoise(self, x):
        return next(network_of(self)(part) for part in (x,))

    @torch.no_grad()
    def model(self, x, t):
        return self.denoise(x)

    def __call__(self, x, t):
        return getattr(self, "_net")(x)  # noqa: B009


def network_of(agent):
    return agent.net


@pytest.mark.parametrize("kind", ["method", "call"])
def test_an_agent_that_keeps_its_actions(kind, graphs):
    agent = Agent(graphs.device)
    sampler = quick(graphs, agent.model if kind == "method" else agent)
    for seed in range(3):
        agent.seen.append(sampler(2, seeds=seed))
        agent.last = agent.seen[-1]
    assert same_as_eager(sampler) and counts(sampler, "captures", "hits") == (1, 3)
    doubled(agent.net)
    assert same_as_eager(sampler) and counts(sampler, "captures") == (2,)


class Slotted:
    __slots__ = ("net",)

    def __init__(self, net):
        self.net = net

    def __call__(self, x, t):
        return self.net(x)


@pytest.mark.parametrize("kind", ["slots", "hook"])
def test_weights_in_slots_and_behind_hooks(kind, graphs):
    net = nn.Linear(3, 3).to(graphs.device)
    holder = Holder(graphs.device)
    holder.act.register_forward_hook(lambda module, inputs, output: net(output))
    sampler = quick(graphs, Slotted(net) if kind == "slots" else holder)
    assert same_as_eager(sampler)
    doubled(net)
    assert same_as_eager(sampler) and counts(sampler, "captures") == (2,)


def test_a_module_in_cond(graphs):
    net = nn.Linear(3, 3).to(graphs.device)
    sampler = quick(graphs, lambda x, t, net: net(x))
    for _ in range(2):
        assert same_as_eager(sampler, cond={"net": net})
    doubled(net)
    assert same_as_eager(sampler, cond={"net": net}) and counts(sampler, "captures", "hits") == (2, 1)


def test_an_object_in_cond_whose_attributes_may_change(graphs):
    plain = Plain(graphs.device)
    sampler = quick(graphs, lambda x, t, plain: plain.scale * x)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for plain.scale in (0.5, 0.25):
            assert same_as_eager(sampler, cond={"plain": plain})


@pytest.mark.parametrize("where", ["cond", "weights"])
def test_sparse_tensors_run_eagerly(where, graphs):
    class Mixed(nn.Module):
        def __init__(self):
            super().__init__()
            self.register_buffer("mix", torch.eye(3, device=graphs.device).to_sparse())

        def forward(self, x, t, mix=None):
            return 0.5 * torch.sparse.mm(self.mix if mix is None else mix, x.T).T

    model = Mixed()
    sampler = quick(graphs, model if where == "weights" else lambda x, t, mix: 0.5 * torch.sparse.mm(mix, x.T).T)
    with pytest.warns(RuntimeWarning, match="cannot be watched|layout"):
        assert same_as_eager(sampler, cond=None if where == "weights" else {"mix": model.mix})
    assert counts(sampler, "captures", "misses", "fallbacks") == (0, 1, 1)


def test_weights_made_of_several_tensors(graphs):
    two_tensor = pytest.importorskip("torch.testing._internal.two_tensor").TwoTensor

    class Quantized(nn.Module):
        def __init__(self):
            super().__init__()
            self.load()

        def load(self):
            parts = [torch.randn(3, 3, device=graphs.device) for _ in range(2)]
            self.weight = nn.Parameter(two_tensor(*parts), requires_grad=False)

        def forward(self, x, t):
            return 0.5 * x @ self.weight.a

    model = Quantized()
    sampler = quick(graphs, model)
    assert same_as_eager(sampler) and same_as_eager(sampler) and counts(sampler, "captures", "hits") == (1, 1)
    model.load()
    assert same_as_eager(sampler) and counts(sampler, "captures") == (2,)


@pytest.mark.parametrize("graph", ["loop", "auto"])
def test_a_model_that_keeps_what_it_computes(graph, graphs):
    """Every call would need a graph of its own."""

    class Watched(nn.Module):
        def forward(self, x, t):
            self.seen = 0.5 * x
            return self.seen.clone()

    sampler, kept = quick(graphs, Watched(), graph=graph), []
    with pytest.warns(RuntimeWarning, match="keeps what it computes"):
        for seed in range(9):
            assert same_as_eager(sampler, seed)
            kept.append(sampler.model.seen)  # so that nothing else takes its place
    assert counts(sampler, "captures")[0] <= 5 and counts(sampler, "fallbacks")[0] >= 3


def test_capturing_leaves_pytorchs_generator_alone(graphs):
    net = nn.Sequential(nn.Linear(3, 3), nn.Dropout(0.5)).to(graphs.device).train()
    sampler, results = quick(graphs, lambda x, t: net(x)), []
    for _ in range(3):
        torch.manual_seed(0)
        results.append(sampler(2, seeds=0))
    assert results[0].equal(results[1]) and results[1].equal(results[2])


def test_too_little_memory_to_warm_up(graphs):
    calls = []

    def model(x, t):
        calls.append(0)
        if len(calls) == 2:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return 0.5 * x

    with pytest.warns(RuntimeWarning, match="out of memory"):
        assert same_as_eager(quick(graphs, model))


def test_interrupted_between_new_numbers(graphs, monkeypatch):
    from fastdiff.executor import Numbers

    first = quick(graphs)
    second, copy_ = first.replace(sigma_max=50.0), Numbers.copy_
    first(2, seeds=0)

    def interrupted(self, other):
        copy_(self, other)
        raise KeyboardInterrupt

    monkeypatch.setattr(Numbers, "copy_", interrupted)
    with pytest.raises(KeyboardInterrupt):
        second(2, seeds=0)
    monkeypatch.setattr(Numbers, "copy_", copy_)
    assert same_as_eager(first) and same_as_eager(second)


def test_a_copy_has_graphs_of_its_own(graphs):
    sampler = graphs.sampler(denoised_fn=torch.tanh)
    want = sampler(2, seeds=0)
    for other in (copy.copy(sampler), copy.deepcopy(sampler)):
        assert other(2, seeds=0).equal(want) and other(2, seeds=0).equal(want)
    other = copy.deepcopy(sampler)
    with torch.no_grad():
        other.model.first.weight.mul_(2.0)
    assert sampler(2, seeds=0).equal(want) and not other(2, seeds=0).equal(want)


def test_stats_while_another_thread_captures(graphs):
    sampler, stop, wrong = quick(graphs), [], []

    def watch():
        try:
            while not stop:
                sampler.stats()
        except RuntimeError as error:
            wrong.append(error)

    thread = threading.Thread(target=watch)
    thread.start()
    for batch in range(1, 30):
        sampler(batch, seeds=0)
    stop.append(True)
    thread.join(60)
    assert not wrong and not thread.is_alive()


def test_batches_to_capture_are_counts(graphs):
    sampler = quick(graphs)
    for batches in (0, 2.5, [2, "3"], True):
        with pytest.raises(ValueError, match="batches must be"):
            sampler.capture(batches)
    assert counts(sampler, "captures") == (0,)


# --- one network alone -----------------------------------------------------------------------------------------------


def example(graphs):
    return torch.randn(2, *SHAPE, device=graphs.device), torch.ones(2, device=graphs.device)


def test_one_network_under_autocast(graphs):
    net, arguments = graphs.net(), example(graphs)
    with torch.autocast(graphs.device.type, torch.bfloat16):
        network = GraphedNetwork(net, *arguments)
    with torch.no_grad():
        net.first.weight.mul_(2.0)
        with torch.autocast(graphs.device.type, torch.bfloat16):
            assert network(*arguments).equal(net(*arguments))


@torch.no_grad()
def test_one_network_amid_a_run(graphs):
    net, arguments = graphs.net(), example(graphs)
    sampler = graphs.sampler(net, graph="step")
    sampler(2, seeds=0, callback=lambda info: None)
    network, seen = GraphedNetwork(net, *arguments), []
    want = sampler.replace(graph="off")(2, seeds=0)
    assert sampler(2, seeds=0, callback=lambda info: seen.append(network(*arguments))).equal(want)
    assert all(y.equal(net(*arguments)) for y in seen)
    assert sampler.replace(model=network)(2, seeds=0).equal(want)


@torch.no_grad()
def test_one_network_for_what_no_graph_stands_for(graphs):
    network = GraphedNetwork(lambda x, t, kind=None: linear(x, t), *example(graphs))
    x, t = example(graphs)
    assert network(x, t, kind={1, 2}).equal(linear(x, t))
    network.reset()
    assert network(x, t).equal(linear(x, t))
