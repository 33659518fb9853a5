"""`fastdiff models`."""

from __future__ import annotations

import json

from click.testing import CliRunner

from fastdiff.cli import main
from fastdiff.models import published
from fastdiff.models.network import FACTS


def listed(*arguments: str) -> str:
    result = CliRunner().invoke(main, ["models", *arguments])
    assert result.exit_code == 0, result.output
    return result.output


def test_all():
    architectures, rows = listed().split("\n\n")
    assert [line.split()[0] for line in architectures.splitlines()[1:]] == sorted(FACTS)
    assert [line.split()[0] for line in rows.splitlines()[1:]] == [row.name for row in published.published()]
    assert rows.splitlines()[0].split() == [
        *("published", "architecture", "parameters", "FID", "preset", "licence", "project", "file")
    ]


def test_words_choose():
    lines = listed("EDM", "cifar10").splitlines()
    assert len(lines) == 5 and "55.7 M" in lines[1] and "1.97" in lines[1] and "edm-cifar10-heun-35" in lines[1]
    assert listed("songunet").splitlines()[1].split()[:2] == ["SongUNet", "denoiser"]


def test_one_is_told_whole():
    text = listed("adm-imagenet64")
    assert '"num_head_channels": 64' in text and "295904454" in text
    assert "2.07 (guided-diffusion's README, 250 steps)" in text
    assert '"variance": "learned_range"' in text


def test_json():
    told = json.loads(listed("--json"))
    assert told["architectures"].keys() == FACTS.keys()
    assert told["published"][0]["config"] == published.published()[0].config
    assert told["published"][0]["fid"] == 1.97


def test_nothing_found():
    result = CliRunner().invoke(main, ["models", "no", "such"])
    assert result.exit_code == 2
    assert result.output.splitlines() == [
        "fastdiff: error: WORD: no architecture and no published checkpoint holds no and such"
    ]
