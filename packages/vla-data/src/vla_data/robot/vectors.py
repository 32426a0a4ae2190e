"""State and action vectors of a described robot: columns cut, converted, joined. Shapes: F frames, D dims."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from vla_core.errors import ConfigError, UserError, suggest
from vla_core.specs import GroupSpec
from vla_core.types import Float

from vla_data.errors import BadDataError
from vla_data.formats import features
from vla_data.formats.info import FILE
from vla_data.formats.layout import Layout
from vla_data.formats.tables import to_matrix, vector_problem
from vla_data.robot import rotations
from vla_data.robot.config import GroupConfig
from vla_data.robot.odd_rotations import malformed

Place = Callable[[int], str]
"""Row -> what to call it: data set, episode and frame."""


@dataclass(frozen=True)
class Vector:
    """A vector ``[F, D]`` and the groups of its dims; no rows where the robot has none; what is odd."""

    rows: Float | None
    groups: tuple[GroupSpec, ...]
    notes: tuple[str, ...] = ()


def columns(layout: Layout, which: str, groups: Sequence[GroupConfig], where: str) -> list[str]:
    """The column of each group of ``"state"`` or ``"action"``.

    Raises:
        ConfigError: a column that the data set does not have, or does not have as a vector.
    """
    usual = features.vector_keys(layout.features, which)
    found = []
    for group in groups:
        key = group.key
        if key is None or (key not in layout.features and key == _standard(which)):
            # The standard name stands for the data set's own: 'actions', 'state'.
            if len(usual) != 1:
                raise ConfigError(
                    f"{where}: {which} group '{group.name}' needs 'key': the data set has "
                    f"{'no single column' if usual else 'no column'} of it{_list(usual)}"
                )
            key = usual[0]
        if key not in layout.features:
            raise ConfigError(
                f"{where}: {which} group '{group.name}': {layout.root} has no column "
                f"'{key}'{suggest(key, layout.features)}"
            )
        _check_shape(layout, key, group, where, which)
        found.append(key)
    return found


def _standard(which: str) -> str:
    return {"state": "observation.state", "action": "action"}[which]


def _list(keys: Sequence[str]) -> str:
    return f" ({', '.join(keys)})" if keys else ""


def _check_shape(layout: Layout, key: str, group: GroupConfig, where: str, which: str) -> None:
    feature = layout.features[key]
    shape = feature["shape"] if isinstance(feature["shape"], list) else [feature["shape"]]
    if len([n for n in shape if n != 1]) > 1:
        raise UserError(
            f"{layout.root / FILE}: '{key}' has shape {list(shape)}; a vector a frame is needed as {which}"
        )
    width = int(np.prod(shape)) if shape else 1
    if max(group.start + 1, group.end or 0) > width:
        raise ConfigError(
            f"{where}: {which} group '{group.name}' is dims [{group.start}, {group.end}) of '{key}', which "
            f"has {width}"
        )


def read_vector(
    layout: Layout,
    which: str,
    groups: Sequence[GroupConfig],
    keys: Sequence[str],
    table: pa.Table,
    place: Place,
) -> Vector:
    """The vector of ``table``'s rows.

    Raises:
        BadDataError: a value that is null, ragged, NaN or no number, a width that the info does not say, or a
            rotation without a direction.
    """
    if not groups:
        return Vector(None, ())
    values: dict[str, Float] = {}
    for key in dict.fromkeys(keys):
        problem = vector_problem(table[key])
        if problem is not None:
            raise BadDataError(f"{place(problem[0])}: '{key}' {problem[1]}")
        values[key] = to_matrix(table[key])
        _check_width(layout, key, values[key].shape[1], place)
        check_finite(values[key], key, place)
    parts = [_part(g, values[key], place) for g, key in zip(groups, keys, strict=True)]
    specs = tuple(
        GroupSpec(
            g.name, part.shape[1], g.unit, g.representation,
            "none" if g.rotation == "none" else rotations.target(g.rotation, g.to), g.gripper,
        )
        for g, part in zip(groups, parts, strict=True)
    )  # fmt: skip
    rows = parts[0] if len(parts) == 1 else np.concatenate(parts, axis=1)
    notes = []
    for group, key in zip(groups, keys, strict=True):
        stored = values[key][:, group.start : group.end]
        why = None if group.rotation == "none" else malformed(group, stored)
        if why is not None:
            notes.append(f"{which} '{group.name}' is stored as {group.rotation} and {why}")
    return Vector(np.ascontiguousarray(rows), specs, tuple(notes))


def check_finite(values: Float, key: str, place: Place) -> None:
    """Raise BadDataError where ``values [F, D]`` of a column hold NaN or infinity."""
    bad = ~np.isfinite(values).all(axis=1)
    if bad.any():
        raise BadDataError(
            f"{place(int(bad.argmax()))}: '{key}' holds NaN or infinity, as {int(bad.sum())} frames do; "
            "leave such episodes out or repair them"
        )


def _check_width(layout: Layout, key: str, width: int, place: Place) -> None:
    shape: Any = layout.features[key]["shape"]
    says = int(np.prod(shape))
    if says != width:
        raise BadDataError(
            f"{place(0)}: '{key}' has {width} dims, and {says} by {FILE}; correct the shape there or the data"
        )


def _part(group: GroupConfig, values: Float, place: Place) -> Float:
    part = values[:, group.start : group.end]
    if group.rotation != "none":
        want = rotations.DIMS[group.rotation]
        if part.shape[1] != want:
            raise ConfigError(
                f"group '{group.name}': a rotation as {group.rotation} has {want} dims, and this "
                f"group has {part.shape[1]}"
            )
        to = rotations.target(group.rotation, group.to)
        if to != group.rotation:
            try:
                part = rotations.convert(part, group.rotation, to)
            except ValueError as error:
                norms = np.linalg.norm(part, axis=1)
                raise BadDataError(f"{place(int(norms.argmin()))}: group '{group.name}': {error}") from error
    if group.threshold is not None:
        part = (part > group.threshold).astype(np.float32)
    return part


def out_of_range(groups: Sequence[GroupConfig], vector: Vector) -> Mapping[str, tuple[float, float]]:
    """Group -> (smallest, largest) value, of groups that leave the range which their makers declare."""
    found, start = {}, 0
    for group, spec in zip(groups, vector.groups, strict=True):
        assert vector.rows is not None
        part = vector.rows[:, start : start + spec.dim]
        start += spec.dim
        if group.range is not None and len(part):
            low, high = float(part.min()), float(part.max())
            if low < group.range[0] or high > group.range[1]:
                found[group.name] = low, high
    return found
