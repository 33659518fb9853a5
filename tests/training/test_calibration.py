"""The report per noise level: numbers of logits that are known, files, and the state a discriminator is given."""

from __future__ import annotations

import csv
import math

import pytest
import torch
from PIL import Image

from fastdiff.guidance.vp import tau_of_sigma
from fastdiff.training.calibration import LN2, assess, balanced_bce, vp_state

from ..tolerances import ROUNDING


def logit(p):
    return math.log(p / (1 - p))


def test_known_logits():
    """400 real and 200 generated samples; what says 0.8 is right four times in five, what says 0.3 in seven of ten."""
    said = torch.tensor([logit(0.8)] * 320 + [logit(0.3)] * 80 + [logit(0.8)] * 40 + [logit(0.3)] * 160)
    real, fake = torch.zeros(400, 2), torch.ones(200, 2)
    place = {"next": 0}

    def discriminator(y, tau, labels):
        start = place["next"]
        place["next"] += len(y)
        return said[start : start + len(y), None]

    (level,) = assess(discriminator, real, fake, [0.5], batch=150).levels
    assert level.accuracy == pytest.approx(0.8)
    assert level.real == pytest.approx(0.8 * 0.8 + 0.2 * 0.3)
    assert level.fake == pytest.approx(0.2 * 0.8 + 0.8 * 0.3)
    wanted = -(0.8 * math.log(0.8) + 0.2 * math.log(0.3) + 0.2 * math.log(0.2) + 0.8 * math.log(0.7)) / 2
    assert level.bce == pytest.approx(wanted, rel=1e-6)
    # Real and generated count one half each: of those said to be 0.8, 0.8 are real; of those said to be 0.3, 0.2.
    assert [pytest.approx(bin, rel=1e-6) for bin in level.bins] == [(0.3, 0.2, 0.5), (0.8, 0.8, 0.5)]
    assert level.calibration_error == pytest.approx(0.05, rel=1e-6)
    assert level.tau == pytest.approx(float(tau_of_sigma(0.5)))


def test_one_half_is_ln_2_with_no_error():
    assert balanced_bce(torch.zeros(5), torch.zeros(7, 3)) == (pytest.approx(LN2), 0.0)


def test_draws_of_one_sample_are_no_further_samples():
    generator = torch.Generator().manual_seed(0)
    real, fake = torch.randn(50, generator=generator), torch.randn(70, generator=generator)
    once = balanced_bce(real, fake)
    repeated = balanced_bce(real[:, None].expand(-1, 4), fake[:, None].expand(-1, 4))
    assert repeated == pytest.approx(once, rel=1e-12)


def test_the_error_is_that_of_the_mean():
    generator = torch.Generator().manual_seed(0)
    losses = [balanced_bce(*torch.randn(2, 200, generator=generator)) for _ in range(400)]
    spread = torch.tensor([loss for loss, _ in losses]).std()
    assert sum(error for _, error in losses) / 400 == pytest.approx(float(spread), rel=0.15)


def test_vp_state():
    clean, noise = torch.randn(3, 2, 4), torch.randn(3, 2, 4)
    sigma = torch.tensor([0.01, 1.0, 50.0])
    y, tau = vp_state(clean, sigma, noise)
    scale = 1 / (1 + sigma.double() ** 2).sqrt().reshape(3, 1, 1)
    wanted = scale * (clean.double() + sigma.double().reshape(3, 1, 1) * noise.double())
    assert (y - wanted).abs().max() < ROUNDING[torch.float32] * wanted.abs().max()
    assert torch.equal(tau, torch.from_numpy(tau_of_sigma(sigma.double().numpy())).float())


def report():
    def discriminator(y, tau, labels):
        return y.flatten(1).mean(1) * 5 * labels

    real, fake = torch.full((20, 1, 2, 2), 0.3), torch.full((30, 1, 2, 2), -0.3)
    return assess(
        discriminator, real, fake, [0.1, 1.0, 8.0], real_labels=torch.ones(20), fake_labels=torch.ones(30), batch=7
    )


def test_the_same_seed_gives_the_same_report_and_noise_makes_it_harder():
    levels = report().levels
    assert report().levels == levels
    assert levels[0].bce < levels[1].bce < levels[2].bce
    assert levels[0].accuracy == 1.0


def test_files(tmp_path):
    found = report()
    found.save_csv(tmp_path / "levels.csv")
    with open(tmp_path / "levels.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [float(row["sigma"]) for row in rows] == [0.1, 1.0, 8.0]
    assert [float(row["bce"]) for row in rows] == pytest.approx([level.bce for level in found.levels], rel=1e-5)
    assert len(str(found).splitlines()) == 4
    pytest.importorskip("matplotlib")
    found.plot(tmp_path / "levels.png")
    with Image.open(tmp_path / "levels.png") as picture:
        assert picture.size[0] > 1000
    assert sorted(path.name for path in tmp_path.iterdir()) == ["levels.csv", "levels.png"]


@pytest.mark.parametrize(
    ("arguments", "wanted"),
    [
        ({"real": torch.zeros(0, 2)}, "real and fake must hold samples, got 0 and 2"),
        ({"sigmas": [0.0]}, "sigmas must be positive"),
        ({"batch": 0}, "batch must be"),
    ],
)
def test_refusals(arguments, wanted):
    given = {"real": torch.zeros(2, 2), "fake": torch.zeros(2, 2), "sigmas": [1.0], **arguments}
    with pytest.raises(ValueError, match=wanted):
        assess(lambda y, tau, labels: y.sum(1), **given)
