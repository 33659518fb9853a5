"""Small checkpoint files of every format, made here, and the bytes of hostile pickles."""

from __future__ import annotations

import io
import json
import pickle
import sys
import types
import zipfile
from collections import OrderedDict
from collections.abc import Mapping
from contextlib import contextmanager
from typing import Any
from unittest import mock

import torch
from safetensors.torch import save as safetensors_bytes
from torch import Tensor

MARKER = "EXECUTED_MARKER"
CONFIG = {
    "architecture": "EDMPrecond",
    "img_resolution": 8,
    "img_channels": 1,
    "label_dim": 0,
    "model_type": "DhariwalUNet",
    "model_channels": 4,
    "channel_mult": [1],
    "channel_mult_emb": 2,
    "num_blocks": 1,
    "attn_resolutions": [],
}


class Persistent:
    """An object that pickles as EDM's do."""

    def __init__(self, class_name: str, state: dict[str, Any], **changes: Any):
        self.meta = {"type": "class", "version": 6, "module_src": "raise RuntimeError('run')", "class_name": class_name}
        self.meta |= {"state": state, **changes}

    def __reduce__(self) -> tuple[Any, ...]:
        return sys.modules["torch_utils.persistence"]._reconstruct_persistent_obj, (self.meta,)


@contextmanager
def _edm_names():
    """The names that EDM's writer refers to, importable for the time of writing."""

    def reconstruct(meta: Any) -> Any:
        raise AssertionError("the official reader was called")

    reconstruct.__module__ = "torch_utils.persistence"
    reconstruct.__name__ = reconstruct.__qualname__ = "_reconstruct_persistent_obj"
    module = types.ModuleType("torch_utils.persistence")
    module._reconstruct_persistent_obj = reconstruct
    names = {"torch_utils": types.ModuleType("torch_utils"), "torch_utils.persistence": module}
    with mock.patch.dict(sys.modules, names):
        yield


def pickled(content: Any, protocol: int = 4) -> bytes:
    """A pickle that may hold `Persistent` objects."""
    with _edm_names():
        return pickle.dumps(content, protocol=protocol)


def module_state(parameters: Mapping[str, Any], buffers: Mapping[str, Any], modules: Mapping[str, Any], **rest: Any):
    return {
        "training": False,
        "_parameters": dict(parameters),
        "_buffers": OrderedDict(buffers),
        "_non_persistent_buffers_set": set(),
        "_forward_hooks": OrderedDict(),
        "_modules": dict(modules),
        **rest,
    }


def tree(tensors: Mapping[str, Tensor], name: str = "", **state: Any) -> Any:
    """Modules within each other, as the names say: Persistent, the inner `enc` and `dec` ModuleDicts of torch."""
    own = {key: torch.nn.Parameter(value) for key, value in tensors.items() if "." not in key}
    inner: dict[str, dict[str, Tensor]] = {}
    for key, value in tensors.items():
        if "." in key:
            head, rest = key.split(".", 1)
            inner.setdefault(head, {})[rest] = value
    modules = {head: tree(parts, head) for head, parts in inner.items()}
    if name in ("enc", "dec"):
        container = torch.nn.ModuleDict()
        container._modules.update(modules)
        return container
    kwargs = state.pop("kwargs", {})
    return Persistent(
        state.pop("class_name", "Linear"),
        module_state(own, {"filter": None}, modules, _init_args=(), _init_kwargs=kwargs, **state),
    )


def edm_network(tensors: Mapping[str, Tensor], config: Mapping[str, Any] = CONFIG, **attributes: Any) -> Persistent:
    """The record of a preconditioner; `tensors` by the names of its state dict."""
    outer = {key: value for key, value in config.items() if key != "architecture"}
    inner = {key: value for key, value in outer.items() if key not in ("img_channels", "model_type", "use_fp16")}
    inner |= {"in_channels": config["img_channels"], "out_channels": config["img_channels"]}
    network = tree(
        {key.removeprefix("model."): value for key, value in tensors.items() if key.startswith("model.")},
        "model",
        class_name=config["model_type"],
        kwargs=inner,
    )
    attributes = {"img_resolution": outer["img_resolution"], "sigma_data": 0.5, "sigma_max": float("inf"), **attributes}
    rest = {key: value for key, value in tensors.items() if not key.startswith("model.")}
    state = module_state({}, rest, {"model": network}, _init_args=(), _init_kwargs=outer, **attributes)
    return Persistent(config["architecture"], state)


def zip_of(content: Any) -> bytes:
    file = io.BytesIO()
    torch.save(content, file)
    return file.getvalue()


def legacy_of(content: Any) -> bytes:
    file = io.BytesIO()
    torch.save(content, file, _use_new_zipfile_serialization=False)
    return file.getvalue()


def rezipped(members: Mapping[str, bytes], **changes: Any) -> bytes:
    """A zip archive of these files; `changes` are attributes of their entries."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        for name, data in members.items():
            info = zipfile.ZipInfo(name)
            for key, value in changes.items():
                setattr(info, key, value)
            archive.writestr(info, data)
    return file.getvalue()


def unzipped(data: bytes) -> dict[str, bytes]:
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        return {info.filename: archive.read(info) for info in archive.infolist()}


def safetensors_of(header: Any, data: bytes = b"", length: int | None = None) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return (len(text) if length is None else length).to_bytes(8, "little") + text + data


def files(tensors: Mapping[str, Tensor]) -> dict[str, bytes]:
    """The same network in every format."""
    half = {name: tensor.half() for name, tensor in tensors.items()}
    flat = {f"module.{name}": tensor for name, tensor in tensors.items()}
    return {
        "edm.pkl": pickled({"ema": edm_network(tensors), "dataset_kwargs": {"path": "x", "n": 3}}),
        "edm_half.pkl": pickled({"ema": edm_network(half), "loss_fn": Persistent("EDMLoss", {"P_mean": -1.2})}, 3),
        "state.pt": zip_of(OrderedDict(tensors)),
        "training.pt": zip_of({"model": flat, "optimizer": {"state": {0: {"step": 3}}, "param_groups": []}, "step": 3}),
        "legacy.pt": legacy_of(OrderedDict(tensors)),
        "state.safetensors": safetensors_bytes(dict(tensors)),
    }


def call_of(module: str, name: str, argument: str = MARKER) -> bytes:
    """Instructions that call `module.name(argument)` and leave the result; protocol 4."""
    text = argument.encode()
    return (
        b"\x8c" + bytes([len(module)]) + module.encode() + b"\x8c" + bytes([len(name)]) + name.encode() + b"\x93"
        b"X" + len(text).to_bytes(4, "little") + text + b"\x85R"
    )


HOSTILE = (
    ("os", "system", f"touch {MARKER}"),
    ("posix", "system", f"touch {MARKER}"),
    ("builtins", "exec", f"open({MARKER!r}, 'w')"),
    ("builtins", "eval", f"open({MARKER!r}, 'w')"),
    ("builtins", "getattr", MARKER),
    ("io", "open", MARKER),
    ("torch.storage", "_load_from_bytes.__globals__", MARKER),
    ("torch.hub", "load", MARKER),
    ("subprocess", "getoutput", f"touch {MARKER}"),
    ("runpy", "run_path", MARKER),
)
