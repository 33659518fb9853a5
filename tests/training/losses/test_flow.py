"""The loss of flow matching against its definition."""

from __future__ import annotations

import pytest
import torch

from fastdiff.training.losses import flow_loss

from ...tolerances import LOSS

TIMES = torch.tensor([0.0, 0.2, 0.7, 1.0])


def draws(dtype=torch.float64):
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(4, 3, 5, dtype=torch.float64, generator=generator).to(dtype) for _ in range(3)]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("gamma", [None, 0.0, 0.3])
def test_equals_the_error_of_the_velocity(gamma, dtype):
    x0, z, xi = draws(dtype)
    times = []

    def network(x, time, shift):
        times.append(time)
        return x.sin() + shift

    given = None if gamma is None else xi
    loss = flow_loss(network, x0, TIMES, z, time_scale=1000.0, gamma=gamma, xi=given, cond={"shift": 0.5})
    t, x0, z, xi = TIMES.double()[:, None, None], *(value.double() for value in (x0, z, xi))
    x = (1 - t) * x0 + t * (z + (gamma or 0) * xi)
    want = (x.sin() + 0.5 - (z - x0)).square().mean((1, 2))
    assert loss.dtype == times[0].dtype == dtype
    torch.testing.assert_close(times[0], (1000 * TIMES).to(dtype))
    torch.testing.assert_close(loss.double(), want, rtol=LOSS[dtype], atol=LOSS[dtype])


def test_a_point_is_reached_on_a_straight_line():
    """All data at one point p: the velocity at x_t is (x_t - p) / t, and its error is 0."""
    _, z, _ = draws()
    t = TIMES[1:].double()
    loss = flow_loss(lambda x, t: (x - 0.3) / t[:, None, None], torch.full((3, 3, 5), 0.3).double(), t, z[1:])
    torch.testing.assert_close(loss, torch.zeros(3, dtype=torch.float64), rtol=0, atol=LOSS[torch.float64])
