"""The classic picture of a diffusion model (Sohl-Dickstein et al. 2015, figure 1): DDPM on a swiss roll.

    python examples/swiss_roll.py

trains a small network (a minute on one CPU core), draws 5000 samples, says how far they are from unseen data, and
writes `swiss_roll.png`. It needs `pip install 'fastdiff[eval,plots]'`.

Rows: the forward process q(x_t), from data to noise; the learned reverse process p(x_t), from noise to data; and its
drift f(x_t, t) - x_t, the mean of a reverse step less where it starts. Columns: the paper's times 0, T/2 and T, and two
between the first, for DDPM's betas leave little to see at T/2. A point keeps its colour: its place along the roll, for
the reverse process the place where it ends.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import torch
from torch import Tensor

from fastdiff import VP, Sampler
from fastdiff.config import ModelConfig, ObjectiveConfig, TrainConfig
from fastdiff.data import draw_points
from fastdiff.evaluation import sliced_wasserstein
from fastdiff.files import atomic_path
from fastdiff.models import load
from fastdiff.plots import new_figure, png
from fastdiff.training import Chain, Trainer, perturb
from fastdiff.training.losses import reverse_step

if TYPE_CHECKING:
    from matplotlib.figure import Figure

T = 100
TIMES = {"$t = 0$": 0, "$t = T/10$": T // 10, "$t = T/4$": T // 4, "$t = T/2$": T // 2, "$t = T$": T}
PROCESS = VP.linear(T, rescale_timesteps=True)  # the network is told t * 1000 / T
CENTRE = torch.tensor([-0.302, -0.031])  # of the spiral: the data are centred on their mean


def train(folder: Path, iterations: int = 3000, seed: int = 0, progress: bool = True) -> Any:
    """A network that predicts the noise of the swiss roll: the average of its weights over the training."""
    config = TrainConfig(
        data="swiss_roll",
        network="mlp",
        model=ModelConfig(width=128, depth=2, embedding=64),
        objective=ObjectiveConfig(name="ddpm", T=T, betas="linear", rescale_timesteps=True, variance="fixed_large"),
        iterations=iterations,
        batch=512,
        learning_rate=4e-3,
        evaluate_every=iterations,
        checkpoint_every=iterations,
        seed=seed,
        device="cpu",
    )
    return load(Trainer(config, folder).run(progress=progress))


def sample(network: Any, count: int, seed: int = 0) -> Tensor:
    """The learned reverse process: [T + 1, count, 2], entry t the states x_t, so that entry 0 holds the samples."""
    sampler = Sampler(network, process=PROCESS, prediction="eps", solver="ddpm", steps=T, variance="fixed_large")
    _, states = sampler((count, 2), seeds=seed, return_trajectory=True)
    return states.flip(0)


def diffuse(x0: Tensor, t: int, seed: int = 0) -> Tensor:
    """The forward process: x_t of every point, as training draws it."""
    seeds = torch.arange(seed, seed + len(x0))
    return perturb(x0, Chain(PROCESS).noising(), torch.full((len(x0),), t - 1), seeds)[0] if t else x0


@torch.no_grad()
def drift(network: Any, x: Tensor, t: int) -> Tensor:
    """f(x_t, t) - x_t: the mean of p(x_(t-1) | x_t), less x_t. Of no step for t = 0, so that is t = 1's."""
    chain, steps = Chain(PROCESS), torch.full((len(x),), max(t, 1) - 1)
    return reverse_step(network(x, chain.times[steps]), x, steps, chain, clip=False).mean - x


def draw(figure: Figure, network: Any, data: Tensor, states: Tensor, limit: float = 2.6) -> None:
    """The picture: a column for each of `TIMES`."""
    axes = figure.subplots(3, len(TIMES), sharex=True, sharey=True)
    line = torch.linspace(-limit, limit, 20)[1:-1]
    grid = torch.cartesian_prod(line, line)
    for (title, t), (forward, reverse, field) in zip(TIMES.items(), axes.T):
        for ax, points, home in ((forward, diffuse(data, t), data), (reverse, states[t], states[0])):
            along = (home - CENTRE).norm(dim=1)
            ax.scatter(*points.T, c=along, vmin=0.7, vmax=2.1, s=2, cmap="turbo", linewidths=0)
        field.scatter(*states[t].T, s=2, c="0.82", linewidths=0)
        field.quiver(*grid.T, *drift(network, grid, t).T, color="#0072b2", angles="xy", width=0.006, headwidth=4)
        forward.set_title(title)
    for ax, label in zip(axes[:, 0], ("forward  $q(x_t)$", "reverse  $p(x_t)$", "drift  $f(x_t, t) - x_t$")):
        ax.set_ylabel(label)
    for ax in axes.flat:
        ax.set(xlim=(-limit, limit), ylim=(-limit, limit), aspect="equal", xticks=[], yticks=[])


@click.command(help=__doc__.split("\n")[0])
@click.option("--out", default="swiss_roll.png", show_default=True, type=click.Path(dir_okay=False, path_type=Path))
@click.option("--iterations", default=3000, show_default=True, type=click.IntRange(1), help="Of training.")
@click.option("--samples", default=5000, show_default=True, type=click.IntRange(1), help="Points that are drawn.")
@click.option("--seed", default=0, show_default=True, type=click.IntRange(0), help="Of training and samples.")
def main(out: Path, iterations: int, samples: int, seed: int) -> None:
    if not out.parent.is_dir():
        raise click.BadParameter(f"no such folder: {out.parent}", param_hint="--out")
    torch.set_num_threads(1)  # the fastest for a network this small
    figure = new_figure(14.0, 8.7)
    data, unseen = (draw_points("swiss_roll", samples, split=split)[0] for split in ("train", "test"))
    floor = sliced_wasserstein(data, unseen)  # libraries that are missing have shown by now
    with tempfile.TemporaryDirectory() as folder:
        network = train(Path(folder), iterations, seed)
    states = sample(network, samples, seed)
    distance = sliced_wasserstein(states[0], unseen)
    print(f"sliced Wasserstein distance to unseen data: {distance:.4f} (of other data: {floor:.4f})")
    draw(figure, network, data, states)
    with atomic_path(out) as temporary:
        temporary.write_bytes(png(figure))
    print(f"wrote {out}")


if __name__ == "__main__":
    main()
