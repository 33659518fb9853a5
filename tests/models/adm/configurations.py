"""Small networks of guided-diffusion's kind."""

from __future__ import annotations

from typing import Any

SMALL: dict[str, Any] = {
    "image_size": 8, "in_channels": 3, "model_channels": 32, "out_channels": 3, "num_res_blocks": 1,
    "attention_resolutions": (2,), "channel_mult": (1, 2), "num_heads": 2,
}  # fmt: skip
NEW = {"use_scale_shift_norm": True, "resblock_updown": True, "use_new_attention_order": True, "num_head_channels": 16}
