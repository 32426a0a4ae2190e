"""GR00T's ``meta/modality.json``: which dims of which columns are a group, which feature is a camera.

Source: the format as Isaac-GR00T (N1.5, N1.6) reads it. Its quaternions are (w, x, y, z), its 6D rotation is
the first two rows of the matrix, its Euler angles are intrinsic in the order of their letters.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vla_core.config import build_config
from vla_core.errors import ConfigError, UserError

from vla_data._names import read_json
from vla_data.formats.layout import Layout
from vla_data.robot.config import RobotConfig

FILE = "meta/modality.json"
_AXIS = {"r": "x", "p": "y", "y": "z"}
_ROTATIONS = {
    "axis_angle": "axis_angle",
    "quaternion": "quaternion_wxyz",
    "rotation_6d": "rotation_6d_rows",
    "matrix": "matrix",
    **{
        f"euler_angles_{order}": "euler_" + "".join(_AXIS[letter] for letter in order)
        for order in ("rpy", "ryp", "pry", "pyr", "yrp", "ypr")
    },
}
_KNOWN = {
    "state": ("start", "end", "original_key", "absolute", "rotation_type", "dtype", "range"),
    "video": ("original_key",),
    "annotation": ("original_key",),
}
_KNOWN["action"] = _KNOWN["state"]
_COLUMN = {"state": "observation.state", "action": "action"}


@dataclass(frozen=True)
class Modality:
    """A read ``modality.json``.

    Args:
        robot: what it describes.
        annotations: name -> column, in its order.
        ignored: keys that nobody here reads.
    """

    robot: RobotConfig
    annotations: Mapping[str, str]
    ignored: tuple[str, ...]


def read_modality(layout: Layout) -> Modality | None:
    """The data set's ``modality.json``, or None where it has none.

    Raises:
        UserError: not such a file, or a feature or rotation that is unknown.
    """
    file = layout.root / FILE
    if not file.is_file():
        return None
    content = read_json(file, "a modality.json")
    if not isinstance(content, Mapping) or not isinstance(content.get("action"), Mapping):
        raise UserError(f"{file}: must be a mapping with 'action' groups; remove or repair it")
    entries: dict[str, Mapping[str, Mapping[str, Any]]] = {}
    for which in _KNOWN:
        part = content.get(which) or {}
        if not isinstance(part, Mapping) or not all(isinstance(e, Mapping) for e in part.values()):
            raise UserError(f"{file}: '{which}' must map names to mappings")
        entries[which] = part
    ignored = [key for key in content if key not in _KNOWN]
    for which, known in _KNOWN.items():
        for name, entry in entries[which].items():
            ignored += [f"{which}.{name}.{key}" for key in entry if key not in known]
    annotations = {
        name: str(entry.get("original_key") or f"annotation.{name}")
        for name, entry in entries["annotation"].items()
    }
    robot = {
        "embodiment": str(layout.info.get("robot_type") or "default"),
        "cameras": {name: _camera(layout, file, name, e) for name, e in entries["video"].items()},
        "state": [_group(file, "state", *item) for item in entries["state"].items()],
        "action": [_group(file, "action", *item) for item in entries["action"].items()],
        "instruction_key": [*dict.fromkeys(annotations.values()), "task_index"] if annotations else [],
    }
    try:
        return Modality(build_config(RobotConfig, robot), annotations, tuple(ignored))
    except ConfigError as error:
        raise UserError(f"{file}: {error}") from error


def _camera(layout: Layout, file: Path, name: str, entry: Mapping[str, Any]) -> str:
    given = entry.get("original_key")
    tries = [str(given)] if given else [name, f"observation.images.{name}", f"video.{name}"]
    for key in tries:
        if key in layout.features:
            return key
    raise UserError(f"{file}: video.{name}: meta/info.json has no feature '{tries[0]}'")


def _group(file: Path, which: str, name: str, entry: Mapping[str, Any]) -> dict[str, Any]:
    rotation = entry.get("rotation_type")
    if rotation is not None and rotation not in _ROTATIONS:
        raise UserError(
            f"{file}: {which}.{name}.rotation_type: '{rotation}' is unknown (known: {', '.join(_ROTATIONS)})"
        )
    if "start" not in entry or "end" not in entry:
        raise UserError(f"{file}: {which}.{name} needs 'start' and 'end'")
    group = {
        "name": name,
        "key": str(entry.get("original_key") or _COLUMN[which]),
        "start": entry["start"],
        "end": entry["end"],
        "rotation": _ROTATIONS[rotation] if rotation is not None else "none",
        "range": entry.get("range"),
    }
    if which == "action" and entry.get("absolute", True) is False:
        group["representation"] = "delta"
    return group
