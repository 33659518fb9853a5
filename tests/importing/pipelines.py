"""A small pipeline of diffusers in a folder, and what is changed in it."""

from __future__ import annotations

import json

import pytest
import torch

from fastdiff.importing.load import load

diffusers = pytest.importorskip("diffusers")

X = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(1))
T = torch.tensor([417, 3])
HALF = 2e-2  # weights of eleven bits, through some layers
WEIGHTS = "diffusion_pytorch_model"


def unet():
    torch.manual_seed(0)
    return diffusers.UNet2DModel(
        sample_size=8,
        block_out_channels=(8,),
        layers_per_block=1,
        down_block_types=("AttnDownBlock2D",),
        up_block_types=("AttnUpBlock2D",),
        norm_num_groups=4,
    ).eval()


def autoencoder():
    torch.manual_seed(1)
    return diffusers.AutoencoderKL(block_out_channels=(8,), norm_num_groups=4, latent_channels=3, scaling_factor=0.5)


def computed(path, **options):
    return load(path, **options)(X, T)


def change_json(file, **changes):
    file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))


def with_autoencoder(folder):
    autoencoder().save_pretrained(folder / "vae")
    change_json(folder / "model_index.json", vae=["diffusers", "AutoencoderKL"])
