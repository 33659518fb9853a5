"""The discriminator's trainer: what it learns, that its runs can be killed, when it stops and what it refuses."""

from __future__ import annotations

import json
import os

import pytest
import torch
from torch import nn

from fastdiff.config import ConfigError, load_discriminator_config
from fastdiff.data.digits import Images
from fastdiff.guidance.vp import tau_of_sigma
from fastdiff.models import ModelFileError, UNet, load, save
from fastdiff.training import DiscriminatorTrainer, NothingLearntError, Report

ARCHITECTURE = {"image_size": 8, "patch": 1, "width": 8, "embedding": 16}
SMALL = [
    *("model.width=8", "model.patch=1", "model.embedding=16", "hidden=16", "batch=32", "learning_rate=5e-3"),
    *("steps=3", "fakes=60", "fake_batch=30", "sigma_max=1", "patience=0"),
    *("iterations=20", "log_every=4", "evaluate_every=4", "checkpoint_every=5"),
]


def real_images():
    """Blobs of three kinds, in unequal numbers."""
    generator = torch.Generator().manual_seed(5)
    labels = torch.tensor([0, 0, 0, 1, 1, 2] * 15)
    images = 0.3 * torch.rand(90, 1, 8, 8, generator=generator) - 1
    for kind in range(3):
        images[labels == kind, :, 2 * kind : 2 * kind + 3, 2:6] += 1.5
    return Images(images, labels, 3)


@pytest.fixture
def network(tmp_path):
    torch.manual_seed(3)
    model = UNet(**ARCHITECTURE, label_dim=3)
    path = tmp_path / "denoiser.safetensors"
    save(path, model, {"prediction": "edm", "sigma_data": 0.5})
    return str(path)


PLOT = Report.plot


@pytest.fixture
def make(network, tmp_path, monkeypatch):
    monkeypatch.setattr(Report, "plot", lambda *_: None)  # it takes longer than these runs

    def make(folder, *overrides, resume=False, **given):
        config = load_discriminator_config(None, [*SMALL, f"network={network}", *overrides])
        return DiscriminatorTrainer(config, tmp_path / folder, resume, **{"real": real_images(), **given})

    return make


def test_learns_and_writes_what_it_says(make, tmp_path, monkeypatch):
    pytest.importorskip("matplotlib")
    monkeypatch.setattr(Report, "plot", PLOT)
    trainer = make("run")
    file = trainer.run(progress=False)
    assert sorted(set(os.listdir(tmp_path / "run")) - {"tensorboard"}) == [
        *("checkpoints", "config.yaml", "levels.csv", "levels.png", "log.jsonl", "model.safetensors")
    ]
    model = load(file)
    training = model.metadata["training"]
    assert training["heldout_loss"] == trainer.best_loss < 0.5
    assert training["iteration"] == trainer.best_iteration
    assert training["config"] == trainer.config.as_dict()
    assert training["network_digest"] == trainer.sampler.model.metadata["digest"]
    assert len(training["levels"]) == 9
    assert (model.metadata["time"], model.metadata["sigma_min"], model.metadata["sigma_max"]) == ("vp", 0.01, 1.0)
    assert trainer.report.levels[0].accuracy > 0.9
    trainer.ema.load_state_dict(model.state_dict())
    assert trainer.evaluate() == trainer.best_loss


@pytest.mark.parametrize("option", ["conditional=true", "extractor=denoiser"])
def test_a_killed_and_resumed_run_ends_with_the_same_bits(make, tmp_path, monkeypatch, option):
    make("whole", option).run(progress=False)
    trainer = make("killed", option)
    step = trainer._step
    monkeypatch.setattr(trainer, "_step", lambda: step() if trainer.iteration < 13 else pytest.fail("killed"))
    with pytest.raises(pytest.fail.Exception, match="killed"):
        trainer.run(progress=False)
    torch.rand(5)
    resumed = make("killed", option, resume=True)
    assert resumed.iteration == 10
    resumed.run(progress=False)
    for name in ("checkpoints/0000020/state.safetensors", "model.safetensors", "levels.csv", "config.yaml"):
        assert (tmp_path / "killed" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes(), name


def test_an_interruption_between_evaluations_changes_nothing(make, tmp_path):
    make("whole").run(progress=False)
    make("paused").run(until=10, progress=False)
    make("paused", resume=True).run(progress=False)
    for name in ("checkpoints/0000020/state.safetensors", "model.safetensors", "levels.csv"):
        assert (tmp_path / "paused" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes(), name


def with_losses(trainer, losses, error=0.0):
    """Has the trainer measure the given held-out losses, and note the averages that they were measured on."""
    averages = []

    def evaluate():
        averages.append({name: tensor.clone() for name, tensor in trainer.ema.state_dict().items()})
        trainer._error = error
        return losses[len(averages) - 1]

    trainer.evaluate = evaluate
    return averages


def test_stops_early_with_the_best_weights(make):
    trainer = make("run", "patience=2")
    averages = with_losses(trainer, [0.6, 0.5, 0.55, 0.5])
    model = load(trainer.run(progress=False))
    assert trainer.stopped
    assert (trainer.iteration, trainer.best_iteration) == (16, 8)
    assert all(torch.equal(tensor, averages[1][name]) for name, tensor in model.state_dict().items())
    again = make("run", "patience=2", resume=True)
    assert again.stopped
    again.evaluate = lambda: pytest.fail("there is nothing left to do")
    assert torch.equal(load(again.run(progress=False)).out.weight, model.out.weight)


@pytest.mark.parametrize(("losses", "error"), [([0.7, 0.694, 0.72, 0.8, 0.9], 0.0), ([0.692] * 5, 0.001)])
def test_refuses_what_has_learnt_nothing(make, tmp_path, losses, error):
    trainer = make("run")
    with_losses(trainer, losses, error)
    with pytest.raises(NothingLearntError, match=r"never fell below ln 2 = 0.6931 .*\(best 0.69"):
        trainer.run(progress=False)
    left = os.listdir(tmp_path / "run")
    assert "model.safetensors" not in left
    assert {"checkpoints", "levels.csv"} <= set(left)


def test_fakes_are_decided_by_seeds_in_the_proportions_of_the_real(make):
    trainer = make("a")
    train, held_out = trainer.draw_fakes()
    assert (len(train), len(held_out)) == (54, 6)
    everything = torch.cat([train.labels, held_out.labels])
    assert everything.bincount().tolist() == [30, 20, 10]
    levels = (train.images + 1) * 127.5
    assert (levels - levels.round()).abs().max() < 1e-4
    torch.manual_seed(9)
    assert torch.equal(make("b", "seed=0").draw_fakes()[0].images, train.images)
    assert not torch.equal(make("c", "fake_seed=5").draw_fakes()[0].images, train.images)


def test_held_out_samples_are_not_trained_on(make):
    trainer = make("run", "validation=0.2")
    for train, held_out in (trainer._real_parts, trainer.draw_fakes()):
        rows = {tuple(image.flatten().tolist()) for image in train.images}
        assert not rows & {tuple(image.flatten().tolist()) for image in held_out.images}
    assert [len(part) for part in trainer._real_parts] == [72, 18]


def test_noise_levels_are_uniform_in_log_snr_and_the_time_weight_undoes_it(make):
    trainer = make("run", "temporal_weight=time", "sigma_min=0.002", "sigma_max=100")
    sigma = trainer._sigmas(20000)
    place = (sigma.log() - sigma.log().min()) / (sigma.log().max() - sigma.log().min())
    assert (place.sort().values - torch.linspace(0, 1, 20000)).abs().max() < 1e-3
    assert (0.00199 < sigma.min()) & (sigma.max() < 100.1)
    weight = trainer._weights(sigma).double()
    tau = torch.from_numpy(tau_of_sigma(sigma.double().numpy()))
    lo, hi = (float(tau_of_sigma(s)) for s in (0.002, 100))
    for power in (1, 2, 3):  # moments of a uniform time
        wanted = (hi ** (power + 1) - lo ** (power + 1)) / (power + 1) / (hi - lo)
        assert (weight * tau**power).mean().item() == pytest.approx(wanted, rel=1e-3)
    assert weight.mean().item() == pytest.approx(1, rel=1e-3)


def test_starting_points(make, tmp_path):
    """Autocast, a TorchScript extractor, a discriminator of one's own: each trains, and each file loads."""

    class Features(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(1, 8, 2, stride=2)

        def forward(self, y: torch.Tensor, tau: torch.Tensor) -> torch.Tensor:
            return self.conv(y)

    torch.manual_seed(0)
    script = torch.jit.script(Features())
    script.save(str(tmp_path / "features.pt"))
    short = ("iterations=12", "start=scratch")
    plain = make("plain", *short, "amp=bfloat16", "temporal_weight=time")
    assert load(plain.run(progress=False)).config["extractor"] is None
    parts = (*short, "model.mults=[1]", "model.attention=[]", f"extractor={tmp_path / 'features.pt'}")
    outside = make("outside", *parts)
    before = script.state_dict()["conv.weight"].clone()
    model = load(outside.run(progress=False), extractor=script)
    assert (model.config["channels"], model.config["image_size"]) == (8, 4)
    assert torch.equal(outside.model.extractor.conv.weight, before)
    assert torch.equal(make("outside", *parts, resume=True).model.out.weight, outside.model.out.weight)


@pytest.mark.parametrize(
    ("override", "wanted"),
    [
        ("batch=33", "batch must be even"),
        ("sigma_max=0.001", "sigma_max must be above sigma_min = 0.01"),
        ("validation=0", r"validation must be in \(0, 1\)"),
        ("validation=0.01", "validation must leave at least 2 of 90 samples"),
        ("temporal_weight=snr", "temporal_weight must be none or time"),
        ("start=middle", "start must be denoiser or scratch"),
        ("solver=magic", "solver, steps: .*magic"),
        ("model.dropout=0.1", "model.dropout must be left at 0"),
        ("extractor=absent.pt", "extractor: absent.pt is no TorchScript file"),
        ("fakes=0", "fakes must be at least 1"),
    ],
)
def test_refusals_before_any_work(make, tmp_path, override, wanted):
    with pytest.raises(ConfigError, match=wanted):
        make("out", override)
    assert not (tmp_path / "out").exists()


def test_refuses_networks_that_do_not_fit(make, tmp_path, network):
    with pytest.raises(ModelFileError, match="absent: no such file"):
        make("out", "network=absent")
    save(tmp_path / "undescribed", UNet(**ARCHITECTURE), {})
    with pytest.raises(ModelFileError, match="does not say how its output is read"):
        make("out", f"network={tmp_path / 'undescribed'}")
    real = real_images()
    with pytest.raises(ConfigError, match=r"network must draw samples of the data's shape \[1, 4, 4\]"):
        make("out", real=Images(real.images[..., :4, :4], real.labels, 3))
    assert not (tmp_path / "out").exists()


def test_refusals_about_the_folder(make, tmp_path):
    make("run").run(until=3, progress=False)
    with pytest.raises(FileExistsError):
        make("run")
    with pytest.raises(ConfigError, match=r"evaluate_every is 3, but .* was made with 4"):
        make("run", "evaluate_every=3", resume=True)
    file = tmp_path / "run/checkpoints/0000003/state.json"
    state = json.loads(file.read_text())
    del state["best"]
    file.write_text(json.dumps(state))
    with pytest.raises(ModelFileError, match="not a checkpoint of this kind of training"):
        make("run", resume=True)
