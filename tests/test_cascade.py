"""Cascades: exact on Gaussian data, the same whatever the batch, and what their networks are given."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch
import torch.nn.functional as F

from fastdiff import EDM, VP, EDMPrediction, Sampler, ops
from fastdiff.cascade import DRAW, RESIZES, Cascade, Stage, stage_seeds
from fastdiff.guidance import ClassifierFree

from .graphs.conftest import graphs, linear
from .tolerances import CASCADE_LAW

__all__ = ["graphs"]

SMALL, LARGE = 2, 4
FIRST = 1e5  # sigma at which a run starts: at 80 it would forget a hundredth of the mean
AVERAGE = torch.zeros(SMALL**2, LARGE**2, dtype=torch.float64)  # 2x2 means of a 4x4 image
for row in range(LARGE):
    for column in range(LARGE):
        AVERAGE[row // 2 * SMALL + column // 2, row * LARGE + column] = 0.25


def gaussian(size, seed):
    """Mean [D] and covariance [D, D] of images of one channel."""
    generator = torch.Generator().manual_seed(seed)
    root = torch.randn(size, size, generator=generator, dtype=torch.float64) / math.sqrt(size)
    return torch.randn(size, generator=generator, dtype=torch.float64), root @ root.T + 0.1 * torch.eye(size)


MEAN, COVARIANCE = gaussian(LARGE**2, 0)


def denoise(x, sigma, mean, covariance):
    """E[x_0 | x_0 + sigma z = x] for x_0 of N(mean, covariance); x, mean [B, D]."""
    gain = covariance @ torch.linalg.inv(covariance + sigma**2 * torch.eye(len(covariance)))
    return mean + (x - mean) @ gain.T


def base_network(x, sigma):
    mean, covariance = AVERAGE @ MEAN, AVERAGE @ COVARIANCE @ AVERAGE.T
    return denoise(x.flatten(1), sigma[0], mean, covariance).view_as(x)


def upper_network(x, sigma, low_res, level):
    """The exact denoiser of large images given their means, noised to `level`."""
    gain = COVARIANCE @ AVERAGE.T
    gain = gain @ torch.linalg.inv(AVERAGE @ gain + level[0] ** 2 * torch.eye(SMALL**2))
    mean = MEAN + (low_res.flatten(1) - AVERAGE @ MEAN) @ gain.T
    return denoise(x.flatten(1), sigma[0], mean, COVARIANCE - gain @ AVERAGE @ COVARIANCE).view_as(x)


def two_stages(noise=0.7, network=upper_network, steps=100, **options):
    settings = {
        "steps": steps, "dtype": torch.float64, "solver": "unipc", "order": 3, "schedule": "exponential",
        "sigma_max": FIRST, "sigma_min": 1e-3,
    }  # fmt: skip
    base = Sampler(base_network, shape=(1, SMALL, SMALL), **settings)
    upper = Sampler(network, shape=(1, LARGE, LARGE), **settings)
    return Cascade(base, Stage(upper, noise=noise, resize=None, told="level", **options))


def law(cascade):
    """Mean and covariance of what a two-stage cascade of affine networks draws, from the draws that are documented, and
    the map of every draw."""
    base, (stage,) = cascade.base, cascade.stages
    counts = {"base": SMALL**2, "level": SMALL**2, "upper": LARGE**2}
    total = sum(counts.values())
    z = torch.cat([torch.zeros(1, total), torch.eye(total)]).double()  # nothing, then one normal at a time
    parts = dict(zip(counts, z.split(list(counts.values()), 1)))
    low = base((total + 1, 1, SMALL, SMALL), x_init=FIRST * parts["base"].reshape(-1, 1, SMALL, SMALL))
    noised = low + stage.noise * parts["level"].view_as(low)
    given = {"low_res": noised, "level": torch.full((total + 1,), stage.noise, dtype=torch.float64)}
    start = FIRST * parts["upper"].reshape(-1, 1, LARGE, LARGE)
    high = stage.sampler(start.shape, x_init=start, cond=given).flatten(1)
    linear = (high[1:] - high[0]).T
    return high[0], linear @ linear.T, linear


@pytest.mark.parametrize("noise", [0.05, 0.7])
def test_gaussian_data_are_drawn_exactly_whatever_the_noise(noise):
    """Networks that are told the noise undo what it does: mean and covariance are those of the data."""
    mean, covariance, _ = law(two_stages(noise))
    torch.testing.assert_close(mean, MEAN, rtol=0, atol=CASCADE_LAW)
    torch.testing.assert_close(covariance, COVARIANCE, rtol=0, atol=CASCADE_LAW)


def test_a_network_that_is_not_told_the_noise_draws_something_else():
    deaf = two_stages(network=lambda x, sigma, low_res, level: upper_network(x, sigma, low_res, 0.05 + 0 * level))
    assert (law(deaf)[1] - COVARIANCE).abs().max() > 20 * CASCADE_LAW


def test_every_sample_is_made_of_the_draws_that_are_documented():
    cascade = two_stages(steps=6)
    seeds = torch.tensor([3, -5, 2**62])
    first, second = seeds, stage_seeds(seeds, 1)
    normals = [
        ops.normal(first, (3, SMALL**2), 0), ops.normal(second, (3, SMALL**2), DRAW),
        ops.normal(second, (3, LARGE**2), 0),
    ]  # fmt: skip
    mean, _, linear = law(cascade)
    expected = mean + torch.cat(normals, 1).double() @ linear.T
    torch.testing.assert_close(cascade(3, seeds=seeds).flatten(1), expected, rtol=1e-9, atol=1e-9)


def test_seeds_of_a_stage_are_the_outputs_of_splitmix():
    """Vigna's reference, splitmix64.c, from 0 and from 1234567."""
    known = {0: (0xE220A8397B1DCDAF, 0x6E789E6AA1B965F4), 1234567: (6457827717110365317, 3203168211198807973)}
    for seed, outputs in known.items():
        for number, output in enumerate(outputs, 1):
            assert stage_seeds(torch.tensor([seed]), number).item() % 2**64 == output
    many = stage_seeds(torch.arange(-500, 500), 2)
    assert len(many.unique()) == 1000
    with pytest.raises(ValueError, match="stage must be an integer of at least 1, got 0"):
        stage_seeds(torch.tensor([0]), 0)


def toy(x, t, low_res, labels=None, level=None):
    """One operation an element, so that its bits do not depend on the batch."""
    shape = (-1, 1, 1, 1)
    shift = 0 if labels is None else labels.to(x.dtype).view(shape)
    return 0.5 * x + low_res + shift + (0 if level is None else level.to(x.dtype).view(shape))


def toy_base(x, t, labels=None):
    return 0.5 * x + (0 if labels is None else labels.to(x.dtype).view(-1, 1, 1, 1))


def toy_cascade(first=None, second=None, **options):
    """8x8, 20x13, 33x33."""
    settings = {"steps": 3, "S_churn": 2.0, **options}
    stages = [
        Stage(Sampler(toy, shape=(3, 20, 13), **settings), **{"noise": 0.3, "told": "level", **(first or {})}),
        Stage(Sampler(toy, shape=(3, 33, 33), **settings), **{"noise": 0.1, "resize": "bicubic", **(second or {})}),
    ]
    return Cascade(Sampler(toy_base, shape=(3, 8, 8), **settings), *stages)


def test_a_sample_depends_on_its_seed_alone(backend, device):
    whole = toy_cascade(backend=backend, device=device)
    seeds, labels = [5, 6, 7, 8, 9], [0, 1, 2, 1, 0]
    stages = whole(5, seeds=5, labels=labels, return_stages=True)
    assert [list(x.shape) for x in stages] == [[5, 3, 8, 8], [5, 3, 20, 13], [5, 3, 33, 33]]
    assert torch.equal(whole(5, seeds=seeds, labels=labels), stages[-1])
    order = [4, 0, 2]
    some = whole(3, seeds=[seeds[i] for i in order], labels=[labels[i] for i in order])
    assert torch.equal(some, stages[-1][order])
    chunked = toy_cascade({"batch": 2}, {"batch": 1}, backend=backend, device=device)
    assert torch.equal(chunked(5, seeds=seeds, labels=labels), stages[-1])
    assert not torch.equal(stages[-1][0], stages[-1][1])


def test_the_base_draws_what_it_draws_by_itself_and_the_stages_go_on_from_it():
    cascade = toy_cascade()
    base, first, last = cascade(2, seeds=[4, 9], return_stages=True)
    assert torch.equal(base, cascade.base(2, seeds=[4, 9]))
    again = cascade.upsample(base, seeds=[4, 9], return_stages=True)
    assert all(map(torch.equal, again, (first, last)))
    assert torch.equal(cascade.upsample(base, seeds=[4, 9]), last)


def test_no_two_stages_share_noise():
    """With the base's seeds, the first normals of a stage would be the base's own."""
    seen = []

    def silent(x, t, low_res=None):
        seen.append(x[:, :, :8, :8].double() / 80)
        return torch.zeros_like(x)

    samplers = [Sampler(silent, shape=(1, size, size), steps=2) for size in (8, 16, 32)]
    Cascade(samplers[0], *(Stage(s) for s in samplers[1:]))(64, seeds=0)
    starts = torch.stack(seen[::3]).reshape(3, -1)
    correlation = torch.corrcoef(starts)
    assert starts.std(1).sub(1).abs().max() < 0.05
    assert (correlation - torch.eye(3)).abs().max() < 0.06


def given_to(stage, low, seeds=(0, 1)):
    return stage.conditioning(low, torch.tensor(seeds))


LOW = torch.linspace(-1.5, 1.5, 2 * 3 * 5 * 5).reshape(2, 3, 5, 5)


@pytest.mark.parametrize("resize", [*RESIZES, None])
def test_the_smaller_image_is_resized_clipped_and_cast(resize):
    sampler = Sampler(lambda x, t, image: x, shape=(3, 9, 9), steps=2, model_dtype=torch.bfloat16)
    stage = Stage(sampler, size=9, resize=resize, clip=True, condition="image")
    clipped = LOW.clamp(-1, 1)
    expected = clipped if resize is None else F.interpolate(clipped, (9, 9), mode=resize)
    given = given_to(stage, LOW)
    assert given.keys() == {"image"} and given["image"].dtype == torch.bfloat16
    assert torch.equal(given["image"], expected.bfloat16())
    clipped = dataclasses.replace(stage, clip=(-0.5, 0.25), resize=None)
    assert given_to(clipped, LOW)["image"].float().aminmax() == (-0.5, 0.25)


def test_resizing_once_is_what_a_network_does_at_every_call():
    def resizing(x, t, low_res, **cond):
        return toy(x, t, F.interpolate(low_res, x.shape[2:], mode="bilinear"), **cond)

    def cascade(network, resize):
        stage = Stage(Sampler(network, steps=3), size=17, resize=resize, noise=0.2)
        return Cascade(Sampler(toy_base, steps=3, shape=(3, 8, 8)), stage)

    inside = cascade(resizing, None)(2, seeds=0)
    assert torch.equal(cascade(resizing, "bilinear")(2, seeds=0), inside)
    assert torch.equal(cascade(toy, "bilinear")(2, seeds=0), inside)


def test_noise_and_what_is_told_of_it_are_the_process_s():
    z = ops.normal(torch.tensor([0, 1]), LOW.shape, DRAW)
    sizes = {"shape": (3, 5, 5), "steps": 2}

    ve = Stage(Sampler(toy, process=EDM(), **sizes), noise=0.3, told="level")
    given = given_to(ve, LOW)
    torch.testing.assert_close(given["low_res"], LOW + 0.3 * z)
    assert given["level"].tolist() == pytest.approx([0.3, 0.3])

    raw = Stage(Sampler(toy, prediction=EDMPrediction(0.5), **sizes), noise=0.3, told="level")
    assert given_to(raw, LOW)["level"].tolist() == pytest.approx([math.log(0.3) / 4] * 2)

    process = VP.linear()
    vp = Stage(Sampler(toy, process=process, prediction="eps", solver="ddim", **sizes), noise=0.3, told="level")
    given, level = given_to(vp, LOW), vp.level
    assert level.sigma_ve == pytest.approx(0.3, abs=0.02)
    assert given["level"].dtype == torch.int64 and given["level"].tolist() == [int(level.time)] * 2
    abar = process.alphas_cumprod[int(level.time)]
    torch.testing.assert_close(given["low_res"], abar**0.5 * LOW + (1 - abar) ** 0.5 * z)

    silent = dataclasses.replace(vp, noise=0.0)
    given = given_to(silent, LOW)
    assert torch.equal(given["low_res"], LOW) and given["level"].tolist() == [0, 0]


def test_stages_run_as_graphs(graphs):
    """The smaller image and the level of its noise are inputs of a graph: other images, the same graph."""

    def made(mode):
        settings = {"steps": 2, "graph": mode, "device": graphs.device, "solver": "euler"}
        stage = Stage(Sampler(toy, shape=(3, 8, 8), **settings), noise=0.3, told="level")
        return Cascade(Sampler(linear, shape=(3, 4, 4), **settings), stage), stage

    (cascade, stage), (eager, _) = made("loop"), made("off")
    for seed in (0, 5):
        assert torch.equal(cascade(3, seeds=seed, labels=1), eager(3, seeds=seed, labels=1))
    stats = stage.sampler.stats()
    assert (stats.captures, stats.hits, stats.fallbacks) == (1, 1, 0)


def test_labels_go_where_classes_are():
    class Net(torch.nn.Module):
        def __init__(self, classes, size):
            super().__init__()
            self.label_dim, self.sample_shape, self.seen = classes, (1, size, size), None

        def forward(self, x, t, labels=None, low_res=None, text=None):
            self.seen = labels, text
            return 0.5 * x

    def cascade(*classes, **options):
        nets = [Net(c, 4 * (i + 1)) for i, c in enumerate(classes)]
        samplers = [Sampler(net, steps=2, **(options if i else {})) for i, net in enumerate(nets)]
        return Cascade(samplers[0], *map(Stage, samplers[1:])), nets

    some, nets = cascade(0, 5, 3)
    some(2, seeds=0, labels=[2, 1], cond={"text": torch.ones(2, 7)})
    assert [None if net.seen[0] is None else net.seen[0].tolist() for net in nets] == [None, [2, 1], [2, 1]]
    assert all(net.seen[1].shape == (2, 7) for net in nets)
    some(2, seeds=0, labels=1)
    assert nets[1].seen[0].tolist() == [1, 1]
    some(0, seeds=[])
    assert nets[0].seen[0] is None
    with pytest.raises(ValueError, match="labels must be from 0 to 2, got 4"):
        some(1, labels=4)
    with pytest.raises(ValueError, match="labels must be left out: no network of the cascade has classes"):
        cascade(0, 0)[0](1, labels=0)
    guided, nets = cascade(2, 2, guidance=ClassifierFree(2.0))
    assert guided(2, seeds=0, labels=[0, 1]).shape == (2, 1, 8, 8)


def test_conditioning_is_cut_with_the_batch():
    seen = []

    def network(x, t, low_res, text, weights):
        seen.append((x.shape[0], low_res.shape[0], text["a"].shape[0], weights.shape[0]))
        return toy(x, t, low_res)

    base = Sampler(lambda x, t, **cond: toy_base(x, t), steps=2, shape=(1, 4, 4))
    cascade = Cascade(base, Stage(Sampler(network, steps=2), size=8, batch=2))
    cascade(3, seeds=0, cond={"text": {"a": torch.ones(3, 2)}, "weights": torch.ones(4)})
    assert set(seen) == {(2, 2, 2, 4), (1, 1, 1, 4)}


def test_a_result_that_is_not_finite_names_the_stage():
    broken = Sampler(lambda x, t, low_res: x * math.nan, steps=2, shape=(3, 16, 16))
    cascade = Cascade(Sampler(toy_base, steps=2, shape=(3, 8, 8)), Stage(broken))
    with pytest.raises(
        FloatingPointError, match=r"stage 1 \(whose seeds are stage_seeds\(seeds, 1\)\): the result has NaN"
    ):
        cascade(1, seeds=0)


def upper(**options):
    return Sampler(toy, steps=2, **{"shape": (3, 8, 8), **options})


BAD_STAGES = [
    (lambda: Stage(toy), TypeError, "sampler must be a fastdiff.Sampler, got function"),
    (lambda: Stage(upper(shape=None)), ValueError, "size must be given"),
    (lambda: Stage(upper(), size=9), ValueError, r"size must be left out or that of .* \[3, 8, 8\], got 9"),
    (lambda: Stage(upper(shape=(2,))), ValueError, r"sampler must draw images \[C, H, W\], got one of samples \[2\]"),
    (lambda: Stage(upper(), size=0), ValueError, "size must be an integer of at least 1"),
    (lambda: Stage(upper(), resize="lanczos"), ValueError, "resize must be one of bilinear"),
    (lambda: Stage(upper(), noise=-0.1), ValueError, "noise must be at least 0, got -0.1"),
    (lambda: Stage(upper(), noise=math.inf), ValueError, "noise must be finite"),
    (lambda: Stage(upper(), condition="low res"), ValueError, "condition must be the name of a keyword"),
    (lambda: Stage(upper(), told=3), ValueError, "told must be the name of a keyword argument, got 3"),
    (lambda: Stage(upper(), told="low_res"), ValueError, "told must be another keyword"),
    (lambda: Stage(upper(), told="s"), ValueError, "sampler must be of a network that takes s=, and its"),
    (lambda: Stage(upper(), batch=0), ValueError, "batch must be an integer of at least 1, got 0"),
    (lambda: Stage(upper(), clip=(1, 0)), ValueError, "clip_denoised|clip"),
    (lambda: Stage(upper(prediction="edm"), told="level"), ValueError, "noise must be positive .* prediction 'edm'"),
    (lambda: Cascade(upper()), ValueError, "stages must hold at least one Stage"),
    (lambda: Cascade(upper(), upper()), TypeError, "stages must be fastdiff.cascade.Stage, got Sampler"),
    (lambda: Cascade(toy, Stage(upper())), TypeError, "base must be a fastdiff.Sampler"),
    (lambda: toy_cascade()(1, cond={"low_res": LOW}), ValueError, r"cond must not have .* \['low_res'\]"),
    (lambda: toy_cascade().upsample(LOW[0]), ValueError, r"images must be \[B, C, H, W\]"),
    (lambda: toy_cascade().upsample([1.0]), TypeError, "images must be a floating tensor, got list"),
    (lambda: toy_cascade()(2, seeds=[1]), ValueError, r"seeds must hold one integer per sample \(2\), got 1"),
]


@pytest.mark.parametrize(("make", "error", "message"), BAD_STAGES)
def test_what_cannot_be_used_is_refused(make, error, message):
    with pytest.raises(error, match=message):
        make()
