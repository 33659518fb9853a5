"""Networks of diffusers: the same numbers as diffusers' own, classes and conditions, what is refused."""

from __future__ import annotations

import sys

import pytest
import torch

from fastdiff.models import DiffusersNetwork, hf
from fastdiff.models.network import build

from .contract import check_network, randomise

diffusers = pytest.importorskip("diffusers")

UNET = {
    "class_name": "UNet2DModel",
    "sample_size": 8,
    "block_out_channels": [8],
    "layers_per_block": 1,
    "down_block_types": ["AttnDownBlock2D"],
    "up_block_types": ["AttnUpBlock2D"],
    "norm_num_groups": 4,
}
TEXT = {
    "class_name": "UNet2DConditionModel",
    "sample_size": 8,
    "in_channels": 3,
    "out_channels": 3,
    "block_out_channels": [8],
    "layers_per_block": 1,
    "down_block_types": ["CrossAttnDownBlock2D"],
    "up_block_types": ["CrossAttnUpBlock2D"],
    "norm_num_groups": 4,
    "cross_attention_dim": 12,
    "attention_head_dim": 4,
}
DIT = {
    "class_name": "Transformer2DModel",
    "norm_type": "ada_norm_zero",
    "sample_size": 8,
    "patch_size": 2,
    "num_layers": 2,
    "num_attention_heads": 2,
    "attention_head_dim": 4,
    "in_channels": 3,
    "out_channels": 6,
    "num_embeds_ada_norm": 5,
    "attention_bias": True,
    "activation_fn": "gelu-approximate",
    "cross_attention_dim": None,
}
PIXART = {
    "class_name": "PixArtTransformer2DModel",
    "sample_size": 8,
    "num_layers": 1,
    "num_attention_heads": 2,
    "attention_head_dim": 4,
    "in_channels": 3,
    "out_channels": 6,
    "cross_attention_dim": 8,
    "caption_channels": 12,
    "use_additional_conditions": False,
}
SD3 = {
    "class_name": "SD3Transformer2DModel",
    "sample_size": 8,
    "patch_size": 2,
    "in_channels": 3,
    "out_channels": 3,
    "num_layers": 1,
    "num_attention_heads": 2,
    "attention_head_dim": 4,
    "joint_attention_dim": 12,
    "caption_projection_dim": 8,
    "pooled_projection_dim": 6,
    "pos_embed_max_size": 8,
}
VAE = {
    "class_name": "AutoencoderKL",
    "block_out_channels": [8],
    "down_block_types": ["DownEncoderBlock2D"],
    "up_block_types": ["UpDecoderBlock2D"],
    "layers_per_block": 1,
    "norm_num_groups": 4,
    "latent_channels": 3,
}
X = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(1))
T = torch.tensor([417.0, 3.0])
WORDS = torch.randn(2, 5, 12, generator=torch.Generator().manual_seed(2))


def made(config, seed=0, **more):
    return randomise(build("DiffusersNetwork", {**config, **more}, "cpu"), seed)


CASES = {
    "unet of classes": ({**UNET, "num_class_embeds": 4}, (torch.tensor([1, 3]),), {}),
    "dit": (DIT, (torch.tensor([4, -1]),), {}),
}


@pytest.mark.parametrize("name", CASES)
def test_network(name, tmp_path):
    config, labels, conditions = CASES[name]
    check_network(made(config), (X, T, *labels), tmp_path, conditions)


@pytest.mark.parametrize(
    ("config", "conditions"),
    [(UNET, {}), ({**UNET, "freq_shift": 1, "flip_sin_to_cos": False}, {}), (TEXT, {"encoder_hidden_states": WORDS})],
)
def test_equal_to_diffusers_itself(config, conditions):
    network = made(config)
    own = getattr(diffusers, config["class_name"]).from_config({k: v for k, v in config.items() if k != "class_name"})
    own.eval().requires_grad_(False).load_state_dict(network.network.state_dict())
    assert torch.equal(network(X, T, **conditions), own(X, T, **conditions).sample)
    assert torch.equal(network(X, T[0], **conditions), own(X, T[0], **conditions).sample)


def test_pixart():
    network = made(PIXART)
    out = network(X, T, encoder_hidden_states=WORDS)
    assert out.shape == (2, 6, 8, 8) and not torch.equal(
        out[:1], network(X[:1], T[:1], encoder_hidden_states=-WORDS[:1])
    )


def test_sd3_is_told_two_embeddings():
    network = made(SD3)
    told = {"encoder_hidden_states": WORDS, "pooled_projections": torch.ones(2, 6)}
    assert torch.equal(network(X, T, **told), network.network(X, timestep=T, **told, return_dict=False)[0])
    assert "network.pos_embed.pos_embed" in network.state_dict()


def test_dit_and_its_class_for_none():
    network = made(DIT)
    assert (network.label_dim, network.sample_shape) == (5, (3, 8, 8))
    own = diffusers.DiTTransformer2DModel(
        **{k: v for k, v in DIT.items() if k not in ("class_name", "cross_attention_dim")}
    )
    own.eval().requires_grad_(False).load_state_dict(network.network.state_dict())
    none = torch.tensor([5, 5])
    expected = own(X, T, none).sample
    assert expected.shape == (2, 6, 8, 8)
    for labels in (None, torch.tensor([-1, -1]), none):
        assert torch.equal(network(X, T, labels), expected)
    rows = torch.eye(5)[torch.tensor([2, 0])]
    assert torch.equal(network(X, T, rows), network(X, T, torch.tensor([2, 0])))


def test_tables_that_no_file_holds_are_computed():
    on_meta, on_cpu = build("DiffusersNetwork", DIT), build("DiffusersNetwork", DIT, "cpu")
    assert all(p.is_meta for p in on_meta.parameters())
    assert torch.equal(on_meta.network.pos_embed.pos_embed, on_cpu.network.pos_embed.pos_embed)


def test_no_random_numbers_are_used_up():
    before = torch.random.get_rng_state()
    build("DiffusersNetwork", PIXART)
    assert torch.equal(torch.random.get_rng_state(), before)


def test_conditions_that_diffusers_wants_in_a_dict():
    config = {**TEXT, "addition_embed_type": "text_time", "addition_time_embed_dim": 4}
    config["projection_class_embeddings_input_dim"] = 6 * 4 + 7
    network = made(config)
    added = {"text_embeds": torch.ones(2, 7), "time_ids": torch.arange(12.0).reshape(2, 6)}
    got = network(X[:, :], T, encoder_hidden_states=WORDS, **added)
    want = network.network(X, T, WORDS, added_cond_kwargs=added, return_dict=False)[0]
    assert torch.equal(got, want)


def test_learned_times_are_whole():
    network = made({**UNET, "time_embedding_type": "learned", "num_train_timesteps": 1000})
    assert torch.equal(network(X, T), network(X, T.long()))


def test_autoencoder_beside():
    network = made({**UNET, "vae": VAE})
    assert {name.partition(".")[0] for name in network.state_dict()} == {"network", "vae"}
    assert network.vae.decode(X, return_dict=False)[0].shape == (2, 3, 8, 8)
    assert made(UNET).vae is None


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: made(UNET)(X, T, torch.tensor([1, 2])), "labels must be left out"),
        (lambda: made(UNET)(X, T, text_embeds=X), "UNet2DModel takes no text_embeds"),
        (lambda: made(UNET)(X, T, low_res=X), "UNet2DModel takes no low_res"),
        (lambda: made(TEXT)(X, T), "needs encoder_hidden_states"),
    ],
)
def test_wrong_conditions(call, message):
    with pytest.raises((TypeError, ValueError), match=message):
        call()


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({**UNET, "class_name": "FluxTransformer2DModel"}, "class_name must be one of UNet2DModel.*FluxTrans"),
        ({**UNET, "class_name": "AutoencoderKL"}, "class_name must be one of"),
        ({**UNET, "vae": UNET}, "vae must have a class_name, one of AutoencoderKL"),
        ({**UNET, "class_name": "Transformer2DModel"}, "class_name must be one of"),
        ({**UNET, "depths": 3}, "UNet2DModel of the installed diffusers takes no argument depths"),
        ({**UNET, "block_out_channels": [8, 16]}, "diffusers makes no UNet2DModel of this: .*"),
        ({**UNET, "down_block_types": ["os.system"]}, "diffusers makes no UNet2DModel of this: .*"),
        ({**UNET, "norm_num_groups": 5}, "diffusers makes no UNet2DModel of this: .*"),
        ({**UNET, "block_out_channels": [8, 1 << 20]}, "block_out_channels must be from 0 to 65536"),
        ({**UNET, "layers_per_block": 600}, "the layers must be at most"),
        ({**TEXT, "transformer_layers_per_block": [1025]}, "the layers must be at most"),
        ({**DIT, "num_layers": 5000}, "the layers must be at most"),
        ({**DIT, "sample_size": 60000}, "table of positions"),
        ({**DIT, "sample_size": 0, "num_attention_heads": 65536}, "times attention_head_dim must be at most 65536"),
        ({**UNET, "down_block_types": ["DownBlock2D"] * 100}, "at most 64 entries"),
        ({"sample_size": 8}, "class_name"),
    ],
)
def test_configurations_that_make_no_network(config, message):
    with pytest.raises(ValueError, match=message):
        build("DiffusersNetwork", config)


def test_arguments_that_are_off_may_be_unknown():
    assert "new_feature" not in hf.check_options("UNet2DModel", {"new_feature": None, "other": False, "_name": "x"})


def test_without_diffusers_the_message_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "diffusers", None)
    with pytest.raises(ModuleNotFoundError, match="pip install diffusers"):
        DiffusersNetwork(**UNET)
