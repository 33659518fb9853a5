"""Trains the shipped classifier of the 16x16 digits, whose hidden layer is the default feature space.

About three minutes on one CPU core; the same seed and PyTorch build give the same file:

    OMP_NUM_THREADS=1 python -m fastdiff.evaluation.train_classifier --out digits_classifier.safetensors
"""

from __future__ import annotations

import math

import click
import torch
import torch.nn.functional as F
from torch import Tensor

from .. import data as datasets
from ..models.classifier import Classifier
from ..models.io import save

__all__ = ["accuracy", "train_classifier"]


def train_classifier(
    images: Tensor,
    labels: Tensor,
    *,
    classes: int = 10,
    iterations: int = 1500,
    batch: int = 128,
    learning_rate: float = 2e-3,
    smoothing: float = 0.05,
    shift: int = 1,
    seed: int = 0,
) -> Classifier:
    """A classifier of square images, trained with AdamW, a cosine rate and random shifts.

    Args:
        images: float32 [N, C, S, S] in [-1, 1]; -1 is what shifts bring in.
        labels: int64 [N] in [0, classes).
        smoothing: of the labels.
        shift: largest shift, in pixels.
        seed: of the weights, the order of the images and the shifts.

    Returns:
        The classifier in evaluation mode, gradients off.
    """
    generator = torch.Generator().manual_seed(seed)
    with torch.random.fork_rng([]):
        torch.manual_seed(seed)
        model = Classifier(images.shape[-1], images.shape[1], classes).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=learning_rate)
    order = torch.empty(0, dtype=torch.int64)
    for iteration in range(iterations):
        for group in optimizer.param_groups:
            group["lr"] = learning_rate * 0.5 * (1 + math.cos(math.pi * iteration / iterations))
        while len(order) < batch:
            order = torch.cat([order, torch.randperm(len(images), generator=generator)])
        chosen, order = order[:batch], order[batch:]
        logits = model(_shifted(images[chosen], shift, generator))
        loss = F.cross_entropy(logits, labels[chosen], label_smoothing=smoothing)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return model.eval().requires_grad_(False)


def accuracy(model: Classifier, images: Tensor, labels: Tensor) -> float:
    """Fraction of `images` whose largest logit is that of their label."""
    with torch.no_grad():
        hits = [
            (model(some).argmax(1) == wanted).sum().item() for some, wanted in zip(images.split(500), labels.split(500))
        ]
    return sum(hits) / len(images)


def _shifted(images: Tensor, most: int, generator: torch.Generator) -> Tensor:
    """Every image moved by up to `most` pixels each way; -1 comes in."""
    count, _, size, _ = images.shape
    padded = F.pad(images, (most,) * 4, value=-1.0)
    down, right = torch.randint(2 * most + 1, (2, count, 1), generator=generator)
    rows, columns = down + torch.arange(size), right + torch.arange(size)
    moved: Tensor = padded[torch.arange(count)[:, None, None], :, rows[:, :, None], columns[:, None, :]]
    return moved.permute(0, 3, 1, 2)


@click.command()
@click.option("--out", required=True, metavar="FILE", help="The model file to write.")
@click.option("--data", "name", default="digits16", show_default=True, help="A data set of fastdiff.data.")
@click.option("--iterations", type=click.IntRange(1), default=1500, show_default=True)
@click.option("--seed", type=int, default=0, show_default=True)
def main(out: str, name: str, iterations: int, seed: int) -> None:
    """Train a classifier on a data set's training images and write it with its accuracy on the test images."""
    train, test = datasets.load(name, "train"), datasets.load(name, "test")
    model = train_classifier(train.images, train.labels, classes=train.classes, iterations=iterations, seed=seed)
    score = accuracy(model, test.images, test.labels)
    training = {"data": name, "iterations": iterations, "seed": seed, "torch": torch.__version__, "accuracy": score}
    save(out, model, {"training": training})
    parameters = sum(parameter.numel() for parameter in model.parameters())
    click.echo(f"wrote {out}: {parameters:,} parameters, accuracy on the test images {score:.4f}")


if __name__ == "__main__":
    main()
