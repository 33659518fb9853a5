"""Finds the recorded cases and compares results with them.

The data is a folder (FASTDIFF_CONFORMANCE, default ../shared/conformance) with one sub-folder per source of truth; each
has an index.json that lists its cases. No case is named in code: what a test does follows from a case's family and
arguments.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cache, cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

ROOT = Path(os.environ.get("FASTDIFF_CONFORMANCE") or Path(__file__).parents[3] / "shared" / "conformance")

KNOWN_FAMILIES: dict[str, frozenset[str]] = {
    "edm": frozenset("model schedules edm ablation es dg sedm sedm_b kdiff kdiff_ll diffusers".split()),
    "ddpm": frozenset(
        "beta_schedules gd_tables gd_respace gd_p_mean_variance gd_p_sample gd_ddim gd_ddim_reverse gd_vb_terms "
        "gd_calc_bpd gd_losses gd_unit es_p_sample es_ddim ip_losses ts_adm_ddim ts_dpm ddim_repo ncsnv1_ald "
        "ncsnv2_ald ncsn_losses sde_tables sde_pc sde_ode sde_likelihood sde_losses diffusers".split()
    ),
    "checkpoints": frozenset("edm edm-layer guided-diffusion dg score-sde diffusers invalid".split()),
}


@dataclass(frozen=True)
class Case:
    """One entry of an index.json."""

    folder: str
    family: str
    name: str
    entry: Mapping[str, Any] = field(repr=False)

    @property
    def id(self) -> str:
        return f"{self.folder}/{self.family}/{self.name}"

    @cached_property
    def arrays(self) -> Mapping[str, np.ndarray]:
        """The recorded arrays, by name."""
        with np.load(ROOT / self.folder / self.entry["file"]) as archive:
            arrays = {name: archive[name] for name in archive.files}
        if set(arrays) != set(self.entry["arrays"]):
            raise ValueError(f"{self.id}: {self.entry['file']} holds other arrays than the index says")
        return arrays

    @property
    def model(self) -> Mapping[str, Any]:
        return self.entry["model"]

    @property
    def float32(self) -> bool:
        """Whether the reference ran with a float32 state."""
        return bool(self.entry.get("float32_run", False))

    @property
    def tolerance(self) -> float:
        return float(self.entry["suggested_tol"] if self.folder == "edm" else self.entry["rtol_hint"])

    def arguments(self, **defaults: Any) -> dict[str, Any]:
        """The reference's arguments over its `defaults`; one that is not among them is an error, not ignored."""
        given = self.entry["args"]
        unknown = sorted(set(given) - set(defaults))
        if unknown:
            raise TypeError(f"{self.id}: no rule for the argument(s) {', '.join(unknown)}")
        return {name: _number(given.get(name, default)) for name, default in defaults.items()}


def _number(value: Any) -> Any:
    return math.inf if value == "inf" else value


@cache
def all_cases(folder: str) -> tuple[Case, ...]:
    """Every case of a folder in the order of its index; none if there is no such folder."""
    index = ROOT / folder / "index.json"
    if not index.is_file():
        return ()
    content = json.loads(index.read_text(encoding="utf-8"))
    if "fixtures" in content:
        return tuple(_checkpoint_cases(folder, content["fixtures"]))
    return tuple(
        Case(folder, entry["family"], entry["id"].removeprefix(entry["family"] + "/"), entry)
        for entry in content["cases"]
    )


def _checkpoint_cases(folder: str, fixtures: list[dict[str, Any]]) -> Iterator[Case]:
    for fixture in fixtures:
        names = [case["name"] for case in fixture["cases"]]
        names += list(fixture.get("variants", {}))
        for name in names:
            yield Case(folder, fixture["family"], f"{fixture['id']}/{name}", fixture)


def data_folders() -> list[str]:
    """The sub-folders of the data that hold an index."""
    return sorted(path.parent.name for path in ROOT.glob("*/index.json"))


def case_params(
    folder: str,
    families: Collection[str],
    keep: Callable[[Case], bool] = lambda case: True,
    mark: Callable[[Case], Any] | None = None,
) -> list[Any]:
    """pytest parameters: the cases of `families` that `keep` accepts; a skipped one if the folder is missing."""
    if not (ROOT / folder / "index.json").is_file():
        reason = f"no recorded cases in {ROOT / folder} (set FASTDIFF_CONFORMANCE)"
        return [pytest.param(None, id=f"{folder}/missing", marks=pytest.mark.skip(reason=reason))]
    return [
        pytest.param(case, id=case.id, marks=mark(case) if mark else ())
        for case in all_cases(folder)
        if case.family in families and keep(case)
    ]


# --- comparing -------------------------------------------------------------------------------------------------------

Results = Mapping[str, Any]
worst_errors: dict[str, float] = {}


def as_array(value: Any) -> np.ndarray:
    return value.detach().cpu().numpy() if isinstance(value, torch.Tensor) else np.asarray(value)


def error(folder: str, got: Any, want: Any) -> float:
    """The measure of difference of the folder's SPEC.md; inf for NaN or another shape."""
    mine, recorded = as_array(got), as_array(want)
    if mine.shape != recorded.shape:
        return math.inf
    if not recorded.size:
        return 0.0
    mine, recorded = mine.astype(np.float64), recorded.astype(np.float64)
    difference, size = float(np.abs(mine - recorded).max()), float(np.abs(recorded).max())
    relative = difference / (max(1.0, size) if folder == "edm" else 1e-6 + size)
    return relative if math.isfinite(relative) else math.inf


def compare(case: Case, got: Results, tolerance: float, *, inputs: Collection[str] = (), label: str = "") -> None:
    """Every recorded array is an input or is compared with what was got; all differences are reported at once."""
    wanted = {name: array for name, array in case.arrays.items() if name not in inputs}
    missing = sorted(set(wanted) - set(got))
    assert not missing, f"{case.id}: recorded but not computed: {', '.join(missing)}"
    compare_results(case, got, wanted, tolerance, label=label)


def compare_results(case: Case, got: Results, want: Results, tolerance: float, *, label: str = "") -> None:
    """Each array of `want` within `tolerance` of the one in `got`, by the measure of the case's folder."""
    errors = {name: error(case.folder, got[name], array) for name, array in want.items()}
    key = f"{case.folder}/{case.family} {label}".strip()
    worst_errors[key] = max(worst_errors.get(key, 0.0), *errors.values())
    bad = [f"{name}: {value:.2e}" for name, value in errors.items() if not value <= tolerance]
    assert not bad, f"{case.id}: error above {tolerance:g} in {', '.join(bad)}"
