"""The networks that are measured have the published sizes, and every input reaches the output."""

from __future__ import annotations

import pytest
import torch

from benchmarks.guides import DiscriminatorGradient
from benchmarks.networks import DDPMpp, Discriminator, Encoder
from benchmarks.workloads import Workload

MILLIONS = {  # parameters, of the published networks
    "ddpmpp": (DDPMpp, 55.73),
    "classifier": (Encoder, 47.77),
    "head": (lambda: Encoder(8, 512, blocks=2, mults=(1,), attention=(8,), outputs=1), 2.884),
}
CPU = torch.device("cpu")


@pytest.mark.parametrize("name", MILLIONS)
def test_published_sizes(name):
    make, millions = MILLIONS[name]
    with torch.device("meta"):
        count = sum(p.numel() for p in make().parameters())
    assert count / 1e6 == pytest.approx(millions, abs=0.01)


def test_the_discriminators_shapes_at_the_published_size():
    with torch.device("meta"):
        logits = Discriminator()(torch.empty(2, 3, 32, 32), torch.empty(2))
        features = Encoder(outputs=0)(torch.empty(2, 3, 32, 32), torch.empty(2))
    assert logits.shape == (2,)
    assert features.shape == (2, 512, 8, 8)


@pytest.mark.parametrize("name", ["mlp", "unet1d", "unet"])
def test_outputs_depend_on_every_input(name):
    work = Workload(name, CPU, tiny=True)
    x, t, cond = torch.randn(2, *work.shape), work.time(2), work.cond(2)
    with torch.no_grad():
        output = work.network(x, t, **cond)
        assert output.shape == x.shape
        assert output.std() > 0.01
        changed = [((x.flip(0), t), cond), ((x, t + 1), cond)] + [((x, t), {"state": v + 1}) for v in cond.values()]
        for arguments, given in changed:
            assert not torch.allclose(work.network(*arguments, **given), output, atol=1e-5)


def test_the_discriminators_gradient_is_the_finite_difference_of_its_log_ratio():
    guide = DiscriminatorGradient(Workload("guided", CPU, tiny=True).guide.discriminator)
    x, sigma = torch.randn(1, 3, 8, 8), 0.7
    gradient = guide.at(x, sigma)
    direction = gradient / gradient.norm()
    step = 0.05
    seen: list[float] = []
    inner = guide.discriminator
    guide.discriminator = lambda y, t: seen.append(float(inner(y, t).detach())) or inner(y, t)
    for sign in (1, -1):
        guide.at(x + sign * step * direction, sigma)
    assert (seen[0] - seen[1]) / (2 * step) == pytest.approx(float(gradient.norm()), rel=0.02)
