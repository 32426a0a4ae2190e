"""The numbers of chosen episodes, read once: state, action, calibration, instructions.

Shapes: F frames, D dims.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from vla_core.errors import ConfigError
from vla_core.types import Float

from vla_data import clocks
from vla_data.errors import BadDataError
from vla_data.formats.layout import Episode, Layout, columns_of, read_columns
from vla_data.formats.tables import to_matrix, vector_problem
from vla_data.formats.video_checks import Surplus
from vla_data.robot.binding import Binding
from vla_data.robot.instructions import (
    SUB_TASK,
    Instructions,
    constant,
    instruction_columns,
    read_instructions,
)
from vla_data.robot.odd_commands import odd_commands
from vla_data.robot.odd_names import odd_cameras, odd_grippers
from vla_data.robot.odd_rotations import jumps
from vla_data.robot.vectors import Place, Vector, check_finite
from vla_data.shared_pictures import shared_pictures

CALIBRATION = {"intrinsics": (3, 3), "extrinsics": (4, 4)}


@dataclass(frozen=True)
class Frames:
    """What F frames hold besides pictures and depth.

    Args:
        state, action: vectors ``[F, D]``.
        calibration: column -> ``[F, 3, 3]`` (intrinsics) or ``[F, 4, 4]`` (extrinsics).
        instructions: of each frame.
        rows: ``[F]``, a frame's row in its episode's data file.
        notes: what is odd about them, a line each.
    """

    state: Vector
    action: Vector
    calibration: Mapping[str, Float]
    instructions: Instructions
    rows: NDArray[np.int64]
    notes: tuple[str, ...] = ()


def names_of(layout: Layout, episodes: Sequence[Episode]) -> Place:
    """What to call frame ``i`` of the chosen episodes in an error."""
    stops = np.cumsum([len(e) for e in episodes])

    def place(frame: int) -> str:
        position = int(np.searchsorted(stops, frame, side="right"))
        episode = episodes[position]
        return f"{layout.root}: episode {episode.index}, frame {frame - int(stops[position]) + len(episode)}"

    return place


def read_frames(
    layout: Layout,
    episodes: Sequence[Episode],
    binding: Binding,
    calibration: Mapping[str, str],
    instruction: str | None,
    surplus: Mapping[Path, Surplus] = MappingProxyType({}),
) -> Frames:
    """All of ``episodes``, in that order.

    Args:
        layout, episodes, binding: what is read.
        calibration: column -> its kind.
        instruction: of every frame; None: as recorded.
        surplus: videos that hold more frames than the metadata lists, and how many.

    Raises:
        UserError: a column that is not there, a value that is not what its column should hold, or rows that
            are other frames than the metadata lists.
    """
    if instruction is not None and not instruction.strip():
        raise ConfigError("instruction: it is empty, and nobody could ask the policy so; say what to do")
    texts: list[str] = []
    if instruction is None:
        texts = instruction_columns(columns_of(layout), binding.robot.instruction_key, binding.where)
    columns = [text for text in texts if text != SUB_TASK]
    wanted = [*binding.keys["state"], *binding.keys["action"], *calibration, *columns]
    numbers = read_columns(layout, episodes, wanted, clocks.COLUMNS)
    place = names_of(layout, episodes)
    notes = clocks.check_counters(layout, episodes, numbers.table, place, surplus)
    vectors = {which: binding.read(layout, which, numbers.table, place) for which in ("state", "action")}
    inside = np.ones(len(numbers.rows) - 1, np.bool_)
    inside[np.cumsum([len(e) for e in episodes])[:-1] - 1] = False
    notes += (*vectors["state"].notes, *vectors["action"].notes)
    for which, groups in (("state", binding.robot.state), ("action", binding.robot.action)):
        notes += tuple(odd_grippers(which, groups, binding.keys[which], layout.features))
    notes += tuple(odd_cameras(binding.cameras, layout.features))
    state, action = vectors["state"], vectors["action"]
    known = action.rows if state.rows is None else state.rows
    notes += tuple(shared_pictures(layout, episodes, binding.cameras.values(), known))
    if action.rows is not None:
        notes += tuple(jumps(action.groups, action.rows, inside))
    if state.rows is not None and action.rows is not None:
        notes += tuple(odd_commands((action.rows, action.groups), (state.rows, state.groups), inside))
    return Frames(
        state,
        action,
        {key: _matrices(numbers.table[key], key, kind, place) for key, kind in calibration.items()},
        read_instructions(layout, episodes, texts, numbers.table, place)
        if instruction is None
        else constant(instruction, len(numbers.rows)),
        numbers.rows,
        notes,
    )


def _matrices(column: pa.ChunkedArray, key: str, kind: str, place: Place) -> Float:
    problem = vector_problem(column, nested=True)
    if problem is not None:
        raise BadDataError(f"{place(problem[0])}: '{key}' {problem[1]}")
    flat = to_matrix(column)
    shape = CALIBRATION[kind]
    if flat.shape[1] != shape[0] * shape[1]:
        raise BadDataError(
            f"{place(0)}: '{key}' has {flat.shape[1]} numbers, {kind} have {shape[0] * shape[1]}"
        )
    check_finite(flat, key, place)
    return flat.reshape(-1, *shape)
