"""A robot file proposed from a data set: what its names and numbers say, and in comments what was guessed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from vla_core.types import Float

from vla_data.formats import features
from vla_data.formats.info import FILE
from vla_data.formats.layout import Layout, columns_of, read_columns
from vla_data.formats.opening import open_layout
from vla_data.formats.tables import to_matrix
from vla_data.robot.binding import bind, declared_cameras
from vla_data.robot.choose import choose_robot
from vla_data.robot.config import GroupConfig, RobotConfig
from vla_data.robot.guess import (
    Guess,
    by_name,
    split_by_names,
    split_by_values,
    with_representation,
    with_unit,
)
from vla_data.robot.vectors import columns

_EPISODES = 20
"""So many episodes are looked at."""


def propose(path: str | Path) -> str:
    """The text of a robot file for the data set at ``path``: valid as it is, with a comment at every guess.

    Raises:
        UserError: no dataset there, or no action in it.
    """
    layout = open_layout(path)
    robot, where = choose_robot(layout, None)
    stated = not where.endswith(FILE)
    present, absent = declared_cameras(layout)
    episodes = layout.episodes[:: max(1, len(layout.episodes) // _EPISODES)][:_EPISODES]
    if present:
        bind(layout, episodes, None, list(present))
    name = Path(where).name
    lines = [
        f"# The robot of {Path(path).name}, proposed by vla-data describe.",
        f"# Stated by {name}; what it leaves open was guessed from {len(episodes)} episodes: check it.",
        f"embodiment: {_scalar(robot.embodiment)}",
        f"control_hz: {robot.control_hz or layout.fps:g}"
        + ("" if robot.control_hz else "  # the data set's fps"),
        "cameras:" if present else "cameras: {}",
    ]
    for camera, key in present.items():
        lines.append(f"  {_scalar(camera)}: {_scalar(key)}  # {_camera(layout, key)}")
    lines += [f"  # {camera}: {key} has no pictures ({why})" for camera, (key, why) in absent.items()]
    for key in features.depth_pictures(layout.features):
        lines.append(f"  # {key} holds depth maps, which no policy reads as a camera")
    guesses = _guesses(layout, robot, where, stated, episodes)
    for which in ("state", "action"):
        lines.append(f"{which}:" if guesses[which] else f"{which}: []")
        for guess in guesses[which]:
            lines += [f"  # {reason}" for reason in guess.reasons]
            lines.append(f"  - {_flow(guess.group)}")
    if robot.instruction_key:
        lines.append(f"instruction_key: [{', '.join(map(_scalar, robot.instruction_key))}]")
    for key in columns_of(layout):
        if key.startswith("annotation.") and key not in robot.instruction_key:
            lines.append(f"# another instruction: instruction_key: [{key}]")
    return "\n".join(lines) + "\n"


def _guesses(
    layout: Layout, robot: RobotConfig, where: str, stated: bool, episodes: Sequence[Any]
) -> dict[str, list[Guess]]:
    keys = {
        "state": columns(layout, "state", robot.state, where),
        "action": columns(layout, "action", robot.action, where),
    }
    table = read_columns(layout, episodes, [*keys["state"], *keys["action"]]).table
    values: dict[str, Float] = {key: to_matrix(table[key]) for key in table.column_names}
    found: dict[str, list[Guess]] = {}
    for which, groups in (("state", robot.state), ("action", robot.action)):
        found[which] = []
        for group, key in zip(groups, keys[which], strict=True):
            named = features.dim_names(layout.features[key])
            if stated:
                found[which].append(Guess(replace(group, key=key)))
            elif len(groups) == 1 and named is not None and len(set(named)) == len(named):
                found[which] += split_by_names(named, key)
            elif len(groups) == 1:
                found[which] += split_by_values(values[key], key, group.name)
            else:
                found[which].append(by_name(replace(group, key=key)))
        found[which] = [with_unit(g, values[g.group.key or ""]) for g in found[which]]
    lengths = [len(e) for e in episodes]
    stops = np.zeros(sum(lengths), bool)
    stops[np.cumsum(lengths) - 1] = True
    states = {g.group.name: _cut(values, g.group) for g in found["state"]}
    if not stated:
        found["action"] = [
            with_representation(g, _cut(values, g.group), states.get(_partner(g, states)), stops)
            for g in found["action"]
        ]
    return found


def _partner(guess: Guess, states: dict[str, Float]) -> str:
    """The state group of the same name, or of the only vector there is."""
    return "state" if guess.group.name == "action" and "state" in states else guess.group.name


def _cut(values: dict[str, Float], group: GroupConfig) -> Float:
    return values[group.key or ""][:, group.start : group.end]


def _camera(layout: Layout, key: str) -> str:
    feature = layout.features[key]
    size = features.image_size(feature)
    return f"{feature['dtype']}" + (f", {size[1]} x {size[0]} by {FILE}" if size else "")


def _scalar(text: object) -> str:
    return yaml.safe_dump(text, default_flow_style=True, width=10_000).removesuffix("\n...\n").strip()


def _flow(group: GroupConfig) -> str:
    parts = []
    for f in fields(group):
        value = getattr(group, f.name)
        if f.name in ("name", "unit") or value != f.default:
            plain = list(value) if isinstance(value, tuple) else value
            parts.append(f"{f.name}: {_scalar(plain)}")
    return "{" + ", ".join(parts) + "}"
