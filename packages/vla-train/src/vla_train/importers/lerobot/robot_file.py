"""The robot file for a published policy: what its directory does not say."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from omegaconf import MISSING
from vla_core.errors import UserError, suggest
from vla_core.specs import CameraSpec

from vla_train.importers.common.robot_file import GroupEntry, RobotEntry, read_robot_file, template_text
from vla_train.importers.lerobot.published import Published


@dataclass(frozen=True)
class RobotFile(RobotEntry):
    """The YAML file behind ``--robot``.

    Args:
        cameras: the robot's among the policy's, with the sizes of their raw images; none: all, as the
            source has them. The order is the policy's.
        action, state: groups in the order of the statistics.
    """

    action: list[GroupEntry] = field(default_factory=list)
    state: list[GroupEntry] = field(default_factory=list)


def read_robot(path: Path) -> RobotFile:
    """The file at ``path``; see :func:`~vla_train.importers.common.robot_file.read_robot_file`."""
    return read_robot_file(RobotFile, path)


def cameras_of(source: Published, robot: RobotFile) -> tuple[tuple[CameraSpec, ...], list[str]]:
    """The cameras of the policy that the robot has, and notes.

    Raises:
        UserError: the robot file names one that the policy does not know.
    """
    if not robot.cameras:
        return source.cameras, []
    known = [camera.name for camera in source.cameras]
    sizes: dict[str, CameraSpec] = {}
    for entry in robot.cameras:
        if entry.name not in known:
            raise UserError(
                f"{source.directory}: the policy has no camera '{entry.name}'{suggest(entry.name, known)}"
            )
        sizes[entry.name] = CameraSpec(entry.name, entry.height, entry.width)
    left = [name for name in known if name not in sizes]
    notes = [f"camera {name}: the robot has none; the policy sees it as missing" for name in left]
    return tuple(sizes[name] for name in known if name in sizes), notes


def template(source: Published) -> str:
    """A robot file with what the source says filled in, and ``???`` where the user knows more."""
    blank = {"unit": MISSING, "representation": MISSING}

    def groups(name: str) -> list[dict[str, Any]]:
        vector = source.state if name == "state" else source.action
        dim = vector.dim
        if dim is None and vector.fields:
            dim = len(next(iter(vector.fields.values())))
        if dim is None:
            return [{"name": MISSING, "dim": MISSING, **blank}]
        known = source.names if name == "action" and len(source.names) == dim else ()
        return [{"name": known[i] if known else f"dim_{i}", "dim": 1, **blank} for i in range(dim)]

    data: dict[str, Any] = {
        "embodiment": MISSING,
        "control_hz": MISSING,
        "cameras": [{"name": c.name, "height": c.height, "width": c.width} for c in source.cameras],
        "action": groups("action"),
        "state": groups("state"),
    }
    comments = [
        "cameras: remove those that the robot lacks; height and width are those of its raw images.",
        f"action, state: at most {source.limit('action')} and {source.limit('state')} dims.",
    ]
    return template_text(comments, data)
