"""The network of a model file, trained on: what fits and what is refused."""

from __future__ import annotations

import pytest
import torch

from fastdiff.config import ConfigError
from fastdiff.models import ModelFileError, UNet, load, save
from fastdiff.training import Trainer

from .runs import flat, small, trained

pytest.importorskip("sklearn")


def test_fine_tuning_begins_with_the_weights_of_a_file(tmp_path):
    parts = ("model.width=16", "objective.name=ddpm")
    trained(tmp_path / "a", *parts)
    file = tmp_path / "a/model.safetensors"
    # The architecture is the file's, the dropout the configuration's.
    tuned = Trainer(
        small("objective.name=ddpm", f"init={file}", "objective.gamma=0.1", "model.dropout=0.2"), tmp_path / "b"
    )
    assert torch.equal(flat(tuned.model), flat(load(file)))
    assert (tuned.model.config["width"], tuned.model.config["dropout"]) == (16, 0.2)
    before = flat(tuned.model)
    tuned._step()
    assert not torch.equal(flat(tuned.model), before)
    for overrides, wanted in [
        (["objective.name=flow"], "must have time_scale = 1000.0, got 1.0"),
        (["objective.name=ddpm", "objective.prediction=v"], "must have prediction = 'v', got 'eps'"),
        (["objective.name=ddpm", "objective.variance=learned"], "must have learned_variance = True, got False"),
        (["objective.name=ddpm", "conditional=false"], "must have label_dim = 0, got 10"),
        (["objective.name=ddpm", "data=moons"], r"samples of shape \[2\], got \[1, 8, 8\]"),
    ]:
        with pytest.raises(ConfigError, match=wanted):
            Trainer(small(f"init={file}", *overrides), tmp_path / "c")
    with pytest.raises(ModelFileError, match="absent: no such file"):
        Trainer(small("init=absent"), tmp_path / "c")
    save(tmp_path / "other", UNet(image_size=8, patch=1, width=8, label_dim=10), {"prediction": "x0"})
    with pytest.raises(ConfigError, match="must have prediction = 'edm', got 'x0'"):
        Trainer(small(f"init={tmp_path / 'other'}"), tmp_path / "c")


@pytest.mark.parametrize(
    ("built", "described", "overrides", "wanted"),
    [
        ({}, {"prediction": "edm", "sigma_data": 0.7}, (), "sigma_data = 0.5, got 0.7"),
        # An eps network with a second half of channels, which the loss of an SDE could not read.
        (
            {"learned_variance": True, "time_scale": 1.0},
            {"prediction": "eps"},
            ("objective.name=sde",),
            "learned_variance = False, got True",
        ),
        (
            {"learned_variance": True, "time_scale": 1.0},
            {"prediction": "eps", "variance": "learned"},
            ("objective.name=ddpm", "objective.variance=learned_range"),
            "variance = 'learned_range', got 'learned'",
        ),
        ({"augment_dim": 4}, {"prediction": "edm", "sigma_data": 0.5}, (), "augment_dim = 9, got 4"),
    ],
)
def test_a_file_whose_output_means_something_else_is_refused(tmp_path, built, described, overrides, wanted):
    save(tmp_path / "file", UNet(image_size=8, patch=1, width=8, embedding=16, label_dim=10, **built), described)
    with pytest.raises(ConfigError, match=f"init: .* must have {wanted}"):
        Trainer(small(f"init={tmp_path / 'file'}", *overrides), tmp_path / "run")


def test_a_network_that_is_told_augmentations_is_tuned_without_them_and_resumed(tmp_path):
    """Its embedding of them has gradients (zeros) all the same: replicas need those, and checkpoints the moments."""
    torch.manual_seed(0)
    network = UNet(image_size=8, patch=1, width=8, embedding=16, label_dim=10, augment_dim=9)
    save(tmp_path / "file", network, {"prediction": "edm", "sigma_data": 0.5})
    state = torch.get_rng_state()
    options = (f"init={tmp_path / 'file'}", "model.dropout=0.1")
    trained(tmp_path / "whole", *options, iterations=4)
    assert torch.equal(state, torch.get_rng_state())
    Trainer(small("iterations=4", *options), tmp_path / "run").run(until=2, progress=False)
    trained(tmp_path / "run", *options, iterations=4, resume=True)
    a, b = (load(tmp_path / folder / "model.safetensors") for folder in ("run", "whole"))
    assert torch.equal(flat(a), flat(b))
    assert torch.equal(a.augment_embedding.weight, network.augment_embedding.weight)
