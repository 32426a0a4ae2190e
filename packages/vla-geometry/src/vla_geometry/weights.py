"""Strict loading of local weights."""

from __future__ import annotations

from pathlib import Path

from safetensors.torch import load_file
from torch import nn
from vla_core.errors import ConfigError


def load_strict(module: nn.Module, path: str) -> None:
    """Fill ``module`` from a safetensors file.

    Raises:
        ConfigError: no such file, or its keys or shapes differ from the module's (they are listed).
    """
    if not Path(path).is_file():
        raise ConfigError(f"geometry.weights: no file '{path}'; give a local .safetensors file or null")
    found, wanted = load_file(path), module.state_dict()
    problems = {
        "missing": sorted(wanted.keys() - found.keys()),
        "unexpected": sorted(found.keys() - wanted.keys()),
        "of another shape": [
            f"{key} {list(found[key].shape)} instead of {list(wanted[key].shape)}"
            for key in sorted(found.keys() & wanted.keys())
            if found[key].shape != wanted[key].shape
        ],
    }
    if any(problems.values()):
        listed = "; ".join(f"{kind}: {', '.join(keys)}" for kind, keys in problems.items() if keys)
        raise ConfigError(
            f"geometry.weights: '{path}' does not fit the configured encoder ({listed}); "
            "set the sizes it was saved with"
        )
    module.load_state_dict(found)
