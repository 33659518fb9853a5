"""The network that a configuration trains: a fresh one, or that of a model file."""

from __future__ import annotations

from typing import Any

from torch import nn

from ..config import ConfigError, TrainConfig
from ..data.augment import AUGMENT_LABELS
from ..models.io import ModelFileError, load
from ..models.mlp import MLP
from ..models.unet import UNet
from .objectives import Objective

__all__ = ["build_network"]

# What a network of this package does where an objective asks for nothing else.
_DEFAULTS = {"learned_variance": False, "time_scale": 250.0, "log_time": False, "scale_by_sigma": False}


def build_network(config: TrainConfig, shape: tuple[int, ...], classes: int, objective: Objective) -> nn.Module:
    """The network for samples of that shape, on the CPU; torch's global generator decides fresh weights.

    Args:
        config: `network`, `model` and `augment` of a fresh one; with `init` all but the dropout is the file's.
        classes: 0: it takes no labels.

    Raises:
        ConfigError: a network that cannot be built, or a file's that does not fit.
        ModelFileError: the file cannot be read.
    """
    needed = {**_DEFAULTS, **objective.network_options(), "label_dim": classes}
    if config.augment:
        needed["augment_dim"] = AUGMENT_LABELS
    if len(shape) != 3 and (config.flip or config.augment):
        raise ConfigError(f"flip and augment are for images, got samples of shape {list(shape)}")
    if config.init:
        return _continued(config, shape, needed, objective.metadata())
    model = config.as_dict()["model"]
    try:
        if config.network == "mlp":
            if len(shape) != 1:
                raise ConfigError(f"network must be unet for samples of shape {list(shape)}, got 'mlp'")
            own = {name: model[name] for name in ("width", "depth", "embedding", "dropout")}
            return MLP(dim=shape[0], **own, **needed)
        if len(shape) != 3 or shape[1] != shape[2]:
            raise ConfigError(f"network must be mlp for samples of shape {list(shape)}, got 'unet'")
        del model["depth"]
        return UNet(image_size=shape[1], channels=shape[0], **model, **needed)
    except ConfigError:
        raise
    except ValueError as error:
        raise ConfigError(f"model: {error}") from None


def _continued(
    config: TrainConfig, shape: tuple[int, ...], needed: dict[str, Any], reading: dict[str, Any]
) -> nn.Module:
    """The network of the file `config.init`, if it fits what is to be trained and is read in the same way."""
    try:
        network = load(config.init)
    except ModelFileError as error:
        raise ModelFileError(f"init: {error}") from None
    if tuple(getattr(network, "sample_shape", ())) != tuple(shape):
        own = list(getattr(network, "sample_shape", ()))
        raise ConfigError(f"init: {config.init} must be a network of samples of shape {list(shape)}, got {own}")
    known = network.config
    if known.get("augment_dim"):  # without `augment` it is told that nothing was done
        needed = {**needed, "augment_dim": AUGMENT_LABELS}
    names = ["prediction", "sigma_data"]
    if needed["learned_variance"]:
        names.append("variance")
    wanted, found = {name: reading.get(name) for name in names}, {name: network.metadata.get(name) for name in names}
    for name, value in {**needed, **wanted}.items():
        if (got := {**known, **found}.get(name)) != value:
            raise ConfigError(f"init: {config.init} must have {name} = {value!r}, got {got!r}")
    if known["dropout"] != config.model.dropout:
        rebuilt = type(network)(**{**known, "dropout": config.model.dropout})
        rebuilt.load_state_dict(network.state_dict())
        network = rebuilt
    result: nn.Module = network.requires_grad_(True)
    return result
