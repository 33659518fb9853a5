"""The recordings of the checkpoints folder: files, inputs, outputs and their own tolerances."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor

from .cases import ROOT, Case, worst_errors


class Recording:
    """One case of a fixture.

    Attributes:
        fixture: the fixture's entry of the index.
        name: of the case, or of the variant.
        entry: of the case; empty for a variant.
    """

    def __init__(self, case: Case):
        self.case, self.fixture = case, case.entry
        self.name = case.name.partition("/")[2]
        found = [entry for entry in self.fixture["cases"] if entry["name"] == self.name]
        self.entry: Mapping[str, Any] = found[0] if found else {}

    @property
    def scalars(self) -> Mapping[str, Any]:
        return self.entry.get("scalars", {})

    def path(self, role: str) -> Path:
        """The file of a role ("checkpoint", "state_dict", "kwargs", ...) or of a variant's name."""
        return ROOT / self.case.folder / self.fixture["files"][role]["path"]

    def array(self, key: str) -> Tensor:
        """An array of the fixture's recordings."""
        with safe_open(self.path("expected"), framework="pt") as file:
            return file.get_tensor(key)

    def arrays(self, prefix: str) -> dict[str, Tensor]:
        """All arrays whose keys begin with a prefix, by the rest of their keys."""
        with safe_open(self.path("expected"), framework="pt") as file:
            return {key[len(prefix) :]: file.get_tensor(key) for key in file.keys() if key.startswith(prefix)}

    @cached_property
    def inputs(self) -> dict[str, Tensor]:
        return {name: self.array(what["key"]) for name, what in self.entry["inputs"].items()}

    @cached_property
    def outputs(self) -> dict[str, Tensor]:
        return {name: self.array(what["key"]) for name, what in self.entry["outputs"].items()}

    def compare(self, got: Mapping[str, Tensor]) -> None:
        """Every recorded output is there and within its own tolerance, each row within its own where rows have one."""
        missing = sorted(set(self.outputs) - set(got))
        assert not missing, f"{self.case.id}: recorded but not computed: {', '.join(missing)}"
        bad = {name: used for name in self.outputs if not (used := self._used(name, got[name])) <= 1.0}
        assert not bad, f"{self.case.id}: more than the tolerance: {', '.join(f'{n} {u:.2g}x' for n, u in bad.items())}"

    def _used(self, name: str, got: Tensor) -> float:
        """The largest difference, in units of the tolerance."""
        want, tolerance = self.outputs[name], self.entry["outputs"][name]["tolerance"]
        if tuple(got.shape) != tuple(want.shape):
            return float("inf")
        if tolerance == "exact" or tolerance.get("exact"):
            return 0.0 if torch.equal(got.to(want.dtype), want) else float("inf")
        got, want = got.detach().double(), want.double()
        rows = tolerance.get("atol_per_row")
        atol = torch.tensor(tolerance["atol"] if rows is None else rows, dtype=torch.float64)
        atol = atol.reshape(-1, *(1,) * (want.ndim - 1)) if rows is not None else atol
        bound = (atol + tolerance["rtol"] * want.abs()).clamp(min=1e-300)
        used = float(((got - want).abs() / bound).nan_to_num(nan=float("inf")).max()) if want.numel() else 0.0
        key = f"{self.case.folder}/{self.case.family} (of the tolerance)"
        worst_errors[key] = max(worst_errors.get(key, 0.0), used)
        return used
