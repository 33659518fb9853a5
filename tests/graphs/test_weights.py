"""Graphs and weights: changed in place they are read anew, moved or replaced they make a new graph."""

from __future__ import annotations

import pytest
import torch
from torch.multiprocessing.reductions import StorageWeakRef

from .conftest import critic

pytestmark = pytest.mark.filterwarnings("error:.*:RuntimeWarning")


def assign(net):
    state = {k: v * 1.5 for k, v in net.state_dict().items()}
    net.load_state_dict(state, assign=True)


def replace_a_parameter(net):
    net.first.weight = torch.nn.Parameter(net.first.weight * 2)


def replace_data(net):
    net.first.weight.data = net.first.weight * 2


def replace_a_layer(net):
    net.norm = torch.nn.GroupNorm(4, 8).to(net.first.weight.device)


def merge(net):
    with torch.no_grad():
        net.first.weight.add_(0.1)
        net.classes.weight.mul_(-1.0)


MOVED = {
    "train()": lambda net: net.train(),
    "dropout.train()": lambda net: net.dropout.train(),
    "load_state_dict(assign=True)": assign,
    "a new parameter": replace_a_parameter,
    "parameter.data": replace_data,
    "a new layer": replace_a_layer,
    "double().float()": lambda net: net.double().float(),
    "channels_last": lambda net: net.to(memory_format=torch.channels_last),
}
IN_PLACE = {
    "in-place update": merge,
    "load_state_dict": lambda net: net.load_state_dict({k: v * 1.5 for k, v in net.state_dict().items()}),
    "copy_": lambda net: net.first.weight.data.copy_(net.first.weight.data * 2),
    "requires_grad_": lambda net: net.requires_grad_(False),
    "eval() again": lambda net: net.eval(),
}


@pytest.mark.parametrize("name", [*MOVED, *IN_PLACE])
@pytest.mark.parametrize("wrapped", [False, True], ids=["module", "closure"])
def test_changes_of_the_weights(name, wrapped, graphs):
    """A graph reads weights where they lie: changed in place, the next replay has them; moved, it is made anew."""
    net = graphs.net()
    model = (lambda x, t, **cond: net(x, t, **cond)) if wrapped else net
    eager, captured = graphs.sampler(model, graph="off"), graphs.sampler(model)
    before = captured(2, seeds=0, labels=[0, 1])
    {**MOVED, **IN_PLACE}[name](net)
    for seeds in (0, 5):
        want = eager(2, seeds=seeds, labels=[0, 1])
        assert captured(2, seeds=seeds, labels=[0, 1]).equal(want)
    assert captured.stats().captures == (2 if name in MOVED else 1)
    silent = ("requires_grad_", "eval() again", "train()", "dropout.train()", "double().float()", "channels_last")
    assert name in silent or not captured(2, seeds=0, labels=[0, 1]).equal(before)


def test_half_precision_weights(graphs):
    """The network's own input dtype was read when the sampler was made, so this sampler casts."""
    net = graphs.net()
    model = lambda x, t, **cond: net(x.to(net.first.weight.dtype), t, **cond)  # noqa: E731
    eager, captured = graphs.sampler(model, graph="off"), graphs.sampler(model)
    captured(2, seeds=0)
    net.bfloat16()
    assert captured(2, seeds=0).equal(eager(2, seeds=0)) and captured.stats().captures == 2


def test_weights_of_the_guidance_term(graphs):
    guide = critic(graphs)
    eager, captured = (graphs.sampler(guidance=guide, graph=graph) for graph in ("off", "loop"))
    captured(2, seeds=0)
    with torch.no_grad():
        guide.net[0].weight.mul_(3.0)
    assert captured(2, seeds=0).equal(eager(2, seeds=0)) and captured.stats().captures == 1
    guide.double().float()
    assert captured(2, seeds=0).equal(eager(2, seeds=0)) and captured.stats().captures == 2


def test_freed_weights_are_never_read(graphs):
    """Weights swapped to and fro; the old storages are freed in between."""
    net = graphs.net()
    eager, captured = graphs.sampler(net, graph="off"), graphs.sampler(net)
    for scale in (1.0, 2.0, 3.0, 1.0):
        fresh = {k: v * scale for k, v in graphs.net().state_dict().items()}
        net.load_state_dict(fresh, assign=True)
        del fresh
        assert captured(2, seeds=0).equal(eager(2, seeds=0))


def test_a_buffer_in_place_and_replaced(graphs):
    class Shift(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.register_buffer("shift", torch.ones(3, 1, 1))

        def forward(self, x, t):
            return 0.5 * x + self.shift

    net = Shift().to(graphs.device)
    eager, captured = graphs.sampler(net, graph="off"), graphs.sampler(net)
    captured(2, seeds=0)
    net.shift.fill_(3.0)
    assert captured(2, seeds=0).equal(eager(2, seeds=0)) and captured.stats().captures == 1
    net.shift = torch.full((3, 1, 1), -1.0, device=graphs.device)
    assert captured(2, seeds=0).equal(eager(2, seeds=0)) and captured.stats().captures == 2


def test_the_same_place_read_in_another_order(graphs):
    """Moved is not the only change: a transposed weight lies where it lay."""
    net = torch.nn.Linear(3, 3).to(graphs.device).requires_grad_(False)
    model = lambda x, t: net(x)  # noqa: E731
    eager, captured = (graphs.sampler(model, shape=(3,), graph=graph) for graph in ("off", "loop"))
    captured(2, seeds=0)
    net.weight.data = net.weight.data.t()
    assert captured(2, seeds=0).equal(eager(2, seeds=0)) and captured.stats().captures == 2


def test_storages_that_come_and_go(graphs):
    """A freed storage's address is soon another's, and may be this weight's again: the graph must hold its own."""
    net = torch.nn.Linear(3, 3).to(graphs.device).requires_grad_(False)
    eager, captured = (graphs.sampler(lambda x, t: net(x), shape=(3,), graph=graph) for graph in ("off", "loop"))
    captured(2, seeds=0)
    places = [parameter.data_ptr() for parameter in net.parameters()]
    stores = [StorageWeakRef(parameter.untyped_storage()) for parameter in net.parameters()]
    for parameter in net.parameters():
        parameter.data = parameter.data + 1.0
    assert captured(2, seeds=0).equal(eager(2, seeds=0)) and captured.stats().captures == 2
    assert not any(store.expired() for store in stores), f"{places} were freed under a graph that is kept"


class Shift(torch.nn.Module):
    """A network with a tensor that is neither parameter nor buffer."""

    def __init__(self, value, device):
        super().__init__()
        self.shift = torch.full((3,), value, device=device)

    def forward(self, x, t=None):
        return 0.5 * x + self.shift


@pytest.mark.parametrize("place", ["attribute", "closure", "container", "denoised_fn", "guidance"])
def test_tensors_that_are_no_parameters(place, graphs):
    """Changed in place they are read anew, replaced they make a new graph, wherever they are kept."""
    holder, box = Shift(1.0, graphs.device), [torch.ones(3, device=graphs.device)]

    def replace_it():
        holder.shift, box[0] = holder.shift * 3.0, box[0] * 3.0

    model = {"attribute": holder, "closure": lambda x, t: holder(x), "container": lambda x, t: 0.5 * x + box[0]}
    arguments = {
        "denoised_fn": {"denoised_fn": lambda x0: holder(x0)},
        "guidance": {"guidance": lambda x, level, **cond: -0.01 * holder(x)},
    }.get(place, {})
    eager, captured = (
        graphs.sampler(model.get(place, lambda x, t: 0.5 * x), shape=(3,), graph=graph, **arguments)
        for graph in ("off", "loop")
    )
    for change in (lambda: None, lambda: (holder.shift.mul_(2.0), box[0].mul_(2.0)), replace_it):
        change()
        assert captured(2, seeds=0).equal(eager(2, seeds=0))


def test_weights_of_denoised_fn(graphs):
    last = torch.nn.Linear(3, 3).to(graphs.device).requires_grad_(False)
    eager, captured = (
        graphs.sampler(lambda x, t: 0.5 * x, denoised_fn=lambda x0: last(x0.float()), shape=(3,), graph=graph)
        for graph in ("off", "loop")
    )
    captured(2, seeds=0)
    last.weight.mul_(2.0)
    assert captured(2, seeds=0).equal(eager(2, seeds=0)) and captured.stats().captures == 1
    last.double().float()
    assert captured(2, seeds=0).equal(eager(2, seeds=0)) and captured.stats().captures == 2


def test_hooks_added_later(graphs):
    net = graphs.net()
    eager, captured = graphs.sampler(net, graph="off"), graphs.sampler(net)
    captured(2, seeds=0)
    handle = net.first.register_forward_hook(lambda module, args, output: output * 2)
    assert captured(2, seeds=0).equal(eager(2, seeds=0)) and captured.stats().captures == 2
    handle.remove()
    assert captured(2, seeds=0).equal(eager(2, seeds=0)) and captured.stats().captures == 2
