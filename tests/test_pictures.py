"""Grids of images, and PNG bytes."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image

from fastdiff.pictures import grid, pixels, png_bytes


def test_grid_is_square_in_order_and_enlarged():
    images = np.arange(5, dtype=np.uint8)[:, None, None, None] * np.ones((5, 16, 16, 1), np.uint8)
    picture = grid(images)
    assert picture.shape == (2 * 64, 3 * 64, 1)
    assert [int(picture[y, x, 0]) for y in (0, 127) for x in (0, 64, 191)] == [0, 1, 2, 3, 4, 0]


@pytest.mark.parametrize(
    ("count", "size", "shape"), [(1, 8, (64, 64, 3)), (64, 32, (512, 512, 3)), (3, 100, (200, 200, 3))]
)
def test_grid_sizes(count, size, shape):
    assert grid(np.zeros((count, size, size, 3), np.uint8)).shape == shape


def test_grid_shows_only_so_many():
    assert grid(np.zeros((10, 64, 64, 1), np.uint8), most=4).shape == (128, 128, 1)


@pytest.mark.parametrize("channels", [1, 3])
def test_png_round_trip(channels):
    picture = np.random.default_rng(0).integers(0, 256, (5, 7, channels), dtype=np.uint8)
    read = np.asarray(Image.open(io.BytesIO(png_bytes(picture))))
    assert np.array_equal(read.reshape(picture.shape), picture)


@pytest.mark.parametrize("channels", [1, 3])
def test_pixels_are_those_of_the_file(channels):
    picture = np.random.default_rng(0).integers(0, 256, (5, 7, channels), dtype=np.uint8)
    assert np.array_equal(pixels(png_bytes(picture)), np.broadcast_to(picture, (5, 7, 3)))
