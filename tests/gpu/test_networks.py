"""Networks of published checkpoints on a GPU: they compute what they do on the CPU."""

from __future__ import annotations

import pytest
import torch

from fastdiff.models.network import build

from ..models.contract import randomise
from ..models.edm.configurations import SMALL
from ..tolerances import LAYOUT


@pytest.fixture(autouse=True)
def without_tf32():
    before = torch.backends.cudnn.allow_tf32
    torch.backends.cudnn.allow_tf32 = False
    yield
    torch.backends.cudnn.allow_tf32 = before


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("name", SMALL)
def test_networks_compute_the_same(name, layout):
    architecture, config = SMALL[name]
    network = randomise(build(architecture, config, "cpu"))
    shape = (3, config["in_channels"], config["img_resolution"], config["img_resolution"])
    x, time = torch.randn(shape, generator=torch.Generator().manual_seed(0)), torch.tensor([-1.0, 0.0, 2.0])
    expected = network(x, time)
    found = network.to("cuda", memory_format=layout)(x.to("cuda", memory_format=layout), time.cuda())
    torch.testing.assert_close(found.cpu(), expected, rtol=LAYOUT, atol=LAYOUT)
