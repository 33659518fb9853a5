"""The tape of an emulated capture: the operators it ran, and the memory they touched, held or only watched."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

if TYPE_CHECKING:
    from .emulator import Branch

# Operators whose CUDA kernels wait for the device, or read host memory.
_REFUSED = {
    "_local_scalar_dense",
    "nonzero",
    "nonzero_numpy",
    "is_nonzero",
    "masked_select",
    "unique_dim",
    "unique_consecutive",
    "unique_dim_consecutive",
    "_unique",
    "_unique2",
    "equal",
    "allclose",
    "lift_fresh",
    "lift_fresh_copy",
    "randperm",
    "bincount",
    "_linalg_check_errors",
    "_pin_memory",
}
_REFUSED_METHODS = {"tolist", "numpy", "__array__", "cpu", "pin_memory", "__dlpack__"}  # no operator, on the CPU
_MASKS = (torch.bool, torch.uint8)
_OVERWRITES = ("copy_", "fill_", "zero_", "normal_", "uniform_")  # in place, without reading


def refusal(name: str) -> RuntimeError:
    """The error of CUDA for a call that a capture does not permit."""
    return RuntimeError(
        f"CUDA error: operation not permitted when stream is capturing: {name} "
        "(cudaErrorStreamCaptureUnsupported, raised by the emulator)"
    )


class View:
    """How a tensor looks at a storage; kept in place of the tensor, which would keep the storage alive."""

    def __init__(self, memory: Memory, tensor: Tensor):
        self.memory = memory
        self.dtype, self.shape, self.stride = tensor.dtype, tensor.shape, tensor.stride()
        self.offset = tensor.storage_offset()

    def tensor(self) -> Tensor:
        empty = torch.empty(0, dtype=self.dtype, device="cpu")
        return empty.set_(self.memory.storage(), self.offset, self.shape, self.stride)


class Memory:
    """A storage met during a capture: held if the capture made it, else only watched."""

    def __init__(self, storage: torch.UntypedStorage, dtype: torch.dtype, made: bool):
        self.dtype, self.made, self.read = dtype, made, False
        self.pointer, self.bytes, self.key = storage.data_ptr(), storage.nbytes(), storage._cdata
        self._held = storage if made else None
        self._weak = StorageWeakRef(storage)
        self.before: torch.UntypedStorage | None = None  # contents of an outside storage, before the capture wrote it

    def alive(self) -> torch.UntypedStorage | None:
        if self._held is not None:
            return self._held
        return torch.UntypedStorage._new_with_weak_ptr(self._weak.cdata)

    def storage(self) -> torch.UntypedStorage:
        storage = self.alive()
        if storage is None or (storage.data_ptr() != self.pointer and self.bytes):
            verb = "reads" if self.read else "writes"
            raise RuntimeError(f"graph replay {verb} freed memory: {self.bytes} bytes ({self.dtype}) made outside it")
        return storage

    def used_outside(self) -> bool:
        """Whether a tensor still looks at memory that the capture made."""
        return torch._C._storage_Use_Count(self.key) > 1

    def poison(self, index: int | None = None) -> None:
        """Fill it with NaN; integers with `index`, or one that is out of every range."""
        if not self.bytes:
            return
        storage = self.storage()
        flat = torch.empty(0, dtype=self.dtype, device="cpu")
        flat.set_(storage, 0, (self.bytes // self.dtype.itemsize,), (1,))
        if self.dtype.is_floating_point or self.dtype.is_complex:
            flat.fill_(float("nan"))
        else:
            wrong = True if self.dtype == torch.bool else torch.iinfo(self.dtype).max // 2
            flat.fill_(wrong if index is None else index)

    def snapshot(self) -> None:
        if self.before is None and not self.made:
            self.before = self.storage().clone()

    def restore(self) -> None:
        storage = self.alive()
        if self.before is not None and storage is not None:
            storage.copy_(self.before)
        self.before = None


class Operation:
    """One operator of the tape."""

    def __init__(self, function: Any, args: Any, kwargs: dict[str, Any]):
        self.function, self.args, self.kwargs = function, args, kwargs
        self.results: list[View | None] = []

    def replay(self) -> None:
        args = _map(_tensor, self.args)
        kwargs = {name: _map(_tensor, value) for name, value in self.kwargs.items()}
        results = self.function(*args, **kwargs)
        for recorded, result in zip(self.results, _leaves(results)):
            if recorded is not None:
                storage, new = recorded.memory.storage(), result.untyped_storage()
                same = (result.stride(), result.storage_offset()) == (recorded.stride, recorded.offset)
                if not same or storage.nbytes() != new.nbytes():
                    raise RuntimeError(f"{self.function}: the result of the replay is laid out differently")
                storage.copy_(new)


class Refuse(TorchFunctionMode):
    """Reading a tensor on the host, where on the CPU no operator would show it."""

    def __init__(self, tape: Tape):
        super().__init__()
        self._tape = tape

    def __torch_function__(self, function, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        name = getattr(function, "__name__", "")
        if name in _REFUSED_METHODS:
            raise self._tape.refuse(f"Tensor.{name}")
        return function(*args, **(kwargs or {}))


class Tape(TorchDispatchMode):
    """Runs and records every operator below autograd, its backward operators too."""

    def __init__(self) -> None:
        super().__init__()
        self.operations: list[Operation] = []
        self.memory: dict[int, Memory] = {}
        self.refused: RuntimeError | None = None
        self.stream: Branch | None = None
        self.branches: list[Branch] = []  # begun and not joined

    def refuse(self, name: str) -> RuntimeError:
        error = refusal(name)
        self.refused = self.refused or error
        return error

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        kwargs = kwargs or {}
        self._check(function, args, kwargs)
        view = _shape_only if _base_name(function).endswith("_like") else self._view
        recorded = {name: _map(view, value) for name, value in kwargs.items()}
        operation = Operation(function, _map(view, args), recorded)
        written = self._written(function, args, kwargs)
        for memory in written:
            memory.snapshot()
        results = function(*args, **kwargs)
        for result in _leaves(results):
            new = isinstance(result, Tensor) and result.untyped_storage()._cdata not in self.memory
            operation.results.append(self._view(result, made=True) if new else None)
        made = [result.memory for result in operation.results if result is not None]
        if (written or made) and not _base_name(function).startswith(("empty", "new_empty")):  # a kernel
            read = self._read(operation, written)
            for memory in read:
                memory.read = True
            self._check_streams(function, read, [*written, *made])
            self.operations.append(operation)
        return results

    def _view(self, leaf: Any, made: bool = False) -> Any:
        if not isinstance(leaf, Tensor):
            return leaf
        storage = leaf.untyped_storage()
        if storage._cdata not in self.memory:
            self.memory[storage._cdata] = Memory(storage, leaf.dtype, made)
        return View(self.memory[storage._cdata], leaf)

    def _written(self, function: Any, args: Sequence[Any], kwargs: dict[str, Any]) -> list[Memory]:
        written = []
        for place, argument in enumerate(function._schema.arguments):
            if argument.alias_info is not None and argument.alias_info.is_write:
                value = args[place] if place < len(args) else kwargs.get(argument.name)
                written += [self._view(t).memory for t in _leaves(value) if isinstance(t, Tensor)]
        return written

    def _read(self, operation: Operation, written: list[Memory]) -> list[Memory]:
        leaves = _leaves((operation.args, tuple(operation.kwargs.values())))
        read = [leaf.memory for leaf in leaves if isinstance(leaf, View)]
        name, arguments = _base_name(operation.function), operation.function._schema.arguments
        overwrites = name in _OVERWRITES or name.endswith("_out") or any(argument.is_out for argument in arguments)
        return [memory for memory in read if not (overwrites and memory in written)]

    def _check(self, function: Any, args: Sequence[Any], kwargs: dict[str, Any]) -> None:
        name = _base_name(function)
        masked = name in ("index", "index_put", "index_put_", "_index_put_impl_", "_unsafe_index") and any(
            isinstance(i, Tensor) and i.dtype in _MASKS for i in args[1]
        )
        counted = name == "repeat_interleave" and kwargs.get("output_size") is None
        drawn = any(isinstance(leaf, torch.Generator) for leaf in (*args, *kwargs.values()))
        if name in _REFUSED or masked or (counted and isinstance(args[-1], Tensor)) or drawn:
            raise self.refuse(f"aten::{name}" + (" with a generator that is not registered" if drawn else ""))

    def _check_streams(self, function: Any, read: list[Memory], written: list[Memory]) -> None:
        """Two streams may not touch the same memory at once, be it that one of them only frees it."""
        if self.stream is not None:
            self.stream.read.update(read)
            self.stream.written.update(written)
        for other in self.branches:
            if other is self.stream:
                continue
            race = other.written & {*read, *written} or other.read & {*written}
            freed = any(m.made and not m.used_outside() for m in other.read - other.written) and written
            if race or freed:
                what = "uses memory of" if race else "may be given memory that was freed before the end of"
                raise RuntimeError(f"race: {function} {what} a branch that is not joined")


def _map(function: Callable[[Any], Any], value: Any) -> Any:
    """An operator's arguments, some of them lists of tensors, with the function applied to every leaf."""
    if isinstance(value, (list, tuple)):
        return type(value)([_map(function, item) for item in value])
    return function(value)


def _leaves(value: Any) -> list[Any]:
    if isinstance(value, (list, tuple)):
        return [leaf for item in value for leaf in _leaves(item)]
    return [value]


def _tensor(leaf: Any) -> Any:
    return leaf.tensor() if isinstance(leaf, View) else leaf


def _base_name(function: Any) -> str:
    return function._schema.name.split("::")[-1]


def _shape_only(leaf: Any) -> Any:
    """In place of a tensor of which an operator takes the shape only."""
    if not isinstance(leaf, Tensor):
        return leaf
    return torch.empty_strided(leaf.shape, leaf.stride(), dtype=leaf.dtype, device="cpu")
