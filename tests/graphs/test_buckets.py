"""Batches filled up to a few sizes, and graphs captured ahead of time."""

from __future__ import annotations

import pytest
import torch

from .conftest import counts, linear, quick


@pytest.mark.parametrize("scope", ["loop", "step"])
def test_batches_are_filled_up_to_buckets(scope, graphs):
    seen = []

    def model(x, t, labels, bias):
        seen.append(len(x))
        assert len(t) == len(labels) == len(bias) == len(x)
        return linear(x, t, labels) + bias[:, None]

    sampler = quick(graphs, model, buckets=[1, 2, 4, 8], graph=scope, S_churn=0.0)
    plain = sampler.replace(buckets=None, graph="off")
    padded = 0
    for batch in (3, 4, 1, 5, 3, 8, 6):
        call = {"seeds": range(10, 10 + batch), "labels": [b % 4 for b in range(batch)]}
        call["cond"] = {"bias": torch.arange(batch, dtype=torch.float32, device=graphs.device)}
        seen.clear()
        x = sampler(batch, **call)
        assert x.shape == (batch, 3) and set(seen) <= {1, 4, 8}
        assert x.equal(plain(batch, **call)), "the rows of a network that treats samples alone"
        padded += {3: 1, 5: 3, 6: 2}.get(batch, 0)
    assert counts(sampler, "captures", "hits", "padded") == (3, 4, padded)


def test_buckets_of_a_network_with_convolutions(graphs):
    sampler = graphs.sampler(buckets="auto")
    eager = sampler.replace(buckets=None, graph="off")
    for batch in (3, 4, 3):
        x = sampler(batch, seeds=0, labels=range(batch))
        torch.testing.assert_close(x, eager(batch, seeds=0, labels=range(batch)), rtol=1e-4, atol=1e-4)
    assert counts(sampler, "captures", "padded") == (1, 2)


def test_observers_of_a_filled_batch_see_its_own_rows(graphs):
    sampler, seen = quick(graphs, buckets=[4]), []
    x, path = sampler(3, seeds=0, return_trajectory=True, callback=seen.append)
    want, wanted = sampler.replace(graph="off")(3, seeds=0, return_trajectory=True)
    assert x.equal(want) and path.equal(wanted) and all(info.x.shape == info.denoised.shape == (3, 3) for info in seen)


def test_batches_above_the_largest_bucket(graphs):
    sampler = quick(graphs, buckets=[2, 4])
    eager = sampler.replace(graph="off")
    for batch in (9, 9, 0):
        assert sampler(batch, seeds=0).equal(eager(batch, seeds=0))
    assert counts(sampler, "padded") == (0,)


def test_filling_up_does_not_mix_conditions_of_another_size(graphs):
    """Tensors without a row per sample are left alone, also if their size is the bucket's."""

    def model(x, t, table):
        return 0.5 * x + table.sum()

    sampler = quick(graphs, model, buckets=[4])
    eager = sampler.replace(graph="off", buckets=None)
    table = torch.arange(4.0, device=graphs.device)
    assert sampler(3, seeds=0, cond={"table": table}).equal(eager(3, seeds=0, cond={"table": table}))


def test_what_is_wrong_with_buckets_is_said(graphs):
    for buckets in ("some", [0, 2], [1.5], 4):
        with pytest.raises((ValueError, TypeError), match="buckets"):
            quick(graphs, buckets=buckets)


@pytest.mark.filterwarnings("error:.*:RuntimeWarning")
def test_capture_ahead_of_time_begins_with_the_largest(graphs):
    seen = []

    def model(x, t, labels=None):
        seen.append(len(x))
        return linear(x, t, labels)

    sampler = quick(graphs, model, graph="auto")
    sampler.capture([1, 16, 4], labels=0)
    assert list(dict.fromkeys(seen)) == [16, 4, 1]
    assert counts(sampler, "captures", "graphs", "hits") == (3, 3, 0)
    seen.clear()
    for batch in (1, 4, 16):
        assert sampler(batch, seeds=0, labels=2).shape == (batch, 3)
    assert seen == [] and counts(sampler, "captures", "hits") == (3, 3)
