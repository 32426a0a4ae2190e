"""The files of a StarVLA run: its config, statistics and weights."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from vla_core.errors import UserError

CONFIGS = ("config.full.yaml", "config.yaml")
STATISTICS = ("dataset_statistics.json", "norm_stats.json")
_STEP = re.compile(r"steps_(\d+)_(pytorch_model\.pt|model\.safetensors)")


@dataclass(frozen=True)
class StarVLARun:
    """A run on disk.

    Args:
        weights: the state dict's file.
        step: its optimisation step, 0 for ``final_model``.
        config: the config that the run was built with.
        config_file, statistics_file: where that and the statistics come from.
        statistics: dataset key -> ``{"action": {...}, "state": {...}}``.
    """

    weights: Path
    step: int
    config: dict[str, Any]
    config_file: Path
    statistics: dict[str, Any]
    statistics_file: Path

    @property
    def directory(self) -> Path:
        """Of the run."""
        return self.config_file.parent

    def get(self, key: str, default: Any = None) -> Any:
        """The config's value at a dotted key."""
        node: Any = self.config
        for part in key.split("."):
            if not isinstance(node, dict) or part not in node:
                return default
            node = node[part]
        return node


def is_weights_name(name: str) -> bool:
    """Whether a file is named like StarVLA's weights."""
    return _STEP.fullmatch(name) is not None


def find_run(path: Path, step: int | None = None) -> StarVLARun:
    """The run at ``path``: its directory, its ``checkpoints`` folder, or a weights file.

    Args:
        path: see above.
        step: which of several weights; None: those of most steps.

    Raises:
        UserError: a file is missing or unreadable.
    """
    if path.is_file():
        weights = path
        roots = [path.parent.parent, path.parent]
    elif path.is_dir():
        weights = _newest(path, step)
        roots = [path, path.parent, weights.parent.parent]
    else:
        raise UserError(f"{path}: no such StarVLA run")
    config_file = _first(roots, CONFIGS, path, "config")
    statistics_file = _first(roots, STATISTICS, path, "normalisation statistics")
    match = _STEP.fullmatch(weights.name)
    return StarVLARun(
        weights=weights,
        step=int(match[1]) if match else 0,
        config=_config(config_file),
        config_file=config_file,
        statistics=_statistics(statistics_file),
        statistics_file=statistics_file,
    )


def _newest(path: Path, step: int | None) -> Path:
    found: dict[int, Path] = {}
    for folder in (path, path / "checkpoints"):
        for file in sorted(folder.glob("steps_*")):
            match = _STEP.fullmatch(file.name)
            if match:
                found[int(match[1])] = file
    final = [p for name in ("model.safetensors", "pytorch_model.pt") for p in path.glob(f"**/{name}")]
    if step is not None and step not in found:
        known = ", ".join(map(str, sorted(found))) or "none"
        raise UserError(f"{path}: has no weights of step {step} (known: {known})")
    if found:
        return found[max(found) if step is None else step]
    if final:
        return final[0]
    raise UserError(
        f"{path}: has no weights of StarVLA (steps_N_pytorch_model.pt or steps_N_model.safetensors, there "
        "or in checkpoints/)"
    )


def _first(roots: list[Path], names: tuple[str, ...], path: Path, what: str) -> Path:
    for root in roots:
        for name in names:
            if (root / name).is_file():
                return root / name
    raise UserError(f"{path}: the run has no {what} ({' or '.join(names)} in {roots[0]})")


def _config(file: Path) -> dict[str, Any]:
    try:
        data = yaml.safe_load(file.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"{file}: not valid YAML") from error
    if not isinstance(data, dict) or not isinstance(data.get("framework"), dict):
        raise UserError(f"{file}: not a StarVLA config, it has no 'framework' section")
    return data


def _statistics(file: Path) -> dict[str, Any]:
    try:
        data = json.loads(file.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"{file}: not valid JSON") from error
    if not isinstance(data, dict) or not data:
        raise UserError(f"{file}: not StarVLA's statistics (dataset key -> action, state)")
    for key, node in data.items():
        if not isinstance(node, dict) or not isinstance(node.get("action"), dict):
            raise UserError(f"{file}: '{key}' has no 'action' statistics")
    return data
