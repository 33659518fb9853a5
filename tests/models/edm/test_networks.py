"""SongUNet and DhariwalUNet: the contract of networks, published sizes, independent twins, refusals."""

from __future__ import annotations

import copy
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from benchmarks import networks as plain
from fastdiff.models import SongUNet, UNetModel
from fastdiff.models.edm.unet import EDMNetwork
from fastdiff.models.network import build
from tests.models.contract import check_network, randomise

from .configurations import PUBLISHED, SMALL

TWINS = 2e-5  # two programs of the same float32 network, relative to outputs of order 1


def network(name: str, seed: int = 1) -> Any:
    architecture, config = SMALL[name]
    return randomise(build(architecture, config, "cpu"), seed)


def inputs(of: EDMNetwork, batch: int = 3) -> tuple[Tensor, Tensor, Tensor | None]:
    generator = torch.Generator().manual_seed(2)
    x = torch.randn(batch, *of.sample_shape, generator=generator)  # type: ignore[misc]
    labels = torch.tensor([2, -1, 0, 1][:batch]) if of.label_dim else None
    return x, torch.randn(batch, generator=generator), labels


@pytest.mark.parametrize("name", SMALL)
def test_contract(name: str, tmp_path: Path):
    model = network(name)
    check_network(model, inputs(model), tmp_path)


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_sizes(name: str):
    architecture, config, parameters = PUBLISHED[name]
    model = build(architecture, config)
    assert sum(parameter.numel() for parameter in model.parameters()) == parameters


def test_building_on_meta_is_light():
    """Operations that PyTorch does on the device "meta" in Python import its compiler, which takes seconds."""
    text = "import sys; from tests.models.edm.configurations import *; from fastdiff.models.network import build\n"
    text += "import fastdiff.models\nfor architecture, config in SMALL.values(): build(architecture, config)\n"
    text += "sys.exit('torch._dynamo' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", text], check=False).returncode == 0


@pytest.mark.parametrize("name", SMALL)
def test_samples_do_not_mix_and_scalars_are_for_all(name: str):
    model = network(name)
    x, time, labels = inputs(model)
    together = model(x, time, labels)
    one = [model(x[i : i + 1], time[i], None if labels is None else labels[i : i + 1]) for i in range(len(x))]
    torch.testing.assert_close(torch.cat(one), together, rtol=0, atol=TWINS)
    same = model(x, time[0], labels)
    torch.testing.assert_close(same, model(x, time[:1].expand(len(x)), labels), rtol=0, atol=TWINS)
    assert (model(x, time + 1, labels) - together).abs().max() > 100 * TWINS


@pytest.mark.parametrize("name", ["ddpmpp", "adm"])
def test_labels_and_augmentations(name: str):
    model = network(name)
    x, time, labels = inputs(model)
    assert labels is not None
    rows = torch.eye(4)[labels] * (labels >= 0)[:, None]
    expected = model(x, time, labels)
    assert torch.equal(model(x, time, rows), expected)
    assert torch.equal(model(x, time, None), model(x, time, torch.full((3,), -1)))
    assert not torch.allclose(model(x, time, None), expected)
    halves = model(x, time, torch.tensor([[0.5, 0.5, 0.0, 0.0]]))  # one row for all
    assert torch.equal(halves, model(x, time, torch.tensor([[0.5, 0.5, 0.0, 0.0]]).expand(3, -1)))
    none = torch.zeros(3, model.augment_dim)
    assert torch.equal(model(x, time, labels, augment_labels=none), expected)
    assert not torch.allclose(model(x, time, labels, augment_labels=none + 1), expected)


@pytest.mark.parametrize("name", SMALL)
def test_other_precisions(name: str):
    model = network(name)
    x, time, labels = inputs(model)
    expected = model(x, time, labels)
    double = copy.deepcopy(model).double()(x.double(), time.double(), labels)
    torch.testing.assert_close(double.float(), expected, rtol=0, atol=1e-4)
    for dtype, error in ((torch.float16, 1e-2), (torch.bfloat16, 1e-1)):
        half = copy.deepcopy(model).to(dtype)(x.to(dtype), time, labels)
        assert half.dtype == dtype
        assert (half.float() - expected).abs().max() < error * expected.abs().max()


@pytest.mark.parametrize("name", SMALL)
def test_a_fresh_network_starts_at_zero_and_can_be_trained(name: str):
    torch.manual_seed(1)
    architecture, config = SMALL[name]
    model: Any = build(architecture, config, "cpu")
    x, time, labels = inputs(model)
    assert not model(x, time, labels).any()
    optimizer = torch.optim.Adam(model.parameters(), 1e-3)
    model.train()
    target = torch.randn(3, *model(x, time, labels).shape[1:])
    for _ in range(4):
        loss = (model(x, time, labels) - target).square().mean()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    assert (model.eval()(x, time, labels) - target).square().mean() < target.square().mean()


def test_labels_are_dropped_in_training_only():
    architecture, config = SMALL["adm"]
    model: Any = randomise(build(architecture, {**config, "label_dropout": 0.99, "dropout": 0.0}, "cpu"))
    x, time, labels = inputs(model)
    without, expected = model(x, time), model(x, time, labels)
    assert not torch.allclose(without, expected)
    torch.manual_seed(1)
    torch.testing.assert_close(model.train()(x, time, labels), without, rtol=0, atol=TWINS)


class _Waves(nn.Module):
    def __init__(self, channels: int):
        super().__init__()
        self.channels = channels

    def forward(self, time: Tensor) -> Tensor:
        return plain.sinusoids(time, self.channels)


def test_ddpmpp_is_the_benchmarks_network():
    """The same network written twice: with its weights, and its sinusoids, SongUNet computes what that one does."""
    twin = plain.DDPMpp(16, 16, (2, 2), 1, (8,))
    randomise(twin)
    config = {"img_resolution": 16, "in_channels": 3, "out_channels": 3, "model_channels": 16, "channel_mult": [2, 2],
              "num_blocks": 1, "attn_resolutions": [8]}  # fmt: skip
    model = SongUNet(**config)  # type: ignore[arg-type]
    model.map_noise = _Waves(16)  # its frequencies end elsewhere
    pairs: list[tuple[Any, Any]] = [(model.map_layer0, twin.map[0]), (model.map_layer1, twin.map[2])]
    pairs += [(model.enc["16x16_conv"], twin.stem), (model.dec["16x16_aux_norm"], twin.norm)]
    pairs.append((model.dec["16x16_aux_conv"], twin.out))
    blocks = [m for name, m in (*model.enc.items(), *model.dec.items()) if name.split("_")[1] not in ("conv", "aux")]
    names = {"norm0": "norm1", "conv0": "conv1", "affine": "embed", "norm1": "norm2", "conv1": "conv2", "skip": "skip",
             "norm2": "norm3", "proj": "project", "qkv": "qkv"}  # fmt: skip
    for ours, theirs in zip(blocks, (*twin.encoder, *twin.decoder), strict=True):
        pairs += [(getattr(ours, a), getattr(theirs, b)) for a, b in names.items() if getattr(ours, a) is not None]
    loaded = 0
    for ours, theirs in pairs:
        for name, parameter in theirs.named_parameters():
            value = parameter.detach()
            if ours in [block.qkv for block in blocks]:  # [q, k, v][C] -> [C][q, k, v]
                value = value.unflatten(0, (3, -1)).transpose(0, 1).flatten(0, 1)
            getattr(ours, name).data.copy_(value)
            loaded += value.numel()
    assert loaded == sum(parameter.numel() for parameter in model.parameters())
    x, time = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(3)), torch.tensor([0.3, -1.0])
    with torch.inference_mode():
        torch.testing.assert_close(model.eval()(x, time), twin(x, time), rtol=0, atol=TWINS)


def test_adm_is_guided_diffusions_network():
    """DhariwalUNet is guided-diffusion's U-Net by other names, where its channels are multiples of 128."""
    model = randomise(
        build(
            "DhariwalUNet",
            {"img_resolution": 8, "in_channels": 3, "out_channels": 6, "label_dim": 4, "model_channels": 128,
             "channel_mult": [1, 1], "num_blocks": 1, "attn_resolutions": [4]},
            "cpu",
        )
    )  # fmt: skip
    other = UNetModel(
        image_size=8, in_channels=3, model_channels=128, out_channels=6, num_res_blocks=1, attention_resolutions=(2,),
        channel_mult=(1, 1), num_classes=4, num_head_channels=64, use_scale_shift_norm=True, resblock_updown=True,
    ).eval()  # fmt: skip
    own = {name: tensor for name, tensor in model.state_dict().items() if "resample_filter" not in name}
    tensors: dict[str, Tensor] = {}

    def take(theirs: str, ours: str) -> None:
        for kind in ("weight", "bias"):
            if f"{ours}.{kind}" in own:
                tensors[f"{theirs}.{kind}"] = own.pop(f"{ours}.{kind}")

    def block(theirs: str, ours: str, attention: str) -> None:
        for a, b in (("in_layers.0", "norm0"), ("in_layers.2", "conv0"), ("emb_layers.1", "affine"),
                     ("out_layers.0", "norm1"), ("out_layers.3", "conv1"), ("skip_connection", "skip")):  # fmt: skip
            take(f"{theirs}.{a}", f"{ours}.{b}")
        for a, b in (("norm", "norm2"), ("qkv", "qkv"), ("proj_out", "proj")):
            take(f"{attention}.{a}", f"{ours}.{b}")

    take("time_embed.0", "map_layer0")
    take("time_embed.2", "map_layer1")
    tensors["label_emb.weight"] = own.pop("map_label.weight").T
    take("input_blocks.0.0", "enc.8x8_conv")
    for k, name in enumerate(["8x8_block0", "4x4_down", "4x4_block0"], 1):
        block(f"input_blocks.{k}.0", f"enc.{name}", f"input_blocks.{k}.1")
    block("middle_block.0", "dec.4x4_in0", "middle_block.1")
    block("middle_block.2", "dec.4x4_in1", "")
    for k, name in enumerate(["4x4_block0", "4x4_block1", "8x8_block0", "8x8_block1"]):
        block(f"output_blocks.{k}.0", f"dec.{name}", f"output_blocks.{k}.1")
    block("output_blocks.1.2", "dec.8x8_up", "")
    take("out.0", "out_norm")
    take("out.2", "out_conv")
    assert not own
    for name, tensor in tensors.items():
        if ".qkv." in name:  # [head][c][q, k, v] -> [head][q, k, v][c]
            tensor = tensor.unflatten(0, (2, 64, 3)).transpose(1, 2).flatten(0, 2)
        tensors[name] = tensor.reshape(other.state_dict()[name].shape)
    other.load_state_dict(tensors)
    x, time = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(3)), torch.tensor([3.0, 777.0])
    labels = torch.tensor([3, 1])
    with torch.inference_mode():
        torch.testing.assert_close(model(x, time, labels), other(x, time, labels), rtol=0, atol=5 * TWINS)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"img_resolution": 9}, "img_resolution must be a multiple of 2, got 9"),
        ({"model_channels": 0}, "model_channels must be an integer of at least 1, got 0"),
        ({"num_blocks": -1}, "num_blocks must be an integer of at least 0, got -1"),
        ({"channel_mult": []}, "channel_mult must have an entry for each level"),
        ({"channel_mult": [1, 0.5]}, "channel_mult must be a list of positive integers"),
        ({"attn_resolutions": "16"}, "attn_resolutions must be a list of positive integers"),
        ({"dropout": 1.0}, r"dropout must be in \[0, 1\), got 1"),
        ({"encoder_type": "other"}, "encoder_type must be one of standard, skip, residual, got 'other'"),
        ({"embedding_type": 1}, "embedding_type must be one of positional, fourier, got 1"),
        ({"channel_mult_noise": 0}, "channel_mult_noise must be at least 1, got 0"),
        ({"model_channels": 18}, "channels of a group norm must be"),
        ({"resample_filter": [1, -1]}, "filter must be a list of numbers whose sum is not 0"),
        ({"wide": 1}, "unexpected keyword argument 'wide'"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_what_cannot_be_built_is_refused(change: dict[str, Any], message: str):
    architecture, config = SMALL["ddpmpp"]
    with pytest.raises(ValueError, match=message):
        build(architecture, {**config, **change})


def test_inputs_of_another_kind_are_refused():
    model, bare = network("ddpmpp"), network("skip")
    x, time, labels = inputs(model)
    for arguments, message in (
        ((x[:, :2], time), r"x must be \[B, 3, H, W\] with H and W multiples of 2, got \[3, 2, 8, 8\]"),
        ((x[..., :7], time), r"got \[3, 3, 8, 7\]"),
        ((x, time[:2]), r"time must be \[3\] or a scalar, got \[2\]"),
        ((x, time, labels[:2]), r"labels must be int64 \[3\]"),
    ):
        with pytest.raises(ValueError, match=message):
            model(*arguments)
    with pytest.raises(ValueError, match=r"augment_labels must be floating \[3 or 1, 9\], got torch.float32 \[3, 8\]"):
        model(x, time, labels, augment_labels=torch.zeros(3, 8))
    with pytest.raises(ValueError, match=r"labels were given but the network is unconditional"):
        bare(x, time, labels)
    with pytest.raises(ValueError, match=r"augment_labels were given but the network takes none"):
        bare(x, time, augment_labels=torch.zeros(3, 8))


def test_a_filter_that_is_not_the_configurations_is_told():
    model = network("ncsnpp")
    tensors = model.state_dict()
    name = "enc.8x8_down.conv0.resample_filter"
    tensors[name] = torch.full_like(tensors[name], 1 / 16)
    with pytest.raises(RuntimeError, match=f"{name} must be the one of resample_filter"):
        model.load_state_dict(tensors)
