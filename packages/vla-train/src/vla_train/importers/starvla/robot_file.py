"""The robot of a run: a small YAML file, because StarVLA's runs do not record theirs.

A run keeps flat statistics of state and action. Which cameras, in which order and size, what the
dims mean and how each was normalised stood in code; the file says it, and nothing is guessed.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from omegaconf import MISSING
from vla_core.errors import ConfigError, UserError, suggest

from vla_train.importers.common import robot_file


@dataclass(frozen=True)
class GroupEntry(robot_file.GroupEntry):
    """Consecutive dims of the state or action vector.

    Args:
        normalize: StarVLA's normalisation mode of these dims; ``none`` if it left them as they are.
    """

    normalize: Literal["q99", "min_max", "mean_std", "scale", "binary", "none"] = MISSING


@dataclass(frozen=True)
class RobotFile(robot_file.RobotEntry):
    """The YAML file behind ``--robot``.

    Args:
        cameras: in the order in which the run's images were given to the model.
        action, state: groups in the order of the statistics (a state that the run did not read may be
            left out).
    """

    action: list[GroupEntry] = field(default_factory=list)
    state: list[GroupEntry] = field(default_factory=list)

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.cameras:
            raise ConfigError("'cameras' must list at least one entry")


def read_robot(path: Path) -> RobotFile:
    """The file at ``path``; see :func:`~vla_train.importers.common.robot_file.read_robot_file`."""
    return robot_file.read_robot_file(RobotFile, path)


def choose_key(statistics: Mapping[str, Any], key: str | None, where: Path) -> str:
    """The dataset whose statistics to take.

    Raises:
        UserError: there are several and ``key`` names none, or there is none of that name.
    """
    if key is None and len(statistics) == 1:
        return next(iter(statistics))
    if key is None:
        raise UserError(f"{where}: has statistics of {', '.join(statistics)}; choose with --unnorm_key")
    if key not in statistics:
        raise UserError(f"--unnorm_key: {where} has no '{key}'{suggest(key, statistics)}")
    return key


def template(statistics: Mapping[str, Any], key: str, with_state: bool) -> str:
    """A robot file with what the statistics tell filled in, and ``???`` where the user knows more."""
    blank = {"unit": MISSING, "representation": MISSING, "normalize": MISSING}

    def groups(node: Mapping[str, Any]) -> list[dict[str, Any]]:
        return [{"name": f"dim_{i}", "dim": 1, **blank} for i in range(len(node["mean"]))]

    data: dict[str, Any] = {
        "embodiment": key,
        "control_hz": MISSING,
        "cameras": [{"name": MISSING, "height": MISSING, "width": MISSING}],
        "action": groups(statistics[key]["action"]),
    }
    if with_state and "state" in statistics[key]:
        data["state"] = groups(statistics[key]["state"])
    comments = [
        "cameras: in the order of the run's images.",
        "normalize: q99, min_max, mean_std, scale, binary or none.",
    ]
    left = [f"dim_{i}" for i, kept in enumerate(statistics[key]["action"].get("mask", [])) if not kept]
    if left:
        comments.append(f"the run left action {', '.join(left)} out: binary (0 or 1), or none (as it is).")
    return robot_file.template_text(comments, data)
