"""Feature spaces: networks that map images to vectors, in which samples are compared with real images."""

from __future__ import annotations

import hashlib
import os
import warnings
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import check_count
from ..models.classifier import Classifier
from ..models.io import ModelFileError, load

__all__ = ["INCEPTION", "FeatureError", "eight_bit", "extract", "features_digest", "get_features"]

INCEPTION = "inception-2015-12-05.pt"
_INCEPTION_VARIABLE = "FASTDIFF_INCEPTION"
_INCEPTION_URL = f"https://nvlabs-fi-cdn.nvidia.com/stylegan2-ada-pytorch/pretrained/metrics/{INCEPTION}"
_SHIPPED = {"digits": "digits_classifier"}


class FeatureError(ValueError):
    """A feature space that cannot be used; the message says what to do."""


class ClassifierFeatures(nn.Module):
    """The hidden layer of a `fastdiff.models.Classifier`: [N, C, H, W] in [-1, 1] -> [N, num_features]."""

    def __init__(self, classifier: Classifier) -> None:
        super().__init__()
        self.classifier = classifier
        self.num_features = classifier.num_features

    def forward(self, images: Tensor) -> Tensor:
        return self.classifier.features(images)


class InceptionFeatures(nn.Module):
    """The pooled features of a TorchScript Inception that takes bytes and resizes them itself, as published FIDs use.

    [N, 1 or 3, H, W] in [-1, 1] -> [N, 2048].
    """

    def __init__(self, script: nn.Module) -> None:
        super().__init__()
        self.script = script

    def forward(self, images: Tensor) -> Tensor:
        if images.dim() != 4 or images.shape[1] not in (1, 3):
            raise ValueError(f"images must be [N, 1 or 3, H, W] for Inception, got {list(images.shape)}")
        pixels = _bytes(images).to(torch.uint8).expand(-1, 3, -1, -1)
        features: Tensor = self.script(pixels, return_features=True)
        return features


def get_features(features: str | os.PathLike[str] | nn.Module) -> nn.Module:
    """A feature space by name, from a file, or as it is.

    Args:
        features: `"digits"`, the shipped classifier of 16x16 digits (1 channel; 64 features, 98 % accurate);
            `"inception"`, the Inception of published FIDs, whose file is named by the environment variable
            FASTDIFF_INCEPTION or lies in the working folder (it is never downloaded);
            the path of a TorchScript file, or of a `.safetensors` file that holds a `fastdiff.models.Classifier`;
            or any module that maps [N, C, H, W] in [-1, 1] to [N, d]. A TorchScript file whose forward has an argument
            `return_features` is taken for an Inception of that kind: it gets bytes of three channels.

    Returns:
        The module in evaluation mode; a user's own module is returned as it is.

    Raises:
        FeatureError: no such name or file (for Inception the message says how to get it), or a file of another kind.
    """
    if isinstance(features, nn.Module):
        return features
    name = os.fspath(features)
    if name in _SHIPPED:
        return ClassifierFeatures(_classifier(_SHIPPED[name]))
    if name == "inception":
        return _script(_inception_file())
    if not Path(name).is_file():
        known = ", ".join((*_SHIPPED, "inception"))
        raise FeatureError(f"features must be {known}, a file or a module, got {name!r}: no such file")
    if name.endswith(".safetensors"):
        return ClassifierFeatures(_classifier(name))
    return _script(name)


def extract(images: Tensor, module: nn.Module, batch: int = 500) -> Tensor:
    """Features of images, batch by batch, on the device of the module's parameters.

    Args:
        images: floating point [N, ...], images in [-1, 1].
        module: maps [B, ...] to [B, d].
        batch: images per call.

    Returns:
        float64 [N, d] on the CPU.

    Raises:
        ValueError: images of another dtype or none at all, or the module returns something else than [B, d].
        FloatingPointError: an image or its features are not finite; the message names the first such image.
    """
    check_count("batch", batch)
    if not images.is_floating_point() or images.dim() < 2 or not len(images):
        raise ValueError(f"images must be floating point [N, ...] with N > 0, got {images.dtype} {list(images.shape)}")
    place = next((tensor for tensor in (*module.parameters(), *module.buffers()) if tensor.is_floating_point()), None)
    dtype, device = (images.dtype, images.device) if place is None else (place.dtype, place.device)
    check_finite_images("pixels", images)
    parts = []
    with torch.no_grad():
        for some in images.split(batch):
            features = module(some.to(device, dtype))
            if not isinstance(features, Tensor) or features.dim() != 2 or len(features) != len(some):
                got = list(features.shape) if isinstance(features, Tensor) else type(features).__name__
                raise ValueError(f"features must map {len(some)} images to [{len(some)}, d], got {got}")
            parts.append(features.to("cpu", torch.float64))
    result = torch.cat(parts)
    check_finite_images("features", result)
    return result


def features_digest(module: nn.Module) -> str:
    """SHA-256 of a module's class and state, by which results in one feature space are told from another's."""
    digest = hashlib.sha256(type(module).__qualname__.encode())
    for name, tensor in sorted(module.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {list(tensor.shape)}\n".encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def eight_bit(images: Tensor) -> Tensor:
    """Images in [-1, 1] rounded to the 256 levels of an image file, as `fastdiff sample` writes them; float32."""
    return _bytes(images) / 127.5 - 1.0


def check_finite_images(what: str, values: Tensor) -> None:
    """Refuses [N, ...] values of images that are NaN or infinite; the message names the first such image."""
    bad = (~values.isfinite()).flatten(1).any(1).nonzero()
    if len(bad):
        raise FloatingPointError(f"the {what} of image {int(bad[0])} are not finite ({len(bad)} such images)")


def _bytes(images: Tensor) -> Tensor:
    """0 to 255 for [-1, 1], float32."""
    return ((images.float().clamp(-1, 1) + 1) * 127.5).round()


def _classifier(path: str) -> Classifier:
    try:
        model = load(path)
    except ModelFileError as error:
        raise FeatureError(f"features: {error}") from None
    if not isinstance(model, Classifier):
        raise FeatureError(f"features: {path} holds a {type(model).__name__}, not a Classifier")
    return model


def _inception_file() -> str:
    """Where the user has put Inception."""
    given = os.environ.get(_INCEPTION_VARIABLE)
    file = Path(given or INCEPTION)
    if not file.is_file():
        raise FeatureError(
            f"features: Inception's weights are not at {file}; download {_INCEPTION_URL} once and set "
            f"{_INCEPTION_VARIABLE} to the file's path, or give that path as features"
        )
    return str(file)


def _script(path: str) -> nn.Module:
    """A TorchScript file's module."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # TorchScript is what these weights come in
            module: nn.Module = torch.jit.load(path, map_location="cpu").eval()
    except (RuntimeError, ValueError) as error:
        raise FeatureError(f"features: {path} is not a TorchScript file ({str(error).splitlines()[0]})") from None
    schema: Any = module.forward.schema  # type: ignore[attr-defined]
    arguments = [argument.name for argument in schema.arguments]
    return InceptionFeatures(module) if "return_features" in arguments else module
