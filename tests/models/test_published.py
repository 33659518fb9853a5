"""The catalogue of published checkpoints: its configurations build networks of the published sizes, its names exist."""

from __future__ import annotations

import json

import pytest

from fastdiff import presets
from fastdiff.importing import score_sde
from fastdiff.models import published
from fastdiff.models.network import ARCHITECTURES, build

ROWS = published.published()
PUBLISHED_SIZES = {  # millions, as their papers and model cards have them; the exact numbers are in the catalogue
    "edm-cifar10-vp": 55.7,  # Karras et al. 2022, Table 7
    "edm-cifar10-ve": 56.4,
    "edm-ffhq64-vp": 61.8,
    "edm-ffhq64-ve": 62.8,
    "edm-imagenet64": 295.9,
    "adm-imagenet64": 296,  # Dhariwal & Nichol 2021, appendix
    "adm-imagenet128": 422,
    "adm-imagenet256": 554,
    "adm-imagenet512": 559,
    "adm-64-to-256": 312,
    "adm-128-to-512": 309,
    "adm-classifier64": 65,
    "adm-classifier128": 43,
    "adm-classifier256": 54,
    "adm-classifier512": 54,
    "adm-cifar10": 57.1,
    "dg-extractor32": 47.8,
    "dg-cifar10-head": 2.88,
    "score-sde-cifar10-ve": 62.8,
    "score-sde-cifar10-vp": 61.8,
}


def _different():
    """One row of every configuration."""
    kept = {}
    for row in ROWS:
        kept.setdefault((row.architecture, json.dumps(row.config, sort_keys=True), row.parameters), row)
    return [row for row in kept.values() if row.config]


@pytest.mark.parametrize("row", _different(), ids=lambda row: row.name)
def test_configuration(row):
    network = build(row.architecture, row.config)
    count = sum(parameter.numel() for parameter in network.parameters())
    assert count == row.parameters
    if row.name in PUBLISHED_SIZES:
        stated = PUBLISHED_SIZES[row.name]
        digits = len(str(stated).partition(".")[2])
        assert round(count / 1e6, digits) == stated


def test_every_published_size_is_compared():
    assert PUBLISHED_SIZES.keys() <= {row.name for row in _different()}


def test_rows():
    assert len({row.name for row in ROWS}) == len(ROWS)
    for row in ROWS:
        assert row.architecture in ARCHITECTURES and row.licence and row.project and row.file
        assert (row.parameters is None) == (not row.config)
        assert (row.fid is None) == (row.fid_source == "")
        assert json.loads(json.dumps(row.config)) == row.config
        if row.preset is not None:
            presets.get(row.preset)
        fid, source = row.expected_fid()
        assert (fid is None) == (source == "")


def test_the_fid_is_the_rows_own_or_its_presets():
    assert published.get("edm-cifar10-ve").expected_fid() == (1.98, "Karras et al. 2022, Table 2")
    assert published.get("adm-ip-imagenet32").expected_fid()[0] == presets.get("adm-ip-imagenet32").fid
    assert published.get("adm-imagenet256-uncond").expected_fid() == (None, "")


@pytest.mark.parametrize("sde", ["vesde", "vpsde", "subvpsde"])
def test_score_sde_as_its_configuration_files_say(sde):
    """The sections of score_sde_pytorch's configs/ve/cifar10_ncsnpp_continuous and vp/cifar10_ddpmpp_continuous."""
    ve = sde == "vesde"
    row = published.get(f"score-sde-cifar10-{sde.removesuffix('sde')}")
    model = {
        "name": "ncsnpp", "nf": 128, "ch_mult": [1, 2, 2, 2], "num_res_blocks": 4, "attn_resolutions": [16],
        "conditional": True, "embedding_type": "fourier" if ve else "positional", "fir": ve, "skip_rescale": True,
        "fir_kernel": [1, 3, 3, 1], "scale_by_sigma": ve, "resblock_type": "biggan", "progressive": "none",
        "progressive_input": "residual" if ve else "none", "progressive_combine": "sum", "resamp_with_conv": True,
        "nonlinearity": "swish", "sigma_min": 0.01, "sigma_max": 50, "num_scales": 1000, "beta_min": 0.1,
        "beta_max": 20.0,
    }  # fmt: skip
    data = {"image_size": 32, "num_channels": 3, "centered": not ve}
    arguments, reading = score_sde.described(
        {"model": model, "data": data, "training": {"sde": sde, "continuous": True}}
    )
    assert build("NCSNpp", row.config).config == build("NCSNpp", arguments).config
    assert row.reading == reading


def test_names():
    assert published.get("adm-imagenet64").file == "64x64_diffusion.pt"
    with pytest.raises(ValueError, match=r"such as adm-imagenet64.*got 'adm-imagenet63'"):
        published.get("adm-imagenet63")
