"""Networks that went through torch.compile, by the user or by the sampler, inside a graph and outside."""

from __future__ import annotations

import pytest
import torch

from fastdiff import Sampler


def test_a_network_the_user_compiled_is_captured(graphs):
    net = graphs.net()
    # Under the emulator, a dispatch mode, compiled code steps aside: it only looks like a compiled module there.
    how = {"backend": "aot_eager"} if graphs.emulated else {"mode": "max-autotune-no-cudagraphs", "fullgraph": True}
    compiled = torch.compile(net, dynamic=False, **how)
    sampler = graphs.sampler(compiled)
    for seeds in (0, 7):
        assert sampler(2, seeds=seeds).equal(sampler.replace(graph="off")(2, seeds=seeds))
    with torch.no_grad():
        net.last.weight.mul_(0.5)
    assert sampler(2, seeds=0).equal(sampler.replace(graph="off")(2, seeds=0))
    assert sampler.stats().captures == 1 and sampler.stats().fallbacks == 0


@pytest.mark.cuda
def test_the_sampler_compiles_and_captures(graphs):
    if graphs.emulated:
        pytest.skip("the emulator does not see what Inductor makes for a CPU")
    sampler = graphs.sampler(compile=True)
    for seeds in (0, 7):
        plain = sampler.replace(graph="off", compile=False)(2, seeds=seeds)
        assert sampler(2, seeds=seeds).equal(sampler.replace(graph="off")(2, seeds=seeds))
        torch.testing.assert_close(sampler(2, seeds=seeds), plain, rtol=1e-3, atol=1e-3)
    assert sampler.stats().captures == 1


@pytest.mark.slow
def test_the_sampler_compiles():
    net = torch.nn.Sequential(torch.nn.Linear(6, 8), torch.nn.SiLU(), torch.nn.Linear(8, 6))

    def model(x, t):
        return net(x) + (2.0 if torch.compiler.is_compiling() else 1.0)

    options = {"process": "vp", "prediction": "eps", "solver": "ddim", "steps": 5, "shape": (6,)}
    sampler = Sampler(model, **options, compile=True)
    want = Sampler(lambda x, t: net(x) + 2.0, **options)(3, seeds=0)
    torch.testing.assert_close(sampler(3, seeds=0), want, rtol=1e-5, atol=1e-5)
    assert not sampler.replace(compile=False)(3, seeds=0).allclose(want)
