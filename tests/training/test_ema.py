"""Averages of weights against sums written out in float64; resume; reconstruction of averages that were not kept."""

from __future__ import annotations

import os
import re

import numpy as np
import pytest
import torch
from torch import nn

from fastdiff.models import ModelFileError, UNet, load
from fastdiff.models.io import save
from fastdiff.training.ema import (
    Averages,
    drop_snapshots,
    reconstruct,
    save_snapshots,
    snapshot_files,
)
from fastdiff.training.profiles import SIGMA_REL_MAX, gamma_of

from ..tolerances import FLOAT32_STATE, ROUNDING


class Net(nn.Module):
    """Parameters, a floating and an integer buffer, and a frozen extractor."""

    def __init__(self, extractor=None):
        super().__init__()
        self.a = nn.Parameter(torch.zeros(3, 2))
        self.b = nn.Parameter(torch.zeros(()))
        self.register_buffer("running", torch.zeros(2))
        self.register_buffer("count", torch.zeros((), dtype=torch.int64))
        self.extractor = extractor

    def at(self, iteration):
        """Sets the weights after `iteration` (from 0) to a scripted walk."""
        draw = torch.Generator().manual_seed(iteration)
        with torch.no_grad():
            self.a.copy_(torch.randn(3, 2, generator=draw))
            self.b.fill_(iteration / 7)
            self.running.fill_(iteration)
            self.count.fill_(iteration)
        return self


def walk(averages, model, iterations):
    for iteration in iterations:
        averages.update(model.at(iteration), iteration)


# --- exponential averages --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("warmup", [True, False])
def test_exponential_averages_are_the_sums_they_stand_for(warmup):
    model = Net().at(0)
    averages = Averages(model, [0.9, 0.0, 0.999], warmup=warmup)
    walk(averages, model, range(40))
    for decay, module in zip([0.9, 0.0, 0.999], averages.modules):
        expected = Net().at(0).a.double()
        for i in range(40):
            keep = min(decay, (1 + i) / (10 + i)) if warmup else decay
            expected = keep * expected + (1 - keep) * Net().at(i).a.double()
        assert (module.a - expected).abs().max() < FLOAT32_STATE
        assert not module.training
        assert not module.a.requires_grad
    assert torch.equal(averages.modules[1].a, model.a)  # decay 0


def test_the_update_is_the_one_of_a_plain_lerp_bit_by_bit():
    model = Net().at(0)
    averages = Averages(model, [0.99])
    kept = model.a.detach().clone()
    for i in range(20):
        averages.update(model.at(i), i)
        kept = torch.lerp(kept, model.a.detach(), 1 - min(0.99, (1 + i) / (10 + i)))
    assert torch.equal(averages.modules[0].a, kept)


def test_buffers_are_copied_and_what_is_frozen_is_shared():
    extractor = nn.Linear(2, 2)
    model = Net(extractor).at(0)
    before = extractor.weight.clone()
    averages = Averages(model, [0.5, 0.9], [0.1])
    walk(averages, model, range(5))
    for module in averages.modules:
        assert module.extractor is extractor
        assert module.running.tolist() == [4.0, 4.0]
        assert module.count == 4
    assert torch.equal(extractor.weight, before)
    assert not any("extractor" in name for name in averages.state())


def test_a_skipped_iteration_leaves_every_average_as_it_was():
    flagged, plain = Net().at(0), Net().at(0)
    with_flag, without = Averages(flagged, [0.9], [0.1]), Averages(plain, [0.9], [0.1])
    for i in range(12):
        before = {name: tensor.clone() for name, tensor in with_flag.state().items()}
        with_flag.update(flagged.at(i), i, found_inf=torch.tensor([float(i in (3, 7))]))
        if i in (3, 7):
            assert all(torch.equal(before[name], tensor) for name, tensor in with_flag.state().items())
        else:
            without.update(plain.at(i), i)
    for name, tensor in with_flag.state().items():
        assert torch.allclose(tensor, without.state()[name], rtol=FLOAT32_STATE, atol=FLOAT32_STATE), name


def test_a_flag_is_never_read():
    """Reading a number waits for the device."""

    def operators(body):
        with torch.autograd.profiler.profile() as profile:
            body()
        return {event.name for event in profile.function_events}

    averages, flag = Averages(Net(), [0.9], [0.1]), torch.ones(1)
    assert "aten::_local_scalar_dense" in operators(lambda: bool(flag))
    used = operators(lambda: averages.update(Net(), 0, found_inf=flag))
    assert "aten::_foreach_add_" in used
    assert "aten::_local_scalar_dense" not in used


def test_a_resumed_run_goes_on_to_the_same_bits():
    model = Net().at(0)
    whole = Averages(model, [0.9, 0.999], [0.05, 0.1])
    walk(whole, model, range(30))
    first = Averages(Net().at(0), [0.9, 0.999], [0.05, 0.1])
    walk(first, Net(), range(17))
    stored = {name: tensor.clone() for name, tensor in first.state().items()}
    second = Averages(Net().at(16), [0.9, 0.999], [0.05, 0.1])
    second.restore(stored)
    walk(second, Net(), range(17, 30))
    for name, tensor in whole.state().items():
        assert torch.equal(tensor, second.state()[name]), name


@pytest.mark.parametrize("change", ["missing", "shape", "nan"])
def test_a_state_that_does_not_fit_is_refused(change):
    averages = Averages(Net(), [0.9])
    state = {name: tensor.clone() for name, tensor in averages.state().items()}
    if change == "missing":
        del state["0.a"]
    else:
        state["0.a"] = torch.zeros(2, 3) if change == "shape" else torch.full((3, 2), float("nan"))
    with pytest.raises(ModelFileError, match=r"0\.a"):
        averages.restore(state)


@pytest.mark.parametrize(
    ("arguments", "wanted"),
    [
        (([], []), "at least one average"),
        (([1.0], []), r"decays must be in \[0, 1\), got 1.0"),
        (([float("nan")], []), "decays must be finite"),
        (([], [0.0]), r"sigma_rel must be in \(0, "),
        (([], [0.3]), "got 0.3"),
    ],
)
def test_refuses(arguments, wanted):
    with pytest.raises(ValueError, match=wanted):
        Averages(Net(), *arguments)


# --- power-function averages -----------------------------------------------------------------------------------------


def profile(sigma_rel, time, count):
    """Weights of iterations 1 ... count in the average at `time`: integrals of the profile, float64."""
    edges = np.minimum(np.arange(count + 1) / time, 1.0) ** (gamma_of(sigma_rel) + 1)
    return np.diff(edges)


def test_power_averages_are_integrals_of_the_profile():
    model = Net().at(99)
    averages = Averages(model, [], [0.05, 0.1, SIGMA_REL_MAX])
    walk(averages, model, range(60))
    trajectory = torch.stack([Net().at(i).a.detach().double() for i in range(60)]).numpy()
    for sigma_rel, module in zip([0.05, 0.1, SIGMA_REL_MAX], averages.modules):
        expected = np.tensordot(profile(sigma_rel, 60, 60), trajectory, 1)
        assert abs(module.a.double().numpy() - expected).max() < FLOAT32_STATE
    assert averages.modules[2].a.numpy() == pytest.approx(trajectory.mean(0), abs=FLOAT32_STATE)  # gamma 0


# --- reconstruction --------------------------------------------------------------------------------------------------

COUNT, EVERY = 240, 6


def script(iteration, start):
    """Weights that settle while they jitter, around a large mean that never changes."""
    draw = torch.Generator().manual_seed(iteration)
    return {
        name: 3.0 + value * np.exp(-iteration / 60) + 0.05 * torch.randn(value.shape, generator=draw)
        for name, value in start.items()
    }


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """(folder of snapshots of widths 0.05 and 0.1, the trajectory [COUNT, P] in float64, names and shapes)."""
    folder = tmp_path_factory.mktemp("run") / "snapshots"
    torch.manual_seed(0)
    model = UNet(4, 1, width=8, mults=[1], attention=[], patch=1, embedding=8)
    start = {name: value.clone() for name, value in model.state_dict().items()}
    averages = Averages(model, [0.99], [0.05, 0.1])
    rows = []
    for iteration in range(COUNT):
        model.load_state_dict(script(iteration, start))
        rows.append(flat(model.state_dict()))
        averages.update(model, iteration)
        if (iteration + 1) % EVERY == 0:
            save_snapshots(folder, averages, iteration + 1, {"prediction": "edm", "sigma_data": 0.5})
    return folder, np.stack(rows)


def flat(tensors):
    return torch.cat([tensors[name].double().flatten() for name in sorted(tensors)]).numpy()


@pytest.mark.parametrize(
    ("sigma_rel", "time"), [(0.04, COUNT), (0.07, COUNT), (0.07, COUNT // 2), (0.15, COUNT), (0.25, COUNT // 2)]
)
def test_a_third_width_is_reconstructed_within_the_profiles_error(run, sigma_rel, time):
    folder, rows = run
    files = snapshot_files(folder)
    assert len(files) == 2 * COUNT // EVERY
    result = reconstruct(files, sigma_rel, time)
    exact = profile(sigma_rel, time, COUNT) @ rows
    # The wanted sum and the combination differ by the integral of (profile residual) x (weights - their mean), since
    # the coefficients' sum is 1: at most the product of the two norms (Cauchy and Schwarz).
    gamma = gamma_of(sigma_rel)
    norm = (gamma + 1) / np.sqrt((2 * gamma + 1) * time)
    spread = np.sqrt(((rows - rows.mean(0)) ** 2).sum(0))
    rounding = sum(map(abs, result.coefficients.values())) * abs(rows).max() * ROUNDING[torch.float32]
    difference = abs(flat(result.tensors) - exact)
    assert (difference <= result.error * norm * spread + rounding).all()
    assert sum(result.coefficients.values()) == pytest.approx(1)
    between = 0.05 <= sigma_rel <= 0.1  # the stored widths
    assert result.error < (0.003 if between else 0.08)
    assert difference.max() < (3e-4 if between else 1e-2)


def test_a_stored_average_is_its_own_reconstruction(run):
    folder, _ = run
    result = reconstruct(snapshot_files(folder), 0.1)
    stored = load(folder / f"{COUNT:07d}-0.100.safetensors").state_dict()
    assert abs(flat(result.tensors) - flat(stored)).max() < FLOAT32_STATE
    assert result.error < 1e-6
    assert result.coefficients[folder / f"{COUNT:07d}-0.100.safetensors"] == pytest.approx(1, abs=1e-6)


def test_more_snapshots_are_better(run):
    folder, _ = run
    errors = [reconstruct(snapshot_files(folder)[-2 * n :], 0.15).error for n in (1, 4, 16, 40)]
    assert errors == sorted(errors, reverse=True)
    assert errors[0] > 50 * errors[-1]


def test_a_reconstruction_is_a_model_file(run, tmp_path):
    folder, _ = run
    result = reconstruct(snapshot_files(folder), 0.08)
    result.save(tmp_path / "model.safetensors")
    model = load(tmp_path / "model.safetensors")
    assert isinstance(model, UNet)
    assert model.metadata["prediction"] == "edm"
    assert model.metadata["power_ema"] == {"sigma_rel": 0.08, "iteration": COUNT, "error": result.error}
    assert os.listdir(tmp_path) == ["model.safetensors"]


def test_snapshots_are_only_those_of_power_averages(tmp_path):
    model = UNet(4, 1, width=8, mults=[1], attention=[], patch=1, embedding=8)
    assert save_snapshots(tmp_path / "none", Averages(model, [0.9]), 5) == []
    assert not (tmp_path / "none").exists()
    (file,) = save_snapshots(tmp_path, Averages(model, [0.9], [0.1]), 5)
    save(tmp_path / "other.safetensors", model, {})
    assert snapshot_files(tmp_path) == [file]
    assert file.name == "0000005-0.100.safetensors"
    with pytest.raises(ModelFileError, match=r"other\.safetensors: not a snapshot"):
        reconstruct([file, tmp_path / "other.safetensors"], 0.1)


def test_snapshots_of_an_earlier_run_are_dropped(tmp_path):
    model = UNet(4, 1, width=8, mults=[1], attention=[], patch=1, embedding=8)
    averages = Averages(model, [], [0.05, 0.1])
    kept = [file for i in (5, 10) for file in save_snapshots(tmp_path, averages, i)]
    for i in (11, 12_345_678):
        save_snapshots(tmp_path, averages, i)
    (tmp_path / "9999999-notes.safetensors").write_text("someone's")
    drop_snapshots(tmp_path, after=10)
    assert snapshot_files(tmp_path) == kept
    drop_snapshots(tmp_path, after=0)
    assert os.listdir(tmp_path) == ["9999999-notes.safetensors"]
    drop_snapshots(tmp_path / "absent", after=0)


def test_reconstruction_refuses(run, tmp_path):
    folder, _ = run
    files = snapshot_files(folder)[-4:]
    with pytest.raises(ValueError, match="at least one snapshot"):
        reconstruct([], 0.1)
    with pytest.raises(ValueError, match=f"at most the newest snapshot's, {COUNT}, got {COUNT + 1}"):
        reconstruct(files, 0.1, COUNT + 1)
    with pytest.raises(ValueError, match="sigma_rel must be in"):
        reconstruct(files, 0.29)
    other = UNet(4, 1, width=16, mults=[1], attention=[], patch=1, embedding=8)
    (foreign,) = save_snapshots(tmp_path, Averages(other, [], [0.1]), 7)
    with pytest.raises(ModelFileError, match=re.escape(foreign.name)):
        reconstruct([*files, foreign], 0.1)
    with pytest.raises(ModelFileError, match="no such file"):
        reconstruct([tmp_path / "absent.safetensors"], 0.1)
