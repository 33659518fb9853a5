"""Networks of diffusers, built by diffusers itself: its classes by name, with this package's calling convention."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from .network import Network, architecture

__all__ = ["AUTOENCODERS", "DENOISERS", "DiffusersNetwork", "check_options", "make", "remapped"]

DENOISERS = (
    *("UNet2DModel", "UNet2DConditionModel"),
    *("DiTTransformer2DModel", "PixArtTransformer2DModel", "SD3Transformer2DModel"),
)
AUTOENCODERS = ("AutoencoderKL", "VQModel")
STORED = ("SD3Transformer2DModel",)  # whose tables of positions are in its files
REMAPPED = {"ada_norm_zero": "DiTTransformer2DModel", "ada_norm_single": "PixArtTransformer2DModel"}
ADDED = ("text_embeds", "time_ids", "image_embeds", "resolution", "aspect_ratio")
"""Conditions that diffusers takes in one dict, `added_cond_kwargs`; here by their own names."""

WIDEST = 1 << 16  # of a number of channels, classes or times
LAYERS = ("layers_per_block", "num_layers", "transformer_layers_per_block", "reverse_transformer_layers_per_block")
MOST_LAYERS = 128
MOST_POSITIONS = 1 << 25  # numbers in a table of positions that no file holds: of DiT at 256 pixels 3e5


class _ParametersOnMeta(TorchFunctionMode):
    """Parameters, which modules make by torch.empty, have shapes only; tables that no file holds are computed."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        if func is torch.empty and kwargs.get("device") is None:
            kwargs["device"] = "meta"
        return func(*args, **kwargs)


def remapped(class_name: str, options: Mapping[str, Any]) -> str:
    """The class that stands for an older one: published DiT and PixArt files say Transformer2DModel."""
    return REMAPPED.get(str(options.get("norm_type")), class_name) if class_name == "Transformer2DModel" else class_name


def check_options(class_name: str, options: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments for a class of diffusers, from a config.json.

    Entries that begin with "_" are about the file. What the class does not take is left out if it is off (None or
    False), or belongs to the older class that the file names; diffusers ignores all else, which is refused here.

    Args:
        class_name: the file's `_class_name`; options: the file's content.

    Raises:
        ValueError: a class that is not among `DENOISERS` and `AUTOENCODERS`, an unknown argument, or sizes beyond use.
        ModuleNotFoundError: diffusers is not installed.
    """
    cls, name = _class(class_name, options), remapped(class_name, options)
    given = {key: value for key, value in options.items() if not key.startswith("_") and key != "class_name"}
    known = set(_parameters(cls))
    older = set(_parameters(_diffusers().Transformer2DModel)) if name != class_name else set()
    unknown = sorted(
        key for key, value in given.items() if key not in known | older and value is not None and value is not False
    )
    if unknown:
        raise ValueError(f"{name} of the installed diffusers takes no argument {', '.join(unknown)}")
    kept = {key: value for key, value in given.items() if key in known}
    _check_sizes({**{key: p.default for key, p in _parameters(cls).items()}, **kept})
    return kept


def make(class_name: str, options: Mapping[str, Any]) -> nn.Module:
    """A module of diffusers in evaluation mode; where the default device is "meta", its parameters have shapes only and
    its tables of positions, which no file holds, are on the CPU.

    Args:
        class_name: one of `DENOISERS` and `AUTOENCODERS`, or the Transformer2DModel of an older file of these.
        options: its constructor's arguments, as config.json has them.

    Raises:
        ValueError: they do not make one.
        ModuleNotFoundError: diffusers is not installed.
    """
    cls, arguments = _class(class_name, options), check_options(class_name, options)
    with ExitStack() as stack:
        if torch.empty(0).device.type == "meta" and cls.__name__ not in STORED:
            stack.enter_context(torch.random.fork_rng(devices=[]))
            stack.enter_context(torch.device("cpu"))
            stack.enter_context(_ParametersOnMeta())
        try:
            module: nn.Module = cls(**arguments)
        except Exception as error:  # assertions, KeyError and more, from anywhere within
            raise ValueError(f"diffusers makes no {cls.__name__} of this: {error or type(error).__name__}") from None
    return module.eval()


@architecture(kind="denoiser", source="diffusers")
class DiffusersNetwork(Network):
    """A denoising network of diffusers: called as networks of this package are, its output a plain tensor.

    Weights have diffusers' own names behind "network." and "vae.".

    Attributes:
        network: diffusers' module.
        vae: the autoencoder whose latents it denoises, diffusers' module; or None. `fastdiff.Latent(vae)` decodes.
    """

    def __init__(self, class_name: str, vae: Mapping[str, Any] | None = None, **options: Any):
        """
        Args:
            class_name: one of `DENOISERS`, or the Transformer2DModel of an older file of these.
            vae: class_name (one of `AUTOENCODERS`) and arguments of the autoencoder, if it is part of the network.
            options: the class's constructor's arguments, as its config.json has them.

        Raises:
            ValueError: they do not make a network.
            ModuleNotFoundError: diffusers is not installed.
        """
        super().__init__()
        name = remapped(class_name, options)
        if name not in DENOISERS:
            raise ValueError(f"class_name must be one of {', '.join(DENOISERS)}, got {class_name!r}")
        if vae is not None and vae.get("class_name") not in AUTOENCODERS:
            known = ", ".join(AUTOENCODERS)
            raise ValueError(f"vae must have a class_name, one of {known}, got {vae.get('class_name')!r}")
        made: Any = make(class_name, options)
        read, kind = made.config, type(made).__name__
        self.network = made
        self.vae = None if vae is None else make(vae["class_name"], vae)
        size = (read.sample_size,) * 2 if isinstance(read.sample_size, int) else read.sample_size
        self.sample_shape = None if size is None else (read.in_channels, *size)
        self.label_dim = _classes(kind, read)
        self.null: int | None = self.label_dim if kind == "DiTTransformer2DModel" else None  # the row of "no class"
        self.takes_labels: bool = self.label_dim > 0 or read.get("class_embed_type") is not None
        blocks = [*(read.get("down_block_types") or ()), str(read.get("mid_block_type"))]
        self.needs_text: bool = kind.startswith(("PixArt", "SD3")) or any("Cross" in block for block in blocks)
        self.whole_times: bool = read.get("time_embedding_type") == "learned"
        self.takes = frozenset(inspect.signature(type(made).forward).parameters)

    def forward(self, x: Tensor, time: Tensor, labels: Tensor | None = None, **conditions: Any) -> Tensor:
        """The network's output, as its scheduler's prediction_type reads it.

        Args:
            x: noisy samples [B, C, H, W], in the parameters' dtype.
            time: timesteps as the scheduler tells them, [B] or a 0-dim tensor, whole or floating.
            labels: int64 [B]; of DiT also -1 or None for no class. What a class_embed_type other than None takes.
            conditions: further arguments of diffusers' forward, such as encoder_hidden_states [B, T, D]; those of its
                `added_cond_kwargs` by their own names (text_embeds, time_ids, resolution, ...).

        Returns:
            [B, C, H, W], or twice the channels where a variance is learned.

        Raises:
            ValueError, TypeError: a condition that is missing, or that the network does not take.
        """
        added = {name: conditions.pop(name) for name in ADDED if name in conditions}
        unknown = conditions.keys() - self.takes
        if added and "added_cond_kwargs" not in self.takes:
            unknown |= added.keys()
        if unknown:
            raise TypeError(f"{type(self.network).__name__} takes no {', '.join(sorted(unknown))}")
        if self.needs_text and conditions.get("encoder_hidden_states") is None:
            raise TypeError(
                f"{type(self.network).__name__} needs encoder_hidden_states [B, T, D]: embeddings of the text"
            )
        if labels is not None and not self.takes_labels:
            raise ValueError(f"labels must be left out: this {type(self.network).__name__} has no classes")
        time = time.expand(x.shape[0])
        if added:
            conditions["added_cond_kwargs"] = {**conditions.get("added_cond_kwargs", {}), **added}
        if self.takes_labels:
            conditions["class_labels"] = self._labels(x, labels)
        call: Any = self.network
        out: tuple[Tensor, ...] = call(
            x, timestep=time.long() if self.whole_times else time, return_dict=False, **conditions
        )
        return out[0]

    def _labels(self, x: Tensor, labels: Tensor | None) -> Tensor | None:
        """As diffusers wants them: classes by their numbers, no class as its own number if it has one."""
        if labels is None:
            return None if self.null is None else torch.full(x.shape[:1], self.null, device=x.device)
        if self.label_dim == 0:
            return labels
        labels = labels.argmax(1) if labels.ndim == 2 else labels
        return labels if self.null is None else torch.where(labels < 0, self.null, labels)


def _classes(kind: str, read: Any) -> int:
    """The number of classes that labels count, 0 if there are none."""
    if kind == "DiTTransformer2DModel":
        return int(read.num_embeds_ada_norm)
    return int(read.num_class_embeds or 0) if kind.startswith("UNet") and read.class_embed_type is None else 0


def _diffusers() -> Any:
    try:
        import diffusers
    except ModuleNotFoundError as error:
        if error.name != "diffusers":
            raise
        raise ModuleNotFoundError(
            "networks of diffusers need it installed: pip install diffusers", name="diffusers"
        ) from None
    return diffusers


def _class(class_name: str, options: Mapping[str, Any]) -> type[nn.Module]:
    name = remapped(class_name, options)
    if name not in (*DENOISERS, *AUTOENCODERS):
        known = ", ".join((*DENOISERS, *AUTOENCODERS))
        raise ValueError(f"the class of diffusers must be one of {known}, got {class_name!r}")
    found: type[nn.Module] = getattr(_diffusers(), name)
    return found


def _parameters(cls: Any) -> dict[str, inspect.Parameter]:
    return dict(list(inspect.signature(cls.__init__).parameters.items())[1:])


def _check_sizes(options: Mapping[str, Any]) -> None:
    """Refuses what would take minutes or gigabytes before any weight is looked at."""
    for name, value in options.items():
        _check_size(name, value, 0)
    blocks = options.get("down_block_types") or ()
    per_block = sum(_largest(options.get(name)) for name in LAYERS if name == "layers_per_block") or 1
    deep = max((_largest(options.get(name)) for name in LAYERS if name != "layers_per_block"), default=0) or 1
    if max(len(blocks), 1) * per_block * deep > MOST_LAYERS:
        raise ValueError(f"the layers must be at most {MOST_LAYERS}, got {max(len(blocks), 1) * per_block * deep}")
    if (patch := options.get("patch_size")) is not None:
        side = _largest(options.get("sample_size")) // max(_largest(patch), 1)
        width = _largest(options.get("num_attention_heads")) * _largest(options.get("attention_head_dim"))
        if width > WIDEST:
            raise ValueError(f"num_attention_heads times attention_head_dim must be at most {WIDEST}, got {width}")
        if side * side * width > MOST_POSITIONS:
            count = side * side * width
            raise ValueError(f"the table of positions must have at most {MOST_POSITIONS} numbers, got {count}")


def _check_size(name: str, value: Any, depth: int) -> None:
    if isinstance(value, (list, tuple)):
        if len(value) > 64 or depth > 2:
            raise ValueError(f"{name} must be a list of at most 64 entries, nested at most twice")
        for each in value:
            _check_size(name, each, depth + 1)
    elif isinstance(value, int) and not -1 <= value <= WIDEST:
        raise ValueError(f"{name} must be from 0 to {WIDEST}, got {value}")


def _largest(value: Any) -> int:
    """Of a number, or of the numbers in nested lists; 0 for anything else."""
    if isinstance(value, (list, tuple)):
        return max((_largest(each) for each in value), default=0)
    return value if isinstance(value, int) else 0
