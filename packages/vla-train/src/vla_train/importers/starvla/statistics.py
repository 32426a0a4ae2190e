"""StarVLA's statistics as ours, so that our normalisation gives its numbers.

D dims of a vector.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from vla_core.errors import UserError
from vla_core.stats import NormStats, VectorStats

from vla_train.importers.starvla.robot_file import GroupEntry, RobotFile

CLIP = 2.2
"""Where StarVLA clamps q99-normalised values."""

_FIELDS = ("mean", "std", "min", "max", "q01", "q99")


def _vector(node: Mapping[str, Any], entries: list[GroupEntry], count: int, where: str) -> VectorStats:
    for name in _FIELDS:
        if name not in node:
            raise UserError(f"{where}: no '{name}'")
    values = {name: np.array(node[name], np.float64) for name in _FIELDS}
    dim = sum(entry.dim for entry in entries)
    for name, value in values.items():
        if value.shape != (dim,):
            raise UserError(f"{where}.{name}: has {value.size} dims, the groups of the robot file have {dim}")
    modes = np.array([entry.normalize for entry in entries for _ in range(entry.dim)])
    mask = node.get("mask")
    if mask is not None:
        for i, (kept, mode) in enumerate(zip(mask, modes, strict=True)):
            if not kept and mode not in ("binary", "none"):
                raise UserError(
                    f"{where}.mask: the run leaves dim {i} out of its normalisation, the robot file says "
                    f"normalize: {mode}; binary answers 0 or 1, none what the head says"
                )
    # StarVLA's gripper threshold is 0.5 and its answers are 0 and 1, whatever the data's range.
    binary = modes == "binary"
    values["min"] = np.where(binary, 0.0, values["min"])
    values["max"] = np.where(binary, 1.0, values["max"])
    # scale is x / max |x|: min_max over a symmetric range.
    bound = np.maximum(np.abs(values["min"]), np.abs(values["max"]))
    scale = modes == "scale"
    values["min"] = np.where(scale, -bound, values["min"])
    values["max"] = np.where(scale, bound, values["max"])
    # An empty quantile range comes back as its one value; ours would fall back to min and max.
    empty = (modes == "q99") & (values["q01"] == values["q99"])
    for name in ("min", "max"):
        values[name] = np.where(empty, values["q01"], values[name])
    return VectorStats(**values, count=count)


def convert(
    statistics: Mapping[str, Any], key: str, robot: RobotFile, with_state: bool, where: Path
) -> NormStats:
    """Statistics of dataset ``key``.

    Raises:
        UserError: a field or vector is missing, or its dims are not the robot file's.
    """
    node = statistics[key]
    count = int(node.get("num_transitions", 0))
    vectors = {"action": _vector(node["action"], robot.action, count, f"{where}: {key}.action")}
    if with_state:
        if not isinstance(node.get("state"), dict):
            raise UserError(f"{where}: '{key}' has no 'state' statistics, and the run reads the state")
        vectors["state"] = _vector(node["state"], robot.state, count, f"{where}: {key}.state")
    return NormStats(vectors)


def normalize_node(robot: RobotFile, with_state: bool) -> dict[str, Any]:
    """The ``normalize`` step of the pipeline."""
    vectors = {"action": robot.action, **({"state": robot.state} if with_state else {})}
    ours = {
        f"{vector}.{entry.name}": "min_max" if entry.normalize == "scale" else entry.normalize
        for vector, entries in vectors.items()
        for entry in entries
    }
    modes = set(ours.values())
    # One clip holds for all groups: only where no other mode could be cut by it.
    clip = CLIP if "q99" in modes and "mean_std" not in modes else 0.0
    return {"name": "normalize", "state": "none", "action": "none", "groups": ours, "clip": clip}
