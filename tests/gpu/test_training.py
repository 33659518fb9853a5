"""Training on a GPU: the guard inside the fused kernel, the loss scale, resuming."""

from __future__ import annotations

import pytest
import torch

from fastdiff.config import load_train_config
from fastdiff.training import Trainer
from fastdiff.training.log import read_log

pytest.importorskip("sklearn")

SMALL = [
    *("data=digits8", "model.width=8", "model.patch=1", "model.embedding=16", "model.dropout=0.1", "batch=32"),
    *("iterations=6", "warmup=2", "log_every=1", "checkpoint_every=2", "objective.name=ddpm", "flip=true"),
]


def trainer(folder, *overrides, device="cuda", resume=False):
    return Trainer(load_train_config(None, [*SMALL, f"device={device}", *overrides]), folder, resume)


def flat(model):
    return torch.cat([p.detach().flatten() for p in model.parameters()])


@pytest.mark.parametrize("amp", ["none", "bfloat16", "float16"])
def test_a_step_that_is_not_finite_changes_nothing(tmp_path, amp):
    run = trainer(tmp_path, f"amp={amp}", "channels_last=true")
    run._step()
    backward, before = run.backward, {name: tensor.clone() for name, tensor in run._state().items()}

    def spoilt():
        loss = backward()
        run._parameters[0].grad.fill_(torch.nan)
        return loss

    run.backward = spoilt
    assert run._step().tolist()[2] == 1
    assert all(torch.equal(tensor, before[name]) for name, tensor in run._state().items())
    assert {float(state["step"]) for state in run.optimizer.state.values()} == {1.0}
    run.backward = backward
    assert run._step().tolist()[2] == 0
    assert not torch.equal(
        flat(run.model), torch.cat([before[f"model.{n}"].flatten() for n, _ in run.model.named_parameters()])
    )


def test_the_first_losses_are_those_of_the_cpu(tmp_path):
    """Data, levels and noise are the same on every device; the network's arithmetic is not to the bit."""
    for device in ("cpu", "cuda"):
        trainer(tmp_path / device, "amp=none", "model.dropout=0", device=device).run(until=3, progress=False)
    cpu, cuda = ([row["loss"] for row in read_log(tmp_path / device / "log.jsonl")] for device in ("cpu", "cuda"))
    assert cuda == pytest.approx(cpu, rel=1e-3)


def test_a_run_is_resumed(tmp_path):
    trainer(tmp_path, "amp=float16").run(until=4, progress=False)
    resumed = trainer(tmp_path, "amp=float16", resume=True)
    assert resumed.iteration == 4
    assert {p.device.type for p in resumed.model.parameters()} == {"cuda"}
    assert all(value.is_cuda for state in resumed.optimizer.state.values() for value in state.values())
    resumed.run(progress=False)
    assert resumed.iteration == 6
