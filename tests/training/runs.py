"""Small runs of the trainer."""

from __future__ import annotations

import torch

from fastdiff.config import load_train_config
from fastdiff.training import Trainer

SMALL = [
    *("data=digits8", "model.width=8", "model.patch=1", "model.embedding=16", "batch=32", "iterations=36", "warmup=5"),
    *("log_every=4", "evaluate_every=8", "checkpoint_every=10"),
]


def small(*overrides):
    return load_train_config(None, [*SMALL, *overrides])


def flat(model):
    return torch.cat([p.detach().flatten() for p in model.parameters()])


def trained(folder, *overrides, iterations=3, **given):
    trainer = Trainer(small(f"iterations={iterations}", *overrides), folder, **given)
    trainer.run(progress=False)
    return trainer
