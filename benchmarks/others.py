"""k-diffusion's sampling module, without the training code that its package imports (wandb, torchvision, ...)."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from types import ModuleType
from typing import Any


def k_diffusion_sampling() -> Any:
    """`k_diffusion.sampling`, or ModuleNotFoundError saying what to install."""
    found = importlib.util.find_spec("k_diffusion")
    if found is None or found.submodule_search_locations is None:
        raise ModuleNotFoundError("k_diffusion is missing: pip install --no-deps k-diffusion; pip install torchsde")
    if "k_diffusion.sampling" in sys.modules:
        return sys.modules["k_diffusion.sampling"]
    package, vision, transforms = (ModuleType(n) for n in ("k_diffusion", "torchvision", "torchvision.transforms"))
    package.__path__ = list(found.submodule_search_locations)
    transforms.functional = None  # type: ignore[attr-defined]
    instead = {"k_diffusion": package, "torchvision": vision, "torchvision.transforms": transforms}
    before = {name: sys.modules.get(name) for name in instead}
    sys.modules |= instead
    try:
        return importlib.import_module("k_diffusion.sampling")
    finally:
        for name, module in before.items():
            if module is None:
                del sys.modules[name]
            else:
                sys.modules[name] = module
