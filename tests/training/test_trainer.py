"""The trainer: a killed run that is resumed ends with the same bits; refusals; the guard."""

from __future__ import annotations

import os

import pytest
import torch

from fastdiff.config import ConfigError, load_train_config
from fastdiff.models import ModelFileError, load
from fastdiff.models.io import load_tensors
from fastdiff.training import Trainer

pytest.importorskip("sklearn")

SMALL = [
    *("data=digits8", "model.width=8", "model.patch=1", "model.embedding=16", "model.dropout=0.1", "batch=32"),
    *("iterations=36", "warmup=5", "log_every=4", "evaluate_every=8", "checkpoint_every=10"),
]


def small(*overrides):
    return load_train_config(None, [*SMALL, *overrides])


def test_a_killed_and_resumed_run_ends_with_the_same_bits(tmp_path, monkeypatch):
    Trainer(small(), tmp_path / "whole").run(progress=False)

    trainer = Trainer(small(), tmp_path / "killed")
    step = trainer._step
    monkeypatch.setattr(trainer, "_step", lambda: step() if trainer.iteration < 23 else pytest.fail("killed"))
    with pytest.raises(pytest.fail.Exception, match="killed"):
        trainer.run(progress=False)
    with open(tmp_path / "killed/loss.csv", "a") as log:
        log.write("23,0.1")  # a torn row
    torch.rand(5)
    resumed = Trainer(small("checkpoint_every=10"), tmp_path / "killed", resume=True)
    assert resumed.iteration == 20
    resumed.run(progress=False)

    for name in ("checkpoint.safetensors", "model.safetensors", "loss.csv", "config.yaml"):
        assert (tmp_path / "killed" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes(), name
    assert sorted(os.listdir(tmp_path / "killed")) == [
        "checkpoint.safetensors",
        "config.yaml",
        "loss.csv",
        "model.safetensors",
    ]


def test_the_seed_decides_everything_and_global_randomness_nothing(tmp_path):
    def weights(folder, *overrides):
        trainer = Trainer(small("iterations=4", *overrides), tmp_path / folder)
        trainer.run(progress=False)
        return torch.cat([p.detach().flatten() for p in trainer.model.parameters()])

    torch.manual_seed(1)
    state = torch.get_rng_state()
    first = weights("a")
    assert torch.equal(state, torch.get_rng_state())
    torch.manual_seed(2)
    assert torch.equal(first, weights("b"))
    assert not torch.equal(first, weights("c", "seed=1"))


def test_the_model_file_is_the_average_and_says_how_it_was_made(tmp_path):
    trainer = Trainer(small("iterations=6", "sigma_data=0.7"), tmp_path)
    model = load(trainer.run(progress=False))
    for mine, theirs in zip(trainer.ema.parameters(), model.parameters(), strict=True):
        assert torch.equal(mine, theirs)
    assert any(not torch.equal(p, q) for p, q in zip(model.parameters(), trainer.model.parameters(), strict=True))
    assert (model.metadata["prediction"], model.metadata["sigma_data"], model.label_dim) == ("edm", 0.7, 10)
    training = model.metadata["training"]
    assert training["config"] == trainer.config.as_dict()
    assert training["heldout_loss"] == pytest.approx(trainer.evaluate())


def test_training_lowers_the_loss_also_without_classes(tmp_path):
    trainer = Trainer(small("conditional=false", "model.dropout=0", "iterations=40", "model.width=16"), tmp_path)
    before = trainer.evaluate()
    trainer.run(progress=False)
    assert trainer.model.label_dim == 0
    assert trainer.evaluate() < 0.8 * before


def test_autocast_trains_float32_weights(tmp_path):
    trainer = Trainer(small("amp=bfloat16", "iterations=2", "batch=4"), tmp_path)
    trainer.run(progress=False)
    assert all(p.dtype == torch.float32 and p.isfinite().all() for p in trainer.model.parameters())
    assert not Trainer(small("amp=auto", "device=cpu"), tmp_path / "auto").amp


def test_each_epoch_shows_every_image_once(tmp_path):
    trainer = Trainer(small(), tmp_path)
    seen = torch.cat([trainer.batches(i) for i in range(94)])  # 3008 of 1500 + 1500 + 8
    first, second = seen[:1500], seen[1500:3000]
    assert torch.equal(first.sort().values, torch.arange(1500))
    assert torch.equal(second.sort().values, torch.arange(1500))
    assert not torch.equal(first, second)
    assert torch.equal(trainer.batches(46), seen[46 * 32 : 47 * 32])


def test_learning_rate_warms_up_and_decays_to_zero(tmp_path):
    trainer = Trainer(small(), tmp_path)
    rates = []
    for trainer.iteration in range(37):
        rates.append(trainer._rate())
    peak = max(range(37), key=rates.__getitem__)
    assert 3 <= peak <= 6
    assert rates == sorted(rates[: peak + 1]) + sorted(rates[peak + 1 :], reverse=True)
    assert rates[36] == 0.0


def test_a_loss_that_is_not_finite_stops_the_run_and_spares_the_checkpoint(tmp_path):
    trainer = Trainer(small(), tmp_path)
    trainer.run(until=10, progress=False)
    trainer.images[:] = torch.nan
    with pytest.raises(FloatingPointError, match=r"loss nan.* at iteration 10;.*last finite state"):
        trainer.run(progress=False)
    tensors, description = load_tensors(tmp_path / "checkpoint.safetensors")
    assert description["iteration"] == 10
    assert all(tensor.isfinite().all() for tensor in tensors.values())
    assert not (tmp_path / "model.safetensors").exists()


def test_refusals_about_the_folder(tmp_path):
    with pytest.raises(ModelFileError, match=r"checkpoint\.safetensors: no such file"):
        Trainer(small(), tmp_path / "none", resume=True)
    assert not (tmp_path / "none").exists()

    Trainer(small(), tmp_path).run(until=2, progress=False)
    with pytest.raises(FileExistsError, match="checkpoint"):
        Trainer(small(), tmp_path)
    with pytest.raises(ConfigError, match=r"batch is 16, but .*checkpoint\.safetensors was made with 32"):
        Trainer(small("batch=16"), tmp_path, resume=True)
    Trainer(small("log_every=1"), tmp_path, resume=True)

    checkpoint = tmp_path / "checkpoint.safetensors"
    checkpoint.write_bytes(checkpoint.read_bytes()[:-10])
    with pytest.raises(ModelFileError, match=r"checkpoint\.safetensors"):
        Trainer(small(), tmp_path, resume=True)


def test_a_model_file_is_not_a_checkpoint(tmp_path):
    trainer = Trainer(small("iterations=1"), tmp_path)
    os.replace(trainer.run(progress=False), trainer.checkpoint)
    with pytest.raises(ModelFileError, match="not a training checkpoint"):
        Trainer(small("iterations=1"), tmp_path, resume=True)


@pytest.mark.parametrize(
    ("override", "error", "wanted"),
    [
        ("model.width=12", ConfigError, "model: UNet: width"),
        ("model.patch=3", ConfigError, "model: UNet: image_size"),
        ("device=tpu9", ConfigError, "cannot be used here"),
        ("device=meta", ConfigError, "cannot be used here"),
        ("data=cifar", ValueError, "data must be one of"),
    ],
)
def test_refusals_before_any_work(tmp_path, override, error, wanted):
    with pytest.raises(error, match=wanted):
        Trainer(small(override), tmp_path / "out")
    assert not (tmp_path / "out").exists()
