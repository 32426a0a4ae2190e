"""What names and numbers suggest about a vector: groups, rotations, grippers, deltas; each with its reason.

Shapes: F frames, D dims.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from vla_core.types import Float

from vla_data.robot.config import GroupConfig

GRIPPER = "gripper"

_KINDS: tuple[tuple[str, str], ...] = (
    # A kind, and what the last word of a dim's name is then.
    (GRIPPER, r"gripper\w*|grip|jaw|finger\w*|hand_open"),
    ("quaternion", r"q[xyzw]|quat_?[xyzw0-3]|rot_?[xyzw]_?quat"),
    ("euler", r"roll|pitch|yaw"),
    ("axis_angle", r"r[xyz]|rot_?[xyz]|axis_?angle_?[xyz0-2]"),
    ("position", r"[xyz]|pos_?[xyz]|[xyz]_?pos"),
)
_SIDE = re.compile(r"(left|right)[._ ]?")
_SUFFIX = re.compile(r"[._ ](pos|position|val|value|cmd)$")
_NAMES = {
    GRIPPER: "gripper", "quaternion": "rotation", "euler": "rotation", "axis_angle": "rotation",
    "position": "position", "joints": "joints",
}  # fmt: skip


@dataclass(frozen=True)
class Guess:
    """A group, and why it is as it is."""

    group: GroupConfig
    reasons: tuple[str, ...] = ()

    def because(self, reason: str, **changes: Any) -> Guess:
        """With other values and one more reason."""
        return Guess(replace(self.group, **changes), (*self.reasons, reason))


def kind_of(name: str) -> tuple[str, str]:
    """(side, kind) of a dim by its name: ``left_gripper.pos`` -> (``left``, ``gripper``)."""
    low = _SUFFIX.sub("", name.lower())
    side = _SIDE.search(low)
    word = re.split(r"[._ ]", _SIDE.sub("", low))
    for kind, pattern in _KINDS:
        if re.fullmatch(pattern, word[-1]) or re.fullmatch(pattern, "_".join(word[-2:])):
            return (side[1] if side else ""), kind
    return (side[1] if side else ""), "joints"


def split_by_names(names: Sequence[str], key: str) -> list[Guess]:
    """Groups of consecutive dims of one kind; a single group where the names tell nothing."""
    kinds = [kind_of(name) for name in names]
    out: list[Guess] = []
    start = 0
    for i in range(1, len(names) + 1):
        if i < len(names) and kinds[i] == kinds[start]:
            continue
        side, kind = kinds[start]
        name = "_".join(part for part in (side, _NAMES[kind]) if part)
        taken = [g.group.name for g in out]
        if name in taken:
            name = f"{name}_{sum(t.startswith(name) for t in taken) + 1}"
        guess = Guess(GroupConfig(name, key, start, i), (f"named {', '.join(names[start:i][:8])}",))
        out.append(_of_kind(guess, kind, names[start:i]))
        start = i
    return out


def _of_kind(guess: Guess, kind: str, names: Sequence[str]) -> Guess:
    dims = len(names)
    if kind == GRIPPER:
        return guess.because("polarity is a guess", gripper="open_positive")
    if kind == "euler" and dims == 3:
        return guess.because("order of the angles is a guess", rotation="euler_fixed_xyz", unit="rad")
    if kind == "axis_angle" and dims == 3:
        return guess.because("rotation is a guess", rotation="axis_angle", unit="rad")
    if kind == "quaternion" and dims == 4:
        first = names[0].lower()[-1] in "w0"
        return guess.because("by its names", rotation="quaternion_wxyz" if first else "quaternion_xyzw")
    return guess


def by_name(group: GroupConfig) -> Guess:
    """A whole column as a group: what its name says of it."""
    guess = Guess(group)
    if kind_of(group.name)[1] == GRIPPER:
        return guess.because("named gripper: polarity is a guess", gripper="open_positive")
    return guess


def split_by_values(rows: Float, key: str, name: str) -> list[Guess]:
    """Where dims have no names: unit quaternions, and a last dim that is a gripper's."""
    marks: list[tuple[int, int, str]] = []
    i = 0
    while i + 4 <= rows.shape[1]:
        part = rows[:, i : i + 4].astype(np.float64)
        if np.abs(np.linalg.norm(part, axis=1) - 1).max() < 2e-3 and part.std(axis=0).max() > 1e-4:
            marks.append((i, i + 4, "quaternion"))
            i += 4
        else:
            i += 1
    last = rows.shape[1] - 1
    if rows.shape[1] > 1 and looks_binary(rows[:, last]) and not any(b > last for _, b, _ in marks):
        marks.append((last, last + 1, GRIPPER))
    out, start, rest = [], 0, 0
    for low, high, kind in [*marks, (rows.shape[1], rows.shape[1], "")]:
        if low > start:
            rest += 1
            out.append(Guess(GroupConfig(name if rest == 1 else f"{name}_{rest}", key, start, low)))
        if kind:
            found = Guess(GroupConfig(_numbered(out, _NAMES[kind]), key, low, high))
            if kind == GRIPPER:
                why = f"guess: its values are {_values(rows[:, last])}; polarity is a guess too"
                out.append(found.because(why, gripper="open_positive"))
            else:
                scalar_first = abs(rows[:, low]).mean() > abs(rows[:, high - 1]).mean()
                out.append(
                    found.because(
                        "guess: four numbers of norm 1; the order of a quaternion is a guess",
                        rotation="quaternion_wxyz" if scalar_first else "quaternion_xyzw",
                    )
                )
        start = high
    return out


def _numbered(out: Sequence[Guess], name: str) -> str:
    same = sum(g.group.name.startswith(name) for g in out)
    return name if not same else f"{name}_{same + 1}"


def looks_binary(values: NDArray[np.float32]) -> bool:
    """Two or three different values, or nearly all values at the two ends of the range."""
    low, high = float(values.min()), float(values.max())
    if low == high:
        return False
    if len(np.unique(values)) <= 3:
        return True
    at_ends = np.minimum(values - low, high - values) < 0.02 * (high - low)
    return bool(at_ends.mean() > 0.9)


def _values(values: NDArray[np.float32]) -> str:
    different = np.unique(values)
    if len(different) <= 3:
        return ", ".join(f"{v:g}" for v in different)
    return f"nearly all {values.min():g} or {values.max():g}"


def with_unit(guess: Guess, rows: Float) -> Guess:
    """A unit, where the size of the numbers and the kind of the group allow one."""
    group = guess.group
    if group.unit != "unknown" or not group.name.endswith("joints"):
        return guess
    largest = float(np.abs(rows[:, group.start : group.end]).max())
    if 0.3 < largest <= 6.4:
        return guess.because(f"unit is a guess: no angle is above {largest:.2f}", unit="rad")
    return guess.because(f"unit unknown: the largest number is {largest:.4g}")


def with_representation(guess: Guess, action: Float, state: Float | None, stops: NDArray[np.int64]) -> Guess:
    """Whether an action group follows the state (a target) or its change (a delta).

    Args:
        guess: the group.
        action, state: ``[F, d]`` of the group and of the state group of its name; None: there is none.
        stops: ``[F]``, True at an episode's last frame.
    """
    group = guess.group
    if group.gripper != "none":
        return guess
    if state is None or state.shape != action.shape or len(action) < 3:
        return guess.because("absolute is assumed: no state group of its name and size to compare with")
    inside = ~stops[:-1].astype(bool)
    a, now, then = action[:-1][inside], state[:-1][inside], state[1:][inside]
    target, change = correlation(a, then), correlation(a, then - now)
    if target > 0.9 and target >= change:
        return guess.because(f"a target: it correlates with the next state ({target:.2f})")
    if change > 0.5 and change > target:
        return guess.because(
            f"a delta by its numbers: it correlates with the change of the state ({change:.2f})",
            representation="delta",
        )
    return guess.because(f"absolute is assumed: correlation with state {target:.2f}, change {change:.2f}")


def correlation(a: Float, b: Float) -> float:
    """Median over the dims that move, 0 where none does."""
    found = []
    for x, y in zip(a.T.astype(np.float64), b.T.astype(np.float64), strict=True):
        if x.std() > 1e-6 and y.std() > 1e-6:
            found.append(float(np.corrcoef(x, y)[0, 1]))
    return float(np.median(found)) if found else 0.0
