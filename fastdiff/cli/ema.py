"""`fastdiff ema`: an average of a finished run's weights that the run did not keep."""

from __future__ import annotations

from pathlib import Path

import click

from . import CliError
from .output import check_output_file


@click.command("ema")
@click.argument("run", metavar="RUN_DIR")
@click.option("--sigma-rel", required=True, type=float, help="Width of the average, relative to the training time.")
@click.option("--out", metavar="FILE", required=True, help="Model file to write.")
@click.option("--iteration", type=int, help="Training time of the average. Default: the last snapshot's.")
def command(run: str, sigma_rel: float, out: str, iteration: int | None) -> None:
    """Reconstruct a power-function average of the weights from the snapshots of a run (`posthoc_ema`).

    RUN_DIR is the run's --outdir, or a folder of snapshots. The width is the standard deviation of the averaging
    profile over the training time so far, above 0 and at most 0.288; 0.05 to 0.15 by habit (Karras et al. 2024).

    The profile error says how much of the wanted average the snapshots cannot express.
    """
    from ..models import ModelFileError
    from ..training.ema import reconstruct, snapshot_files

    check_output_file(out)
    files = snapshot_files(Path(run) / "snapshots") or snapshot_files(run)
    if not files:
        raise CliError(f"RUN_DIR: no snapshots in {run} (train with posthoc_ema)")
    try:
        result = reconstruct(files, sigma_rel, iteration)
    except (ModelFileError, ValueError) as error:
        raise CliError(str(error)) from None
    try:
        result.save(out)
    except OSError as error:
        raise click.ClickException(f"--out: cannot write to {out}: {error.strerror or error}") from None
    about = result.description["power_ema"]
    click.echo(
        f"wrote {out}: sigma_rel {sigma_rel:g} at iteration {about['iteration']} from {len(files)} snapshots, "
        f"profile error {result.error:.2g}"
    )
