"""From files to samplers: preconditioned networks against a loop around D, and what is refused."""

from __future__ import annotations

import json
import math
from itertools import pairwise

import numpy as np
import pytest
import torch
from click.testing import CliRunner

import fastdiff
from fastdiff.cli import main
from fastdiff.models import ModelFileError, save
from fastdiff.models.network import build
from fastdiff.opening import default_settings, network_sampler, open_discriminator, open_network
from fastdiff.reading import reading_of
from tests.models.contract import randomise
from tests.threads import one_thread
from tests.tolerances import SAMPLED_NETWORK, SAMPLED_NETWORK_FLOAT64

__all__ = ["one_thread"]

SMALL = {"img_resolution": 8, "img_channels": 1, "model_channels": 8, "channel_mult": [1], "num_blocks": 1}
SMALL |= {"attn_resolutions": []}
NETWORKS = {
    "VPPrecond": {"label_dim": 3},
    "VEPrecond": {"embedding_type": "fourier", "channel_mult_noise": 2},
    "iDDPMPrecond": {"model_type": "DhariwalUNet", "M": 300},
    "EDMPrecond": {"model_type": "DhariwalUNet", "label_dim": 3, "sigma_data": 0.7},
}
WIRING = {"num_res_blocks": 1, "use_scale_shift_norm": True, "resblock_updown": True, "pool": "attention"}
JUDGE = {
    "extractor": WIRING | {"image_size": 8, "in_channels": 1, "model_channels": 32, "out_channels": 4,
                           "attention_resolutions": [1], "channel_mult": [1, 1], "num_head_channels": 32},
    "head": WIRING | {"image_size": 4, "in_channels": 32, "model_channels": 32, "out_channels": 1,
                      "attention_resolutions": [1], "channel_mult": [1], "num_head_channels": 32},
}  # fmt: skip
GD = {"image_size": 8, "in_channels": 1, "model_channels": 32, "out_channels": 2, "num_res_blocks": 1}
GD |= {"attention_resolutions": [], "channel_mult": [1], "num_heads": 1}
EPS = {"prediction": "eps", "process": {"name": "vp", "betas": "linear", "T": 1000}, "variance": "learned_range"}
CPU = torch.device("cpu")


def network(name):
    made = randomise(build(name, {**SMALL, **NETWORKS[name]}, "cpu"))
    for parameter in made.parameters():
        parameter *= 2 if parameter.ndim > 1 else 1
    return made


def stored(folder, name, config, metadata=None):
    path = folder / f"{name}.safetensors"
    save(path, randomise(build(name, config, "cpu")), {} if metadata is None else metadata)
    return str(path)


def around(net, x, steps, heun, labels):
    """Karras et al. 2022, Algorithm 1, on a denoiser; its levels are those of Eq. 5, rounded to the network's."""
    least, most = max(0.002, net.sigma_min), min(80.0, net.sigma_max)
    ramp = np.linspace(0, 1, steps)
    grid = (most ** (1 / 7) + ramp * (least ** (1 / 7) - most ** (1 / 7))) ** 7
    grid = [*net.round_sigma(torch.from_numpy(grid)).tolist(), 0.0]
    x = grid[0] * x
    for s, following in pairwise(grid):
        slope = (x - net(x, torch.tensor(s, dtype=x.dtype), labels)) / s
        end = x + (following - s) * slope
        if heun and following:
            last = (end - net(end, torch.tensor(following, dtype=x.dtype), labels)) / following
            end = x + (following - s) * (slope + last) / 2
        x = end
    return x


@pytest.mark.parametrize("solver", ["heun", "euler"])
@pytest.mark.parametrize("name", NETWORKS)
def test_a_preconditioned_network_is_sampled_as_a_loop_around_it(name, solver, tmp_path):
    path = tmp_path / "net.safetensors"
    save(path, network(name), {})
    net = open_network(str(path), CPU)
    labels = torch.tensor([2, 0]) if net.label_dim else None
    noise = torch.randn(2, *net.sample_shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    precise = open_network(str(path), CPU).double()
    want = around(precise, noise, 6, solver == "heun", labels)
    scale = want.abs().max()
    for compiled in (True, False):
        options = {"solver": solver, "steps": 6, "compiled": compiled}
        for of, dtype, bound in (
            (precise, torch.float64, SAMPLED_NETWORK_FLOAT64), (net, torch.float32, SAMPLED_NETWORK)
        ):  # fmt: skip
            sampler = fastdiff.sampler_of(of, dtype=dtype, **options)
            assert sampler.model is of.model and sampler.model_dtype == dtype
            got = sampler(2, labels=labels, noise=lambda draw, step: noise.to(dtype))  # noqa: B023
            assert (got.double() - want).abs().max() <= bound * scale


def test_iddpm_takes_the_noise_of_six_steps_from_its_table():
    net = network("iDDPMPrecond")
    sampler = fastdiff.sampler_of(net, solver="heun", steps=6, S_churn=3.0)
    levels = set(net.u.tolist())
    assert all(sigma in levels for sigma in sampler.levels.sigmas)
    told = []
    net.model.register_forward_pre_hook(lambda module, arguments: told.append(arguments[1]))
    assert sampler(1, seeds=0).shape == (1, 1, 8, 8)
    times = torch.cat(told)
    assert torch.equal(times, times.round()) and times.max() <= 299 and len(times) == 11


def test_classes_change_the_samples():
    sampler = fastdiff.sampler_of(network("EDMPrecond"), steps=3)
    first, second, none = (sampler(1, seeds=0, labels=label) for label in (0, 1, None))
    assert (first - second).abs().max() > 1e-4 and (first - none).abs().max() > 1e-4


def test_the_dtype_of_a_network_is_that_of_most_of_its_numbers():
    """A few numbers may have to stay in float32, wherever they stand."""
    net = torch.nn.ParameterDict({"W": torch.zeros(4), "weight": torch.zeros(99, dtype=torch.bfloat16)})
    assert fastdiff.Sampler(net, shape=(2,)).model_dtype == torch.bfloat16
    half = network("EDMPrecond").to(torch.bfloat16)
    sampler = fastdiff.sampler_of(half, steps=3)
    assert sampler.model_dtype == torch.bfloat16
    precise = fastdiff.sampler_of(network("EDMPrecond"), steps=3)(2, seeds=0)
    assert 0 < (sampler(2, seeds=0) - precise).abs().max() < 0.05 * precise.abs().max()


def test_limits_are_those_the_network_knows():
    net = network("VEPrecond")
    sampler = fastdiff.sampler_of(net, steps=4, sigma_max=100.0)
    assert sampler.levels.sigmas[[0, -2]].tolist() == pytest.approx([100.0, 0.02])
    assert default_settings(net) == {"solver": "heun", "steps": 18, "rho": 7.0, "sigma_min": 0.02, "sigma_max": 80.0}
    for limit in ({"sigma_max": 101.0}, {"sigma_min": 0.01}):
        with pytest.raises(ValueError, match=r"must be from 0\.02 to 100, which the network knows"):
            fastdiff.sampler_of(net, **limit)
    rounded = network("iDDPMPrecond")
    assert fastdiff.sampler_of(rounded, sigma_max=40.0, steps=4).levels[0].sigma in rounded.u.tolist()


def test_a_chain_is_sampled_with_its_variance(tmp_path):
    net = open_network(stored(tmp_path, "UNetModel", GD, EPS), CPU)
    sampler = fastdiff.sampler_of(net, steps=5)
    assert sampler.solver is fastdiff.solvers.SOLVERS["ddpm"]
    assert sampler.options == {"variance": "learned_range"} and sampler.clip == (-1.0, 1.0)
    assert default_settings(net) == {"solver": "ddpm", "steps": 100}
    other = fastdiff.sampler_of(net, steps=5, solver="ddim", clip_denoised=False)
    assert other.options == {} and other.clip is None
    drawn = sampler(2, seeds=0)
    assert drawn.shape == (2, 1, 8, 8) and drawn.abs().max() <= 1.0
    readable = sampler.replace(compiled=False)(2, seeds=0)
    assert (drawn - readable).abs().max() <= SAMPLED_NETWORK
    with pytest.raises(ValueError, match="sigma_max must be left out"):
        network_sampler(net, sigma_max=3.0)


def test_a_scheduler_beside_the_weights_settles_the_rest():
    net = randomise(build("UNetModel", {**GD, "out_channels": 1}, "cpu"))
    net.metadata = {"scheduler": {"_class_name": "DDIMScheduler", "clip_sample": True, "clip_sample_range": 2.0}}
    sampler = fastdiff.sampler_of(net, steps=7)
    assert sampler.levels.steps == 7 and sampler.clip == (-2.0, 2.0) and sampler.options["eta"] == 0.0
    assert default_settings(net) == {"steps": 50}
    assert sampler(1, seeds=0).isfinite().all()
    other = fastdiff.sampler_of(net, steps=7, solver="ddpm", variance="fixed_small")
    assert other.options == {"variance": "fixed_small"} and other.clip == (-2.0, 2.0)
    assert [level.time for level in other.levels] == [level.time for level in sampler.levels]


@pytest.mark.parametrize(
    "metadata",
    [{}, {"prediction": "edm"}, {"prediction": "eps"}, {"process": {"name": "edm"}}, {"scheduler": {"a": 1}}],
)
def test_a_network_that_does_not_say_how_it_is_read(tmp_path, metadata):
    path = stored(tmp_path, "UNetModel", GD, metadata)
    with pytest.raises(ModelFileError, match="does not say how its output is read"):
        open_network(path, CPU)
    with pytest.raises((TypeError, ValueError)):
        reading_of(fastdiff.models.load(path))


def test_discriminators_of_the_same_samples(tmp_path):
    net = network("EDMPrecond")
    judge = stored(tmp_path, "DGDiscriminator", JUDGE)
    found = open_discriminator(judge, net, CPU)
    assert type(found).__name__ == "DGDiscriminator" and len(found.metadata["digest"]) == 64
    wide = build("EDMPrecond", {**SMALL, "img_channels": 3})
    for path, model in ((judge, wide), (stored(tmp_path, "UNetModel", GD, EPS), net)):
        with pytest.raises(ModelFileError, match="not a discriminator of samples of shape"):
            open_discriminator(path, model, CPU)


def test_the_command_draws_from_any_of_them(tmp_path):
    path = tmp_path / "net.safetensors"
    save(path, network("EDMPrecond"), {})
    judge = stored(tmp_path, "DGDiscriminator", JUDGE)
    drawn = {}
    for name, flags in (("plain", []), ("guided", [f"--discriminator={judge}", "--w_1st=50"])):
        arguments = ["sample", f"--network={path}", "--steps=4", "--seeds=0-3", "--no-progress", *flags]
        result = CliRunner().invoke(main, [*arguments, f"--outdir={tmp_path / name}"])
        assert result.exit_code == 0, result.output
        written = np.load(tmp_path / name / "samples.npz")
        drawn[name] = written["images"]
        settings = json.loads(written["config"].item())
        assert settings["sigma_max"] == 80.0 and settings["solver"] == "heun" and len(settings["digest"]) == 64
    assert drawn["plain"].shape == (4, 8, 8, 1)
    assert math.isfinite(drawn["guided"].mean()) and written["labels"].tolist() == [0, 1, 2, 0]
