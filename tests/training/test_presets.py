"""Published runs: each is a configuration that can be built, and says what `fastdiff.presets` says."""

from __future__ import annotations

import pytest
import torch

from fastdiff import presets as samplers
from fastdiff.config import load_train_config
from fastdiff.models import UNet
from fastdiff.training import presets
from fastdiff.training.objectives import make_objective

ALL = presets.train_presets()


@pytest.mark.parametrize("run", ALL, ids=[run.name for run in ALL])
def test_every_run_is_a_configuration_that_can_be_built(run):
    config = load_train_config(preset=run.config)
    assert config.data.endswith(".zip")
    assert f"{run.sample_shape[1]}x{run.sample_shape[2]}" in config.data
    objective = make_objective(config.objective)
    network = {k: v for k, v in config.as_dict()["model"].items() if k != "depth"}
    with torch.device("meta"):
        UNet(image_size=run.sample_shape[1], channels=3, **network, **objective.network_options())
    assert run.source
    assert "the network is not" in run.note


def test_names_are_unique_and_lead_back():
    assert len({run.name for run in ALL}) == len(ALL)
    assert all(presets.get(run.name) == run for run in ALL)
    with pytest.raises(ValueError, match=r"preset must be a published run, such as adm-ip-cifar10.*got 'adm-ip-cifar'"):
        presets.preset("adm-ip-cifar")


@pytest.mark.parametrize("data", ["cifar10", "imagenet32", "lsun-tower64", "celeba64", "ffhq128"])
def test_input_perturbation_is_the_only_difference_from_the_baseline(data):
    perturbed, plain = presets.get(f"adm-ip-{data}"), presets.get(f"adm-{data}")
    published = samplers.adm_ip(data)
    assert perturbed.config["objective"].pop("gamma") == [published.training["input_perturbation"]]
    assert perturbed.config == plain.config
    assert (plain.fid, perturbed.fid) == (published.baseline_fid, published.fid)
    assert plain.sampling.training == {}
    assert plain.sampling.arguments == perturbed.sampling.arguments == published.arguments


def test_what_the_sources_say():
    assert presets.preset("adm-ip-cifar10")["objective"]["gamma"] == [0.15]
    assert presets.expected_fid("adm-ip-celeba64") == 1.31
    assert presets.expected_fid("adm-ip-cifar10") is None
    assert presets.expected_fid("edm-cifar10-cond") == samplers.edm("cifar10-cond").fid
    edm = presets.preset("edm-cifar10")
    assert edm["iterations"] * edm["batch"] == 200_000_000
    assert edm["ema"][0] ** (500_000 / 512) == pytest.approx(0.5)  # the average's half-life in iterations
    ddim = presets.get("ddim-ip-cifar10")
    assert ddim.config["objective"]["gamma"] == [0.15]
    assert ddim.fid == samplers.ddim_ip().fid


def test_a_run_can_be_changed_without_changing_the_table():
    presets.preset("edm-cifar10")["model"]["mults"].append(4)
    assert presets.preset("edm-cifar10")["model"]["mults"] == [2, 2, 2]


def test_overrides_go_over_a_preset():
    config = load_train_config(None, ["data=x.npz", "batch=64", "model.width=64"], preset=presets.preset("adm-cifar10"))
    assert (config.data, config.batch, config.model.width, config.model.blocks) == ("x.npz", 64, 64, 3)


def test_the_table_lists_them():
    lines = presets.table().splitlines()
    assert len(lines) == len(ALL) + 1
    (line,) = (line for line in lines if line.startswith("adm-ip-lsun-tower64"))
    assert line.split()[1:6] == ["lsun-tower-64x64.zip", "0.1", "256", "500000", "2.68"]
