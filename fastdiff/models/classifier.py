"""A small convolutional classifier whose last hidden layer is a feature space for evaluation."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

__all__ = ["Classifier"]

from .network import architecture


@architecture("classifier", "fastdiff: a small convolutional classifier")
class Classifier(nn.Module):
    """Five 3x3 convolutions with batch normalisation, a hidden layer and a linear head.

    Args:
        image_size: height and width of the images, a multiple of 8.
        channels: of the images.
        classes: number of classes.
        width: channels of the first two convolutions; the other three have twice as many.
        features: size of the hidden layer, whose values after the ReLU are the features.

    Attributes:
        config: the arguments, as a dictionary.
        metadata: description of the file it was loaded from (`fastdiff.models.load`), else empty.
        sample_shape: (C, H, W).
        num_features: size of the features.

    Raises:
        ValueError: an argument out of range; the message names it.
    """

    def __init__(
        self, image_size: int = 16, channels: int = 1, classes: int = 10, width: int = 32, features: int = 64
    ) -> None:
        super().__init__()
        sizes = {"channels": channels, "classes": classes, "width": width, "features": features}
        for name, value in sizes.items():
            if value < 1:
                raise ValueError(f"Classifier: {name} must be at least 1, got {value}")
        if image_size < 1 or image_size % 8:
            raise ValueError(f"Classifier: image_size must be a multiple of 8, got {image_size}")
        self.config: dict[str, Any] = {"image_size": image_size, **sizes}
        self.metadata: dict[str, Any] = {}
        self.sample_shape = (channels, image_size, image_size)
        self.num_features = features
        self.body = nn.Sequential(
            *_convolution(channels, width),
            *_convolution(width, width),
            nn.MaxPool2d(2),
            *_convolution(width, 2 * width),
            *_convolution(2 * width, 2 * width),
            nn.MaxPool2d(2),
            *_convolution(2 * width, 2 * width),
            nn.MaxPool2d(2),
            nn.Flatten(),
            nn.Linear(2 * width * (image_size // 8) ** 2, features),
            nn.ReLU(),
        )
        self.head = nn.Linear(features, classes)

    def features(self, images: Tensor) -> Tensor:
        """The hidden layer's values.

        Args:
            images: [B, C, H, W] in [-1, 1], of the parameters' dtype.

        Returns:
            [B, num_features], none negative.

        Raises:
            ValueError: images of another shape.
        """
        if images.dim() != 4 or tuple(images.shape[1:]) != self.sample_shape:
            wanted = ", ".join(map(str, self.sample_shape))
            raise ValueError(f"Classifier: images must be [B, {wanted}], got {list(images.shape)}")
        features: Tensor = self.body(images)
        return features

    def forward(self, images: Tensor) -> Tensor:
        """Logits [B, classes] of `images` (see `features`)."""
        logits: Tensor = self.head(self.features(images))
        return logits


def _convolution(fan_in: int, fan_out: int) -> list[nn.Module]:
    return [nn.Conv2d(fan_in, fan_out, 3, padding=1, bias=False), nn.BatchNorm2d(fan_out), nn.ReLU()]
