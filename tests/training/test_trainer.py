"""The trainer: what a step is, whatever it is split into; the guard; what it writes and what it refuses."""

from __future__ import annotations

import json
import math
import os

import pytest
import torch

from fastdiff.config import ConfigError, load_train_config
from fastdiff.data import DataError, InMemory
from fastdiff.models import ModelFileError, load
from fastdiff.opening import network_sampler
from fastdiff.training import Trainer
from fastdiff.training.log import read_log

from ..tolerances import TRAINING_SPLIT
from .runs import flat, small, trained

pytest.importorskip("sklearn")

PICTURES = ["sample_every=2", "samples=16", "reference=test"]


def test_the_seed_decides_everything_and_global_randomness_nothing(tmp_path):
    torch.manual_seed(1)
    state = torch.get_rng_state()
    first = flat(trained(tmp_path / "a", "model.dropout=0.1").model)
    assert torch.equal(state, torch.get_rng_state())
    torch.manual_seed(2)
    assert torch.equal(first, flat(trained(tmp_path / "b", "model.dropout=0.1").model))
    assert not torch.equal(first, flat(trained(tmp_path / "c", "model.dropout=0.1", "seed=1").model))


@pytest.mark.parametrize("parts", [2, 5])
def test_an_accumulated_step_is_the_step_of_the_whole_batch(tmp_path, parts):
    """32 samples in 5 parts are of unequal sizes; importance weights and the clipped norm are the batch's."""
    objective = ("objective.name=ddpm", "objective.levels=log_snr", "objective.gamma=0.1", "flip=true", "grad_clip=0.1")
    whole = trained(tmp_path / "whole", *objective, "objective.T=50")
    split = trained(tmp_path / "split", *objective, "objective.T=50", f"accumulation={parts}")
    for name in ("loss", "grad_norm", "heldout_loss"):
        a, b = (read_log(tmp_path / folder / "log.jsonl")[-1][name] for folder in ("whole", "split"))
        assert a == pytest.approx(b, rel=TRAINING_SPLIT), name
    torch.testing.assert_close(flat(whole.model), flat(split.model), rtol=0, atol=TRAINING_SPLIT)


def test_a_gradient_is_that_of_the_mean_loss_of_the_global_batch(tmp_path):
    """Against autograd on the objective itself, with the trainer's own draws."""
    trainer = Trainer(small("objective.name=ddpm", "objective.levels=log_snr", "accumulation=3"), tmp_path)
    trainer.backward()
    gradients = [p.grad.clone() for p in trainer.model.parameters()]
    x0, levels, weights, seeds, cond = trainer._batch(slice(0, 32))
    assert weights.std() > 0
    loss = (trainer.objective.loss(trainer.model, x0, levels, seeds, cond) * weights).mean()
    expected = torch.autograd.grad(loss, list(trainer.model.parameters()))
    for ours, theirs in zip(gradients, expected):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=TRAINING_SPLIT)


def test_the_model_files_are_the_averages_and_say_how_they_were_made(tmp_path):
    trainer = trained(tmp_path, "ema=[0.9,0.1]", "objective.sigma_data=0.7", "posthoc_ema=0.1", "posthoc_every=2")
    model = load(tmp_path / "model.safetensors")
    assert torch.equal(flat(model), flat(trainer.ema))
    second = load(tmp_path / "model-0.1.safetensors")
    assert torch.equal(flat(second), flat(trainer.averages.modules[1]))
    assert len({flat(m).sum().item() for m in (model, second, trainer.model)}) == 3
    assert (model.metadata["prediction"], model.metadata["sigma_data"], model.label_dim) == ("edm", 0.7, 10)
    training = model.metadata["training"]
    assert (training["ema"], second.metadata["training"]["ema"]) == (0.9, 0.1)
    assert training["config"] == trainer.config.as_dict()
    assert training["heldout_loss"] == pytest.approx(trainer.evaluate())
    written = sorted(os.listdir(tmp_path / "snapshots"))
    assert written == ["0000002-0.100.safetensors", "0000003-0.100.safetensors"]


def test_training_lowers_the_loss_also_without_classes(tmp_path):
    trainer = Trainer(small("conditional=false", "iterations=40", "model.width=16"), tmp_path)
    before = trainer.evaluate()
    trainer.run(progress=False)
    assert trainer.model.label_dim == 0
    assert trainer.evaluate() < 0.8 * before


@pytest.mark.parametrize(
    "objective",
    [
        ("name=ddpm", "variance=learned_range", "loss=rescaled_mse", "gamma=[0.1,0.2]"),
        ("name=flow", "gradient_penalty=1e-3"),
        ("name=sde", "sde=ve"),
        ("name=ssm_vr",),
    ],
)
def test_objectives_train_and_their_files_are_sampled(tmp_path, objective):
    trainer = trained(tmp_path, *(f"objective.{key}" for key in objective), "batch=4", iterations=2)
    loss = read_log(tmp_path / "log.jsonl")[-1]["loss"]
    assert math.isfinite(loss)
    model = load(tmp_path / "model.safetensors")
    images = network_sampler(model, steps=2)(2, seeds=[0, 1], labels=torch.tensor([0, 1]))
    assert tuple(images.shape[1:]) == trainer.data.sample_shape


def test_points_pictures_and_the_distance_to_a_reference(tmp_path):
    pytest.importorskip("torchmetrics")
    pytest.importorskip("matplotlib")
    config = load_train_config(
        None,
        [
            "data=moons:300",
            "network=mlp",
            "model.width=16",
            "objective.name=flow",
            "iterations=4",
            "batch=8",
            *PICTURES,
        ],
    )
    Trainer(config, tmp_path).run(progress=False)
    assert sorted(os.listdir(tmp_path / "samples")) == ["0000002.png", "0000004.png"]
    distances = [row["frechet"] for row in read_log(tmp_path / "log.jsonl") if "frechet" in row]
    assert len(distances) == 2
    assert all(0 < distance < math.inf for distance in distances)


# -- precision, layout, compilation ------------------------------------------------------------------------------------


def test_autocast_and_channels_last_train_float32_weights(tmp_path):
    trainer = trained(tmp_path, "amp=bfloat16", "channels_last=true", "augment=0.5", "batch=4", iterations=2)
    assert all(p.dtype == torch.float32 and p.isfinite().all() for p in trainer.model.parameters())
    assert trainer.model.stem.weight.is_contiguous(memory_format=torch.channels_last)
    assert trainer.model.augment_embedding is not None
    assert Trainer(small("amp=auto", "device=cpu"), tmp_path / "auto").amp is None


def test_float16_scales_the_loss_and_clips_what_is_unscaled(tmp_path):
    trainer = Trainer(small("amp=float16", "batch=8", "grad_clip=1e-3"), tmp_path)
    trainer.scaler.scale(torch.zeros(()))
    trainer.scaler.load_state_dict({**trainer.scaler.state_dict(), "scale": 4.0, "growth_interval": 2})
    plain = Trainer(small("amp=none", "batch=8", "grad_clip=1e-3"), tmp_path / "plain")
    norms = [run._step().tolist()[1] for run in (trainer, plain)]
    assert norms[0] == pytest.approx(norms[1], rel=0.02)
    clipped = torch.cat([p.grad.flatten() for p in trainer.model.parameters()]).norm().item()
    assert clipped == pytest.approx(1e-3, rel=1e-2)
    trainer._step()
    assert trainer.scaler.get_scale() == 8.0


def test_an_overflow_halves_the_scale_skips_the_update_and_is_resumed(tmp_path):
    trainer = Trainer(small("amp=float16", "batch=8", "iterations=6", "checkpoint_every=2"), tmp_path)
    trainer.scaler.scale(torch.zeros(()))
    trainer.scaler.load_state_dict({**trainer.scaler.state_dict(), "scale": 2.0**40})
    before = flat(trainer.model)
    trainer.run(until=2, progress=False)
    assert trainer.scaler.get_scale() == 2.0**38
    assert trainer.skipped == 2
    assert torch.equal(flat(trainer.model), before)
    resumed = Trainer(small("amp=float16", "batch=8", "iterations=6", "checkpoint_every=2"), tmp_path, resume=True)
    assert (resumed.scaler.get_scale(), resumed.skipped) == (2.0**38, 2)


def test_compiled_checkpoints_have_the_names_of_plain_ones(tmp_path, monkeypatch):
    """Compiled without a compiler: what matters is what the trainer does with the result."""
    compiled = []

    def compile(self, *arguments, **options):
        compiled.append(self)
        self._compiled_call_impl = self._call_impl

    monkeypatch.setattr(torch.nn.Module, "compile", compile)
    trainer = Trainer(small("iterations=2", "checkpoint_every=1", "compile=true"), tmp_path)
    trainer.run(until=1, progress=False)
    assert compiled == [trainer.model]
    assert not any("_orig_mod" in name for name in trainer._state())
    plain = Trainer(small("iterations=2", "checkpoint_every=1"), tmp_path, resume=True)
    assert torch.equal(flat(plain.model), flat(trainer.model))
    plain.run(progress=False)
    with pytest.raises(ConfigError, match="compile must be false for ssm"):
        Trainer(small("compile=true", "objective.name=ssm"), tmp_path / "ssm")


# -- the guard ---------------------------------------------------------------------------------------------------------


def spoil(trainer, iterations):
    """Has the loss of some iterations be NaN."""
    backward = trainer.backward

    def spoilt():
        loss = backward()
        if trainer.iteration in iterations:
            next(trainer.model.parameters()).grad.fill_(torch.nan)
        return loss

    trainer.backward = spoilt


@pytest.mark.parametrize("optimizer", ["adam", "adamw"])
def test_a_step_that_is_not_finite_changes_nothing_and_is_counted(optimizer, tmp_path):
    averages = ("ema=[0.9,0.5]", "posthoc_ema=0.1")
    decay = (f"optimizer={optimizer}", "weight_decay=0.1")
    trainer = Trainer(small("iterations=6", "log_every=1", *averages, *decay), tmp_path)
    spoil(trainer, {2, 4})
    trainer.run(until=2, progress=False)
    before = {name: tensor.clone() for name, tensor in trainer._state().items()}
    moments = {k: {n: v.clone() for n, v in m.items()} for k, m in trainer.optimizer.state_dict()["state"].items()}
    trainer.run(until=3, progress=False)
    for name, tensor in trainer._state().items():
        assert torch.equal(tensor, before[name]), name
    for key, values in trainer.optimizer.state_dict()["state"].items():
        for name, value in values.items():
            assert torch.equal(value, moments[key][name]), name
    trainer.run(progress=False)
    assert trainer.skipped == 2
    assert all(tensor.isfinite().all() for tensor in trainer._state().values())
    rows = read_log(tmp_path / "log.jsonl")
    assert [row["skipped"] for row in rows] == [0, 0, 1, 1, 2, 2]
    assert [row["loss"] is None for row in rows] == [False, False, True, False, True, False]
    assert load(tmp_path / "model.safetensors")


def test_a_loss_that_is_not_finite_skips_too(tmp_path):
    trainer = Trainer(small(), tmp_path)
    trainer.backward()
    gradients = [p.grad for p in trainer._parameters]

    def backward():
        for parameter, gradient in zip(trainer._parameters, gradients):
            parameter.grad = gradient.clone()
        return torch.tensor(torch.inf)

    trainer.backward = backward
    before = flat(trainer.model)
    assert trainer._step().tolist()[2] == 1
    assert torch.equal(flat(trainer.model), before)


def test_too_many_in_a_row_stop_the_run_and_spare_the_checkpoint(tmp_path):
    trainer = Trainer(small("nonfinite_limit=3"), tmp_path)
    spoil(trainer, {1, 2, 4, 5, 10, 11, 12})
    with pytest.raises(
        FloatingPointError, match=r"at iteration 12, the last of 3 in a row .*lower learning_rate.*0000010"
    ):
        trainer.run(progress=False)
    assert [path.name for path in trainer.checkpoints.folders()] == ["0000010"]
    stored = trainer.checkpoints.newest()
    assert stored.state["skipped"] == [4, 0]
    assert all(tensor.isfinite().all() for tensor in stored.tensors.values())
    assert not (tmp_path / "model.safetensors").exists()


# -- dry runs, refusals -----------------------------------------------------------------------------------


def test_held_out_samples_must_be_like_the_others(tmp_path):
    images = torch.zeros(4, 1, 8, 8)
    data = InMemory("mine", images, torch.tensor([0, 1, 0, 1]))
    for other, wanted in [
        (
            InMemory("other", images[:, :, 2:, 2:], data.labels),
            r"shape \[1, 8, 8\] and 2 classes .* got shape \[1, 6, 6\]",
        ),
        (InMemory("other", images, torch.tensor([0, 1, 2, 3])), "2 classes .* and 4 classes"),
    ]:
        with pytest.raises(DataError, match=wanted):
            Trainer(small(), tmp_path / "run", data=data, heldout=other)


def test_a_dry_run_does_a_step_and_writes_nothing(tmp_path):
    tried = Trainer(small(), tmp_path / "dry", dry=True).try_step()
    whole = Trainer(small("log_every=1"), tmp_path / "run")
    whole.run(until=1, progress=False)
    row = read_log(tmp_path / "run/log.jsonl")[0]
    assert (tried["loss"], tried["grad_norm"]) == (row["loss"], row["grad_norm"])
    assert tried["bytes"] > 1e6
    assert os.listdir(tmp_path) == ["run"]


def test_ones_own_samples_and_no_held_out_ones(tmp_path):
    generator = torch.Generator().manual_seed(0)
    data = InMemory("mine", torch.rand(7, 3, 8, 8, generator=generator))
    trainer = trained(tmp_path, data=data)
    assert (trainer.model.sample_shape, trainer.model.label_dim, trainer.heldout) == ((3, 8, 8), 0, None)
    assert load(tmp_path / "model.safetensors").metadata["training"]["heldout_loss"] is None
    assert "heldout_loss" not in read_log(tmp_path / "log.jsonl")[-1]


def test_each_epoch_shows_every_image_once(tmp_path):
    trainer = Trainer(small(), tmp_path)
    seen = torch.cat([trainer.batches(i) for i in range(94)])  # 3008 of 1500 + 1500 + 8
    first, second = seen[:1500], seen[1500:3000]
    assert torch.equal(first.sort().values, torch.arange(1500))
    assert torch.equal(second.sort().values, torch.arange(1500))
    assert not torch.equal(first, second)
    assert torch.equal(trainer.batches(46), seen[46 * 32 : 47 * 32])
    longer = Trainer(small("batch=3100"), tmp_path / "long").batches(0)
    assert torch.equal(longer[:3000], torch.cat([first, second]))


def test_refusals_about_the_folder(tmp_path):
    Trainer(small(), tmp_path).run(until=2, progress=False)
    with pytest.raises(FileExistsError, match="checkpoints holds a run"):
        Trainer(small(), tmp_path)
    with pytest.raises(ConfigError, match=r"batch is 16, but .*0000002 was made with 32"):
        Trainer(small("batch=16"), tmp_path, resume=True)
    with pytest.raises(ConfigError, match=r"objective.gamma is \[0.1\], but .*0000002 was made with \[0.0\]"):
        Trainer(small("objective.gamma=0.1"), tmp_path, resume=True)
    Trainer(small("log_every=1", "keep=5", "accumulation=2"), tmp_path, resume=True)


def test_another_kind_of_run_is_no_checkpoint_of_this_one(tmp_path):
    Trainer(small(), tmp_path).run(until=1, progress=False)
    state = tmp_path / "checkpoints/0000001/state.json"
    known = json.loads(state.read_text())
    del known["skipped"]
    state.write_text(json.dumps(known))
    with pytest.raises(ModelFileError, match="not a checkpoint of this kind of training"):
        Trainer(small(), tmp_path, resume=True)


@pytest.mark.parametrize(
    ("override", "error", "wanted"),
    [
        ("model.width=12", ConfigError, "model: UNet: width"),
        ("model.patch=3", ConfigError, "model: UNet: image_size"),
        ("device=tpu9", ConfigError, "cannot be used here"),
        ("device=meta", ConfigError, "cannot be used here"),
        ("data=cifar", DataError, "data: cifar: not digits8"),
        ("objective.name=gan", ConfigError, "objective.name must be one of edm"),
        ("network=mlp", ConfigError, r"network must be unet for samples of shape \[1, 8, 8\]"),
        ("data=moons", ConfigError, r"network must be mlp for samples of shape \[2\]"),
        ("accumulation=33", ConfigError, "batch must be at least 33"),
        ("init=absent", ModelFileError, "init: absent: no such file"),
        ("sample_every=1 reference=train samples=1", ValueError, "samples must be an integer of at least 2"),
    ],
)
def test_refusals_before_any_work(tmp_path, override, error, wanted):
    with pytest.raises(error, match=wanted):
        Trainer(small(*override.split()), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_run_at_a_constant_rate_can_go_on_for_longer(tmp_path):
    whole = trained(tmp_path / "whole", "schedule=constant", iterations=4)
    trained(tmp_path / "short", "schedule=constant", iterations=2)
    longer = trained(tmp_path / "short", "schedule=constant", iterations=4, resume=True)
    assert torch.equal(flat(whole.model), flat(longer.model))
    with pytest.raises(ConfigError, match=r"iterations is 3, but .*0000004 has 4"):
        Trainer(small("schedule=constant", "iterations=3"), tmp_path / "short", resume=True)
    trained(tmp_path / "cosine", iterations=2)
    with pytest.raises(ConfigError, match="iterations is 4, but"):
        Trainer(small("iterations=4"), tmp_path / "cosine", resume=True)
