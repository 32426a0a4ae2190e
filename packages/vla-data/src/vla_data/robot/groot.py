"""A modality config of GR00T N1.6, as a robot file and the part of a training config that means the same.

What has no equal here is refused in one line; what differs is said.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from vla_core.config import to_plain
from vla_core.errors import UserError, suggest

from vla_data.formats.layout import Layout
from vla_data.formats.opening import open_layout
from vla_data.robot.config import GivenRotation, GroupConfig, RobotConfig, StoredRotation
from vla_data.robot.groot_config import read_groot_config
from vla_data.robot.instructions import SUB_TASK
from vla_data.robot.modality import FILE, read_modality

_POSES: dict[str, tuple[StoredRotation, GivenRotation, int]] = {
    "XYZ_ROT6D": ("rotation_6d_rows", "rotation_6d", 9),
    "XYZ_ROTVEC": ("axis_angle", "axis_angle", 6),
}
"""Format of a pose -> its rotation as stored and as given to the policy, and its number of dims."""


@dataclass
class Translation:
    """What a config becomes.

    Args:
        robot: the robot file.
        overlay: sections ``framework`` and ``datasets`` of a training config.
        notes: where the two systems differ, a line each.
    """

    robot: RobotConfig
    overlay: dict[str, Any]
    notes: list[str] = field(default_factory=list)


@dataclass
class _Steps:
    relative: dict[str, str] = field(default_factory=dict)
    poses: dict[str, str] = field(default_factory=dict)
    pose_state: dict[str, str] = field(default_factory=dict)


def translate(path: Path, file: Path, name: str | None = None) -> Translation:
    """The config in ``file`` for the data set at ``path``, which has a ``modality.json``.

    Raises:
        UserError: no such data set or config, or something in it that has no equal here.
    """
    layout, config = open_layout(path), read_groot_config(file, name)
    modality = read_modality(layout)
    if modality is None:
        raise UserError(f"{layout.root}: has no {FILE}, which says where the keys of {file} are")
    reader = _Reader(layout, file, modality.robot)
    action, state = config["action"], config.get("state")
    states = {n: reader.group("state", n) for n in (state["modality_keys"] if state else ())}
    steps, parts = _Steps(), dict[str, list[GroupConfig]]()
    targets: list[GroupConfig] = []
    for key, given in zip(action["modality_keys"], _actions(file, action), strict=True):
        targets += reader.action(key, given, states, parts, steps)
    vector = [part for key in states for part in parts.get(f"state.{key}", [states[key]])]
    notes = ["numbers: steps past an episode's end are masked; GR00T leaves the last T - 1 frames out"]
    language, said = reader.language(config.get("language"), modality.annotations)
    robot = RobotConfig(
        embodiment=modality.robot.embodiment,
        action=tuple(targets),
        state=tuple(vector),
        cameras=reader.cameras(config["video"]["modality_keys"]),
        instruction_key=language,
    )
    train: dict[str, Any] = {"name": "lerobot", "path": str(path)}
    moments = _moments(file, config)
    if moments != [0]:
        train["observation_delta_indices"] = moments
    overlay = {
        "framework": {
            "horizon": _horizon(file, action),
            "transforms": _transforms(file, config, parts, steps),
        },
        "datasets": {"train": [train]},
    }
    return Translation(robot, overlay, [*notes, *said])


def _actions(file: Path, action: Mapping[str, Any]) -> list[dict[str, Any]]:
    """(rep, type, format, state_key) of each key, by the names of their members."""
    plain = {"rep": "ABSOLUTE", "type": "NON_EEF", "format": "DEFAULT", "state_key": None}
    found = []
    for given in action.get("action_configs") or [plain] * len(action["modality_keys"]):
        if not isinstance(given, Mapping) or set(given) - set(plain):
            raise UserError(f"{file}: action_configs: {given!r} is no ActionConfig")
        one = {**plain, **given}
        for key, known in (
            ("rep", ("RELATIVE", "DELTA", "ABSOLUTE")),
            ("type", ("EEF", "NON_EEF")),
            ("format", ("DEFAULT", *_POSES)),
        ):
            one[key] = str(one[key]).upper().replace("+", "_")
            if one[key] not in known:
                raise UserError(f"{file}: action_configs: {key} '{one[key]}' is none of {', '.join(known)}")
        found.append(one)
    return found


def _horizon(file: Path, action: Mapping[str, Any]) -> int:
    indices = action["delta_indices"]
    if indices != list(range(len(indices))):
        raise UserError(
            f"{file}: action.delta_indices {indices} are not the steps from now on (0, 1, 2, ...), which a "
            "chunk is here"
        )
    return len(indices)


def _moments(file: Path, config: Mapping[str, Mapping[str, Any]]) -> list[int]:
    """Of pictures and states, which must agree."""
    video = config["video"]["delta_indices"]
    state = config["state"]["delta_indices"] if "state" in config else video
    if video != state:
        raise UserError(
            f"{file}: video has delta_indices {video} and state {state}; here all observations of a sample "
            "are of the same moments (observation_delta_indices)"
        )
    return list(video)


def _transforms(
    file: Path, config: Mapping[str, Mapping[str, Any]], parts: Mapping[str, list[GroupConfig]], steps: _Steps
) -> list[dict[str, Any]]:
    out: list[dict[str, Any]] = [{"name": "resize", "height": 224, "width": 224}]
    if steps.relative:
        out.append({"name": "relative_actions", "mode": "relative", "groups": steps.relative})
    if steps.poses:
        node: dict[str, Any] = {"name": "relative_pose", "poses": steps.poses}
        out.append({**node, "state": steps.pose_state} if steps.pose_state else node)
    normalize: dict[str, Any] = {"name": "normalize", "state": "min_max", "action": "min_max", "clip": 1.0}
    groups = {}
    for vector in ("state", "action"):
        part = config.get(vector) or {}
        if part.get("sin_cos_embedding_keys"):
            raise UserError(
                f"{file}: {vector}.sin_cos_embedding_keys: sines and cosines of a state are not computed "
                "here; take them out (GR00T applies them with apply_sincos_state_encoding alone)"
            )
        for key in part.get("mean_std_embedding_keys") or ():
            if key not in part["modality_keys"]:
                raise UserError(f"{file}: {vector}.mean_std_embedding_keys: no key '{key}'")
            names = [g.name for g in parts.get(f"{vector}.{key}", [])] or [key]
            groups.update({f"{vector}.{one}": "mean_std" for one in names})
    relative = [*steps.relative, *steps.poses, *steps.poses.values()]
    if relative:
        # A range for each step of the chunk, as GR00T has it for relative actions.
        normalize["by_step"] = relative
    if groups:
        # GR00T clips what min and max bound, and no mean_std; in the data nothing lies beyond min and max.
        normalize |= {"groups": groups, "clip": 0.0}
    return [*out, normalize]


class _Reader:
    """Keys of a modality config, by what ``modality.json`` says of them."""

    def __init__(self, layout: Layout, file: Path, robot: RobotConfig) -> None:
        self.layout, self.file, self.robot = layout, file, robot

    def group(self, which: str, name: str) -> GroupConfig:
        """As numbers: N1.6 does not look at ``rotation_type``."""
        known = {g.name: g for g in (self.robot.state if which == "state" else self.robot.action)}
        if name not in known:
            raise UserError(
                f"{self.file}: {which}: {self.layout.root / FILE} has no {which} '{name}'"
                f"{suggest(name, known)}"
            )
        return replace(known[name], rotation="none")

    def cameras(self, names: Sequence[str]) -> dict[str, str]:
        """In the order of the config."""
        known = self.robot.cameras or self.layout.cameras()
        for name in names:
            if name not in known:
                raise UserError(f"{self.file}: video: no camera '{name}'{suggest(name, known)}")
        return {name: known[name] for name in names}

    def language(
        self, given: Mapping[str, Any] | None, annotations: Mapping[str, str]
    ) -> tuple[tuple[str, ...], list[str]]:
        """Instruction keys, and what differs."""
        if given is None:
            return (), []
        key = given["modality_keys"][0]
        if key == "task":
            return (), [
                "instructions: a frame's task_index; GR00T draws one of its episode's tasks at random"
            ]
        if key == SUB_TASK:
            return (SUB_TASK,), [
                "instructions: a sub_task holds for its own frames; GR00T begins it up to half a chunk early"
            ]
        name = key.removeprefix("annotation.")
        if name not in annotations:
            raise UserError(f"{self.file}: language: no annotation '{name}'{suggest(name, annotations)}")
        return (annotations[name],), []

    def action(
        self,
        key: str,
        given: Mapping[str, Any],
        states: Mapping[str, GroupConfig],
        parts: dict[str, list[GroupConfig]],
        steps: _Steps,
    ) -> list[GroupConfig]:
        """The groups of one key; ``parts`` gets what keys are split into, ``steps`` what to do."""
        group, form = self.group("action", key), given["format"]
        where = f"{self.file}: action '{key}'"
        if given["rep"] != "DELTA" and group.representation == "delta":
            raise UserError(
                f"{where} is {given['rep']}, and {self.layout.root / FILE} says that it is recorded as a "
                "change (absolute: false); one of them is wrong"
            )
        if given["rep"] == "DELTA":
            group = replace(group, representation="delta")
        pose = given["type"] == "EEF" and form != "DEFAULT"
        made = self._split(where, group, form) if pose else [group]
        parts[f"action.{key}"] = made
        if given["rep"] != "RELATIVE":
            return made
        state = given["state_key"] or key
        if state not in states:
            raise UserError(
                f"{where} is relative to the state '{state}', which is not among the state's modality_keys"
                f"{suggest(state, states)}"
            )
        if given["type"] == "EEF" and form == "DEFAULT":
            raise UserError(
                f"{where} is relative, as matrices of 4 x 4 (format DEFAULT); record xyz+rot6d or xyz+rotvec"
            )
        if given["type"] == "NON_EEF" and form != "DEFAULT":
            raise UserError(
                f"{where} is NON_EEF with format {form}; numbers are subtracted with DEFAULT alone"
            )
        if not pose:
            steps.relative[key] = state
            return made
        there = parts.setdefault(
            f"state.{state}", self._split(f"{self.file}: state '{state}'", states[state], form)
        )
        steps.poses[made[0].name] = made[1].name
        for mine, its in zip(made, there, strict=True):
            if mine.name != its.name:
                steps.pose_state[mine.name] = its.name
        return made

    def _split(self, where: str, group: GroupConfig, form: str) -> list[GroupConfig]:
        """Position and rotation of a pose."""
        stored, given, dims = _POSES[form]
        if group.end is None or group.end - group.start != dims:
            raise UserError(f"{where}: {form} has {dims} dims, and {FILE} says [{group.start}, {group.end})")
        middle = group.start + 3
        return [
            replace(group, name=f"{group.name}_position", end=middle, range=None),
            replace(
                group,
                name=f"{group.name}_rotation",
                start=middle,
                range=None,
                rotation=stored,
                to=given,
            ),
        ]


def plain(robot: RobotConfig) -> dict[str, Any]:
    """For a YAML file: what is not said otherwise is left out."""
    told = to_plain(robot)
    usual = to_plain(GroupConfig("", None))
    for which in ("state", "action"):
        told[which] = [
            {k: v for k, v in group.items() if k == "name" or v != usual[k]} for group in told[which]
        ]
    return {key: value for key, value in told.items() if value}
