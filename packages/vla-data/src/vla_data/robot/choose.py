"""Which description of a robot counts: the user's file, our recorder's, GR00T's, or the feature table."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from vla_core.errors import UserError
from vla_core.specs import RobotSpec

from vla_data._names import check_spec_names, read_json
from vla_data.formats import features
from vla_data.formats.info import FILE
from vla_data.formats.layout import SPEC_FILE, Layout
from vla_data.robot.config import GroupConfig, RobotConfig, load_robot
from vla_data.robot.modality import read_modality


def choose_robot(layout: Layout, file: str | None) -> tuple[RobotConfig, str]:
    """The robot of a data set, and what described it (a path, for errors).

    Args:
        layout: the data set.
        file: a YAML file that wins over what lies in the data set.

    Raises:
        UserError: the description is damaged, or there is no action.
    """
    if file is not None:
        return load_robot(file), str(file)
    if (layout.root / SPEC_FILE).is_file():
        return _recorded(layout), str(layout.root / SPEC_FILE)
    modality = read_modality(layout)
    if modality is not None:
        return modality.robot, str(layout.root / "meta" / "modality.json")
    return derived(layout), str(layout.root / FILE)


def _recorded(layout: Layout) -> RobotConfig:
    file = layout.root / SPEC_FILE
    try:
        node = read_json(file, "a robot spec")
        check_spec_names(node, file)
        spec = RobotSpec.from_dict(node)
    except (KeyError, TypeError) as error:
        raise UserError(f"{file}: not a robot spec ({error!r}); remove it or repair it") from error

    def groups(parts: Any, key: str) -> tuple[GroupConfig, ...]:
        out, start = [], 0
        for g in parts:
            out.append(
                GroupConfig(
                    g.name, key, start, start + g.dim, g.unit, g.representation, g.rotation, None, g.gripper
                )
            )
            start += g.dim
        return tuple(out)

    for key, parts in (("action", spec.action.groups), ("observation.state", spec.observation.state)):
        wide = int(np.prod(layout.features[key]["shape"])) if key in layout.features else None
        said = sum(g.dim for g in parts)
        if wide not in (None, said) and parts:
            raise UserError(
                f"{file}: its groups have {said} dims of '{key}', which has {wide} by {FILE}; it is of other "
                "data: repair it, or name a robot file"
            )
    return RobotConfig(
        embodiment=spec.embodiment,
        action=groups(spec.action.groups, "action"),
        state=groups(spec.observation.state, "observation.state"),
        control_hz=spec.action.control_hz,
    )


def derived(layout: Layout) -> RobotConfig:
    """From the feature table alone: the units are unknown, a column is one group, all is absolute."""
    table: Mapping[str, Mapping[str, Any]] = layout.features
    keys = {which: features.vector_keys(table, which) for which in ("action", "state")}
    if not keys["action"]:
        raise UserError(
            f"{layout.root}: the dataset has no feature 'action' ({FILE} names {', '.join(table)}); say "
            "which column it is in a robot file"
        )
    groups = {
        which: tuple(GroupConfig(features.group_name(key, which), key) for key in found)
        for which, found in keys.items()
    }
    return RobotConfig(
        embodiment=str(layout.info.get("robot_type") or "default"),
        action=groups["action"],
        state=groups["state"],
    )
