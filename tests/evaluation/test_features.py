"""Feature spaces: by name, from files, as modules; what is refused; and that batches do not matter."""

from __future__ import annotations

import warnings

import pytest
import torch
from torch import nn

from fastdiff.evaluation import FeatureError, extract, features_digest, get_features
from fastdiff.evaluation.features import INCEPTION, ClassifierFeatures, eight_bit
from fastdiff.models import Classifier, UNet, load, save


class Means(nn.Module):
    """Channel means: a TorchScript extractor of images in [-1, 1]."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return images.mean((2, 3))


class Bytes(nn.Module):
    """What an Inception file looks like from outside: bytes of three channels, features on request."""

    def forward(self, img: torch.Tensor, return_features: bool = False) -> torch.Tensor:
        assert img.dtype == torch.uint8
        assert img.size(1) == 3
        values = img.float().mean((2, 3))
        return values if return_features else values - 1000.0


def scripted(module, path):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        torch.jit.script(module).save(str(path))
    return str(path)


@pytest.fixture
def images():
    return torch.rand(7, 1, 16, 16, generator=torch.Generator().manual_seed(0)) * 2 - 1


def test_digits_are_the_shipped_classifiers_hidden_layer(images):
    module = get_features("digits")
    assert module.num_features == 64
    assert torch.equal(module(images), load("digits_classifier").features(images))


def test_a_module_is_used_as_it_is():
    module = nn.Flatten()
    assert get_features(module) is module


def test_a_classifier_file(tmp_path, images):
    model = Classifier(width=2, features=3).eval()
    save(tmp_path / "c.safetensors", model, {})
    assert torch.equal(get_features(tmp_path / "c.safetensors")(images), model.features(images))


def test_a_torchscript_file(tmp_path, images):
    module = get_features(scripted(Means(), tmp_path / "means.pt"))
    assert torch.equal(extract(images, module)[:, 0], images.mean((1, 2, 3)).double())


@pytest.mark.parametrize("channels", [1, 3])
def test_inception_is_given_bytes_of_three_channels(tmp_path, monkeypatch, channels):
    images = torch.linspace(-1, 1, 256).view(1, 1, 16, 16).repeat(2, channels, 1, 1)
    wanted = torch.full((2, 3), 127.5, dtype=torch.float64)
    path = scripted(Bytes(), tmp_path / "any.pt")
    assert torch.equal(extract(images, get_features(path)), wanted)
    monkeypatch.setenv("FASTDIFF_INCEPTION", path)
    assert torch.equal(extract(images, get_features("inception")), wanted)
    with pytest.raises(ValueError, match="1 or 3"):
        get_features("inception")(torch.zeros(1, 2, 4, 4))


def test_inception_lies_in_the_working_folder_by_default(tmp_path, monkeypatch):
    monkeypatch.delenv("FASTDIFF_INCEPTION", raising=False)
    monkeypatch.chdir(tmp_path)
    scripted(Bytes(), tmp_path / INCEPTION)
    assert get_features("inception")(torch.zeros(1, 1, 4, 4)).shape == (1, 3)


@pytest.mark.parametrize("variable", [None, "/nowhere/inception.pt"])
def test_without_inceptions_weights_the_message_says_how_to_get_them(tmp_path, monkeypatch, variable):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("FASTDIFF_INCEPTION", raising=False)
    if variable:
        monkeypatch.setenv("FASTDIFF_INCEPTION", variable)
    with pytest.raises(FeatureError) as caught:
        get_features("inception")
    for part in (variable or INCEPTION, "download https://", "FASTDIFF_INCEPTION"):
        assert part in str(caught.value)
    assert "\n" not in str(caught.value)


def test_refuses_other_names_and_files(tmp_path):
    with pytest.raises(FeatureError, match="'dogits': no such file"):
        get_features("dogits")
    text = tmp_path / "text.pt"
    text.write_text("no archive")
    with pytest.raises(FeatureError, match=r"text\.pt is not a TorchScript file"):
        get_features(text)
    save(tmp_path / "net.safetensors", UNet(width=8), {})
    with pytest.raises(FeatureError, match=r"net\.safetensors holds a UNet"):
        get_features(tmp_path / "net.safetensors")
    text.rename(tmp_path / "text.safetensors")
    with pytest.raises(FeatureError, match=r"text\.safetensors"):
        get_features(tmp_path / "text.safetensors")


def test_extraction_in_batches_in_the_modules_dtype(images):
    linear = nn.Sequential(nn.Flatten(), nn.Linear(256, 5, dtype=torch.float64))
    whole = extract(images, linear)
    assert whole.dtype == torch.float64
    assert not whole.requires_grad
    torch.testing.assert_close(whole, linear(images.double()).detach())
    torch.testing.assert_close(extract(images, linear, batch=3), whole, rtol=1e-12, atol=1e-12)


def test_extraction_refuses_what_it_cannot_use(images):
    with pytest.raises(ValueError, match="floating point"):
        extract(torch.zeros(2, 1, 4, 4, dtype=torch.uint8), nn.Flatten())
    with pytest.raises(ValueError, match="N > 0"):
        extract(images[:0], nn.Flatten())
    with pytest.raises(ValueError, match="batch"):
        extract(images, nn.Flatten(), batch=0)
    with pytest.raises(ValueError, match=r"map 7 images to \[7, d\], got \[7, 1, 16, 16\]"):
        extract(images, nn.Identity())
    images[5, 0, 3, 3] = torch.nan
    with pytest.raises(FloatingPointError, match=r"pixels of image 5 are not finite \(1 such"):
        extract(images, nn.Flatten())


def test_features_that_are_not_finite_are_refused(images):
    class Bad(nn.Module):
        def forward(self, images):
            return images.flatten(1) / 0

    with pytest.raises(FloatingPointError, match="features of image 0"):
        extract(images, Bad(), batch=2)


def test_digests_tell_feature_spaces_apart():
    first, second = Classifier(width=2).eval(), Classifier(width=2).eval()
    digest = features_digest(first)
    assert digest == features_digest(first)
    assert digest != features_digest(second)
    assert digest != features_digest(ClassifierFeatures(first))
    second.load_state_dict(first.state_dict())
    assert digest == features_digest(second)
    assert features_digest(get_features("digits")) == features_digest(get_features("digits"))


def test_eight_bits_keep_what_an_image_file_holds():
    levels = torch.arange(256, dtype=torch.float32) / 127.5 - 1
    assert torch.equal(eight_bit(levels), levels)
    assert eight_bit(torch.tensor([-3.0, 3.0, 0.001])).tolist() == pytest.approx([-1, 1, 1 / 255], abs=1e-6)
