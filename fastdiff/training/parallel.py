"""Several processes of one run, as torchrun starts them: replicas of the network (DDP), or shards of it (FSDP2).

A batch is one batch whatever the number of processes: each takes its slice, and losses and gradients are means over
the whole. Without torchrun everything here does nothing.
"""

from __future__ import annotations

import copy
import os
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn

from ..config import ConfigError
from ..opening import open_device

__all__ = ["Group", "local", "part", "whole"]

_T = TypeVar("_T")


class Group:
    """The processes of a run.

    Args:
        device: as in a configuration; "auto" and "cuda" are this process's own GPU.
        mode: "ddp" or "fsdp"; "none" for runs that one process does alone.

    Attributes:
        rank, world: of this process, and how many there are.
        device: of this process.
        sharded: whether networks are to be sharded.

    Raises:
        ConfigError: the device cannot be used here, or the run cannot have several processes.
    """

    def __init__(self, device: str, mode: str = "ddp") -> None:
        self.rank, self.world = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
        if self.world > 1 and mode == "none":
            raise ConfigError(f"this training is done by one process, got {self.world} (torchrun)")
        if self.world > 1 and torch.cuda.is_available() and device in ("auto", "cuda"):
            device = f"cuda:{os.environ.get('LOCAL_RANK', 0)}"
        try:
            self.device = open_device(device)
        except ValueError as error:
            raise ConfigError(f"device {error}") from None
        self.sharded = mode == "fsdp" and self.world > 1
        if self.world > 1 and not dist.is_initialized():
            if self.device.type == "cuda":
                torch.cuda.set_device(self.device)
            dist.init_process_group("nccl" if self.device.type == "cuda" else "gloo")

    @property
    def first(self) -> bool:
        """Whether this is the process that writes."""
        return self.rank == 0

    def share(self, count: int) -> slice:
        """This process's part of a batch."""
        return slice(self.rank * count // self.world, (self.rank + 1) * count // self.world)

    def sum(self, value: Tensor) -> Tensor:
        """The sum over the processes; `value` is changed."""
        if self.world > 1:
            dist.all_reduce(value)
        return value

    def gather(self, values: Tensor, count: int) -> Tensor:
        """The values of a whole batch, [count], from each process's share of them."""
        if self.world == 1:
            return values
        everything = torch.zeros(count, dtype=values.dtype, device=values.device)
        everything[self.share(count)] = values
        return self.sum(everything)

    def agree(self, value: _T) -> _T:
        """The first process's value, on all."""
        if self.world == 1:
            return value
        box: list[Any] = [value]
        dist.broadcast_object_list(box, src=0, device=self.device)
        return box[0]

    def replicate(self, module: nn.Module) -> nn.Module:
        """`module`, whose backward pass then averages the gradients over the processes."""
        if self.world == 1 or self.sharded:
            return module
        devices = [self.device] if self.device.type == "cuda" else None
        return nn.parallel.DistributedDataParallel(module, device_ids=devices)

    def shard(self, network: nn.Module) -> nn.Module:
        """Has every process keep only its part of each parameter: by residual block, and of the rest at once."""
        if self.sharded:
            from torch.distributed.device_mesh import init_device_mesh
            from torch.distributed.fsdp import fully_shard

            mesh = init_device_mesh(self.device.type, (self.world,))
            for module in network.modules():
                if isinstance(module, nn.ModuleList):
                    for child in module:
                        if not isinstance(child, nn.ModuleList):
                            fully_shard(child, mesh=mesh)
            # By default the outermost keeps its parameters whole after a forward pass that no backward pass follows, as
            # those of averages are.
            fully_shard(network, mesh=mesh, reshard_after_forward=True)
        return network

    def duplicate(self, network: nn.Module) -> nn.Module:
        """A copy of a network that has not been sharded yet; sharded as it is going to be."""
        return self.shard(copy.deepcopy(network))

    @contextmanager
    def first_goes_ahead(self) -> Iterator[None]:
        """The first process does the body before the others do: it may fill a cache that they then read."""
        if self.world > 1 and not self.first:
            dist.barrier()
        yield
        if self.world > 1 and self.first:
            dist.barrier()

    def close(self) -> None:
        """Leaves the group."""
        if dist.is_initialized():
            dist.destroy_process_group()


def unsynchronised(module: nn.Module, last: bool) -> AbstractContextManager[Any]:
    """Around a backward pass: a replica's gradients are averaged only in the last part of a batch."""
    if isinstance(module, nn.parallel.DistributedDataParallel) and not last:
        return module.no_sync()
    return nullcontext()


def local(tensor: Any) -> Tensor:
    """This process's part of a tensor that may be sharded; it shares the memory."""
    result: Tensor = tensor.detach().to_local() if hasattr(tensor, "to_local") else tensor
    return result


def whole(tensor: Any, like: Any = None) -> Tensor:
    """All of a tensor that may be sharded. Every process must ask.

    Args:
        like: `tensor` is this process's part of one that is sharded as this one (an optimizer's moment).
    """
    if like is not None and hasattr(like, "to_local") and tensor.shape == like.to_local().shape:
        from torch.distributed.tensor import DTensor

        tensor = DTensor.from_local(tensor, like.device_mesh, like.placements, shape=like.shape, stride=like.stride())
    result: Tensor = tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor
    return result


def part(tensor: Tensor, like: Any) -> Tensor:
    """This process's part of a whole tensor, sharded as `like` is; the tensor itself where that is not."""
    if not hasattr(like, "to_local"):
        return tensor
    from torch.distributed.tensor import distribute_tensor

    spread = distribute_tensor(tensor.to(like.device), like.device_mesh, like.placements, src_data_rank=None)
    return spread.to_local()
