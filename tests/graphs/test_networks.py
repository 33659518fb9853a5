"""Networks of published checkpoints inside a captured run: nothing in them waits for the device, and the bits are those
of an eager run."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from fastdiff import sampler_of
from fastdiff.guidance import DiscriminatorGuidance
from fastdiff.models.network import build

from ..models.contract import randomise

pytestmark = pytest.mark.filterwarnings("error:.*:RuntimeWarning")  # no capture falls back

SONG = {"img_resolution": 8, "img_channels": 3, "model_type": "SongUNet", "model_channels": 8, "channel_mult": [1, 2],
        "num_blocks": 1, "attn_resolutions": [4]}  # fmt: skip
NCSN = {
    "embedding_type": "fourier",
    "channel_mult_noise": 2,
    "encoder_type": "residual",
    "resample_filter": [1, 3, 3, 1],
}
ADM = {"image_size": 8, "in_channels": 3, "model_channels": 32, "out_channels": 6, "num_res_blocks": 1,
       "attention_resolutions": [2], "channel_mult": [1, 1], "num_head_channels": 16, "use_scale_shift_norm": True,
       "resblock_updown": True}  # fmt: skip
CHAIN = {"prediction": "eps", "process": {"name": "vp", "betas": "linear", "T": 1000}, "variance": "learned_range"}
HALF = {"image_size": 8, "in_channels": 3, "model_channels": 32, "out_channels": 10, "num_res_blocks": 1,
        "attention_resolutions": [2], "channel_mult": [1, 2], "num_head_channels": 16, "pool": "attention"}  # fmt: skip
HEAD = {
    **HALF,
    "image_size": 4,
    "in_channels": 64,
    "channel_mult": [1],
    "attention_resolutions": [1],
    "out_channels": 1,
}

NETWORKS: dict[str, tuple[str, dict[str, Any], dict[str, Any]]] = {
    "edm": ("EDMPrecond", {**SONG, "label_dim": 4}, {}),
    "ve": ("VEPrecond", {**SONG, **NCSN}, {}),
    "vp": ("VPPrecond", SONG, {}),
    "iddpm": ("iDDPMPrecond", {**SONG, "M": 50}, {}),
    "adm": ("UNetModel", ADM, CHAIN),
}


@pytest.mark.parametrize("name", NETWORKS)
def test_a_captured_run_is_the_eager_one(graphs, name):
    architecture, config, metadata = NETWORKS[name]
    network = randomise(build(architecture, config, "cpu")).to(graphs.device)
    network.metadata = metadata
    call = {"seeds": [3, 4], **({"labels": [0, 3]} if config.get("label_dim") else {})}
    eager, captured = (sampler_of(network, steps=3, graph=mode, device=graphs.device) for mode in ("off", "loop"))
    expected = eager(2, **call)
    for _ in range(2):
        assert torch.equal(captured(2, **call), expected)
    assert captured.stats().hits == 1


def test_a_discriminator_of_published_networks_is_captured(graphs):
    network = randomise(build("EDMPrecond", SONG, "cpu")).to(graphs.device)
    judge = randomise(build("DGDiscriminator", {"extractor": HALF, "head": HEAD}, "cpu"), 1).to(graphs.device)
    runs = [
        sampler_of(network, steps=3, graph=mode, device=graphs.device, guidance=DiscriminatorGuidance(judge, 2.0, 1.0))
        for mode in ("off", "loop")
    ]
    eager, captured = (run(2, seeds=[3, 4]) for run in runs)
    assert torch.equal(eager, captured)
