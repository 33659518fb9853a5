"""The perceptron for vectors: shapes, initialisation, conditioning, refusals."""

from __future__ import annotations

import json
import math

import pytest
import torch

from fastdiff.models import MLP, UNet, load, save


def trained_like(**config) -> MLP:
    """A network whose zero-initialised layers have been moved off zero."""
    torch.manual_seed(0)
    model = MLP(**{"width": 16, "depth": 2, "embedding": 8, **config}).eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return model


CONFIGS = [
    {},
    {"dim": 1, "depth": 1, "width": 2, "embedding": 1},
    {"dim": 5, "label_dim": 3, "dropout": 0.1},
    {"learned_variance": True, "time_scale": 1.0},
    {"log_time": True, "scale_by_sigma": True},
]


@pytest.mark.parametrize("config", CONFIGS)
@pytest.mark.parametrize("batch", [0, 3])
def test_output_has_the_input_shape_and_starts_at_zero(config, batch):
    model = MLP(**config)
    dim = config.get("dim", 2)
    x = torch.randn(batch, dim)
    assert model.sample_shape == (dim,)
    outputs = dim * (2 if config.get("learned_variance") else 1)
    assert torch.equal(model(x, torch.rand(batch) + 0.1), torch.zeros(batch, outputs))


@pytest.mark.parametrize("config", CONFIGS)
def test_config_is_json_and_rebuilds_the_network(config):
    model = MLP(**config)
    twin = MLP(**json.loads(json.dumps(model.config)))
    twin.load_state_dict(model.state_dict())
    assert twin.config == model.config


def test_a_model_file_holds_it(tmp_path):
    model = trained_like(label_dim=2, time_scale=1.0)
    save(tmp_path / "points.safetensors", model, {"prediction": "eps"})
    loaded = load(tmp_path / "points.safetensors")
    x, time, labels = torch.randn(2, 2), torch.tensor([3, 999]), torch.tensor([0, 1])
    assert isinstance(loaded, MLP) and loaded.metadata["prediction"] == "eps"
    assert torch.equal(loaded(x, time, labels), model(x, time, labels))


def test_every_parameter_gets_a_gradient():
    model = trained_like(label_dim=4)
    model(torch.randn(4, 2), torch.randn(4), torch.tensor([0, 1, 2, -1])).square().sum().backward()
    lacking = [name for name, p in model.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]
    assert not lacking


def test_time_and_class_matter_and_samples_are_independent():
    model = trained_like(label_dim=3)
    x, time, labels = torch.randn(3, 2), torch.tensor([-1.0, 0.0, 1.0]), torch.tensor([0, 1, 2])
    y = model(x, time, labels)
    assert not torch.allclose(y, model(x, time + 0.1, labels), atol=1e-3)
    assert not torch.allclose(y, model(x, time, labels.flip(0)), atol=1e-3)
    torch.testing.assert_close(y[1:2], model(x[1:2], time[1:2], labels[1:2]))


def test_minus_one_and_none_are_the_null_class():
    model = trained_like(label_dim=3)
    x, time = torch.randn(2, 2), torch.zeros(2)
    null = model(x, time)
    assert torch.equal(null, model(x, time, torch.tensor([-1, -1])))
    assert not torch.allclose(null, model(x, time, torch.tensor([0, 1])), atol=1e-3)


def test_time_is_read_as_a_unet_reads_it():
    """Integer steps, scalars, ln(time) / 4 and the division by it, in float64 too."""
    x = torch.randn(3, 2, dtype=torch.float64)
    steps = trained_like(time_scale=1.0).double()
    assert torch.equal(steps(x, torch.tensor([3, 3, 3])), steps(x, torch.tensor(3)))
    sigma = torch.tensor([0.02, 1.0, 30.0], dtype=torch.float64)
    scaled, logs = trained_like(log_time=True, scale_by_sigma=True).double(), trained_like(log_time=True).double()
    plain = trained_like().double()
    torch.testing.assert_close(logs(x, sigma), plain(x, sigma.log() / 4))
    torch.testing.assert_close(scaled(x, sigma), plain(x, sigma.log() / 4) / sigma[:, None])
    names = ("label_dim", "learned_variance", "time_scale", "log_time", "scale_by_sigma", "dropout")
    mine, others = MLP().config, UNet().config
    assert {name: mine[name] for name in names} == {name: others[name] for name in names}


def test_compiles_without_graph_breaks():
    model = trained_like(label_dim=3)
    arguments = torch.randn(2, 2), torch.zeros(2), torch.tensor([0, 2])
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    torch.testing.assert_close(compiled(*arguments), model(*arguments))


@pytest.mark.parametrize(
    ("arguments", "wanted"),
    [
        ((torch.randn(2, 3), torch.zeros(2)), r"x must be \[B, 2\], got \[2, 3\]"),
        ((torch.randn(2), torch.zeros(2)), "x must be"),
        ((torch.randn(2, 2), torch.zeros(2), torch.zeros(2)), "labels must be int64 .* torch.float32"),
        ((torch.randn(2, 2), torch.zeros(2), torch.zeros(3, dtype=torch.int64)), r"labels must be .* \[3\]"),
    ],
)
def test_bad_input_is_refused(arguments, wanted):
    with pytest.raises(ValueError, match=wanted):
        MLP(label_dim=3)(*arguments)


def test_unconditional_network_refuses_labels():
    with pytest.raises(ValueError, match="unconditional"):
        MLP()(torch.randn(1, 2), torch.zeros(1), torch.tensor([0]))


@pytest.mark.parametrize(
    ("config", "argument"),
    [
        ({"dim": 0}, "dim"),
        ({"width": 0}, "width"),
        ({"width": 7}, "width"),
        ({"depth": 0}, "depth"),
        ({"embedding": 0}, "embedding"),
        ({"label_dim": -1}, "label_dim"),
        ({"dropout": 1.0}, "dropout"),
        ({"time_scale": 0.0}, "time_scale"),
        ({"time_scale": math.inf}, "time_scale"),
        ({"log_time": 1}, "log_time"),
        ({"learned_variance": True, "scale_by_sigma": True}, "scale_by_sigma"),
    ],
)
def test_bad_configuration_is_refused(config, argument):
    with pytest.raises(ValueError, match=f"MLP: {argument} must be"):
        MLP(**config)
