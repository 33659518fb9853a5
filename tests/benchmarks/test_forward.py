"""The benchmark of the EDM network's forward pass, on a tiny one."""

from __future__ import annotations

import torch

from benchmarks import forward

TINY = {"img_resolution": 8, "in_channels": 3, "out_channels": 3, "model_channels": 8, "channel_mult": [1, 1],
        "num_blocks": 1, "attn_resolutions": [4]}  # fmt: skip
CPU = torch.device("cpu")


def test_both_builds_have_the_same_sizes():
    plain, ours = forward.build(CPU, TINY)
    sizes = [sorted(list(p.shape) for p in network.parameters()) for network in (plain, ours)]
    assert sizes[0] == sizes[1]
    outputs = [forward.call(network, (), 2, CPU, [3, 8, 8])() for network in (plain, ours)]
    assert all(output.shape == (2, 3, 8, 8) and output.std() > 0.01 for output in outputs)


def test_rows_and_table():
    ways = [way for way in forward.WAYS if "compile" not in way]
    rows = forward.measure(2, CPU, 0.05, ways, TINY)
    assert [row["way"] for row in rows] == [forward.PLAIN, *ways] and rows[0]["speed"] == 1.0
    lines = forward.table(rows).splitlines()
    assert len(lines) == 2 + len(rows) and lines[2].startswith(f"| 2 | {forward.PLAIN} | ")
