"""Damaged and hostile checkpoints are refused, nothing in them is run; what is valid computes the recorded output."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from fastdiff.importing import convert, load
from fastdiff.models import ModelFileError

from .cases import Case
from .checkpoint_cases import Recording

REFUSED = {"accept": False, "reject": True, "reject or report": True, "accept or reject": False}


def check(case: Case) -> None:
    recording = Recording(case)
    with empty_folder():
        if not recording.entry:
            _check_verdict(recording)
            return
        accepted = [name for name, variant in recording.fixture["variants"].items() if not REFUSED[variant["verdict"]]]
        assert accepted, f"{case.id}: no file is valid"
        for name in accepted:
            network = load(recording.path(name), config=_config(recording, name))
            recording.compare({"D": network(recording.inputs["x"], recording.inputs["sigma"])})


def _check_verdict(recording: Recording) -> None:
    file, name = recording.path(recording.name), recording.name
    if not REFUSED[recording.fixture["variants"][name]["verdict"]]:
        load(file, config=_config(recording, name))
        return
    for read in (load, lambda *given, **options: convert(given[0], "out.safetensors", **options)):
        with pytest.raises(ModelFileError) as refusal:
            read(file, config=_config(recording, name))
        assert str(file) in str(refusal.value)


def _config(recording: Recording, name: str) -> dict[str, Any] | None:
    """What goes with a file of tensors; EDM's pickles say it themselves."""
    if recording.fixture["files"][name]["format"] == "edm-pickle":
        return None
    return json.loads(recording.path("kwargs").read_text(encoding="utf-8"))


@contextmanager
def empty_folder() -> Iterator[Path]:
    """The current folder is an empty one, and must still be at the end."""
    before = Path.cwd()
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        try:
            yield Path(folder)
        finally:
            os.chdir(before)
        left = sorted(path.name for path in Path(folder).iterdir())
        assert not left, f"reading has left {', '.join(left)}"
