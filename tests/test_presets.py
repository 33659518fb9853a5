"""Published settings: each builds a sampler, and says what the sources' tables say."""

from __future__ import annotations

import json

import pytest
import torch
from click.testing import CliRunner

import fastdiff
from fastdiff import presets
from fastdiff.cli import main

ALL = presets.presets()


def network(preset):
    """Of the kind the preset is for: D(x, sigma), eps, or eps and a variance."""
    if preset.settings.get("variance") == "learned_range":
        return lambda x, t, **cond: torch.cat([x * 0.5, x * 0.0], 1)
    return lambda x, t, **cond: x * 0.5


class Judge:
    """A discriminator and a classifier of two classes."""

    def __call__(self, y, t, labels=None):
        logit = y.flatten(1).sum(1)
        return torch.stack([logit, -logit], 1) if self.classes else logit

    def __init__(self, classes):
        self.classes = classes


def complete(preset):
    """The preset with what guides it."""
    return preset.with_guide(Judge(preset.guidance["kind"] == "classifier")) if preset.guidance else preset


@pytest.mark.parametrize("preset", ALL, ids=[preset.name for preset in ALL])
def test_every_preset_builds_a_sampler_of_its_nfe(preset):
    sampler = complete(preset).sampler(network(preset))
    assert sampler.plan().evaluations == preset.nfe
    assert preset.source


def test_a_preset_draws():
    for preset in (presets.edm_es(nfe=13), presets.sedm_gpp(), presets.adm_es(steps=20, linear=True)):
        sampler = complete(preset).sampler(network(preset))
        assert sampler([2, 1, 2, 2], seeds=0).isfinite().all()


def test_names_are_unique_and_lead_back():
    assert len({preset.name for preset in ALL}) == len(ALL)
    assert all(presets.get(preset.name) == preset for preset in ALL)
    with pytest.raises(ValueError, match=r"sedm-gpp-cifar10.*got 'sedm'"):
        presets.get("sedm")


@pytest.mark.parametrize(
    ("preset", "nfe", "scale", "fids"),
    [
        (presets.edm_es("cifar10", "heun", 21), 21, 0.9985, (2.33, 2.24)),
        (presets.edm_es("cifar10-cond", "euler", 13), 13, 1.0051, (10.66, 6.59)),
        (presets.sedm_gpp(), 35, 1.0004, (2.03, 1.73)),
        (presets.adm_es("lsun-tower64", 20), 20, 1.011, (23.92, 8.22)),
        (presets.adm_es("cifar10", 20, linear=True), 20, fastdiff.LinearScale(0.0025, 1.0), (10.36, 4.31)),
        (presets.adm_es("imagenet128-guided", 50), 50, 1.004, (5.15, 4.33)),
    ],
)
def test_rows_of_the_tables(preset, nfe, scale, fids):
    assert preset.nfe == nfe
    assert preset.settings["epsilon_scale"] == scale
    assert (preset.baseline_fid, preset.fid) == fids


def test_the_linear_schedule_scales_the_noisiest_step_most():
    sampler = presets.adm_es("cifar10", 20, linear=True).sampler(network(presets.adm()))
    scales = sampler.epsilon_scale.scales(20)
    assert scales[0] == pytest.approx(1 + 19 * 0.0025)
    assert scales[-1] == 1.0
    assert sum(scales) / 20 == pytest.approx(1.02375)  # the mean that ADM-ES's code would need


def test_guidance_of_the_presets():
    assert presets.sedm_gpp().guidance == {"kind": "discriminator", "w_1st": 1.67, "w_2nd": 0.0}
    assert presets.edm_gpp().guidance["w_1st"] == 2.0
    assert presets.edm_gpp("cifar10-cond").guidance["boosting"]["period"] == 5
    term = presets.edm_gpp("cifar10-cond", Judge(False)).arguments["guidance"]
    assert isinstance(term, fastdiff.guidance.DiscriminatorGuidance)


def test_input_perturbation_belongs_to_the_training():
    gammas = {p.data: p.training["input_perturbation"] for p in ALL if p.name.startswith("adm-ip-")}
    assert gammas == {"cifar10": 0.15, "imagenet32": 0.1, "lsun-tower64": 0.1, "celeba64": 0.1, "ffhq128": 0.1}
    assert presets.ddim_ip(10, 0.5).fid == 10.06
    assert presets.ddim(10, 0.5).fid == presets.ddim_ip(10, 0.5).baseline_fid == 17.24


@pytest.mark.parametrize(
    ("make", "wanted"),
    [
        (lambda: presets.sedm_gpp().arguments, "needs a discriminator"),
        (lambda: presets.adm_es("imagenet128-guided").arguments, "needs a classifier"),
        (lambda: presets.edm().with_guide(Judge(False)), "has no guidance"),
        (lambda: presets.adm("cifar10", classifier=Judge(True)), "classifier must be left out"),
        (lambda: presets.edm("mnist"), "data must be one of cifar10"),
        (lambda: presets.edm_es("ffhq64"), "data must be one of cifar10"),
        (lambda: presets.edm("cifar10", "dpm"), "solver must be one of heun, euler"),
        (lambda: presets.edm_es("cifar10", "heun", 18), "nfe must be one of 35, 21, 13"),
        (lambda: presets.adm_es("cifar10", 100, linear=True), "steps must be 20"),
        (lambda: presets.ddim_ip(30), "steps must be one of 10"),
    ],
)
def test_refuses(make, wanted):
    with pytest.raises(ValueError, match=wanted):
        make()


def test_the_command_lists_them():
    result = CliRunner().invoke(main, ["presets"])
    assert result.exit_code == 0, result.output
    assert len(result.stdout.splitlines()) == len(ALL) + 1
    (line,) = (line for line in result.stdout.splitlines() if line.startswith("sedm-gpp"))
    assert line.split()[1:8] == ["heun", "18", "35", "1.0004", "1.67", "2.03", "1.73"]


def test_the_command_narrows_and_describes():
    listed = CliRunner().invoke(main, ["presets", "linear", "cifar10"]).stdout
    assert "1 + 0.0025 i" in listed
    described = json.loads(CliRunner().invoke(main, ["presets", "--json", "linear", "cifar10"]).stdout)
    assert described[0]["settings"]["epsilon_scale"] == {"k": 0.0025, "b": 1.0}
    assert "1.004 in place of" in CliRunner().invoke(main, ["presets", "sedm"]).stdout
    assert CliRunner().invoke(main, ["presets", "nonsense"]).exit_code == 2
