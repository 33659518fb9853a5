"""A pipeline of diffusers, for the tests that ask for one."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch

from ..tolerances import LAYOUT


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """A pipeline's folder; its weights in one safetensors file."""
    from . import pipelines

    folder = tmp_path_factory.mktemp("written") / "ddpm"
    pipelines.diffusers.DDPMPipeline(
        pipelines.unet(), pipelines.diffusers.DDPMScheduler(variance_type="fixed_large")
    ).save_pretrained(folder)
    return folder


@pytest.fixture
def pipeline(written, tmp_path):
    """A copy that a test may change."""
    return Path(shutil.copytree(written, tmp_path / "ddpm"))


@pytest.fixture(scope="module")
def expected(written):
    """What diffusers itself computes."""
    from . import pipelines

    with torch.no_grad():
        return pipelines.diffusers.UNet2DModel.from_pretrained(written / "unet")(pipelines.X, pipelines.T).sample


@pytest.fixture(scope="module")
def assert_same(expected):
    """Equal to what diffusers computes, but for what the place of the weights in memory does to the last bit."""
    return lambda got: torch.testing.assert_close(got, expected, rtol=LAYOUT, atol=LAYOUT)
