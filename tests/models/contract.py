"""What every network of the package has to fulfil: see `check_network`."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from fastdiff.models import io
from fastdiff.models.network import ARCHITECTURES, build
from tests.tolerances import LAYOUT

SMALL = 0.05


def randomise(network: nn.Module, seed: int = 0) -> nn.Module:
    """Small random weights everywhere, those that start at zero included; frozen, in evaluation mode."""
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in network.named_parameters():
        centre = 1.0 if "norm" in name and name.endswith("weight") else 0.0
        parameter.data = centre + SMALL * torch.randn(parameter.shape, generator=generator)
    return network.eval().requires_grad_(False)


def check_network(
    network: Any, inputs: Sequence[Any], folder: Path, keywords: Mapping[str, Any] | None = None, half: bool = True
) -> None:
    """A network and its file: the configuration rebuilds it, a saved one computes the same bits, nothing in it waits
    for the device, it can be compiled whole, in channels_last, under autocast, and differentiated by its input.

    Args:
        network: of a registered architecture, with weights that are not zero (`randomise`).
        inputs: (x [B, C, H, W], time [B], ...) in float32; keywords: given by name.
        folder: for the file.
        half: also under autocast in bfloat16.
    """
    keywords = dict(keywords or {})

    def run(of: Any, *changed: Tensor) -> Any:
        return of(*changed, *inputs[len(changed) :], **keywords)

    name = type(network).__name__
    assert ARCHITECTURES[name] is type(network)
    expected = run(network)
    assert expected.isfinite().all() and expected.std() > 0

    again = build(name, network.config, "cpu")
    assert again.config == network.config
    assert {n: t.shape for n, t in again.state_dict().items()} == {n: t.shape for n, t in network.state_dict().items()}

    path = folder / "network.safetensors"
    io.save(path, network, {"note": "of a test"})
    loaded = io.load(path)
    assert torch.equal(run(loaded), expected)

    torch._dynamo.reset()
    compiled = torch.compile(network, backend="eager", fullgraph=True)  # a value read on the host would break the graph
    torch.testing.assert_close(run(compiled), expected, rtol=LAYOUT, atol=LAYOUT)

    last = copy.deepcopy(network).to(memory_format=torch.channels_last)
    shaped = inputs[0].to(memory_format=torch.channels_last)
    torch.testing.assert_close(run(last, shaped), expected, rtol=LAYOUT, atol=LAYOUT)

    if half:
        with torch.autocast("cpu", torch.bfloat16):
            assert run(network).isfinite().all()

    x = inputs[0].clone().requires_grad_()
    (gradient,) = torch.autograd.grad(run(network, x).square().sum(), x)
    assert gradient.isfinite().all() and gradient.abs().sum() > 0
