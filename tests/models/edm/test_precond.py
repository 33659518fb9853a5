"""The preconditioners: their contract, Karras et al. 2022's Table 1 in float64, dtypes, labels, refusals."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from fastdiff.models import EDMPrecond, iDDPMPrecond
from fastdiff.models.network import build
from fastdiff.schedules import iddpm_table
from tests.models.contract import check_network, randomise
from tests.tolerances import CLOSED_FORM, ROUNDING

SMALL = {"img_resolution": 8, "img_channels": 2, "model_channels": 8, "channel_mult": [1], "num_blocks": 1}
SMALL |= {"attn_resolutions": []}
NETWORKS = {
    "VPPrecond": {"model_type": "SongUNet", "augment_dim": 3, "label_dim": 3},
    "VEPrecond": {"model_type": "SongUNet", "embedding_type": "fourier", "channel_mult_noise": 2, "dropout": 0.13},
    "iDDPMPrecond": {"model_type": "DhariwalUNet", "M": 40, "C_1": 1e-4, "label_dim": 3},
    "EDMPrecond": {"model_type": "DhariwalUNet", "sigma_data": 0.7, "label_dim": 3, "sigma_max": 300.0},
}


def network(name, **options):
    return randomise(build(name, {**SMALL, **NETWORKS[name], **options}, "cpu"))


def inputs(of, batch=3):
    generator = torch.Generator().manual_seed(1)
    sigma = torch.tensor([0.01, 0.8, 20.0])[:batch]
    labels = torch.tensor([0, -1, 2])[:batch] if of.label_dim else None
    x = torch.randn(batch, 2, 8, 8, generator=generator) * (1 + sigma.reshape(-1, 1, 1, 1))
    return x, sigma, labels


@pytest.mark.parametrize("name", NETWORKS)
def test_the_contract_of_networks(name, tmp_path):
    model = network(name)
    check_network(model, inputs(model), tmp_path)
    assert model.sample_shape == (2, 8, 8)


@pytest.mark.parametrize("name", NETWORKS)
def test_in_float64_it_is_table_1(name):
    model = network(name).double()
    x, sigma, labels = inputs(model)
    x, s = x.double(), sigma.double().reshape(-1, 1, 1, 1)
    u = np.asarray(model.u) if name == "iDDPMPrecond" else np.zeros(1)
    skip, out, scale, noise = {
        "VPPrecond": (1, -s, (s**2 + 1) ** -0.5, 999 * ((0.01 + 39.8 * (1 + s**2).log()).sqrt() - 0.1) / 19.9),
        "VEPrecond": (1, s, 1, (s / 2).log()),
        "iDDPMPrecond": (1, -s, (s**2 + 1) ** -0.5,
                         torch.tensor([39.0 - np.abs(u - np.float32(v)).argmin() for v in sigma.tolist()])),
        "EDMPrecond": (0.49 / (s**2 + 0.49), s * 0.7 / (s**2 + 0.49).sqrt(), (s**2 + 0.49) ** -0.5, s.log() / 4),
    }[name]  # fmt: skip
    raw = model.model(scale * x, noise.reshape(-1).double(), labels)
    assert raw.shape[1] == (4 if name == "iDDPMPrecond" else 2)
    got = model(x, sigma.double(), labels)
    torch.testing.assert_close(got, skip * x + out * raw[:, :2], rtol=CLOSED_FORM, atol=CLOSED_FORM)
    assert got.dtype == torch.float64


@pytest.mark.parametrize("name", NETWORKS)
def test_what_a_sampler_is_told_is_the_same(name):
    """The raw network with the prediction's coefficients is D."""
    model = network(name).double()
    reading = model.reading()
    assert reading.network is model.model
    assert reading.process.sigma_min >= 0.002 and reading.process.sigma_max <= 80
    x, sigma, labels = inputs(model)
    for s in sigma.tolist():
        level = reading.process.level_at_sigma(s)
        c = reading.prediction.coefficients(level)
        told = torch.full((3,), reading.prediction.time(level), dtype=torch.float64)
        raw = reading.network(c.c_in * x.double(), told, labels)[:, :2]
        want = model(x.double(), torch.tensor(level.sigma, dtype=torch.float64), labels)
        torch.testing.assert_close(c.c_skip * x.double() + c.c_out * raw, want, rtol=1e-10, atol=1e-10)


def test_dtypes():
    model = network("EDMPrecond")
    x, sigma, labels = inputs(model)
    want = model(x, sigma, labels)
    assert torch.equal(model(x.double(), sigma.double(), labels), want)
    assert torch.equal(model(x, sigma, labels, force_fp32=True), want)
    half = network("EDMPrecond").to(torch.bfloat16)
    got = half(x, sigma, labels)
    assert got.dtype == torch.float32 and 0 < (got - want).abs().max() < 0.05 * want.abs().max()
    assert torch.equal(model(x, 0.8, labels), model(x, torch.tensor(0.8), labels))
    assert torch.equal(network("EDMPrecond", use_fp16=True)(x, sigma, labels), want)  # float16 is CUDA's


def test_labels_in_every_form():
    model = network("VPPrecond")
    x, sigma, labels = inputs(model)
    rows = torch.tensor([[1, 0, 0], [0, 0, 0], [0, 0, 1]])
    want = model(x, sigma, labels)
    close = {"rtol": 0, "atol": 10 * ROUNDING[torch.float32]}
    for form in (rows, rows.double(), rows.bool(), labels.int()):
        torch.testing.assert_close(model(x, sigma, form), want, **close)
    torch.testing.assert_close(model(x, sigma), model(x, sigma, torch.zeros(3)), **close)
    assert (model(x, sigma) - want).abs().max() > 1e-3
    augmented = model(x, sigma, labels, augment_labels=torch.ones(3, 3))
    assert (augmented - want).abs().max() > 1e-3
    unconditional = network("VEPrecond")
    assert torch.equal(unconditional(x, sigma, labels), unconditional(x, sigma))


def test_iddpms_levels():
    model = network("iDDPMPrecond")
    u = model.u
    assert u.dtype == torch.float32 and u.shape == (41,) and u[-1] == 0
    np.testing.assert_allclose(u.numpy(), iddpm_table(40, 1e-4), rtol=1e-5)
    assert (model.sigma_min, model.sigma_max) == (float(u[39]), float(u[0]))
    sigma = torch.tensor([[1e9, float(u[7]) * 1.001], [0.0, float(u[39])]], dtype=torch.float64)
    assert model.round_sigma(sigma, return_index=True).tolist() == [[0, 7], [40, 39]]
    rounded = model.round_sigma(sigma)
    assert rounded.dtype == torch.float64 and torch.equal(rounded, u[torch.tensor([[0, 7], [40, 39]])].double())
    for converted in (network("iDDPMPrecond").half(), network("iDDPMPrecond").double()):
        assert torch.equal(converted.u, u)
    assert torch.equal(network("EDMPrecond").round_sigma(sigma), sigma)
    with pytest.raises(ValueError, match="return_index"):
        network("EDMPrecond").round_sigma(sigma, return_index=True)


def test_levels_of_a_file_are_those_used():
    """The table is part of the state dict: a changed one moves the rounding."""
    model = network("iDDPMPrecond")
    model.u *= 1.5
    assert model.reading().process.level_at_sigma(float(model.u[5]) * 1.0001).sigma == float(model.u[5])


def test_configurations():
    model = EDMPrecond(**SMALL, model_type="SongUNet")
    assert model.config["sigma_max"] == "inf" and model.config["model_channels"] == 8
    assert build("EDMPrecond", model.config).sigma_max == math.inf
    assert iDDPMPrecond(**SMALL).model.config["out_channels"] == 4
    x = torch.zeros(2, 2, 8, 8)
    with pytest.raises(ValueError, match=r"sigma must be \[2\] or a scalar, got 3"):
        model(x, torch.ones(3))


@pytest.mark.parametrize(
    ("name", "options", "argument"),
    [
        ("EDMPrecond", {"model_type": "UNet"}, "model_type"),
        ("EDMPrecond", {"sigma_data": 0}, "sigma_data"),
        ("EDMPrecond", {"sigma_min": -1}, "sigma_min"),
        ("VEPrecond", {"sigma_min": 200}, "sigma_min"),
        ("VPPrecond", {"beta_min": 0}, "beta_min"),
        ("VPPrecond", {"epsilon_t": 2}, "epsilon_t"),
        ("iDDPMPrecond", {"C_1": 1.0}, "C_1"),
        ("iDDPMPrecond", {"M": 10**6}, "M"),
        ("EDMPrecond", {"chanels": 3}, "chanels"),
    ],
)
def test_bad_configuration_is_refused_by_name(name, options, argument):
    with pytest.raises(ValueError, match=argument):
        build(name, {**SMALL, **options})
