"""A cascade (Ho et al. 2022): 8x8 digits, and 16x16 ones made of them.

    python examples/cascade.py

trains two small networks (two minutes on one CPU core), draws 500 digits, says how far they are from unseen ones, and
writes `cascade/`: the networks, and `cascade.png`. It needs `pip install 'fastdiff[eval]'` and the digits of
`fastdiff.data.digits16`.

The first network is EDM's, the second one guided-diffusion's super-resolution network with DDPM's chain. It learns with
noise on the small image (conditioning augmentation), the same as it sees in sampling: `Stage.conditioning` is both.
Columns of the picture: an 8x8 digit, what the second network is shown of it, what it makes of that, and of other noise.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastdiff import VP
from fastdiff.cascade import Cascade, Stage, stage_seeds
from fastdiff.data import digits16
from fastdiff.evaluation import Evaluator
from fastdiff.files import atomic_path
from fastdiff.models import UNet, load, save
from fastdiff.models.adm import SuperResModel
from fastdiff.opening import network_sampler
from fastdiff.pictures import grid, png_bytes
from fastdiff.training import Chain
from fastdiff.training.losses import ddpm_loss, edm_loss

NOISE = 0.3  # on the small image, sigma / alpha
T = 1000
EDM_READING = {"prediction": "edm", "sigma_data": 0.5}
CHAIN_READING = {"prediction": "v", "process": {"name": "vp", "betas": "linear", "T": T}, "variance": "fixed_large"}


def smaller(images: Tensor) -> Tensor:
    """16x16 to 8x8."""
    return F.avg_pool2d(images, 2)


def train(network: nn.Module, loss: Any, iterations: int, rate: float, batch: int, seed: int) -> nn.Module:
    """The average of the weights over a run; `loss(images, labels, seeds)` is [B]."""
    data, generator = digits16(), torch.Generator().manual_seed(seed)
    optimiser = torch.optim.Adam(network.parameters(), lr=rate)
    decay = torch.optim.swa_utils.get_ema_multi_avg_fn(1 - 10 / (iterations + 10))
    average = torch.optim.swa_utils.AveragedModel(network, multi_avg_fn=decay)
    for iteration in range(iterations):
        optimiser.param_groups[0]["lr"] = rate * (1 - iteration / iterations)
        some = torch.randint(len(data), (batch,), generator=generator)
        seeds = torch.randint(2**62, (batch,), generator=generator)
        optimiser.zero_grad()
        loss(data.images[some], data.labels[some], seeds).mean().backward()
        optimiser.step()
        average.update_parameters(network)
    averaged: nn.Module = average.module
    return averaged.eval().requires_grad_(False)


def train_base(iterations: int = 1000, seed: int = 0) -> Any:
    """The network of 8x8 digits."""
    torch.manual_seed(seed)
    network = UNet(image_size=8, patch=1, width=16, label_dim=10)
    generator = torch.Generator().manual_seed(seed)

    def loss(images: Tensor, labels: Tensor, seeds: Tensor) -> Tensor:
        sigma = (1.2 * torch.randn(len(images), generator=generator) - 1.2).exp()
        return edm_loss(network, smaller(images), sigma, seeds, cond={"labels": labels})

    return train(network, loss, iterations, 2e-3, 64, seed)


def stage_of(network: Any, steps: int) -> Stage:
    """The step from 8x8 to 16x16."""
    return Stage(network_sampler(network, solver="ddim", steps=steps), noise=NOISE, clip=True)


def train_upsampler(iterations: int = 800, seed: int = 0) -> Any:
    """The network of 16x16 digits that sees noisy 8x8 ones."""
    torch.manual_seed(seed)
    network = SuperResModel(
        image_size=16, in_channels=1, model_channels=32, out_channels=1, num_res_blocks=0, attention_resolutions=[],
        channel_mult=[1, 1], num_classes=10, use_scale_shift_norm=True,
    )  # fmt: skip
    network.metadata = CHAIN_READING
    stage, chain = stage_of(network, 10), Chain(VP.linear(T))
    generator = torch.Generator().manual_seed(seed)

    def loss(images: Tensor, labels: Tensor, seeds: Tensor) -> Tensor:
        t = torch.randint(T, (len(images),), generator=generator)
        cond = {"labels": labels, **stage.conditioning(smaller(images), seeds)}  # its own draw of the seeds' noise
        return ddpm_loss(network, images, t, seeds, chain, prediction="v", cond=cond).loss

    return train(network, loss, iterations, 2e-3, 32, seed)


def write_networks(folder: Path, base: nn.Module, upsampler: nn.Module) -> tuple[Any, Any]:
    """Both as model files, and read from them again."""
    save(folder / "base.safetensors", base, EDM_READING)
    save(folder / "upsampler.safetensors", upsampler, CHAIN_READING)
    return load(folder / "base.safetensors"), load(folder / "upsampler.safetensors")


def draw(base: Any, upsampler: Any, count: int, seed: int = 0, steps: int = 25) -> tuple[Cascade, list[Tensor]]:
    """The cascade, and the digits of both its samplers: of class 0, 1, ..., 9, 0, 1, ..."""
    cascade = Cascade(network_sampler(base), stage_of(upsampler, steps))
    labels = [number % 10 for number in range(count)]
    return cascade, cascade(count, seeds=seed, labels=labels, return_stages=True)


def picture(cascade: Cascade, small: Tensor, large: Tensor, seed: int) -> bytes:
    """A row for each class."""
    small, seeds = small[:10], torch.arange(10) + seed
    shown = cascade.stages[0].conditioning(small, stage_seeds(seeds, 1))["low_res"]
    other = cascade.upsample(small, seeds=seeds + 10, labels=range(10))
    columns = [F.interpolate(small, scale_factor=2), shown, large[:10], other]
    tiled = torch.cat([torch.cat(list(column), 1) for column in columns], 2)[None]
    levels = (127.5 * (tiled.clamp(-1, 1) + 1)).round().to(torch.uint8)
    return png_bytes(grid(levels.permute(0, 2, 3, 1).repeat_interleave(4, 1).repeat_interleave(4, 2).numpy()))


@click.command(help=__doc__.split("\n")[0])
@click.option("--outdir", default="cascade", show_default=True, type=click.Path(file_okay=False, path_type=Path))
@click.option("--iterations", default=(1000, 800), show_default=True, nargs=2, type=click.IntRange(1), help="Of both.")
@click.option("--samples", default=500, show_default=True, type=click.IntRange(10), help="Digits that are drawn.")
@click.option("--seed", default=0, show_default=True, type=click.IntRange(0), help="Of training and samples.")
def main(outdir: Path, iterations: tuple[int, int], samples: int, seed: int) -> None:
    torch.set_num_threads(1)
    outdir.mkdir(exist_ok=True)
    data = digits16("test")
    unseen = data.images
    evaluate = Evaluator(unseen)  # libraries that are missing have shown by now
    networks = write_networks(outdir, train_base(iterations[0], seed), train_upsampler(iterations[1], seed))
    cascade, (small, large) = draw(*networks, samples, seed)
    enlarged = F.interpolate(small, scale_factor=2, mode="bilinear")
    restored = cascade.upsample(smaller(unseen[:samples]), seeds=seed, labels=data.labels[:samples])
    for what, images in (
        ("digits of the cascade", large), ("8x8 digits, enlarged", enlarged),
        ("unseen digits made 8x8, then by the second network", restored), ("other digits", digits16().images[:1000]),
    ):  # fmt: skip
        print(f"{what}: {evaluate(images)}")
    with atomic_path(outdir / "cascade.png") as temporary:
        temporary.write_bytes(picture(cascade, small, large, seed))
    print(f"wrote {outdir}; fastdiff cascade {outdir}/base.safetensors {outdir}/upsampler.safetensors --noise {NOISE}")


if __name__ == "__main__":
    main()
