"""The U-Net: shapes, initialisation, conditioning, refusals."""

from __future__ import annotations

import json
import math

import pytest
import torch

from fastdiff.models import UNet

from ..tolerances import ROUNDING
from .contract import check_network, randomise


def trained_like(**config) -> UNet:
    """A network whose zero-initialised layers have been moved off zero."""
    torch.manual_seed(0)
    model = UNet(width=16, **config).eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    return model


CONFIGS = [
    {},
    {"label_dim": 10},
    {"image_size": 8, "patch": 1, "mults": (1,), "attention": ()},
    {"image_size": 32, "channels": 3, "mults": (1, 2, 2), "blocks": 2, "attention": (1, 2), "dropout": 0.1},
    {"image_size": 12, "patch": 3, "heads": 1, "width": 24},
    {"log_time": True, "scale_by_sigma": True, "time_scale": 1.0},
    {"augment_dim": 9, "label_dim": 2},
]


@pytest.mark.parametrize("config", CONFIGS)
def test_output_has_the_input_shape_and_starts_at_zero(config):
    model = UNet(**config)
    x = torch.randn(3, *model.sample_shape)
    time = torch.rand(3) + 0.1
    assert model.sample_shape == (config.get("channels", 1), *[config.get("image_size", 16)] * 2)
    assert torch.equal(model(x, time), torch.zeros_like(x))


@pytest.mark.parametrize("config", CONFIGS)
def test_config_is_json_and_rebuilds_the_network(config):
    model = UNet(**config)
    twin = UNet(**json.loads(json.dumps(model.config)))
    twin.load_state_dict(model.state_dict())
    assert twin.config == model.config


def test_a_configuration_from_before_the_options_builds_the_same_network():
    options = ("learned_variance", "time_scale", "log_time", "scale_by_sigma", "augment_dim")
    model = trained_like(label_dim=3)
    old = UNet(**{name: value for name, value in model.config.items() if name not in options}).eval()
    old.load_state_dict(model.state_dict())
    x, c_noise = torch.randn(2, 1, 16, 16), torch.tensor([-1.0, 0.5])
    assert torch.equal(model(x, c_noise), old(x, c_noise))


def test_learned_variance_doubles_the_channels_prediction_first():
    model = trained_like(channels=2, learned_variance=True)
    plain = UNet(**{**model.config, "learned_variance": False}).eval()
    state = model.state_dict()
    half = {name: state[name].chunk(2)[0] for name in ("out.weight", "out.bias")}
    plain.load_state_dict({**state, **half})
    x, time = torch.randn(3, 2, 16, 16), torch.tensor([0, 3, 999])
    both = model(x, time)
    assert both.shape == (3, 4, 16, 16)
    torch.testing.assert_close(both[:, :2], plain(x, time))


@pytest.mark.parametrize(
    ("options", "time", "radians"),
    [
        ({}, [-1.5, 0.25], [-375.0, 62.5]),
        ({"time_scale": 1.0}, [999, 0], [999.0, 0.0]),
        ({"time_scale": 1000.0}, [0.001, 1.0], [1.0, 1000.0]),
        ({"log_time": True}, [1.0, math.exp(4.0)], [0.0, 250.0]),
        ({"log_time": True, "time_scale": 8.0}, [math.exp(2.0), 1.0], [4.0, 0.0]),
    ],
)
def test_time_becomes_the_phase_of_the_sinusoids(options, time, radians):
    model = trained_like(**options).double()
    seen = []
    model.noise_embedding.register_forward_pre_hook(lambda _, arguments: seen.append(arguments[0]))
    kind = torch.int64 if isinstance(time[0], int) else torch.float64
    model(torch.randn(2, 1, 16, 16, dtype=torch.float64), torch.tensor(time, dtype=kind))
    frequencies = torch.tensor([1e-4 ** (k / 16) for k in range(16)], dtype=torch.float64)
    angles = torch.tensor(radians, dtype=torch.float64)[:, None] * frequencies
    rounding = ROUNDING[torch.float32 if kind is torch.int64 else torch.float64]  # of angles up to 1000
    assert (seen[0] - torch.cat([angles.cos(), angles.sin()], 1)).abs().max() < 1000 * rounding


def test_scale_by_sigma_divides_the_output_by_the_time():
    model = trained_like(log_time=True)
    scaled = UNet(**{**model.config, "scale_by_sigma": True}).eval()
    scaled.load_state_dict(model.state_dict())
    x, sigma = torch.randn(2, 1, 16, 16), torch.tensor([0.01, 50.0])
    assert torch.equal(scaled(x, sigma), model(x, sigma) / sigma[:, None, None, None])
    assert torch.equal(scaled(x, sigma[1]), scaled(x, sigma[1].expand(2)))


def test_augment_labels_condition_and_zeros_are_none():
    model = trained_like(augment_dim=9, label_dim=2)
    x, c_noise = torch.randn(2, 1, 16, 16), torch.zeros(2)
    plain = model(x, c_noise)
    assert torch.equal(plain, model(x, c_noise, augment_labels=torch.zeros(2, 9)))
    assert not torch.allclose(plain, model(x, c_noise, augment_labels=torch.ones(2, 9)), atol=1e-3)


def test_default_network_is_small():
    assert 400_000 < sum(p.numel() for p in UNet(label_dim=10).parameters()) < 500_000


def test_every_parameter_gets_a_gradient():
    model = trained_like(label_dim=4)
    x = torch.randn(4, 1, 16, 16)
    model(x, torch.randn(4), torch.tensor([0, 1, 2, -1])).square().sum().backward()
    lacking = [name for name, p in model.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]
    assert not lacking


def test_noise_level_and_class_matter_and_samples_are_independent():
    model = trained_like(label_dim=3)
    x, c_noise, labels = torch.randn(3, 1, 16, 16), torch.tensor([-1.0, 0.0, 1.0]), torch.tensor([0, 1, 2])
    y = model(x, c_noise, labels)
    assert not torch.allclose(y, model(x, c_noise + 0.1, labels), atol=1e-3)
    assert not torch.allclose(y, model(x, c_noise, labels.flip(0)), atol=1e-3)
    torch.testing.assert_close(y[1:2], model(x[1:2], c_noise[1:2], labels[1:2]))


def test_minus_one_and_none_are_the_null_class():
    model = trained_like(label_dim=3)
    x, c_noise = torch.randn(2, 1, 16, 16), torch.zeros(2)
    null = model(x, c_noise)
    assert torch.equal(null, model(x, c_noise, torch.tensor([-1, -1])))
    assert not torch.allclose(null, model(x, c_noise, torch.tensor([0, 1])), atol=1e-3)


def test_scalar_noise_level_and_float64():
    model = trained_like().double()
    x = torch.randn(2, 1, 16, 16, dtype=torch.float64)
    level = torch.tensor(0.3, dtype=torch.float64)
    y = model(x, level)
    assert y.dtype == torch.float64
    assert torch.equal(y, model(x, level.expand(2)))


def test_compiles_without_graph_breaks():
    model = trained_like(label_dim=3)
    arguments = torch.randn(2, 1, 16, 16), torch.zeros(2), torch.tensor([0, 2])
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    torch.testing.assert_close(compiled(*arguments), model(*arguments))


@pytest.mark.parametrize(
    ("arguments", "wanted"),
    [
        ((torch.randn(2, 3, 16, 16), torch.zeros(2)), r"x must be \[B, 1, 16, 16\], got \[2, 3, 16, 16\]"),
        ((torch.randn(16, 16), torch.zeros(2)), "x must be"),
        ((torch.randn(2, 1, 16, 16), torch.zeros(2), torch.zeros(2)), "labels must be int64 .* torch.float32"),
        ((torch.randn(2, 1, 16, 16), torch.zeros(2), torch.zeros(3, dtype=torch.int64)), r"labels must be .* \[3\]"),
    ],
)
def test_bad_input_is_refused(arguments, wanted):
    with pytest.raises(ValueError, match=wanted):
        UNet(label_dim=3)(*arguments)


@pytest.mark.parametrize(
    ("augment_dim", "given", "wanted"),
    [
        (0, torch.zeros(1, 9), "takes none"),
        (9, torch.zeros(1, 8), r"floating \[1, 9\], got torch.float32 \[1, 8\]"),
        (9, torch.zeros(1, 9, dtype=torch.int64), "got torch.int64"),
    ],
)
def test_bad_augment_labels_are_refused(augment_dim, given, wanted):
    model = UNet(augment_dim=augment_dim)
    with pytest.raises(ValueError, match=wanted):
        model(torch.randn(1, 1, 16, 16), torch.zeros(1), augment_labels=given)


def test_unconditional_network_refuses_labels():
    with pytest.raises(ValueError, match="unconditional"):
        UNet()(torch.randn(1, 1, 16, 16), torch.zeros(1), torch.tensor([0]))


@pytest.mark.parametrize(
    ("config", "argument"),
    [
        ({"image_size": 18}, "image_size"),
        ({"image_size": 0}, "image_size"),
        ({"channels": 0}, "channels"),
        ({"width": 20}, "width"),
        ({"mults": ()}, "mults"),
        ({"mults": (1, 0)}, "mults"),
        ({"blocks": 0}, "blocks"),
        ({"heads": 3}, "heads"),
        ({"attention": (2,)}, "attention"),
        ({"embedding": 0}, "embedding"),
        ({"label_dim": -1}, "label_dim"),
        ({"dropout": 1.0}, "dropout"),
        ({"patch": 0}, "patch"),
        ({"learned_variance": 1}, "learned_variance"),
        ({"time_scale": 0.0}, "time_scale"),
        ({"log_time": "yes"}, "log_time"),
        ({"scale_by_sigma": None}, "scale_by_sigma"),
        ({"scale_by_sigma": True, "learned_variance": True}, "scale_by_sigma"),
        ({"augment_dim": -1}, "augment_dim"),
    ],
)
def test_bad_configuration_is_refused_by_name(config, argument):
    with pytest.raises(ValueError, match=argument):
        UNet(**config)


def test_the_contract_of_networks(tmp_path):
    network = randomise(UNet(width=8, label_dim=2))
    check_network(network, (torch.randn(2, 1, 16, 16), torch.rand(2), torch.tensor([0, -1])), tmp_path)
