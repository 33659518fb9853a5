"""Runs that start from an image or keep a part of it: what is kept, what is drawn, and what is refused."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch

from fastdiff import Sampler, ops
from fastdiff.inpainting import FIRST_DRAW

from .tolerances import CLOSED_FORM, FLOAT32_STATE

SHAPE = (2, 3, 5)
SOLVERS = [
    ("euler", {}),
    ("heun", {"S_churn": 10.0}),
    ("euler_ancestral", {}),
    ("dpmpp_2m", {}),
    ("dpmpp_sde", {}),
    ("ddim", {"clip_denoised": True}),
]


@pytest.fixture
def image() -> torch.Tensor:
    return torch.randn(SHAPE, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


@pytest.fixture
def mask() -> torch.Tensor:
    """Rows 0 and 1 are kept, row 2 is made anew but for a half-kept corner."""
    mask = torch.tensor([1.0, 1.0, 0.0])[:, None].repeat(1, 5)
    mask[2, 4] = 0.5
    return mask


@pytest.mark.parametrize("solver, options", SOLVERS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_kept_part_is_kept_exactly(gaussian, image, mask, backend, device, solver, options, dtype):
    options = dict(options, steps=6, dtype=dtype)
    sampler = Sampler(gaussian.denoise, solver=solver, backend=backend, **options)
    known = image.to(dtype)
    x, states = sampler(SHAPE, seeds=3, image=known, mask=mask, return_trajectory=True)
    assert x[:, :2].equal(known[:, :2]) and not x[:, 2].equal(known[:, 2])
    for i, (level, state) in enumerate(zip(sampler.levels, states)):
        draw = FIRST_DRAW + i - 1 if i else 0
        noised = level.alpha * image + level.sigma * ops.normal(torch.tensor([3, 4]), SHAPE, draw, torch.float64)
        wrong = (state[:, :2] - noised[:, :2]).abs().max() / noised.abs().max()
        assert wrong <= (FLOAT32_STATE if dtype == torch.float32 else CLOSED_FORM)
    readable = Sampler(gaussian.denoise, solver=solver, compiled=False, **options)
    want, wanted_states = readable(SHAPE, seeds=3, image=known, mask=mask, return_trajectory=True)
    assert (states - wanted_states).abs().max() <= wanted_states.abs().max() * (
        FLOAT32_STATE if dtype == torch.float32 else CLOSED_FORM
    )
    assert want[:, :2].equal(known[:, :2])


def test_replacement_is_the_published_rule(gaussian, image, mask):
    """Euler by hand, with x <- m (image + sigma z) + (1 - m) x at the end of every step."""
    sampler = Sampler(gaussian.denoise, solver="euler", steps=5, dtype=torch.float64)
    seeds, m = torch.tensor([3, 4]), mask.double()
    sigmas = [level.sigma for level in sampler.levels]

    def replaced(x, i):
        z = ops.normal(seeds, SHAPE, FIRST_DRAW + i - 1 if i else 0, torch.float64)
        return m * (image + sigmas[i] * z) + (1 - m) * x

    x = replaced(sigmas[0] * ops.normal(seeds, SHAPE, 0, torch.float64), 0)
    for i, (s, t) in enumerate(pairwise(sigmas)):
        x = replaced(x + (t - s) * (x - gaussian.denoise(x, torch.tensor(s, dtype=torch.float64))) / s, i + 1)
    got = sampler(SHAPE, seeds=seeds, image=image, mask=mask)
    assert (got - x).abs().max() <= CLOSED_FORM


@pytest.mark.parametrize("solver, options", SOLVERS)
def test_an_empty_mask_changes_nothing_and_no_mask_costs_a_launch(gaussian, image, solver, options):
    sampler = Sampler(gaussian.denoise, solver=solver, steps=6, dtype=torch.float64, **options)
    plain = sampler(SHAPE, seeds=3)
    empty = sampler(SHAPE, seeds=3, image=image, mask=torch.zeros(5))
    assert (plain - empty).abs().max() <= CLOSED_FORM
    if "clip_denoised" not in options:
        assert len(sampler.plan(image=True, mask=True).launches) == len(sampler.plan().launches)


def test_a_sample_depends_on_its_seed_and_image_only(gaussian, image, mask):
    sampler = Sampler(gaussian.denoise, solver="euler_ancestral", steps=6)
    x = sampler(SHAPE, seeds=[3, 4], image=image.float(), mask=mask)
    assert sampler((1, 3, 5), seeds=[4], image=image[1:].float(), mask=mask).equal(x[1:])


def test_noise_functions_are_asked_for_the_kept_parts_draws(gaussian, image, mask):
    sampler = Sampler(gaussian.denoise, solver="euler_ancestral", steps=3, dtype=torch.float64)
    seeds, asked = torch.tensor([3, 4]), []

    def contract(draw, step):
        asked.append((draw, step))
        return ops.normal(seeds, SHAPE, draw, torch.float64)

    want = sampler(SHAPE, seeds=seeds, image=image, mask=mask)
    got = sampler(SHAPE, noise=contract, image=image, mask=mask)
    assert (got - want).abs().max() <= CLOSED_FORM
    assert asked == [(0, -1), (1, 0), (FIRST_DRAW, 0), (2, 1), (FIRST_DRAW + 1, 1)]


@pytest.mark.parametrize("compiled", [True, False])
@pytest.mark.parametrize("process, options", [("edm", {"solver": "heun"}), ("vp", {"solver": "ddpm", "steps": 10})])
def test_img2img_starts_from_the_noised_image(image, compiled, process, options):
    sampler = Sampler(
        lambda x, t: 0.5 * x, process=process, compiled=compiled, dtype=torch.float64, **{"steps": 10, **options}
    )
    x, states = sampler(SHAPE, seeds=3, image=image, strength=0.6, return_trajectory=True)
    level = sampler.levels[4]
    noised = level.alpha * image + level.sigma * ops.normal(torch.tensor([3, 4]), SHAPE, 0, torch.float64)
    assert len(states) == 7 and (states[0] - noised).abs().max() <= CLOSED_FORM * noised.abs().max()
    again = sampler(SHAPE, seeds=3, x_init=noised, start=4)
    assert (again - x).abs().max() <= CLOSED_FORM * x.abs().max()
    assert sampler(SHAPE, seeds=3, image=image, start=4).equal(x)


def test_a_run_taken_up_in_the_middle_goes_on_as_it_did(gaussian):
    """A state handed back at its step; lists with a number per step are read from there, steps keep their number."""
    scales = [1.0, 1.01, 1.02, 1.03, 1.04, 1.05]
    sampler = Sampler(gaussian.denoise, solver="heun", steps=6, epsilon_scale=scales, dtype=torch.float64)
    x, states = sampler(SHAPE, seeds=3, return_trajectory=True)
    seen = []
    y = sampler(SHAPE, x_init=states[4], start=4, callback=lambda info: seen.append((info.step, info.level)))
    assert (y - x).abs().max() <= CLOSED_FORM
    assert seen == [(4, sampler.levels[4]), (5, sampler.levels[5])]


@pytest.mark.parametrize(
    "arguments, words",
    [
        ({"mask": torch.ones(5)}, "image must be given with mask"),
        ({"strength": 0.5}, "image must be given with strength"),
        ({"image": torch.zeros(SHAPE)}, "strength .or start. must be given with image"),
        ({"image": torch.zeros(SHAPE), "strength": 0.0}, "strength must be above 0 and at most 1, got 0"),
        ({"image": torch.zeros(SHAPE), "strength": 0.01}, "strength must be at least 1 / 6"),
        ({"image": torch.zeros(SHAPE), "strength": 0.5, "start": 2}, "strength must be left out when start is given"),
        ({"image": torch.zeros(SHAPE), "start": 6}, "start must be below the number of steps, 6, got 6"),
        ({"start": 2}, "start must come with image or x_init"),
        ({"image": torch.zeros(SHAPE), "start": 1, "x_init": torch.zeros(SHAPE)}, "x_init must be left out when image"),
        ({"image": torch.zeros(2, 3), "strength": 0.5}, r"image must have shape \[2, 3, 5\], got \[2, 3\]"),
        ({"image": torch.zeros(SHAPE), "mask": torch.ones(4)}, r"mask must have shape \[2, 3, 5\] or broadcast to it"),
        ({"image": torch.zeros(SHAPE), "mask": torch.full((5,), 2.0)}, "mask must be from 0 .* to 1"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_refusals(gaussian, arguments, words):
    with pytest.raises(ValueError, match=words):
        Sampler(gaussian.denoise, steps=6)(SHAPE, **arguments)


def test_a_mask_needs_states_at_the_levels(gaussian, image):
    def two_states(denoise, x, levels, noise):
        yield denoise(x, levels[0])
        yield denoise(x, levels[1])

    sampler = Sampler(gaussian.denoise, solver=two_states, steps=6)
    with pytest.raises(ValueError, match="mask must be left out for solver 'two_states'"):
        sampler(SHAPE, image=image.float(), mask=torch.ones(5))
    inverse = Sampler(gaussian.denoise, solver="ddim_inversion", steps=6)
    with pytest.raises(ValueError, match="image must be left out for solver 'ddim_inversion'"):
        inverse(SHAPE, x_init=image, image=image, mask=torch.ones(5))
