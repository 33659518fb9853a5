"""score_sde's checkpoints, configurations, and samples of what they hold."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor

import fastdiff
from fastdiff.importing.infer import infer
from fastdiff.importing.score_sde import described, is_score_sde, shown, unpacked
from fastdiff.models import ModelFileError, NCSNpp
from fastdiff.reading import reading_of
from tests.tolerances import LAYOUT

MODEL: dict[str, Any] = {
    "name": "ncsnpp", "nf": 8, "ch_mult": [1, 2], "num_res_blocks": 1, "attn_resolutions": [4], "conditional": True,
    "embedding_type": "Fourier", "fir": True, "fir_kernel": [1, 3, 3, 1], "skip_rescale": True, "scale_by_sigma": True,
    "resblock_type": "BigGAN", "progressive": "None", "progressive_input": "Residual", "progressive_combine": "sum",
    "resamp_with_conv": True, "nonlinearity": "Swish", "sigma_min": 0.01, "sigma_max": 90.0, "num_scales": 40,
    "beta_min": 0.2, "beta_max": 15.0, "dropout": 0.0, "init_scale": 0.0, "fourier_scale": 16, "conv_size": 3,
    "attention_type": "ddpm", "ema_rate": 0.999, "normalization": "GroupNorm",
}  # fmt: skip
DATA = {"image_size": 8, "num_channels": 2, "centered": False, "dataset": "CIFAR10"}
POSITIONAL = {"embedding_type": "positional", "scale_by_sigma": False, "fir": False, "progressive_input": "none"}


def sections(sde: str = "vesde", continuous: bool = True, **model: Any) -> dict[str, Any]:
    data = DATA | {"centered": sde != "vesde"}
    return {"model": MODEL | model, "data": data, "training": {"sde": sde, "continuous": continuous, "batch_size": 128}}


def network(config: dict[str, Any], seed: int = 0) -> NCSNpp:
    torch.manual_seed(seed)
    return NCSNpp(**{**described(config)[0], "init_scale": 1.0}).eval()


def checkpoint(net: NCSNpp, averaged: NCSNpp) -> dict[str, Any]:
    """As score_sde's `save_checkpoint` writes it."""
    return {
        "optimizer": {"state": {0: {"step": 3, "exp_avg": torch.zeros(2)}}, "param_groups": [{"lr": 2e-4}]},
        "model": {f"module.{name}": tensor for name, tensor in net.state_dict().items()},
        "ema": {
            "decay": 0.999,
            "num_updates": 3,
            "shadow_params": [p.detach() for p in averaged.parameters() if p.requires_grad],
        },
        "step": 3,
    }


def same(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return list(a) == list(b) and all(torch.equal(a[name], b[name]) for name in a)


@pytest.mark.parametrize("switches", [{}, POSITIONAL, {"resblock_type": "ddpm", "resamp_with_conv": False}])
def test_both_sets_of_weights(switches):
    config = sections("vesde" if switches is not POSITIONAL else "vpsde", **switches)
    net, averaged = network(config), network(config, 1)
    content = checkpoint(net, averaged)
    assert is_score_sde(content)
    tensors, notes = unpacked(content, "model")
    assert same(tensors, net.state_dict()) and "weights: model" in notes[1]
    tensors, notes = unpacked(content)
    expected = averaged.state_dict()
    if "all_modules.0.W" in expected and expected["all_modules.0.W"].ndim == 1:
        assert not torch.equal(expected["all_modules.0.W"], net.state_dict()["all_modules.0.W"])
        expected["all_modules.0.W"] = net.state_dict()["all_modules.0.W"]  # the frequencies have no average
    assert same(tensors, expected)
    assert notes == ["not used: optimizer, step", "weights: ema"]


@pytest.mark.parametrize("content", [{}, {"model": {}}, {"model": {}, "ema": []}, {"model": {}, "ema": {"decay": 1}}])
def test_other_dictionaries_are_not_score_sde_s(content):
    assert not is_score_sde(content)


def _spoilt(what: str, content: dict[str, Any]) -> dict[str, Any]:
    content = copy.copy(content)
    shadow, model = list(content["ema"]["shadow_params"]), dict(content["model"])
    if what == "order":
        model = dict(sorted(model.items()))
    elif what == "few":
        shadow.pop()
    elif what == "shape":
        shadow[2], shadow[4] = shadow[4], shadow[2]
    elif what == "kind":
        shadow[1] = 3.0
    elif what == "entry":
        model["module.step"] = 7
    elif what == "twice":
        model["sigmas"] = model["module.sigmas"]
    elif what == "name":
        model["module.head.weight"] = torch.zeros(1)
    return {**content, "model": model, "ema": {**content["ema"], "shadow_params": shadow}}


@pytest.mark.parametrize(
    ("what", "wanted"),
    [
        ("few", r"its 'ema' must hold \d+ tensors, one for each parameter, got \d+"),
        ("shape", r"the average of 'all_modules.2.weight' must have shape \[32, 32\], got \[8, 2, 3, 3\]"),
        ("kind", "the average of 'all_modules.1.bias' must have shape .32., got float"),
        ("order", "not in the order of the modules"),
        ("name", "not in the order of the modules"),
        ("entry", "'module.step' of its 'model' must be a tensor|the entry 'module.step'"),
        ("twice", "'sigmas' twice"),
    ],
)
def test_damaged_checkpoints_are_refused(what, wanted, tmp_path):
    config = sections(ch_mult=[1] * 12, num_res_blocks=1) if what == "order" else sections()
    config["data"]["image_size"] = 8 if what != "order" else 1 << 11
    net = network(config)
    content = _spoilt(what, checkpoint(net, net))
    with pytest.raises(ValueError, match=wanted):
        unpacked(content)
    if what == "order":  # without averages the order is of no matter
        assert set(unpacked(content, "model")[0]) == set(net.state_dict())
    torch.save(content, tmp_path / "checkpoint.pth")
    with pytest.raises(ModelFileError, match=wanted):
        fastdiff.load(tmp_path / "checkpoint.pth", config=config)


def test_unknown_weights():
    with pytest.raises(ValueError, match="weights must be 'ema' or 'model', got 'best'"):
        unpacked({}, "best")


def test_configurations():
    arguments, reading = described(sections())
    assert arguments["embedding_type"] == "fourier" and arguments["resblock_type"] == "biggan"
    assert "ema_rate" not in arguments and "beta_min" not in arguments
    process = {"name": "sde", "sde": "ve", "sigma_min": 0.01, "sigma_max": 90.0, "N": 40, "continuous": True}
    assert reading == {"prediction": "score", "process": process, "range": [0.0, 1.0]}
    process = {"name": "sde", "sde": "vp", "beta_min": 0.2, "beta_max": 15.0, "N": 40, "continuous": False}
    reading = described(sections("VPSDE", continuous=False, **POSITIONAL))[1]
    assert reading == {"prediction": "eps", "process": process, "range": [-1.0, 1.0]}
    assert described(sections("subvpsde", continuous=False, **POSITIONAL))[1]["process"]["continuous"]


@pytest.mark.parametrize(
    ("change", "wanted"),
    [
        (lambda c: c.pop("data"), "section 'data' must be a mapping, got None"),
        (lambda c: c["model"].pop("fir"), "missing model.fir"),
        (lambda c: (c["training"].pop("sde"), c["data"].pop("centered")), "missing data.centered, training.sde"),
        (lambda c: c["model"].update(name="ddpm"), "only 'ncsnpp' is known, got 'ddpm'"),
        (lambda c: c["training"].update(sde="edm"), "training.sde must be one of vesde, vpsde, subvpsde, got 'edm'"),
        (lambda c: c["training"].update(continuous=False), "must be true with Fourier features"),
        (lambda c: (c["training"].update(sde="vpsde"), c["model"].pop("beta_max")), "missing model.beta_max"),
    ],
)
def test_configurations_that_cannot_be_used(change, wanted):
    config = sections()
    change(config)
    with pytest.raises(ValueError, match=wanted):
        described(config)


def test_what_the_levels_and_the_frequencies_show():
    arguments, reading = shown(network(sections()).state_dict())
    assert arguments == {"sigma_min": 0.01, "sigma_max": 90.0, "num_scales": 40}
    assert reading == described(sections())[1]
    _, reading = shown(network(sections("vpsde", **POSITIONAL)).state_dict())
    assert reading == described(sections("vpsde", beta_min=0.1, beta_max=20.0, **POSITIONAL))[1]
    assert shown({}) == ({}, {})


def test_a_checkpoint_without_a_configuration(tmp_path):
    config = sections()
    net = network(config)
    torch.save(checkpoint(net, net), tmp_path / "checkpoint.pth")
    loaded = fastdiff.load(tmp_path / "checkpoint.pth", image_size=8)
    assert loaded.config == network(config).config | {"init_scale": 0.0, "dropout": 0.1}
    assert reading_of(loaded).process.sde.sigma_max == 90.0
    x, time = torch.rand(2, 2, 8, 8), torch.tensor([0.3, 60.0])
    with torch.no_grad():
        assert torch.equal(loaded(x, time), net(x, time))


SDES = [("vesde", {}), ("vpsde", POSITIONAL), ("subvpsde", POSITIONAL), ("vpsde", {"scale_by_sigma": False})]


@pytest.mark.parametrize(("sde", "switches"), SDES)
def test_samples(sde, switches, tmp_path):
    """Five steps of the probability flow by DDIM, against the same in float64 by the formulas of the SDEs."""
    config = sections(sde, **switches)
    net = network(config)
    torch.save(checkpoint(net, net), tmp_path / "checkpoint.pth")
    loaded = fastdiff.load(tmp_path / "checkpoint.pth", config=config)
    start = torch.randn(2, 2, 8, 8, generator=torch.Generator().manual_seed(1)) * (90.0 if sde == "vesde" else 1.0)
    got = {
        compiled: fastdiff.sampler_of(loaded, steps=5, compiled=compiled)((2, 2, 8, 8), x_init=start)
        for compiled in (True, False)
    }

    net, x = net.double(), start.double()
    last = 1e-5 if sde == "vesde" else 1e-3
    times = torch.linspace(1.0, last, 5, dtype=torch.float64)
    ratio = 90.0 / 0.01
    depth = times.square() * (15.0 - 0.2) / 4 + times * 0.2 / 2
    alphas = torch.ones_like(times) if sde == "vesde" else (-depth).exp()
    spread = 1 - (-2 * depth).exp()
    sigmas = {"vesde": 0.01 * ratio**times, "vpsde": spread.sqrt(), "subvpsde": spread}[sde]
    for i, (alpha, sigma) in enumerate(zip(alphas, sigmas, strict=True)):
        with torch.no_grad():
            output = net(x, (sigma if sde == "vesde" else 999 * times[i]).expand(2))
        noise = -sigma * output if sde == "vesde" else output
        clean = (x - sigma * noise) / alpha
        x = clean if i == 4 else alphas[i + 1] * clean + sigmas[i + 1] * noise
    scale = float(x.abs().max())
    for compiled in (True, False):
        torch.testing.assert_close(got[compiled].double(), x, rtol=LAYOUT, atol=LAYOUT * scale)


def test_a_chain_s_steps_are_the_network_s_levels(tmp_path):
    config = sections(continuous=False, **POSITIONAL | {"scale_by_sigma": True})
    net = network(config)
    torch.save(checkpoint(net, net), tmp_path / "checkpoint.pth")
    loaded = fastdiff.load(tmp_path / "checkpoint.pth", config=config)
    process = reading_of(loaded).process
    assert process.integer_time
    for t in (1.0, 0.5, 1e-5):
        level = process.level(t)
        assert level.sigma == pytest.approx(float(net.sigmas[int(level.time)]), rel=1e-12)
    assert fastdiff.sampler_of(loaded, steps=3)(2, seeds=0).isfinite().all()


SWITCHES: dict[str, dict[str, Any]] = {
    "NCSN++": {},
    "DDPM++": POSITIONAL | {"centered": True},
    "skips": {"progressive": "output_skip", "progressive_input": "input_skip", "num_res_blocks": 2},
    "joined": {"progressive_input": "input_skip", "progressive_combine": "cat", "ch_mult": [1, 2, 2, 3]},
    "residual output": {"progressive": "residual", "fir": False, "ch_mult": [2, 1]},
    "DDPM blocks": {"resblock_type": "ddpm", "resamp_with_conv": False, "progressive_input": "none", "fir": False},
    "DDPM blocks, strided": {"resblock_type": "ddpm", "fir": False, "num_res_blocks": 3},
    "one level": {"ch_mult": [3], "attn_resolutions": [16], "progressive_input": "none", "fir": False},
    "not told the time": {"conditional": False, "attn_resolutions": [16, 8]},
}


@pytest.mark.parametrize("switches", SWITCHES)
def test_configurations_are_read_off_the_shapes(switches):
    config: dict[str, Any] = {
        "image_size": 16, "nf": 8, "ch_mult": [1, 2], "num_res_blocks": 1, "attn_resolutions": [16], "num_channels": 1,
    }  # fmt: skip
    net = NCSNpp(**config | SWITCHES[switches])
    shapes = {name: tensor.shape for name, tensor in net.state_dict().items()}
    inferred = infer(shapes, {})
    assert inferred.architecture == "NCSNpp" and not inferred.missing
    assert NCSNpp(**inferred.config).config == net.config
    assert inferred.config.keys() <= inferred.found.keys() | inferred.assumed.keys()


def test_an_image_size_that_nothing_shows():
    net = NCSNpp(8, 8, [1, 2], 1, [])
    shapes = {name: tensor.shape for name, tensor in net.state_dict().items()}
    assert infer(shapes, {}).missing == ["image_size"]
    inferred = infer(shapes, {"image_size": 8})
    assert not inferred.missing and NCSNpp(**inferred.config).config == net.config


@pytest.mark.parametrize(
    ("shapes", "wanted"),
    [
        ({"all_modules.0.weight": (8, 3)}, "must be of kind 'conv'"),
        ({"all_modules.0.weight": (8, 3, 3, 3)}, "no residual blocks"),
        ({"all_modules.0.weight": (0, 3, 3, 3)}, "must have channels"),
        ({"all_modules.99999999.weight": (8, 3, 3, 3)}, "at most 10000"),
    ],
)
def test_lists_of_modules_that_no_network_builds(shapes, wanted):
    with pytest.raises(ValueError, match=wanted):
        infer(shapes, {})
