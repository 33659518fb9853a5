"""Folders as diffusers' save_pretrained writes them, and names on the Hugging Face hub that lead to them.

Nothing in them is run: configurations are JSON, weights go through this package's own readers.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..models import ModelFileError
from ..models.hf import AUTOENCODERS, DENOISERS, make
from ..models.io import fill
from .checkpoint import Checkpoint

__all__ = ["fetch", "is_folder", "is_id", "open_autoencoder", "open_folder"]

DENOISING = (*DENOISERS, "Transformer2DModel")  # of which older files of DiT and PixArt are
WEIGHTS = "diffusion_pytorch_model"
LARGEST_JSON = 1 << 26  # bytes; the index of 1e5 tensors has 1e7
SUFFIXES = (".safetensors", ".bin", ".pt", ".pth", ".pkl", ".ckpt", ".json")
OLDER = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}
_OLD_ATTENTION = re.compile(r"(.*attentions\.\d+)\.(query|key|value|proj_attn)\.(weight|bias)")
_HUB_NAME = re.compile(r"(?P<repo>[\w-][\w.-]*/[\w-][\w.-]*)(?:/(?P<file>[^@]+))?(?:@(?P<revision>[\w./-]+))?")


def is_folder(path: str | Path) -> bool:
    """Whether there is a folder that says what it holds as diffusers does."""
    return any((Path(path) / name).is_file() for name in ("model_index.json", "config.json"))


def open_folder(path: str | Path) -> Checkpoint:
    """The denoising network of a pipeline's folder, or of one part of it ("DIR/unet").

    Args:
        path: of the folder. Weights are read from safetensors where there are any, whole or in shards, else from .bin.

    Returns:
        The network as a `DiffusersNetwork`, with the pipeline's autoencoder if it has one; the configuration of the
        scheduler is metadata "scheduler".

    Raises:
        ModelFileError: it is no such folder, a file in it is damaged or missing, it has no denoising network of a class
            that is known, or several; a file's name leads out of the folder.
    """
    root = Path(path)
    place, described = _part(root, DENOISING, "denoising network")
    held, notes = _weights(place)
    tensors, config = {f"network.{name}": tensor for name, tensor in held.items()}, _config(described)
    notes.insert(0, f"network: {described['_class_name']}")
    if (root / "model_index.json").is_file() and _named(root, AUTOENCODERS):
        place, described = _part(root, AUTOENCODERS, "autoencoder")
        held, said = _weights(place)
        tensors |= {f"vae.{name}": tensor for name, tensor in held.items()}
        config["vae"] = _config(described)
        notes += [f"autoencoder: {described['_class_name']}", *said]
    scheduler = _scheduler(root)
    if scheduler is None:
        notes.append("there is no scheduler_config.json: how the output is read must be given")
    metadata = {} if scheduler is None else {"scheduler": _read_json(scheduler)}
    return Checkpoint(str(path), "diffusers", tensors, "DiffusersNetwork", config, metadata, notes)


def open_autoencoder(
    path: str | Path, device: str | torch.device = "cpu", dtype: torch.dtype = torch.float32
) -> Any | None:
    """The autoencoder of a latent pipeline's folder, or of its own ("DIR/vae"): diffusers' module, frozen.

    Args:
        path: of the folder; device, dtype: of its weights.

    Returns:
        An AutoencoderKL or VQModel, whose `config` has the scaling_factor; None if a pipeline has none.

    Raises:
        ModelFileError: as `open_folder`.
        ModuleNotFoundError: diffusers is not installed.
    """
    root = Path(path)
    if (root / "model_index.json").is_file() and not _named(root, AUTOENCODERS):
        return None
    place, config = _part(root, AUTOENCODERS, "autoencoder")
    try:
        with torch.device("meta"):
            module: Any = make(config["_class_name"], config)
    except ValueError as error:
        raise ModelFileError(f"{place / 'config.json'}: {error}") from None
    tensors = _weights(place)[0]
    fill(module, tensors, place)
    return module.to(device=device, dtype=dtype).eval().requires_grad_(False)


def is_id(text: str | Path) -> bool:
    """Whether it names something on the Hugging Face hub: "owner/name", or "hf:" and a name with a file's path behind;
    "@revision" at the end of either. What is a path here, or looks like a file's, is none."""
    if isinstance(text, Path):
        return False
    if text.startswith("hf:"):
        return True
    match = _HUB_NAME.fullmatch(text)
    if match is None or match["file"] or match["repo"].endswith(SUFFIXES):
        return False
    return not Path(text).exists() and not Path(match["repo"]).exists() and not Path(match["repo"]).parent.is_dir()


def fetch(name: str) -> Path:
    """The local copy of what a name on the Hugging Face hub means; downloaded where it is not in the hub's cache.

    Of a pipeline's repository the configurations and the weights of its network and its autoencoder are taken, from
    safetensors where there are any.

    Args:
        name: see `is_id`.

    Returns:
        A folder for `open_folder`, or a file.

    Raises:
        ModuleNotFoundError: huggingface_hub is not installed.
        ModelFileError: it cannot be fetched: there is no network, no such repository, revision or file, or no right.
    """
    match = _HUB_NAME.fullmatch(name.removeprefix("hf:"))
    if match is None or ".." in name.split("/"):
        raise ModelFileError(f"{name}: must be owner/name, or hf:owner/name/file, either with @revision at its end")
    try:
        import huggingface_hub
    except ModuleNotFoundError:
        raise ModuleNotFoundError(
            f"{name}: no such file; names on the Hugging Face hub need huggingface_hub: pip install huggingface_hub",
            name="huggingface_hub",
        ) from None
    repo, file, revision = match["repo"], match["file"], match["revision"]
    try:
        if file:
            return Path(huggingface_hub.hf_hub_download(repo, file, revision=revision))
        return _fetch_folder(huggingface_hub, repo, revision)
    except ModelFileError:
        raise
    except Exception as error:  # its own, OSError, ValueError, those of its HTTP client ...
        reason = " ".join(str(error).split()).partition(". ")[0]
        told = f"no such file, and not to be had from the Hugging Face hub ({type(error).__name__}: {reason})"
        raise ModelFileError(f"{name}: {told}") from None


def _fetch_folder(hub: Any, repo: str, revision: str | None) -> Path:
    configurations = ["model_index.json", "config.json", "*/config.json", "scheduler_config.json", "scheduler/*.json"]
    folder = Path(hub.snapshot_download(repo, revision=revision, allow_patterns=configurations))
    if not is_folder(folder):
        raise ModelFileError(f"{repo}: not a repository of diffusers; name one of its files, hf:{repo}/FILE")
    commit = folder.name  # of the first answer: all files are of one revision
    if (folder / "model_index.json").is_file():
        wanted = [folder / name if (folder / name).is_dir() else folder for name in _named(folder, None)]
    else:
        wanted = [folder]
    for place in dict.fromkeys(wanted):
        within = "" if place == folder else f"{place.name}/"
        for suffix in ("safetensors", "bin"):
            patterns = [f"{within}{WEIGHTS}{end}" for end in (f".{suffix}", f".{suffix}.index.json", f"-*.{suffix}")]
            hub.snapshot_download(repo, revision=commit, allow_patterns=patterns)
            if _weight_file(place) is not None:
                break
    return folder


def _named(root: Path, classes: tuple[str, ...] | None) -> list[str]:
    """The parts of a pipeline that are of one of these classes (None: any that is known), by its model_index.json."""
    known = (*DENOISING, *AUTOENCODERS) if classes is None else classes
    index = _read_json(root / "model_index.json")
    parts = {name: value[1] for name, value in index.items() if isinstance(value, list) and len(value) == 2}
    return [_plain_name(root / "model_index.json", name) for name, of in parts.items() if of in known]


def _config(described: Mapping[str, Any]) -> dict[str, Any]:
    """Of a config.json, the arguments of our networks: its class by name, and the class's own."""
    arguments = {name: value for name, value in described.items() if not name.startswith("_")}
    return {"class_name": described["_class_name"], **arguments}


def _scheduler(root: Path) -> Path | None:
    """The scheduler's configuration in a pipeline's folder, or beside the folder of one of its parts."""
    within = ("scheduler/scheduler_config.json", "scheduler_config.json")
    pipelines = [root, root.parent] if (root.parent / "model_index.json").is_file() else [root]
    return _first(*(folder / name for folder in pipelines for name in within))


def _part(root: Path, classes: tuple[str, ...], what: str) -> tuple[Path, dict[str, Any]]:
    """The folder of the one part of these classes, and its configuration."""
    if not root.is_dir():
        raise ModelFileError(f"{root}: no such folder")
    place = root
    if (root / "model_index.json").is_file():
        names = _named(root, classes)
        if len(names) != 1:
            found = f"several: {', '.join(names)}; give the folder of one" if names else f"none of {', '.join(classes)}"
            raise ModelFileError(f"{root}: must have one {what}, and has {found}")
        place = root / names[0] if (root / names[0]).is_dir() else root  # the first pipelines had no folders within
    config = _read_json(place / "config.json")
    if config.get("_class_name") not in classes:
        raise ModelFileError(
            f"{place / 'config.json'}: _class_name must be one of {', '.join(classes)} for a {what}, "
            f"got {config.get('_class_name')!r}"
        )
    return place, config


def _weights(place: Path) -> tuple[dict[str, Tensor], list[str]]:
    """The tensors of a part, by today's names, and what there is to say of them."""
    from .checkpoint import open_checkpoint

    file = _weight_file(place)
    if file is None:
        raise ModelFileError(f"{place}: there is no {WEIGHTS}.safetensors or .bin, whole or in shards")
    notes = [f"weights: {file.name}"]
    tensors: dict[str, Tensor] = {}
    if file.suffix == ".json":
        for shard, names in _shards(file):
            held = open_checkpoint(shard).tensors
            if held.keys() != names:
                differ = ", ".join(sorted(held.keys() ^ names))
                raise ModelFileError(f"{shard}: does not hold what {file.name} says: {differ}")
            tensors.update(held)
    else:
        tensors = open_checkpoint(file).tensors
    renamed = {name: _today(name) for name in tensors}
    if changed := [name for name, new in renamed.items() if new != name]:
        notes.append(f"attention by its older names: {len(changed)} tensors renamed")
        if len(set(renamed.values())) < len(renamed):
            twice = ", ".join(sorted(name for name in changed if renamed[name] in tensors))
            raise ModelFileError(f"{file}: tensors by their older and newer names at once: {twice}")
    return {renamed[name]: tensor for name, tensor in tensors.items()}, notes


def _weight_file(place: Path) -> Path | None:
    """The file of the weights, or the index of its shards: the plain one, else the only variant that there is."""
    plain = [f"{WEIGHTS}.{end}" for end in ("safetensors", "safetensors.index.json", "bin", "bin.index.json")]
    if (found := _first(*(place / name for name in plain))) is not None:
        return found
    for suffix in ("safetensors", "bin"):
        variants = [file for file in sorted(place.glob(f"{WEIGHTS}.*.{suffix}")) if "-of-" not in file.name]
        if len(variants) == 1:
            return variants[0]
        if variants:
            names = ", ".join(file.name for file in variants)
            raise ModelFileError(f"{place}: must have one file of weights, got variants only: {names}")
    return None


def _shards(index: Path) -> Iterator[tuple[Path, set[str]]]:
    """The files that an index names, with the names of the tensors in each."""
    placed = _read_json(index).get("weight_map")
    if not isinstance(placed, Mapping) or not placed or not all(isinstance(name, str) for name in placed.values()):
        raise ModelFileError(f"{index}: weight_map must say the file of every tensor")
    for name in sorted(set(placed.values())):
        file = index.parent / _plain_name(index, name)
        if file.suffix not in (".safetensors", ".bin"):
            raise ModelFileError(f"{index}: {name!r} is not a .safetensors or .bin file")
        if not file.is_file():
            raise ModelFileError(f"{index}: there is no file {name}")
        yield file, {tensor for tensor, of in placed.items() if of == name}


def _today(name: str) -> str:
    """A tensor's name, where the attention has the one from before diffusers 0.14."""
    match = _OLD_ATTENTION.fullmatch(name)
    return name if match is None else f"{match[1]}.{OLDER[match[2]]}.{match[3]}"


def _plain_name(index: Path, name: str) -> str:
    """A name that stays within its folder."""
    if not name or name in (".", "..") or any(mark in name for mark in "/\\:\0"):
        raise ModelFileError(f"{index}: {name!r} must be a name within the folder, it leads out of it")
    return name


def _first(*files: Path) -> Path | None:
    return next((file for file in files if file.is_file()), None)


def _read_json(file: Path) -> dict[str, Any]:
    if file.exists() and not file.is_file():
        raise ModelFileError(f"{file}: not a file")
    try:
        if file.stat().st_size > LARGEST_JSON:
            raise ModelFileError(f"{file}: must have at most {LARGEST_JSON} bytes, has {file.stat().st_size}")
        content = json.loads(file.read_bytes())
    except OSError as error:
        raise ModelFileError(f"{file}: cannot be read ({error.strerror})") from None
    except (UnicodeDecodeError, json.JSONDecodeError, RecursionError, ValueError) as error:
        if isinstance(error, ModelFileError):
            raise
        raise ModelFileError(f"{file}: not a JSON file ({error})") from None
    if not isinstance(content, dict):
        raise ModelFileError(f"{file}: must hold an object, got {type(content).__name__}")
    return content
