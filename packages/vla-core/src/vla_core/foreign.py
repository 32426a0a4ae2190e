"""Checkpoints of other systems where one of this project is expected: the command that takes them over."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from vla_core.errors import UserError

LEROBOT_TYPES = ("pi0", "pi05")
"""Policies of lerobot that ``vla-train import-lerobot`` takes over."""


def foreign_error(path: Path, directory: Path) -> UserError | None:
    """What to say about ``directory``, which the user called ``path``; None: nothing is known."""
    if _is_starvla(directory):
        return UserError(
            f"{path}: looks like a run of StarVLA; make a checkpoint of it with: "
            f"vla-train import-starvla {path} OUT"
        )
    config = _policy_config(directory)
    if config is None:
        return None
    kind = config.get("type")
    if isinstance(kind, str) and kind not in LEROBOT_TYPES:
        return UserError(
            f"{path}: a policy '{kind}' of lerobot; only {' and '.join(LEROBOT_TYPES)} can be taken over "
            "(vla-train import-lerobot)"
        )
    return UserError(
        f"{path}: looks like a pi0 of {'lerobot' if kind else 'openpi'}; make a checkpoint of it with: "
        f"vla-train import-lerobot {path} OUT"
    )


def _is_starvla(directory: Path) -> bool:
    """Whether StarVLA wrote this: its run's directory, or that of the weights within."""
    names = ("dataset_statistics.json", "checkpoints/steps_*_pytorch_model.pt", "steps_*_pytorch_model.pt",
             "checkpoints/steps_*_model.safetensors", "steps_*_model.safetensors")  # fmt: skip
    run = directory.parent if directory.name in ("checkpoints", "final_model") else directory
    return any(next(run.glob(name), None) is not None for name in names)


def _policy_config(directory: Path) -> Mapping[str, Any] | None:
    """The config.json of a policy that lerobot or openpi's conversion wrote there, or below (a run)."""
    for inner in ("", "pretrained_model", "checkpoints/last/pretrained_model"):
        file = directory / inner / "config.json"
        if not file.is_file():
            continue
        try:
            data = json.loads(file.read_text(encoding="utf-8"))
        except (json.JSONDecodeError, UnicodeDecodeError):
            return None
        if isinstance(data, dict) and (
            {"type", "input_features"} <= data.keys()
            or {"action_horizon", "paligemma_variant"} <= data.keys()
        ):
            return data
        return None
    return None
