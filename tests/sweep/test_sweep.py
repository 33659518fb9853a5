"""Sweeps: resumed, split, keyed by everything that decides a cell, the same from run to run."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

import fastdiff
from fastdiff.evaluation import generate
from fastdiff.guidance import DiscriminatorGuidance
from fastdiff.sweep import Cell, Sweep, csv_text, digest_of

from .conftest import CELLS, Denoiser, Discriminator, Score


def files(folder):
    return {path.name: path.read_bytes() for path in (folder / "cells").iterdir()}


def test_a_cell_is_what_the_sampler_gives(open_toy):
    sweep = open_toy(cells=[Cell("heun", 5, w_1st=1.5, w_2nd=0.5, epsilon_scale=1.02, range=1)])
    (result,) = sweep.run()
    term = DiscriminatorGuidance(Discriminator(), 1.5, 0.5)
    sampler = fastdiff.Sampler(Denoiser(), solver="heun", steps=5, epsilon_scale=1.02, guidance=term)
    wanted = Score()(generate(sampler, range(20, 40)))
    assert result.frechet == pytest.approx(wanted.frechet, rel=1e-5)
    assert result.recall == pytest.approx(wanted.recall, rel=1e-6)
    assert (result.nfe, result.seeds) == (9, (20, 20))


def test_corrections_reach_the_sampler(open_toy):
    found = {result.cell: result.frechet for result in open_toy().run()}
    cell = Cell("heun", 4)
    distances = {found[c] for c in found if c.solver == "heun" and c.range == 0}
    assert len(distances) == 6  # three lambdas times two weights, all different
    assert found[Cell("heun", 4, epsilon_scale=1.03)] < found[cell]  # the noise was overestimated by 3 %


def test_runs_are_identical_and_finished_cells_are_not_run_again(open_toy, tmp_path):
    first, second = open_toy("a"), open_toy("b")
    assert csv_text(first.run()) == csv_text(second.run())
    assert files(tmp_path / "a") == files(tmp_path / "b")
    again = open_toy("a")
    assert again.finished
    assert csv_text(again.run()) == csv_text(second.results())
    assert again.score.calls == 0


def test_a_stopped_sweep_goes_on(open_toy, tmp_path):
    class Stopped(Exception):
        pass

    def stop(number, count, result):
        if number == 5:
            raise Stopped

    sweep = open_toy("a")
    with pytest.raises(Stopped):
        sweep.run(report=stop)
    assert len(files(tmp_path / "a")) == 5
    resumed = open_toy("a")
    assert not resumed.finished
    resumed.run()
    assert resumed.score.calls == len(CELLS) - 5
    open_toy("b").run()
    assert files(tmp_path / "a") == files(tmp_path / "b")


def test_a_damaged_cell_is_measured_again(open_toy, tmp_path):
    sweep = open_toy()
    sweep.run()
    path = next((tmp_path / "sweep/cells").iterdir())
    intact = path.read_bytes()
    path.write_text("{")
    again = open_toy()
    again.run()
    assert again.score.calls == 1
    assert path.read_bytes() == intact


def test_two_at_once_share_the_cells(open_toy, tmp_path):
    with ThreadPoolExecutor(2) as pool:
        shares = list(pool.map(lambda rank: open_toy("two").run(rank, 2), range(2)))
    assert all(shares)
    one, two = open_toy("one"), open_toy("two")
    one.run()
    assert two.finished
    assert files(tmp_path / "one") == files(tmp_path / "two")


def test_ranks_do_each_their_own(open_toy):
    shares = [open_toy("ranks").run(rank, 3) for rank in range(3)]
    assert sum(map(len, shares)) == len(CELLS)
    assert open_toy("ranks").finished


OTHERS = {
    "network": {"model": Denoiser(mean=0.31)},
    "samples": {"samples": 21},
    "first_seed": {"first_seed": 1},
    "batch": {"batch": 7},
    "labels": {"labels": None},
    "score": {"identity": {"score": "another"}},
}


@pytest.mark.parametrize("name", OTHERS)
def test_every_setting_is_part_of_the_key(open_toy, name):
    cells = [Cell("euler", 4)]
    assert open_toy(cells=cells)._keys != open_toy(cells=cells, **OTHERS[name])._keys


def test_the_sampler_is_part_of_the_key(tmp_path):
    def keys(discriminator=None, guidance=None, cell=Cell("heun", 5), **options):  # noqa: B008
        sampler = fastdiff.Sampler(Denoiser(), **options)
        return Sweep(
            sampler, Score(), [cell], tmp_path, discriminator=discriminator, guidance=guidance,
            identity={"score": "toy"},
        )._keys[cell]  # fmt: skip

    guided = Cell("heun", 5, w_1st=1.0)
    other = Discriminator()
    other.slope.data += 1
    found = [
        keys(), keys(rho=6.0), keys(sigma_max=70.0), keys(process="ve"), keys(clip_denoised=True), keys(S_noise=1.1),
        keys(dtype=torch.float64), keys(epsilon_scale_mode="first"), keys(cell=Cell("heun", 6)),
        keys(prediction="edm"), keys(prediction=fastdiff.EDMPrediction(0.6)),
        keys(Discriminator(), cell=guided), keys(other, cell=guided),
        keys(Discriminator(), {"time_min": 0.02}, guided),
    ]  # fmt: skip
    assert len(set(found)) == len(found)
    assert keys(Discriminator()) == keys(other) == found[0]  # unguided cells do not depend on the discriminator


def test_a_cells_file_says_how_it_was_made(open_toy, tmp_path):
    sweep = open_toy(cells=[Cell("heun", 5, w_1st=1.0)])
    sweep.run()
    (path,) = (tmp_path / "sweep/cells").iterdir()
    content = json.loads(path.read_text())["configuration"]
    assert content["seeds"] == [0, 20]
    assert content["cell"]["w_1st"] == 1.0
    assert content["network"] == digest_of("network", Denoiser())
    assert content["discriminator"] == digest_of("discriminator", Discriminator())
    assert content["fastdiff"] == fastdiff.__version__


def test_cells_of_one_structure_share_a_graph(open_toy):
    sweep = open_toy()
    samplers = [sweep.build(cell) for cell in CELLS if cell.guided and cell.solver == "heun"]
    assert len({id(sampler._graphs) for sampler in samplers}) == 1
    assert len({sampler.plan().structure() for sampler in samplers if sampler.epsilon_scale != 1}) == 1
    assert len({id(sampler.guidance[0]) for sampler in samplers}) == 1


def test_samples_that_are_not_finite_are_recorded(open_toy):
    class Broken(Denoiser):
        def forward(self, x, sigma):
            return super().forward(x, sigma) * torch.where(sigma > 1, 1.0, torch.nan).reshape(-1, 1)

    sweep = open_toy(cells=[Cell("euler", 4)], model=Broken())
    (result,) = sweep.run()
    assert result.frechet is None
    assert sweep.finished
    assert "nan" not in csv_text([result])


@pytest.mark.parametrize(
    ("options", "wanted"),
    [
        ({"discriminator": None}, "discriminator must be given"),
        ({"cells": [Cell("magic", 4)]}, "solver must be one of"),
        ({"cells": [Cell("euler", 1)]}, "steps must be at least 2"),
        ({"cells": [Cell("euler", 4, epsilon_scale=0.0)]}, "epsilon_scale"),
        ({"samples": 1}, "samples must be"),
    ],
)
def test_refused_before_any_work(open_toy, tmp_path, options, wanted):
    with pytest.raises(ValueError, match=wanted):
        open_toy(**options)
    assert not (tmp_path / "sweep").exists()


def test_digests_see_weights_and_refuse_functions():
    assert digest_of("network", Denoiser()) == digest_of("network", Denoiser())
    assert digest_of("network", Denoiser()) != digest_of("network", Denoiser(std=0.6))
    with pytest.raises(ValueError, match="identity must name the network"):
        digest_of("network", lambda x, t: x)
