"""Folders of diffusers: what save_pretrained writes, older layouts, shards, and names on the Hugging Face hub."""

from __future__ import annotations

import json
import os
import shutil

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from safetensors.torch import load_file, save_file

import fastdiff
from fastdiff.cli import main
from fastdiff.importing import folders
from fastdiff.importing.load import convert, load
from fastdiff.latents import latent_of
from fastdiff.models import ModelFileError

from ..tolerances import LAYOUT
from .pipelines import HALF, WEIGHTS, T, X, autoencoder, change_json, computed, diffusers, unet, with_autoencoder

# --- layouts ---------------------------------------------------------------------------------------------------------


def test_a_pipeline(written, assert_same):
    network = load(written)
    assert_same(network(X, T))
    assert network.metadata["scheduler"]["variance_type"] == "fixed_large"
    assert network.vae is None and latent_of(network) is None
    assert not any(parameter.requires_grad for parameter in network.parameters())


def test_a_part_with_the_scheduler_beside_it(written, assert_same):
    network = load(written / "unet")
    assert_same(network(X, T))
    assert network.metadata["scheduler"]["_class_name"] == "DDPMScheduler"


def test_a_part_alone(written, assert_same, tmp_path):
    shutil.copytree(written / "unet", tmp_path / "alone")
    network = load(tmp_path / "alone")
    assert_same(network(X, T))
    assert "scheduler" not in network.metadata
    assert "how the output is read must be given" in " ".join(network.metadata["imported"]["notes"])


def test_the_first_pipelines_had_no_folders_within(pipeline, assert_same):
    for file in (*(pipeline / "unet").iterdir(), *(pipeline / "scheduler").iterdir()):
        file.rename(pipeline / file.name)
    for folder in ("unet", "scheduler"):
        (pipeline / folder).rmdir()
    network = load(pipeline)
    assert_same(network(X, T))
    assert "scheduler" in network.metadata


def test_older_names_of_attention_in_a_bin_file(pipeline, assert_same):
    file = pipeline / "unet" / f"{WEIGHTS}.safetensors"
    older = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
    tensors = {}
    for name, tensor in load_file(file).items():
        for new, old in older.items():
            name = name.replace(f".{new}.", f".{old}.")
        tensors[name] = tensor
    file.unlink()
    torch.save(tensors, file.with_suffix(".bin"))
    network = load(pipeline)
    assert_same(network(X, T))
    assert any("renamed" in note for note in network.metadata["imported"]["notes"])
    name = next(name for name in tensors if ".query.weight" in name)
    torch.save({**tensors, name.replace("query", "to_q"): tensors[name].clone()}, file.with_suffix(".bin"))
    with pytest.raises(ModelFileError, match=r"older and newer names at once: .*query\.weight"):
        load(pipeline)


def test_shards(pipeline, assert_same):
    place = pipeline / "unet"
    shutil.rmtree(place)
    unet().save_pretrained(place, max_shard_size="8KB")
    index = json.loads((place / f"{WEIGHTS}.safetensors.index.json").read_text())
    assert len(set(index["weight_map"].values())) > 2
    assert_same(computed(pipeline))


def test_the_only_variant(pipeline, assert_same, expected):
    file = pipeline / "unet" / f"{WEIGHTS}.safetensors"
    save_file({name: tensor.half() for name, tensor in load_file(file).items()}, file.with_suffix(".fp16.safetensors"))
    assert_same(computed(pipeline))
    file.unlink()
    torch.testing.assert_close(computed(pipeline), expected, rtol=HALF, atol=HALF)
    shutil.copy(file.with_suffix(".fp16.safetensors"), file.with_suffix(".non_ema.safetensors"))
    with pytest.raises(ModelFileError, match=r"got variants only: .*fp16.*non_ema"):
        load(pipeline)


def test_converted(pipeline, tmp_path, assert_same):
    with_autoencoder(pipeline)
    target = tmp_path / "one.safetensors"
    result = CliRunner().invoke(main, ["convert", str(pipeline), str(target)])
    assert result.exit_code == 0, result.output
    shutil.rmtree(pipeline)
    network = load(target)
    assert_same(network(X, T))
    assert network.metadata["scheduler"]["_class_name"] == "DDPMScheduler"
    wanted = autoencoder().eval().requires_grad_(False).decode(X / 0.5).sample
    torch.testing.assert_close(latent_of(network)(X), wanted, rtol=LAYOUT, atol=LAYOUT)


# --- autoencoders ----------------------------------------------------------------------------------------------------


def test_an_autoencoder(pipeline):
    assert folders.open_autoencoder(pipeline) is None
    with_autoencoder(pipeline)
    with torch.no_grad():
        wanted = autoencoder().eval().decode(X).sample
    for place in (pipeline, pipeline / "vae"):
        vae = folders.open_autoencoder(place, dtype=torch.float64)
        torch.testing.assert_close(vae.decode(X.double()).sample.float(), wanted, rtol=1e-4, atol=1e-5)
    assert vae.config.scaling_factor == 0.5 and not any(p.requires_grad for p in vae.parameters())
    network = load(pipeline)
    wanted = autoencoder().eval().requires_grad_(False).decode(X / 0.5).sample
    torch.testing.assert_close(latent_of(network)(X), wanted, rtol=LAYOUT, atol=LAYOUT)
    with pytest.raises(ModelFileError, match=r"_class_name must be one of UNet2DModel.*got 'AutoencoderKL'"):
        load(pipeline / "vae")
    with pytest.raises(ModelFileError, match=r"_class_name must be one of AutoencoderKL.*got 'UNet2DModel'"):
        folders.open_autoencoder(pipeline / "unet")


# --- sampling --------------------------------------------------------------------------------------------------------


def test_a_sampler_does_as_the_scheduler(pipeline):
    """DDIM is deterministic: the same steps end at the same images, from the same noise."""
    with_autoencoder(pipeline)
    scheduler = diffusers.DDIMScheduler(clip_sample=False, timestep_spacing="trailing")
    scheduler.save_pretrained(pipeline / "scheduler")
    network = load(pipeline)
    x = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(3))
    images, states = fastdiff.sampler_of(network, steps=6)(2, x_init=x, return_trajectory=True)
    scheduler.set_timesteps(6)
    with torch.no_grad():
        for time in scheduler.timesteps:
            x = scheduler.step(network.network(x, time).sample, time, x).prev_sample
    assert (states[-1] - x).abs().max() < LAYOUT * x.abs().max()
    wanted = network.vae.decode(states[-1] / 0.5).sample
    torch.testing.assert_close(images, wanted, rtol=LAYOUT, atol=LAYOUT)


def test_the_command_samples_a_latent_folder(pipeline, tmp_path):
    with_autoencoder(pipeline)
    network = ["--network", str(pipeline), "--device", "cpu", "--no-progress"]
    result = CliRunner().invoke(
        main, ["sample", *network, "--seeds", "0-1", "--steps", "2", "--outdir", str(tmp_path / "out")]
    )
    assert result.exit_code == 0, result.output
    assert np.load(tmp_path / "out" / "samples.npz")["images"].shape == (2, 8, 8, 3)


# --- what is refused -------------------------------------------------------------------------------------------------


def test_folders_that_are_none(tmp_path):
    with pytest.raises(ModelFileError, match="a folder, and not one of diffusers"):
        load(tmp_path)
    with pytest.raises(ModelFileError, match="no such folder"):
        folders.open_folder(tmp_path / "missing")


def test_a_pipe_is_not_waited_for(pipeline):
    (pipeline / "unet/config.json").unlink()
    os.mkfifo(pipeline / "unet/config.json")
    with pytest.raises(ModelFileError, match=r"config\.json: not a file"):
        load(pipeline)


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("unet/config.json", "{", "not a JSON file"),
        ("unet/config.json", "[1]", "must hold an object, got list"),
        ("unet/config.json", "[" * 100_000, "not a JSON file"),
        ("unet/config.json", "\xff\xfe", "not a JSON file|must hold"),
        ("unet/config.json", '{"_class_name": "Flux"}', "_class_name must be one of .* got 'Flux'"),
        (
            "unet/config.json",
            '{"_class_name": ["UNet2DModel"]}',
            r"_class_name must be one of .* got \['UNet2DModel'\]",
        ),
        ("model_index.json", '{"a": ["transformers", "CLIP"]}', "must have one denoising network, and has none"),
        ("model_index.json", '{"../x": ["diffusers", "UNet2DModel"]}', "leads out of it"),
        ("model_index.json", '{"..": ["diffusers", "UNet2DModel"]}', "leads out of it"),
        (
            "model_index.json",
            '{"a": ["d", "UNet2DModel"], "b": ["d", "UNet2DModel"]}',
            "several: a, b; give the folder",
        ),
        ("scheduler/scheduler_config.json", "nothing", "not a JSON file"),
    ],
)
def test_configurations(pipeline, file, content, message):
    (pipeline / file).write_bytes(content.encode("latin-1"))
    with pytest.raises(ModelFileError, match=message) as refused:
        load(pipeline)
    assert "\n" not in str(refused.value)


def test_configurations_that_do_not_fit(pipeline):
    config = pipeline / "unet" / "config.json"
    change_json(config, block_out_channels=[16])
    with pytest.raises(ModelFileError, match="must have shape"):
        load(pipeline)
    change_json(config, block_out_channels=[8], num_class_embeds=4)
    with pytest.raises(ModelFileError, match=r"missing network\.class_embedding"):
        load(pipeline)
    change_json(config, num_class_embeds=None, unheard_of=1)
    with pytest.raises(ModelFileError, match="takes no argument unheard_of"):
        load(pipeline)


@pytest.mark.parametrize(
    ("placed", "message"),
    [
        ("../../outside.safetensors", "leads out of it"),
        ("/etc/passwd", "leads out of it"),
        ("..\\outside.safetensors", "leads out of it"),
        ("other.pkl", r"is not a \.safetensors or \.bin file"),
        ("other.safetensors", "there is no file other.safetensors"),
        (7, "weight_map must say the file of every tensor"),
    ],
)
def test_shards_elsewhere(pipeline, placed, message):
    file = pipeline / "unet" / f"{WEIGHTS}.safetensors"
    index = {"weight_map": dict.fromkeys(load_file(file), placed)}
    shutil.copy(file, pipeline.parent / "outside.safetensors")
    file.unlink()
    file.with_suffix(".safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(ModelFileError, match=message):
        load(pipeline)


def test_shards_that_hold_something_else(pipeline):
    file = pipeline / "unet" / f"{WEIGHTS}.safetensors"
    tensors = load_file(file)
    first = sorted(tensors)[0]
    file.rename(file.with_name("a.safetensors"))
    weight_map = {name: "a.safetensors" for name in tensors if name != first}
    file.with_suffix(".safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    with pytest.raises(ModelFileError, match=f"does not hold what .* says: {first}"):
        load(pipeline)


def test_weights_that_are_missing_or_not_finite(pipeline, tmp_path):
    file = pipeline / "unet" / f"{WEIGHTS}.safetensors"
    tensors = load_file(file)
    tensors["conv_in.weight"][0] = torch.nan
    save_file(tensors, file)
    with pytest.raises(ModelFileError, match=r"network.conv_in.weight.* NaN or infinite"):
        convert(pipeline, tmp_path / "out.safetensors")
    file.write_bytes(file.read_bytes()[:-5])
    with pytest.raises(ModelFileError):
        load(pipeline)
    file.unlink()
    with pytest.raises(ModelFileError, match=r"there is no diffusion_pytorch_model\.safetensors or \.bin"):
        load(pipeline)
    assert not list(tmp_path.glob("out.*"))
