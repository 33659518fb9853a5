"""Latents: decoded in chunks with the same result, by diffusers' convention, and nothing else of a sampler changes."""

from __future__ import annotations

import copy
import pickle
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from click.testing import CliRunner

from fastdiff import Sampler
from fastdiff.cli import main
from fastdiff.latents import Latent, decode_in_chunks, latent_of
from fastdiff.opening import network_sampler, open_network

from .graphs.conftest import graphs
from .tolerances import LATENT_PIPELINE

__all__ = ["graphs"]

SHAPE = (4, 3, 3)


def network(x, t):
    return 0.5 * x


def decode(z):
    """Twice the size, another number of channels, affine."""
    return 3 * z[:, :3].repeat_interleave(2, 2).repeat_interleave(2, 3) - 1


class Autoencoder:
    """Of diffusers' form: z -> 2 z + 1 for images z."""

    def __init__(self, **config):
        self.config = SimpleNamespace(**config)

    def decode(self, z, return_dict=True):
        assert not return_dict
        return (2 * z + 1,)

    def encode(self, images, return_dict=True):
        assert not return_dict
        return ((images - 1) / 2,)


def sampler(**options):
    return Sampler(network, **{"steps": 3, "shape": SHAPE, "S_churn": 3.0, **options})


@pytest.mark.parametrize("batch", [None, 1, 2, 5, 64])
def test_results_are_decoded_in_chunks_of_any_size_to_the_same_bits(backend, device, batch):
    sizes = []

    def watched(z):
        sizes.append(len(z))
        return decode(z)

    options = {"backend": backend, "device": device}
    latents = sampler(**options)(5, seeds=0)
    images = sampler(decode=watched, decode_batch=batch, **options)(5, seeds=0)
    assert torch.equal(images, decode(latents)) and images.shape == (5, 3, 6, 6)
    assert sizes == {1: [1] * 5, 2: [2, 2, 1]}.get(batch, [5])


def test_no_samples_are_decoded_to_none():
    assert sampler(decode=decode, decode_batch=2)(0).shape == (0, 3, 6, 6)


def test_what_a_run_shows_on_its_way_stays_in_the_latents():
    options = {"solver": "euler_ancestral"}
    plain = Sampler(network, steps=3, shape=SHAPE, **options)
    decoding = Sampler(network, steps=3, shape=SHAPE, decode=decode, decode_batch=1, **options)
    seen = []
    wanted = {"seeds": 0, "return_trajectory": True, "return_log_prob": True}
    latents, trajectory, log_prob = plain(2, **wanted)
    images, *others = decoding(2, **wanted, callback=lambda info: seen.append(info.x))
    assert torch.equal(images, decode(latents))
    assert torch.equal(others[0], trajectory) and torch.equal(others[1], log_prob)
    assert torch.equal(seen[-1], latents)
    assert torch.equal(decoding.log_prob(trajectory), plain.log_prob(trajectory))
    ddim = Sampler(network, steps=3, shape=SHAPE, solver="ddim")
    assert torch.equal(ddim.replace(decode=decode).encode(latents), ddim.encode(latents))


@pytest.mark.parametrize("checkpoint", [False, True])
def test_gradients_go_through_the_decoder_chunk_by_chunk(checkpoint):
    calls = []

    def curved(z):
        calls.append(len(z))
        return decode(z).tanh()

    start = 80 * torch.randn(3, *SHAPE, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    options = {"solver": "euler", "dtype": torch.float64, "S_churn": 0.0}

    def gradient(of):
        x = start.clone().requires_grad_()
        made = of(x)
        made.square().sum().backward()
        return made.detach(), x.grad

    one = sampler(**options)
    expected = gradient(lambda x: decode(one.differentiable(3, x_init=x)).tanh())
    several = sampler(decode=curved, decode_batch=2, **options)
    found = gradient(lambda x: several.differentiable(3, x_init=x, checkpoint=checkpoint))
    for a, b in zip(found, expected):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)
    assert sorted(calls) == ([1, 1, 2, 2] if checkpoint else [1, 2])
    trajectory = several.differentiable(3, x_init=start, return_trajectory=True)[1]
    assert trajectory.shape == (4, 3, *SHAPE)


def test_graphs_are_those_of_the_latents(graphs):
    """Captured without the decoder, and shared by samplers that decode otherwise."""
    decoding = graphs.sampler(decode=decode, decode_batch=2)
    eager = graphs.sampler(graph="off")
    for seed in (0, 7):
        assert torch.equal(decoding(3, seeds=seed), decode(eager(3, seeds=seed)))
    other = decoding.replace(decode=torch.neg, decode_batch=None)
    assert torch.equal(other(3, seeds=9), -eager(3, seeds=9))
    stats = other.stats()
    assert (stats.captures, stats.hits, stats.fallbacks) == (1, 2, 0)


def test_copies_replacements_and_tuned_samplers_decode_once(monkeypatch):
    calls = []
    latent = Latent(Autoencoder(scaling_factor=0.5))
    decoding = sampler(decode=latent, decode_batch=2)
    expected = decoding(3, seeds=1)
    for other in (copy.deepcopy(decoding), pickle.loads(pickle.dumps(decoding)), decoding.replace(graph="off")):
        assert torch.equal(other(3, seeds=1), expected)
    assert torch.equal(decoding.replace(decode=None, decode_batch=None)(3, seeds=1), sampler()(3, seeds=1))
    monkeypatch.setattr("fastdiff.sampler.tune", lambda of, *rest: (None, of.replace(graph="off")))  # no compiler
    counted = sampler(decode=lambda z: calls.append(len(z)) or latent(z))
    counted.tune(3)
    assert torch.equal(counted(3, seeds=1), expected)
    assert calls == [3]


Z = torch.linspace(-2, 2, 2 * 4 * 2 * 2).reshape(2, 4, 2, 2)
CONVENTIONS = [
    ({}, {}, Z),
    ({"scaling_factor": 0.18215}, {}, Z / 0.18215),
    ({"scaling_factor": 1.5, "shift_factor": 0.06}, {}, Z / 1.5 + 0.06),
    ({"scaling_factor": 1.5, "shift_factor": None, "latents_mean": None, "latents_std": None}, {}, Z / 1.5),
    (
        {"scaling_factor": 0.5, "latents_mean": [0.1, 0.2, 0.3, 0.4], "latents_std": [1.0, 2.0, 3.0, 4.0]},
        {},
        Z * torch.tensor([1.0, 2.0, 3.0, 4.0]).view(1, 4, 1, 1) / 0.5
        + torch.tensor([0.1, 0.2, 0.3, 0.4]).view(1, 4, 1, 1),
    ),
    ({"scaling_factor": 0.18215, "shift_factor": 0.06}, {"scale": 2.0, "shift": 0.0}, Z / 2),
]


@pytest.mark.parametrize(("config", "given", "expected"), CONVENTIONS)
def test_the_convention_is_diffusers_and_goes_both_ways(config, given, expected):
    latent = Latent(Autoencoder(**config), **given)
    torch.testing.assert_close(latent(Z), 2 * expected + 1)
    torch.testing.assert_close(latent.encode(latent(Z)), Z, rtol=1e-5, atol=1e-5)


@pytest.fixture(scope="module")
def diffusers():
    return pytest.importorskip("diffusers")


def test_autoencoders_of_diffusers(diffusers):
    """As its pipelines call them."""
    torch.manual_seed(0)
    kinds = {"block_out_channels": (4, 8), "norm_num_groups": 2, "latent_channels": 3}
    ways = {"down_block_types": ("DownEncoderBlock2D",) * 2, "up_block_types": ("UpDecoderBlock2D",) * 2}
    z = torch.randn(3, 3, 4, 4)
    kl = diffusers.AutoencoderKL(**kinds, **ways, scaling_factor=0.3, shift_factor=0.1).eval().requires_grad_(False)
    latent = Latent(kl)
    images = latent(z)
    assert images.shape == (3, 3, 8, 8)
    torch.testing.assert_close(images, kl.decode(z / 0.3 + 0.1).sample)
    torch.testing.assert_close(latent.encode(images), (kl.encode(images).latent_dist.mode() - 0.1) * 0.3)
    half = Latent(copy.deepcopy(kl).to(torch.bfloat16))
    assert half(z).dtype == torch.float32 and half.encode(images).dtype == torch.float32
    vq = diffusers.VQModel(**kinds, **ways, scaling_factor=0.5, num_vq_embeddings=16).eval().requires_grad_(False)
    torch.testing.assert_close(Latent(vq)(z), vq.decode(z / 0.5).sample)
    torch.testing.assert_close(Latent(vq).encode(images), vq.encode(images).latents * 0.5)

    smooth = Sampler(network, steps=3, shape=(3, 4, 4), decode=latent, decode_batch=2)
    made = smooth(3, seeds=0)
    torch.testing.assert_close(made, latent(smooth.replace(decode=None, decode_batch=None)(3, seeds=0)))


@pytest.fixture
def pipeline(diffusers):
    """An unconditional latent pipeline, 3x8x8 latents of 3x16x16 images."""
    torch.manual_seed(0)
    vqvae = diffusers.VQModel(
        block_out_channels=(4, 8), norm_num_groups=2, latent_channels=3, num_vq_embeddings=16, scaling_factor=0.5,
        down_block_types=("DownEncoderBlock2D",) * 2, up_block_types=("UpDecoderBlock2D",) * 2,
    )  # fmt: skip
    unet = diffusers.UNet2DModel(
        sample_size=8, block_out_channels=(8, 16), norm_num_groups=4, layers_per_block=1,
        down_block_types=("DownBlock2D",) * 2, up_block_types=("UpBlock2D",) * 2,
    )  # fmt: skip
    scheduler = diffusers.DDIMScheduler(beta_schedule="scaled_linear", clip_sample=False)
    made = diffusers.LDMPipeline(vqvae.eval(), unet.eval(), scheduler)
    made.set_progress_bar_config(disable=True)
    return made


def test_a_latent_folder_draws_what_its_pipeline_draws(pipeline, tmp_path):
    pipeline.save_pretrained(tmp_path / "ldm")
    theirs = pipeline(
        batch_size=3, generator=torch.Generator().manual_seed(5), num_inference_steps=4, output_type="np"
    ).images
    start = torch.randn(3, 3, 8, 8, generator=torch.Generator().manual_seed(5))
    model = open_network(str(tmp_path / "ldm"), torch.device("cpu"))
    images = network_sampler(model, steps=4, decode_batch=2)(3, x_init=start)
    ours = (images / 2 + 0.5).clamp(0, 1).permute(0, 2, 3, 1).numpy()
    assert abs(ours - theirs).max() < LATENT_PIPELINE < theirs.std() / 100
    latents = network_sampler(model, steps=4, decode=None)(3, x_init=start)
    assert latents.shape == (3, 3, 8, 8)
    assert torch.equal(latent_of(model)(latents), network_sampler(model, steps=4)(3, x_init=start))


def test_the_command_decodes_by_itself(pipeline, tmp_path):
    pipeline.save_pretrained(tmp_path / "ldm")
    flags = ["--steps=2", "--seeds=0-2", "--no-progress", f"--network={tmp_path / 'ldm'}"]
    result = CliRunner().invoke(main, ["sample", f"--outdir={tmp_path / 'out'}", *flags])
    assert result.exit_code == 0, result.output
    with np.load(tmp_path / "out/samples.npz") as file:
        assert file["images"].shape == (3, 16, 16, 3)
    assert (tmp_path / "out/grid.png").is_file()


def test_a_network_that_came_with_its_autoencoder():
    assert latent_of(network) is None and latent_of(SimpleNamespace(vae=None)) is None
    vae = Autoencoder(scaling_factor=0.25)
    found = latent_of(SimpleNamespace(vae=vae))
    assert found.vae is vae and found.scale == 0.25


def test_overflow_in_a_decoder_is_an_error_unless_it_is_not_to_be_checked():
    def overflowing(z):
        made = decode(z)
        made[1::2] = torch.inf
        return made

    with pytest.raises(FloatingPointError, match=r"decode made NaN or Inf of finite states, .* at \[1, 3\] of the"):
        sampler(decode=overflowing)(4, seeds=0)
    assert sampler(decode=overflowing, check=False)(4, seeds=0)[1].isinf().all()


BAD = [
    (lambda: sampler(decode=3), TypeError, "decode must be a function of the final state, got 3"),
    (lambda: sampler(decode_batch=3), ValueError, "decode_batch must be left out without decode, got 3"),
    (
        lambda: sampler(decode=decode, decode_batch=0),
        ValueError,
        "decode_batch must be an integer of at least 1, got 0",
    ),
    (lambda: sampler(decode=lambda z: (z,))(2), TypeError, "decode must return a tensor, got tuple"),
    (lambda: sampler(decode=lambda z: z[:1])(2), ValueError, "decode must return 2 samples for as many, got shape"),
    (lambda: decode_in_chunks(decode, Z, 0), ValueError, "decode_batch must be an integer of at least 1, got 0"),
    (lambda: Latent(decode), TypeError, "vae must have a method decode, as diffusers' autoencoders, got function"),
    (lambda: Latent(Autoencoder(), scale=0), ValueError, "scale must be positive, got 0"),
    (lambda: Latent(Autoencoder(), shift="x"), ValueError, "shift must be a number, got 'x'"),
    (lambda: Latent(Autoencoder(), shift=[1.0, 2.0])(Z), ValueError, "shift must be a number or one for each of 4"),
]


@pytest.mark.parametrize(("make", "error", "message"), BAD)
def test_what_cannot_be_used_is_refused(make, error, message):
    with pytest.raises(error, match=message):
        make()
