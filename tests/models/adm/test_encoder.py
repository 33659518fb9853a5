"""guided-diffusion's classifier with each of its poolings, and as guidance."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

import fastdiff
from fastdiff.guidance import ClassifierGuidance
from fastdiff.models import EncoderUNetModel, UNetModel
from tests.tolerances import LAYOUT

from ..contract import check_network, randomise
from .configurations import NEW, SMALL

CLASSIFIER = SMALL | {"out_channels": 5}
X, TIME = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0)), torch.tensor([7, 901])


def classifier(pool, **options):
    return randomise(EncoderUNetModel(**CLASSIFIER | {"num_head_channels": 16} | options, pool=pool))


@pytest.mark.parametrize("pool", ["adaptive", "attention", "spatial"])
def test_the_contract_of_networks(pool, tmp_path):
    options = NEW if pool == "attention" else {"channel_mult": (1,), "attention_resolutions": (1,)}
    check_network(classifier(pool, **options), (X, TIME), tmp_path)


@pytest.mark.parametrize("pool", ["spatial", "spatial_v2"])
def test_pooling_of_every_blocks_means(pool):
    network = classifier(pool)
    outputs = []
    for block in (*network.input_blocks, network.middle_block):
        block.register_forward_hook(lambda module, arguments, output: outputs.append(output))
    got = network(X, TIME)
    hidden = F.linear(torch.cat([output.mean((2, 3)) for output in outputs], dim=1), *network.out[0].parameters())
    if pool == "spatial":
        hidden = hidden.relu()
    else:
        hidden = F.silu(F.group_norm(hidden, 32, *network.out[1].parameters()))
    torch.testing.assert_close(got, F.linear(hidden, *network.out[-1].parameters()), rtol=LAYOUT, atol=LAYOUT)
    assert len(outputs) == 5 and network.out[0].in_features == sum(output.shape[1] for output in outputs)


def test_pooling_by_attention_written_out():
    network = classifier("attention").double()
    pool = network.out[2]
    middle, _ = network.encode(X.double(), network.embed(X.double(), TIME))
    y = F.silu(network.out[0](middle)).flatten(2).mT  # [B, 16, 64]
    tokens = torch.cat([y.mean(dim=1, keepdim=True), y], dim=1) + pool.positional_embedding.T
    query, key, value = F.linear(tokens, pool.qkv_proj.weight[..., 0], pool.qkv_proj.bias).chunk(3, dim=-1)
    heads = []
    for head in range(64 // 16):
        part = slice(16 * head, 16 * head + 16)
        weights = (query[:, :1, part] @ key[..., part].mT / 4).softmax(dim=-1)
        heads.append((weights @ value[..., part])[:, 0])
    want = F.linear(torch.cat(heads, dim=1), pool.c_proj.weight[..., 0], pool.c_proj.bias)
    torch.testing.assert_close(network(X.double(), TIME), want)


def test_images_of_other_sizes():
    for pool in ("adaptive", "spatial"):
        assert classifier(pool)(torch.randn(1, 3, 12, 6), torch.tensor([3])).shape == (1, 5)
    with pytest.raises(ValueError, match=r"x must be \[B, 3, 8, 8\] for pool 'attention', got \[1, 3, 12, 8\]"):
        classifier("attention")(torch.randn(1, 3, 12, 8), torch.tensor([3]))


def test_positions_of_sides_that_are_not_even():
    """Means round down, as guided-diffusion's count of positions does; strided convolutions round up."""
    network = classifier("attention", image_size=9, resblock_updown=True)
    assert network(torch.randn(1, 3, 9, 9), torch.tensor([3])).shape == (1, 5)
    with pytest.raises(ValueError, match="image_size must be a multiple of 2 for 2 levels, got 9"):
        classifier("attention", image_size=9)


@pytest.mark.parametrize(
    ("options", "wanted"),
    [
        ({"pool": "mean"}, "pool must be one of adaptive, attention"),
        ({"pool": "attention"}, "num_head_channels must be given with pool 'attention'"),
        ({"num_res_blocks": 1.0}, "num_res_blocks"),
        ({"channel_mult": (1, 1.5)}, "multiple of 32, got 1.5"),
    ],
)
def test_bad_configuration_is_refused_by_name(options, wanted):
    with pytest.raises(ValueError, match=wanted):
        EncoderUNetModel(**CLASSIFIER | options)


def test_guidance_of_a_sampler():
    """x_0 moves by scale sigma^2 / alpha times the gradient of the chosen class's log probability."""
    network, judge = randomise(UNetModel(**SMALL)), classifier("attention")
    labels, scale = torch.tensor([1, 3]), 4000.0  # small random weights hardly see the image

    def x0(guidance):
        options = {"process": fastdiff.VP.linear(1000), "prediction": "eps", "solver": "ddim", "timesteps": [400]}
        sampler = fastdiff.Sampler(lambda x, time, labels: network(x, time), guidance=guidance, **options)
        return sampler(tuple(X.shape), x_init=X, seeds=0, labels=labels)

    x = X.clone().requires_grad_()
    chosen = judge(x, torch.tensor([400, 400])).log_softmax(dim=1)[torch.arange(2), labels]
    (gradient,) = torch.autograd.grad(chosen.sum(), x)
    alpha_squared = float((1 - torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64))[:401].prod())
    want = scale * (1 - alpha_squared) / alpha_squared**0.5 * gradient
    moved = x0(ClassifierGuidance(judge, scale)) - x0(None)
    torch.testing.assert_close(moved, want, rtol=LAYOUT, atol=LAYOUT * float(want.abs().max()))
