"""Averages of a network's weights: exponential ones, power-function ones, and any of the latter after the fact.

The reconstruction is that of Karras et al. 2024, "Analyzing and improving the training dynamics of diffusion models",
appendix C.
"""

from __future__ import annotations

import copy
import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from ..errors import check_count, check_finite
from ..models.io import ModelFileError, check_tensors, load_tensors, read_metadata, save, save_tensors
from .parallel import local
from .profiles import Exponential, Power, gamma_of

__all__ = [
    "Averages",
    "Reconstruction",
    "drop_snapshots",
    "reconstruct",
    "save_snapshots",
    "snapshot_files",
]

_ROUNDING = 2.0**-24  # of a snapshot's float32 weights
_KEY = "power_ema"  # of a snapshot's description


class Averages:
    """Averaged copies of a network. What a copy shares with the network (a frozen extractor) is left alone.

    Buffers are not averaged but copied. The state is the copies' tensors, so a resumed run goes on to the same bits.

    Args:
        model: the network that is trained, without wrappers (DDP's `.module`, the compiled network's original).
        decays: of the exponential averages, each in [0, 1).
        sigma_rels: of the power-function averages.
        warmup: of the exponential averages, see `Exponential`.
        duplicate: makes a copy; the default copies all but the module `model.extractor`.

    Attributes:
        profiles: how each average is formed: the exponential ones, then the power-function ones.
        modules: the averaged networks, in that order, in evaluation mode and without gradients.

    Raises:
        ValueError: no average at all, or a decay or a width that is out of range.
    """

    def __init__(
        self,
        model: nn.Module,
        decays: Sequence[float] = (0.9999,),
        sigma_rels: Sequence[float] = (),
        *,
        warmup: bool = True,
        duplicate: Callable[[nn.Module], nn.Module] | None = None,
    ) -> None:
        if not decays and not sigma_rels:
            raise ValueError("decays and sigma_rels must name at least one average, got none")
        for decay in decays:
            if not 0 <= check_finite("decays", decay) < 1:
                raise ValueError(f"decays must be in [0, 1), got {decay!r}")
        for sigma_rel in sigma_rels:
            gamma_of(sigma_rel)
        self.profiles: list[Exponential | Power] = [Exponential(decay, warmup) for decay in decays]
        self.profiles += map(Power, sigma_rels)
        make = duplicate or _duplicate
        self.modules = [make(model).eval().requires_grad_(False) for _ in self.profiles]

    @torch.no_grad()
    def update(self, model: nn.Module, iteration: int, found_inf: Tensor | None = None) -> None:
        """Takes in the weights that an iteration ended with.

        Args:
            model: the network.
            iteration: counted from 0: today's number before it is increased.
            found_inf: a tensor of one number on the network's device; where it is not 0 the iteration was skipped, and
                the averages stay as they are, without waiting for the device. The network's weights must be finite
                all the same. Given or not, it must be so in every iteration of a run that is to be repeated bit by bit.
        """
        for profile, module in zip(self.profiles, self.modules):
            averages, values = _paired(module.parameters(), model.parameters())
            step = 1 - profile.keep(iteration)
            if found_inf is None:
                torch._foreach_lerp_(averages, values, step)
            else:
                weight = (found_inf.reshape(()) == 0).to(averages[0].dtype) * step
                changes = torch._foreach_sub(values, averages)
                torch._foreach_mul_(changes, weight)
                torch._foreach_add_(averages, changes)
            for kept, new in zip(*_paired(module.buffers(), model.buffers())):
                kept.copy_(new if found_inf is None else torch.where(found_inf.reshape(()) == 0, new, kept))

    def state(self) -> dict[str, Tensor]:
        """The averages' own tensors: `0.name` of the first, `1.name` of the second, ...; not copied."""
        return {
            f"{index}.{name}": tensor
            for index, module in enumerate(self.modules)
            for name, tensor in module.state_dict().items()
            if not name.startswith("extractor.")
        }

    @torch.no_grad()
    def restore(self, state: dict[str, Tensor]) -> None:
        """Takes back what `state` gave.

        Raises:
            ModelFileError: other names or shapes, or weights that are not finite.
        """
        own = self.state()
        check_tensors("averages", state, own)
        for name, tensor in own.items():
            tensor.copy_(state[name])


def _duplicate(model: nn.Module) -> nn.Module:
    shared: Any = getattr(model, "extractor", None)  # frozen, so that one is enough
    return copy.deepcopy(model, {} if shared is None else {id(shared): shared})


def _paired(averages: Any, values: Any) -> tuple[list[Tensor], list[Tensor]]:
    """Corresponding tensors, or this process's parts of them, without those that are one and the same."""
    pairs = [(local(a), local(b.detach())) for a, b in zip(averages, values) if a is not b]
    return [a for a, _ in pairs], [b for _, b in pairs]


# --- snapshots and reconstruction ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Reconstruction:
    """An average that was never kept, put together from snapshots of others.

    Attributes:
        tensors: weights by name, in the snapshots' dtypes.
        description: of the newest snapshot's model file, with the average's own width and time.
        coefficients: of the snapshots, by file; their sum is 1.
        error: what the snapshots' profiles cannot express of the wanted one, relative to it (in the L2 norm over time).
    """

    tensors: dict[str, Tensor]
    description: dict[str, Any]
    coefficients: dict[Path, float]
    error: float

    def save(self, path: str | Path) -> None:
        """Writes a model file for `fastdiff.models.load`.

        Raises:
            OSError: it cannot be written.
        """
        save_tensors(path, self.tensors, self.description)


def save_snapshots(
    folder: str | Path,
    averages: Averages,
    iteration: int,
    metadata: dict[str, Any] | None = None,
    modules: Sequence[nn.Module] | None = None,
) -> list[Path]:
    """Stores the power-function averages as model files, atomically: `0000500-0.050.safetensors`.

    Args:
        folder: made if there is none.
        averages: at least one power-function average among them, or nothing is written.
        iteration: iterations done so far, at least 1.
        metadata: of the model files, see `fastdiff.models.save`.
        modules: whole copies, one per average, of averages that are sharded.

    Raises:
        OSError: a file cannot be written.
    """
    check_count("iteration", iteration)
    files = []
    for profile, module in zip(averages.profiles, modules or averages.modules):
        if isinstance(profile, Power):
            Path(folder).mkdir(parents=True, exist_ok=True)
            file = Path(folder) / f"{iteration:07d}-{profile.sigma_rel:.3f}.safetensors"
            about = {"sigma_rel": profile.sigma_rel, "iteration": iteration}
            save(file, module, {**(metadata or {}), _KEY: about})
            files.append(file)
    return files


def snapshot_files(folder: str | Path) -> list[Path]:
    """The snapshots that `save_snapshots` wrote to a folder, oldest first."""
    named = [file for file in Path(folder).glob("*.safetensors") if re.fullmatch(r"\d{7,}-0\.\d{3}", file.stem)]
    return sorted(named, key=lambda file: (_iteration(file), file.stem))


def drop_snapshots(folder: str | Path, after: int) -> None:
    """Deletes the snapshots of later iterations than `after`: of a run that was killed, or (0) of an earlier one.

    Raises:
        OSError: one cannot be deleted.
    """
    for file in snapshot_files(folder):
        if _iteration(file) > after:
            file.unlink(missing_ok=True)


def _iteration(file: Path) -> int:
    """In a snapshot's name."""
    return int(file.stem.partition("-")[0])


def reconstruct(files: Sequence[str | Path], sigma_rel: float, iteration: int | None = None) -> Reconstruction:
    """The power-function average of any width, from stored snapshots of others (Karras et al. 2024, appendix C).

    The wanted profile is approximated by the snapshots' in the least-squares sense, from the profiles' inner products
    in float64; the weights' combination has the same coefficients. Two more conditions keep rounding small: the
    coefficients' sum is 1 (a weight that never changes stays as it is), and each has the price of a float32 rounding.

    Args:
        files: model files with what `save_snapshots` adds.
        sigma_rel: the wanted width.
        iteration: the wanted time, at most the newest snapshot's, which is the default.

    Raises:
        ValueError: no file, a width out of range, or a time that no snapshot reaches.
        ModelFileError: a file is missing, damaged, no snapshot, or of another network than the others.
    """
    gamma = gamma_of(sigma_rel)
    snapshots = [_Snapshot.read(Path(file)) for file in files]
    if not snapshots:
        raise ValueError("files must name at least one snapshot, got none")
    newest = max(snapshots, key=lambda snapshot: snapshot.iteration)
    time = newest.iteration if iteration is None else check_count("iteration", iteration)
    if time > newest.iteration:
        raise ValueError(f"iteration must be at most the newest snapshot's, {newest.iteration}, got {time}")
    gammas = np.array([snapshot.gamma for snapshot in snapshots])
    times = np.array([float(snapshot.iteration) for snapshot in snapshots])
    coefficients, error = _fit(gammas, times, gamma, float(time))

    reference, description = load_tensors(newest.file)
    sums = {name: torch.zeros_like(tensor, dtype=torch.float64) for name, tensor in reference.items()}
    for snapshot, coefficient in zip(snapshots, coefficients.tolist()):
        tensors, _ = load_tensors(snapshot.file)
        check_tensors(snapshot.file, tensors, reference)
        for name, tensor in tensors.items():
            if tensor.is_floating_point():
                sums[name].add_(tensor.double(), alpha=coefficient)
    averaged = {
        name: sums[name].to(tensor.dtype) if tensor.is_floating_point() else tensor
        for name, tensor in reference.items()
    }
    kept = {key: value for key, value in description.items() if key not in ("format", "digest")}
    kept[_KEY] = {"sigma_rel": float(sigma_rel), "iteration": time, "error": error}
    by_file = {snapshot.file: value for snapshot, value in zip(snapshots, coefficients.tolist())}
    return Reconstruction(averaged, kept, by_file, error)


@dataclass(frozen=True)
class _Snapshot:
    file: Path
    gamma: float
    iteration: int

    @classmethod
    def read(cls, file: Path) -> _Snapshot:
        about = read_metadata(file).get(_KEY)
        try:
            assert isinstance(about, dict)
            return cls(file, gamma_of(about["sigma_rel"]), check_count("iteration", about["iteration"]))
        except (AssertionError, KeyError, ValueError):
            raise ModelFileError(f"{file}: not a snapshot of a power-function average") from None


def _products(gamma: NDArray[Any], t: NDArray[Any], other_gamma: Any, other_t: Any) -> NDArray[np.float64]:
    """Integrals over time of products of two profiles (gamma + 1) tau^gamma / t^(gamma + 1), tau in [0, t].

    Args:
        gamma, t: [N, 1]; other_gamma, other_t: [M].

    Returns:
        [N, M].
    """
    least = np.minimum(t, other_t)
    powers = (gamma + 1) * np.log(least / t) + (other_gamma + 1) * np.log(least / other_t)
    result: NDArray[np.float64] = (gamma + 1) * (other_gamma + 1) / (gamma + other_gamma + 1) * np.exp(powers) / least
    return result


def _fit(gammas: NDArray[Any], times: NDArray[Any], gamma: float, time: float) -> tuple[NDArray[np.float64], float]:
    """Coefficients of the profiles of `gammas` and `times`, and the remaining error relative to the wanted profile."""
    column = (gammas[:, None], times[:, None] / time)
    gram = _products(*column, gammas, times / time)
    wanted = _products(*column, np.array([gamma]), np.array([1.0]))[:, 0]
    norm = float(_products(np.array([[gamma]]), np.array([[1.0]]), np.array([gamma]), np.array([1.0]))[0, 0])
    scale = np.sqrt(np.diag(gram))
    # Minimise x.G.x - 2 w.x with sum(x) = 1, in unit profiles y = scale x: symmetric, with one Lagrange multiplier.
    count = len(gammas)
    system = np.zeros((count + 1, count + 1))
    system[:count, :count] = gram / np.outer(scale, scale) + _ROUNDING**2 * np.eye(count)
    system[:count, count] = system[count, :count] = 1 / scale
    right = np.append(wanted / scale, 1.0)
    x = np.linalg.lstsq(system, right, rcond=1e-15)[0][:count] / scale
    x /= x.sum()
    residual = norm - 2 * float(wanted @ x) + float(x @ gram @ x)
    return x, math.sqrt(max(residual, 0.0) / norm)
