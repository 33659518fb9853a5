"""Graphs of solvers whose samples choose their own levels: a replay chooses anew, and nothing waits."""

from __future__ import annotations

import pytest
import torch

from fastdiff import VP
from fastdiff.guidance import DiscriminatorGuidance
from fastdiff.solvers import ts_dpm_timesteps

PROCESS = VP.linear(1000)
STEPS = {"steps": "ddim10"}
SOLVERS = {
    "paper": {"solver": "time_shift", "eta": 1.0, **STEPS},
    "ts_adm": {"solver": "time_shift", "rule": "ts_adm", "clip_denoised": True, **STEPS},
    "ts_dpm": {
        "solver": "f_pndm",
        "rule": "ts_dpm",
        "normalize_variance": True,
        "steps": None,
        "timesteps": ts_dpm_timesteps(10),
    },
    "pndm": {"solver": "s_pndm", "epsilon_scale": 1.01, **STEPS},
}


def critic(y, tau, labels):
    return -(0.1 * y.square().flatten(1).sum(1)) * (1 - tau)


def build(graphs, name, **arguments):
    options = {"window": 80, "cutoff": 200, "guidance": DiscriminatorGuidance(critic)}
    return graphs.sampler(process=PROCESS, prediction="x0", **{**options, **SOLVERS[name], **arguments})


@pytest.mark.parametrize("scope", ["loop", "step"])
@pytest.mark.parametrize("name", SOLVERS)
def test_a_replay_chooses_anew(name, scope, graphs):
    eager, captured = build(graphs, name, graph="off"), build(graphs, name, graph=scope)
    for seeds in ([0, 1], [7, 8], [3, 2**63]):
        want = eager(2, seeds=seeds)
        assert want.isfinite().all() and captured(2, seeds=seeds).equal(want), f"seeds {seeds}"
    stats = captured.stats()
    assert stats.captures == 1 and stats.fallbacks == 0 and stats.hits >= 2, stats.reasons


def test_other_numbers_share_a_graph(graphs):
    """Lambda and the grid are data, those of the candidates included."""
    first = build(graphs, "paper", timesteps=[900, 700, 500, 300], steps=None, epsilon_scale=1.01)
    first(2, seeds=0)
    for changes in ({"epsilon_scale": 1.02}, {"timesteps": [901, 702, 503, 304]}):
        other = first.replace(**changes)
        assert other(2, seeds=0).equal(first.replace(graph="off", **changes)(2, seeds=0))
    assert first.stats().captures == 1 and first.stats().fallbacks == 0, first.stats().reasons


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="the emulator refuses what waits in every other test")
@pytest.mark.parametrize("name", SOLVERS)
def test_choosing_never_waits_for_the_gpu(name, graphs):
    if graphs.emulated:
        return
    seeds = torch.arange(2, device=graphs.device)
    for sampler in (build(graphs, name, graph="off", check=False), build(graphs, name, check=False)):
        for _ in range(2):
            sampler(2, seeds=seeds)
        torch.cuda.set_sync_debug_mode("error")
        try:
            sampler(2, seeds=seeds)
        finally:
            torch.cuda.set_sync_debug_mode("default")
