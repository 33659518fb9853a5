from __future__ import annotations

from typing import Any

import pytest
import torch

from fastdiff.models import NCSNpp
from fastdiff.models.ncsnpp.network import noise_levels
from fastdiff.models.network import build
from tests.models.contract import check_network, randomise
from tests.models.ncsnpp.reference import evaluate
from tests.tolerances import BOUND, LAYOUT

SMALL: dict[str, Any] = {
    "image_size": 8, "nf": 8, "ch_mult": [1, 2], "num_res_blocks": 1, "attn_resolutions": [4], "num_channels": 2,
}  # fmt: skip
POSITIONAL = {"embedding_type": "positional", "scale_by_sigma": False, "centered": True}
SWITCHES: dict[str, dict[str, Any]] = {
    "NCSN++": {},
    "DDPM++": {**POSITIONAL, "fir": False, "progressive_input": "none"},
    "three levels, two blocks": {"ch_mult": [1, 2, 1], "num_res_blocks": 2, "attn_resolutions": [8, 2]},
    "one level": {"ch_mult": [2], "attn_resolutions": [8]},
    "one level, residual output": {"ch_mult": [2], "progressive": "residual"},
    "no blocks on the way down": {"num_res_blocks": 0},
    "a step's sigma": {**POSITIONAL, "scale_by_sigma": True, "num_scales": 20},
    "skips": {"progressive_input": "input_skip", "progressive": "output_skip"},
    "skips, joined": {"progressive_input": "input_skip", "progressive": "output_skip", "progressive_combine": "cat"},
    "skips without filters": {"progressive_input": "input_skip", "progressive": "output_skip", "fir": False},
    "residual output": {"progressive": "residual", "fir": False},
    "no rescaling": {"skip_rescale": False, "progressive": "residual", "fir": False},
    "not told the time": {"conditional": False},
    "DDPM blocks": {"resblock_type": "ddpm", "resamp_with_conv": False},
    "DDPM blocks without filters": {"resblock_type": "ddpm", "fir": False},
    "DDPM blocks, means": {"resblock_type": "ddpm", "fir": False, "resamp_with_conv": False},
    "a lopsided filter": {"fir_kernel": [1, 2, 4, 1, 3]},
    "odd, elu": {**POSITIONAL, "nf": 5, "nonlinearity": "elu"},
    "relu": {"nonlinearity": "relu"},
    "lrelu": {"nonlinearity": "lrelu"},
}


def network(**changed: Any) -> NCSNpp:
    """Small, with weights that keep variances, so that every switch shows."""
    torch.manual_seed(0)
    made = NCSNpp(**{**SMALL, "init_scale": 1.0, **changed}).eval()
    for name, parameter in made.named_parameters():
        if parameter.ndim == 1 and name != "all_modules.0.W":
            torch.nn.init.normal_(parameter)
    return made


@pytest.mark.parametrize("switches", SWITCHES)
def test_every_switch_against_a_plain_reading_of_the_notes(switches):
    net = network(**SWITCHES[switches]).double()
    x = torch.rand(2, 2, 8, 8, dtype=torch.float64, requires_grad=True)
    time = torch.tensor([0.02, 12.7], dtype=torch.float64)
    got, want = net(x, time), evaluate(net.state_dict(), net.config, x, time)
    torch.testing.assert_close(got, want, rtol=BOUND, atol=BOUND * float(want.detach().abs().max()))
    weights = torch.randn_like(x)
    ours, theirs = (torch.autograd.grad((weights * y).sum(), x)[0] for y in (got, want))
    torch.testing.assert_close(ours, theirs, rtol=BOUND, atol=BOUND * float(theirs.abs().max()))


@pytest.mark.parametrize("switches", ["NCSN++", "a step's sigma", "DDPM blocks"])
def test_the_contract_of_networks(switches, tmp_path):
    net = randomise(NCSNpp(**{**SMALL, **SWITCHES[switches]}))
    check_network(net, (torch.rand(2, 2, 8, 8), torch.tensor([0.5, 12.0])), tmp_path)


@pytest.mark.parametrize(
    "time", [torch.tensor(3.0), torch.tensor([3.0]), torch.tensor(3), torch.tensor([3.0] * 2).double()]
)
def test_one_time_for_all_and_times_of_other_types(time):
    net = network(**POSITIONAL).requires_grad_(False)
    x = torch.rand(2, 2, 8, 8)
    torch.testing.assert_close(net(x, time), net(x, torch.full((2,), 3.0)), rtol=LAYOUT, atol=LAYOUT)


def test_images_of_another_size():
    net = network().double().requires_grad_(False)
    x, time = torch.rand(1, 2, 4, 12, dtype=torch.float64), torch.ones(1)
    want = evaluate(net.state_dict(), net.config, x, time)
    torch.testing.assert_close(net(x, time), want, rtol=BOUND, atol=BOUND * float(want.abs().max()))


def test_half_precision_keeps_levels_and_frequencies():
    net = network().requires_grad_(False)
    half = network().requires_grad_(False).bfloat16()
    assert half.sigmas.dtype == torch.float64 and torch.equal(half.sigmas, net.sigmas)
    assert half.all_modules[0].W.dtype == torch.float32
    assert half.all_modules[1].weight.dtype == torch.bfloat16
    x, time = torch.rand(2, 2, 8, 8), torch.tensor([1.0, 2.0])
    want = net(x, time)
    got = half(x.bfloat16(), time)
    assert got.dtype == torch.bfloat16
    assert (got.float() - want).std() < 0.1 * want.std()


def test_the_levels_are_geometric_from_the_largest_down():
    levels = noise_levels(0.01, 50.0, 5)
    assert levels.dtype == torch.float64
    want = torch.tensor([50.0, 50.0 * 5000**-0.25, 50.0 * 5000**-0.5, 50.0 * 5000**-0.75, 0.01], dtype=torch.float64)
    torch.testing.assert_close(levels, want, rtol=1e-13, atol=0)


def test_published_sizes_are_built_without_memory():
    # 61.8 M parameters of DDPM++ and 62.8 M of NCSN++ on CIFAR-10, counted by hand-written arithmetic of the layers.
    for fourier in (False, True):
        config = {"image_size": 32, "nf": 128, "ch_mult": [1, 2, 2, 2], "num_res_blocks": 4, "attn_resolutions": [16]}
        switches = {} if fourier else {**POSITIONAL, "fir": False, "progressive_input": "none"}
        net = build("NCSNpp", {**config, **switches})
        assert all(tensor.is_meta for tensor in net.state_dict().values())
        assert sum(p.numel() for p in net.parameters()) == _count(fourier)


def _count(fourier: bool) -> int:
    """Parameters of the published CIFAR-10 networks, by the list of layers in the notes."""
    nf, mults, blocks = 128, [1, 2, 2, 2], 4
    emb = 4 * nf

    def conv(a: int, b: int, size: int = 3) -> int:
        return (a * size**2 + 1) * b

    def block(a: int, b: int, shortcut: bool) -> int:
        return 2 * a + conv(a, b) + (emb + 1) * b + 2 * b + conv(b, b) + (conv(a, b, 1) if shortcut else 0)

    def attention(c: int) -> int:
        return 2 * c + 4 * (c + 1) * c

    total = nf if fourier else 0
    total += ((2 if fourier else 1) * nf + 1) * emb + (emb + 1) * emb + conv(3, nf)
    channels, pyramid, skips = nf, 3, [nf]
    for level, mult in enumerate(mults):
        for _ in range(blocks):
            total += block(channels, nf * mult, channels != nf * mult) + (attention(nf * mult) if level == 1 else 0)
            channels = nf * mult
            skips.append(channels)
        if level < 3:
            total += block(channels, channels, True) + (conv(pyramid, channels) if fourier else 0)
            pyramid = channels
            skips.append(channels)
    total += 2 * block(channels, channels, False) + attention(channels)
    for level in (3, 2, 1, 0):
        for _ in range(blocks + 1):
            total += block(channels + skips.pop(), nf * mults[level], True)
            channels = nf * mults[level]
        total += attention(channels) if level == 1 else 0
        total += block(channels, channels, True) if level else 0
    return total + 2 * channels + conv(channels, 3)


@pytest.mark.parametrize(
    ("arguments", "wanted"),
    [
        ((torch.rand(2, 3, 8, 8), torch.ones(2)), r"x must be \[B, 2, H, W\] with H and W multiples of 2, got \[2, 3"),
        ((torch.rand(2, 2, 8, 7), torch.ones(2)), r"x must be"),
        ((torch.rand(2, 2, 8), torch.ones(2)), r"x must be"),
        ((torch.rand(2, 2, 8, 8), torch.ones(3)), r"time must be a scalar or \[2\], got \[3\]"),
        ((torch.rand(2, 2, 8, 8), torch.ones(2, 1)), r"time must be"),
        ((torch.rand(2, 2, 8, 8), torch.ones(2), torch.zeros(2, dtype=torch.int64)), "has no classes"),
    ],
)
def test_bad_input_is_refused(arguments, wanted):
    with pytest.raises(ValueError, match=wanted):
        network()(*arguments)


@pytest.mark.parametrize(
    ("config", "wanted"),
    [
        ({"image_size": 9}, "image_size must be a multiple of 2 for 2 levels, got 9"),
        ({"image_size": 0}, "image_size must be an integer of at least 1"),
        ({"nf": 8.0}, "nf must be an integer"),
        ({"nf": 3}, "channels of a group norm"),
        ({"nf": 144}, "channels of a group norm"),
        ({"num_res_blocks": -1}, "num_res_blocks must be"),
        ({"num_channels": True}, "num_channels must be"),
        ({"num_scales": 0}, "num_scales must be"),
        ({"num_scales": 1 << 21}, "num_scales must be at most"),
        ({"ch_mult": []}, "ch_mult must have an entry"),
        ({"ch_mult": [1, 0]}, "ch_mult must be a list of positive integers"),
        ({"attn_resolutions": "16"}, "attn_resolutions must be a list"),
        ({"embedding_type": "learned"}, "embedding_type must be one of fourier, positional, got 'learned'"),
        ({"resblock_type": "resnet"}, "resblock_type must be one of"),
        ({"progressive": "input_skip"}, "progressive must be one of"),
        ({"progressive_input": "output_skip"}, "progressive_input must be one of"),
        ({"progressive_combine": "mean"}, "progressive_combine must be one of"),
        ({"nonlinearity": "gelu"}, "nonlinearity must be one of"),
        ({"fir": 1}, "fir must be True or False, got 1"),
        ({"fir_kernel": [1, -1]}, "sum is not 0"),
        ({"fir_kernel": [1]}, "fir_kernel must be 2 numbers or more"),
        ({"dropout": 1.0}, r"dropout must be in \[0, 1\)"),
        ({"sigma_min": 60.0}, "sigma_min must be positive and below sigma_max"),
        ({"sigma_max": float("inf")}, "both finite"),
        ({"progressive": "residual"}, "progressive must not be 'residual': score_sde's own code fails"),
        ({"resblock_type": "ddpm"}, "resamp_with_conv must not be True for blocks of type 'ddpm'"),
    ],
)
def test_bad_configuration_is_refused_by_name(config, wanted):
    with pytest.raises(ValueError, match=wanted):
        NCSNpp(**{**SMALL, **config})
