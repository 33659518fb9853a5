"""`NCSNpp` and `SongUNet` are one network under two sets of names: an independent check of both."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from fastdiff.models import NCSNpp, SongUNet
from tests.tolerances import LAYOUT

PAIRS = {  # of score_sde's switches with those of Karras et al. 2022, Table 7
    "DDPM++": (
        {"embedding_type": "positional", "fir": False, "progressive_input": "none"},
        {},
    ),
    "NCSN++": (
        {"embedding_type": "fourier", "fir": True, "progressive_input": "residual"},
        {"embedding_type": "fourier", "channel_mult_noise": 2, "encoder_type": "residual",
         "resample_filter": [1, 3, 3, 1]},
    ),
    "skips": (
        {"embedding_type": "positional", "fir": True, "progressive_input": "input_skip", "progressive": "output_skip"},
        {"encoder_type": "skip", "decoder_type": "skip", "resample_filter": [1, 3, 3, 1]},
    ),
}  # fmt: skip
BLOCK = {"norm0": "GroupNorm_0", "conv0": "Conv_0", "affine": "Dense_0", "norm1": "GroupNorm_1", "conv1": "Conv_1"}


def mapped(ncsnpp: NCSNpp, song: SongUNet) -> dict[str, Tensor]:
    """The tensors of `ncsnpp` under the names of `song`, whose modules stand in the order in which they run."""
    tensors = ncsnpp.state_dict()
    places = iter(range(len(ncsnpp.all_modules)))
    found = {name: tensor for name, tensor in song.state_dict().items() if name.endswith("resample_filter")}

    def lay(theirs: str, ours: str) -> None:
        for name in ("weight", "bias"):
            found[f"{theirs}.{name}"] = tensors[f"{ours}.{name}"]

    def block(theirs: str, with_skip: bool, attention: bool) -> None:
        ours = f"all_modules.{next(places)}"
        for a, b in BLOCK.items():
            lay(f"{theirs}.{a}", f"{ours}.{b}")
        if with_skip:
            lay(f"{theirs}.skip", f"{ours}.Conv_2")
        if attention:
            ours = f"all_modules.{next(places)}"
            lay(f"{theirs}.norm2", f"{ours}.GroupNorm_0")
            weights = torch.stack([tensors[f"{ours}.NIN_{i}.W"].T for i in range(3)], dim=1)  # [C, 3, C]
            found[f"{theirs}.qkv.weight"] = weights.flatten(0, 1)[..., None, None]
            found[f"{theirs}.qkv.bias"] = torch.stack([tensors[f"{ours}.NIN_{i}.b"] for i in range(3)], 1).flatten()
            found[f"{theirs}.proj.weight"] = tensors[f"{ours}.NIN_3.W"].T[..., None, None]
            found[f"{theirs}.proj.bias"] = tensors[f"{ours}.NIN_3.b"]

    if "all_modules.0.W" in tensors:
        found["map_noise.freqs"] = tensors[f"all_modules.{next(places)}.W"]
    for theirs in ("map_layer0", "map_layer1"):
        lay(theirs, f"all_modules.{next(places)}")
    for theirs, kind, with_skip, attention in _modules(song):
        if kind == "block":
            block(theirs, with_skip, attention)
        else:
            place = next(places)
            inner = {"aux_residual": ".Conv2d_0", "aux_skip": ".Conv_0"}.get(kind, "")
            if kind not in ("aux_down", "aux_up"):
                lay(theirs, f"all_modules.{place}{inner}")
    assert next(places, None) is None
    return found


def _modules(song: SongUNet) -> Iterator[tuple[str, str, bool, bool]]:
    """(name, kind, whether it has a skip convolution, whether attention), in the order in which they run."""
    names = set(song.state_dict())
    for path in ("enc", "dec"):
        for name in getattr(song, path):
            kind = name.partition("_")[2]
            full = f"{path}.{name}"
            plain = kind.startswith("aux") or kind == "conv"
            yield full, kind if plain else "block", f"{full}.skip.weight" in names, f"{full}.qkv.weight" in names


@pytest.mark.parametrize("pair", PAIRS)
def test_the_same_weights_compute_the_same(pair):
    theirs, ours = PAIRS[pair]
    torch.manual_seed(0)
    ncsnpp = NCSNpp(
        16, nf=8, ch_mult=[1, 2], num_res_blocks=1, attn_resolutions=[8], centered=True, scale_by_sigma=False,
        init_scale=1.0, **theirs,
    ).eval()  # fmt: skip
    song = SongUNet(16, 3, 3, model_channels=8, channel_mult=[1, 2], num_blocks=1, attn_resolutions=[8], **ours).eval()
    song.load_state_dict(mapped(ncsnpp, song))
    trained = [p.numel() for n, p in ncsnpp.named_parameters() if n != "all_modules.0.W"]
    assert sum(trained) == sum(p.numel() for p in song.parameters())

    x, time = torch.randn(3, 3, 16, 16), torch.tensor([0.02, 1.5, 70.0])
    with torch.no_grad():
        a = ncsnpp(x, time)
        b = song(x, time.log() if "fourier" in theirs.values() else time)
    assert a.std() > 0.1
    torch.testing.assert_close(a, b, rtol=LAYOUT, atol=LAYOUT)
