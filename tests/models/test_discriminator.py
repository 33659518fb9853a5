"""The discriminator: what it starts as, what it reads, and its files."""

from __future__ import annotations

import json

import pytest
import torch
from torch import nn

from fastdiff import EDM, EDMPrediction, Sampler
from fastdiff.guidance import DiscriminatorGuidance
from fastdiff.guidance.vp import sigma_of_tau, tau_of_sigma
from fastdiff.models import Discriminator, ModelFileError, UNet, load, save
from fastdiff.models.discriminator import Encoder

from ..tolerances import ROUNDING

SMALL = {"image_size": 8, "patch": 1, "width": 8, "embedding": 16}


def moved(model):
    """The model with every parameter away from its initial zeros."""
    generator = torch.Generator().manual_seed(0)
    for parameter in model.parameters():
        parameter.data = 0.2 * torch.randn(parameter.shape, generator=generator)
    return model.eval()


def states(batch=3, channels=1):
    generator = torch.Generator().manual_seed(1)
    return torch.randn(batch, channels, 8, 8, generator=generator), torch.linspace(0.02, 0.5, batch)


@pytest.fixture
def denoiser():
    model = moved(UNet(**SMALL, label_dim=3))
    model.metadata = {"sigma_data": 0.7}
    return model


def test_a_new_one_says_one_half():
    y, tau = states()
    assert torch.equal(Discriminator(**SMALL)(y, tau), torch.zeros(3))


def test_starts_as_the_denoisers_way_down_at_the_same_noise(denoiser):
    y, tau = states()
    sigma = torch.from_numpy(sigma_of_tau(tau.double().numpy())).float()
    x = y * (1 + sigma**2).sqrt().reshape(-1, 1, 1, 1)
    c_in = 1 / (sigma**2 + 0.7**2).sqrt().reshape(-1, 1, 1, 1)
    labels = torch.tensor([2, 0, -1])
    bound = 50 * ROUNDING[torch.float32]
    for conditional, known in ((False, None), (True, labels), (True, None)):
        encoder = Discriminator.from_denoiser(denoiser, conditional).eval().encoder
        wanted = denoiser.encode(c_in * x, sigma.log() / 4, known)[0]
        got = encoder(y, tau, known)
        assert (got - wanted).abs().max() < bound * wanted.abs().max()


def test_what_a_denoiser_has_beyond_its_way_down_is_left_behind(denoiser):
    options = {"augment_dim": 9, "learned_variance": True, "time_scale": 100.0}
    other = moved(UNet(**{**denoiser.config, **options}))
    encoder = Discriminator.from_denoiser(other, sigma_data=0.5).eval().encoder
    y, tau = states()
    assert encoder.config["time_scale"] == 100.0
    assert encoder.augment_embedding is None
    assert encoder(y, tau).isfinite().all()


def test_a_denoiser_that_is_told_sigma_itself_is_refused(denoiser):
    for option in ("log_time", "scale_by_sigma"):
        with pytest.raises(ValueError, match=option):
            Discriminator.from_denoiser(UNet(**SMALL, **{option: True}), sigma_data=0.5)


def test_the_copy_is_trainable_and_the_denoiser_untouched(denoiser):
    before = {name: tensor.clone() for name, tensor in denoiser.state_dict().items()}
    model = Discriminator.from_denoiser(denoiser.requires_grad_(False), dropout=0.2, hidden=16)
    assert (model.config["dropout"], model.config["hidden"]) == (0.2, 16)
    y, tau = states()
    torch.optim.SGD(model.parameters(), lr=1.0).step(lambda: model(y, tau).sum().backward())
    assert all(p.requires_grad for p in model.parameters())
    assert all(torch.equal(before[name], tensor) for name, tensor in denoiser.state_dict().items())


def test_labels(denoiser):
    y, tau = states()
    plain, conditional = (moved(Discriminator(**SMALL, label_dim=dim)) for dim in (0, 3))
    labels = torch.tensor([0, 1, 2])
    assert torch.equal(plain(y, tau, labels), plain(y, tau))
    assert not torch.equal(conditional(y, tau, labels), conditional(y, tau))
    assert torch.equal(conditional(y, tau, torch.eye(3)[labels]), conditional(y, tau, labels))
    assert torch.equal(conditional(y, tau, torch.full((3,), -1)), conditional(y, tau))


def test_reads_float64_states_and_has_a_gradient_at_every_time():
    model = moved(Discriminator(**SMALL)).requires_grad_(False)
    y, _ = states()
    y = y.double().requires_grad_()
    logit = model(y, torch.tensor([0.0, 1e-5, 1.0], dtype=torch.float64))
    assert logit.dtype == torch.float32
    (gradient,) = torch.autograd.grad(logit.sum(), y)
    assert gradient.dtype == torch.float64
    assert (gradient.flatten(1).norm(dim=1) > 0).all()
    assert gradient.isfinite().all()


def test_the_time_and_one_sample_decide_a_logit():
    model = moved(Discriminator(**SMALL))
    y, tau = states()
    together = model(y, tau)
    alone = torch.cat([model(y[i : i + 1], tau[i : i + 1]) for i in range(3)])
    assert (together - alone).abs().max() < 50 * ROUNDING[torch.float32] * together.abs().max()
    assert (model(y, tau.flip(0)) - together).abs().max() > 1e-3


def test_guides_as_the_gradient_of_its_logit(denoiser):
    denoiser = denoiser.requires_grad_(False)
    model = moved(Discriminator(**SMALL, label_dim=3)).requires_grad_(False)

    def gradient(x, level, labels):
        sigma = level.sigma_ve
        if not 0.01 <= tau_of_sigma(sigma) <= 1:
            return torch.zeros_like(x)
        with torch.enable_grad():
            x = x.detach().requires_grad_()
            tau = torch.full((len(x),), float(tau_of_sigma(sigma)))
            logit = model(x / (1 + sigma**2) ** 0.5, tau, labels)
            return torch.autograd.grad(logit.sum(), x)[0]

    def run(guidance):
        sampler = Sampler(
            denoiser, process=EDM(), prediction=EDMPrediction(0.7), solver="euler", steps=5, guidance=guidance
        )
        return sampler(2, seeds=[3, 4], labels=[0, 2])

    wanted, plain = run(gradient), run(None)
    got = run(DiscriminatorGuidance(model, w_1st=1.0))
    assert (got - wanted).abs().max() < 50 * ROUNDING[torch.float32] * wanted.abs().max()
    assert (wanted - plain).abs().max() > 1e-2 * wanted.abs().max()


class Features(nn.Module):
    """A foreign extractor: strided convolution whose output also depends on the time."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(1, 8, 2, stride=2)
        self.norm = nn.BatchNorm2d(8)

    def forward(self, y, tau):
        return self.norm(self.conv(y)) * (1 + tau.reshape(-1, 1, 1, 1))


FEATURES = {**SMALL, "image_size": 4, "channels": 8, "mults": [1], "attention": []}


def test_an_extractor_stays_frozen():
    model = Discriminator(extractor=Features(), **FEATURES).train()
    moved(model.encoder)
    moved(model.out)
    model.train()
    y, tau = states()
    y.requires_grad_()
    model(y, tau).sum().backward()
    assert model.training
    assert not model.extractor.training
    assert all(p.grad is None for p in model.extractor.parameters())
    assert y.grad.abs().sum() > 0
    assert model.encoder.stem.weight.grad.abs().sum() > 0


def assert_same(loaded, model):
    """Equal weights; logits may round differently where memory is aligned differently."""
    weights = model.state_dict()
    assert all(torch.equal(tensor, weights[name]) for name, tensor in loaded.state_dict().items())
    wanted = model(*states())
    assert (loaded(*states()) - wanted).abs().max() < 50 * ROUNDING[torch.float32] * wanted.abs().max()


def test_files(tmp_path, denoiser):
    for name, model in {
        "scratch": Discriminator(**SMALL, label_dim=3, hidden=8),
        "denoiser": Discriminator.from_denoiser(denoiser, conditional=True),
        "frozen": Discriminator.from_denoiser(denoiser, frozen=True),
    }.items():
        moved(model).requires_grad_(False)
        save(tmp_path / name, model, {"time": "vp"})
        loaded = load(tmp_path / name)
        assert isinstance(loaded, Discriminator)
        assert_same(loaded, model)
        assert loaded.metadata["time"] == "vp"
        assert (loaded.sample_shape, loaded.label_dim) == ((1, 8, 8), model.label_dim)
        assert not loaded.training
        assert not any(p.requires_grad for p in loaded.parameters())
        assert json.loads(json.dumps(loaded.config)) == model.config


def test_the_file_of_one_with_a_foreign_extractor_asks_for_it(tmp_path):
    extractor = moved(Features())
    model = moved(Discriminator(extractor=extractor, **FEATURES)).requires_grad_(False)
    save(tmp_path / "model", model, {})
    assert_same(load(tmp_path / "model", extractor=extractor), model)
    with pytest.raises(ModelFileError, match="extractor must be given"):
        load(tmp_path / "model")
    save(tmp_path / "plain", Discriminator(**SMALL), {})
    with pytest.raises(ModelFileError, match="extractor must be left out"):
        load(tmp_path / "plain", extractor=extractor)


def test_refusals(denoiser):
    with pytest.raises(ValueError, match="hidden must be at least 1, got 0"):
        Discriminator(**SMALL, hidden=0)
    with pytest.raises(ValueError, match="dropout"):
        Discriminator(**SMALL, dropout=1.0)
    with pytest.raises(ValueError, match="conditional must be False"):
        Encoder.from_denoiser(UNet(**SMALL), 0.5, conditional=True)
    with pytest.raises(ValueError, match="sigma_data must be given"):
        Discriminator.from_denoiser(UNet(**SMALL))
    with pytest.raises(ValueError, match=r"x must be \[B, 1, 8, 8\]"):
        Discriminator(**SMALL)(*states(channels=2))
