"""Small networks that together have every switch, with random weights; and the published sizes."""

from __future__ import annotations

from typing import Any

SMALL: dict[str, tuple[str, dict[str, Any]]] = {
    "ddpmpp": (
        "SongUNet",
        {"img_resolution": 8, "in_channels": 3, "out_channels": 3, "label_dim": 4, "augment_dim": 9,
         "model_channels": 8, "channel_mult": [2, 1], "num_blocks": 1, "attn_resolutions": [4]},
    ),
    "ncsnpp": (
        "SongUNet",
        {"img_resolution": 16, "in_channels": 1, "out_channels": 1, "model_channels": 8, "channel_mult": [1, 2, 2],
         "channel_mult_emb": 2, "num_blocks": 1, "attn_resolutions": [8, 4], "embedding_type": "fourier",
         "channel_mult_noise": 2, "encoder_type": "residual", "resample_filter": [1, 3, 3, 1]},
    ),
    "skip": (
        "SongUNet",
        {"img_resolution": 8, "in_channels": 3, "out_channels": 6, "model_channels": 8, "channel_mult": [1, 1],
         "num_blocks": 1, "attn_resolutions": [8], "encoder_type": "skip", "decoder_type": "skip"},
    ),
    "adm": (
        "DhariwalUNet",
        {"img_resolution": 8, "in_channels": 3, "out_channels": 6, "label_dim": 4, "augment_dim": 3,
         "model_channels": 32, "channel_mult": [1, 4], "channel_mult_emb": 2, "num_blocks": 1,
         "attn_resolutions": [8, 4]},
    ),
}  # fmt: skip

_CIFAR = {"img_resolution": 32, "in_channels": 3, "out_channels": 3, "augment_dim": 9, "channel_mult": [2, 2, 2]}
_NCSN = {"embedding_type": "fourier", "channel_mult_noise": 2, "encoder_type": "residual"}
_IMAGENET = {"img_resolution": 64, "in_channels": 3, "out_channels": 3, "label_dim": 1000}

PUBLISHED: dict[str, tuple[str, dict[str, Any], int]] = {
    "cifar10-ddpmpp": ("SongUNet", _CIFAR, 55_733_891),
    "cifar10-ddpmpp-cond": ("SongUNet", {**_CIFAR, "label_dim": 10}, 55_735_299),
    "cifar10-ncsnpp": ("SongUNet", {**_CIFAR, **_NCSN, "resample_filter": [1, 3, 3, 1]}, 56_397_827),
    "ffhq64-ddpmpp": ("SongUNet", {**_CIFAR, "img_resolution": 64, "channel_mult": [1, 2, 2, 2]}, 61_805_571),
    "imagenet64-adm": ("DhariwalUNet", _IMAGENET, 295_899_267),
}
"""Karras et al. 2022, Table 7, with the constructors' defaults; parameters counted, which agree with the paper's."""
