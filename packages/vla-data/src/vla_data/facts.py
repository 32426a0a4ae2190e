"""What the numbers of a data set are like, dim by dim, and what is suspicious about them.

Shapes: F frames, D dims.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from vla_core.specs import GroupSpec, RobotSpec
from vla_core.types import Float

from vla_data._arrays_writer import META_FILE
from vla_data.arrays import ArraysConfig, ArraysSource
from vla_data.inspect import dim_names
from vla_data.lerobot import LeRobotConfig, LeRobotSource
from vla_data.stats import leaving_out_nan

BINS = 48
FAR = 3.0
"""Beyond q01 or q99 by so many times their distance is an outlier."""
JUMP = 20.0
"""A step so many times the 99 % quantile of all steps, and a tenth of the range, is a jump."""
AT_ENDS = 0.02
"""A larger share of frames exactly at the least or greatest value looks clipped."""


@dataclass(frozen=True)
class Dim:
    """One dim of state or action over all frames that are finite.

    Args:
        vector, name: ``state`` or ``action``, and the dim with its unit.
        low, q01, mean, q99, high, std: in its unit.
        counts: histogram between low and high.
        at_ends: share of frames exactly at low or high.
        clipped: share of frames that q99 normalisation puts beyond -1 or 1.
        largest: greatest absolute value after q99 normalisation.
        facts: what is suspicious, each a sentence.
    """

    vector: str
    name: str
    low: float
    q01: float
    mean: float
    q99: float
    high: float
    std: float
    counts: tuple[int, ...]
    at_ends: float
    clipped: float
    largest: float
    facts: tuple[str, ...]


@dataclass(frozen=True)
class Report:
    """A data set: ``facts`` concern it as a whole, each dim has its own."""

    name: str
    robot: str
    control_hz: float
    episodes: int
    frames: int
    dims: tuple[Dim, ...]
    facts: tuple[str, ...]

    def all_facts(self) -> Iterator[str]:
        """All that is suspicious, with the dim in front where it is one's own."""
        yield from self.facts
        for dim in self.dims:
            yield from (f"{dim.vector} {dim.name}: {fact}" for fact in dim.facts)


def report_on(path: Path) -> Report:
    """Look at all numbers of a data set; nothing is decoded.

    Raises:
        UserError: no data set there.
    """
    with leaving_out_nan():
        source: ArraysSource | LeRobotSource
        if (path / META_FILE).is_file():
            source = ArraysSource(ArraysConfig(str(path)), 1)
        else:
            source = LeRobotSource(LeRobotConfig(str(path)), 1)
    episodes = np.array([source.episode(i) for i in range(len(source))])
    return describe_numbers(
        path.resolve().name, source.spec, source.rows("state"), source.rows("action"), episodes
    )


def describe_numbers(
    name: str, spec: RobotSpec, states: Float | None, actions: Float | None, episodes: NDArray[np.int64]
) -> Report:
    """A report on ``states [F, S]`` and ``actions [F, A]`` of frames that belong to ``episodes [F]``."""
    dims: list[Dim] = []
    vectors: tuple[tuple[str, Float | None, Sequence[GroupSpec]], ...] = (
        ("state", states, spec.observation.state),
        ("action", actions, spec.action.groups),
    )
    places = _Places(episodes)
    for vector, rows, groups in vectors:
        if rows is not None:
            names = dim_names(groups)
            dims += [_dim(vector, n, rows[:, i].astype(np.float64), places) for i, n in enumerate(names)]
    facts = tuple(_of_all(states, actions, places))
    count = len(np.unique(episodes))
    hz = spec.action.control_hz
    return Report(name, spec.embodiment, hz, count, len(episodes), tuple(dims), facts)


class _Places:
    """Episodes and frames of rows."""

    def __init__(self, episodes: NDArray[np.int64]) -> None:
        self.episodes = episodes
        self.same = episodes[1:] == episodes[:-1]
        starts = np.flatnonzero(np.r_[True, ~self.same])
        self.frame = np.arange(len(episodes)) - np.repeat(starts, np.diff(np.r_[starts, len(episodes)]))

    def of(self, row: int) -> str:
        return f"episode {self.episodes[row]}, frame {self.frame[row]}"


def _dim(vector: str, name: str, values: NDArray[np.float64], places: _Places) -> Dim:
    finite = np.isfinite(values)
    facts = []
    if not finite.all():
        bad = int((~finite).sum())
        said = "1 frame holds" if bad == 1 else f"{bad} frames hold"
        facts.append(f"{said} NaN or infinity, the first in {places.of(int((~finite).argmax()))}")
    kept = values[finite] if finite.any() else np.zeros(1)
    low, high = float(kept.min()), float(kept.max())
    q01, q99 = (float(q) for q in np.quantile(kept, [0.01, 0.99]))
    half = (q99 - q01) / 2
    # As the normalize transform does where nearly all frames agree.
    middle, half = ((q01 + q99) / 2, half) if half > 5e-7 else ((low + high) / 2, (high - low) / 2)
    normalised = np.abs(kept - middle) / half if half > 5e-7 else np.zeros(len(kept))
    ends = float(((kept == low) | (kept == high)).mean()) if high > low else 1.0
    facts += _shape_of(values, kept, ends, places)
    return Dim(
        vector, name, low, q01, float(kept.mean()), q99, high, float(kept.std()),
        _histogram(kept, low, high),
        ends, float((normalised > 1 + 1e-6).mean()), float(normalised.max()), tuple(facts),
    )  # fmt: skip


def _histogram(kept: NDArray[np.float64], low: float, high: float) -> tuple[int, ...]:
    """Counts in :data:`BINS` bins from low to high; what is constant is in the middle one."""
    if high > low:
        places = np.minimum((kept - low) / (high - low) * BINS, BINS - 1).astype(np.int64)
    else:
        places = np.full(len(kept), BINS // 2)
    return tuple(np.bincount(places, minlength=BINS).tolist())


def _shape_of(
    values: NDArray[np.float64], kept: NDArray[np.float64], ends: float, places: _Places
) -> Iterator[str]:
    low, high = float(kept.min()), float(kept.max())
    if high - low < 1e-9:
        yield f"constant ({low:g}); it carries nothing"
        return
    levels = np.unique(kept[: 1 << 16])
    few = len(levels) <= 3 and len(levels := np.unique(kept)) <= 3
    if few and len(levels) == 3:
        said = ", ".join(f"{x:g}" for x in levels)
        yield f"takes three values ({said}); a gripper that is not 'binary', with one for no command?"
    steps = np.abs(np.diff(np.where(np.isfinite(values), values, np.nan)))
    inside = places.same & np.isfinite(steps)
    if inside.any() and steps[inside].max() < 1e-9:
        yield "dead: it differs between episodes and never changes within one"
    if few:
        return
    yield from _outliers(values, kept, places)
    if ends > AT_ENDS:
        yield f"{100 * ends:.1f} % of the frames are exactly at {low:g} or {high:g}: clipped when recorded?"
    if inside.any():
        limit = max(JUMP * float(np.quantile(steps[inside], 0.99)), 0.1 * (high - low))
        jumps = np.flatnonzero(inside & (steps > limit))
        if len(jumps):
            worst = int(jumps[steps[jumps].argmax()])
            turn = abs(steps[worst] - 2 * np.pi) < 0.3
            why = ", by a whole turn: an angle that wraps" if turn else ""
            after = f"{steps[worst]:g} after {places.of(worst)}"
            yield f"{_count(len(jumps), 'jump')}, the largest by {after}{why}"


def _outliers(values: NDArray[np.float64], kept: NDArray[np.float64], places: _Places) -> Iterator[str]:
    q01, q99 = np.quantile(kept, [0.01, 0.99])
    far = FAR * (q99 - q01)
    # Where nearly all frames are alike, whatever moves at all would be far.
    if far <= 0:
        return
    out = np.flatnonzero(np.isfinite(values) & ((values < q01 - far) | (values > q99 + far)))
    if len(out):
        worst = int(out[np.abs(values[out] - (q01 + q99) / 2).argmax()])
        yield f"{_count(len(out), 'outlier')}, the farthest {values[worst]:g} in {places.of(worst)}"


def _count(n: int, what: str) -> str:
    return f"{n} {what}" if n == 1 else f"{n} {what}s"


def _of_all(states: Float | None, actions: Float | None, places: _Places) -> Iterator[str]:
    lengths = np.unique(places.episodes, return_counts=True)
    short = [int(e) for e, n in zip(*lengths, strict=True) if n < 0.2 * float(np.median(lengths[1]))]
    if short:
        more = f" and {len(short) - 8} more" if len(short) > 8 else ""
        listed = ", ".join(map(str, short[:8]))
        yield f"episodes {listed}{more} are shorter than a fifth of the median"
    if states is None:
        yield "there is no state"
    if states is None or actions is None or states.shape != actions.shape:
        return
    scale = np.maximum(np.abs(states).max(0), 1e-6)
    if (np.abs(states - actions) <= 1e-6 * scale).all():
        yield "actions are equal to the state of the same frame; a policy would learn to copy its input"
    elif (np.abs(states[1:] - actions[:-1]) <= 1e-6 * scale)[places.same].all():
        yield "actions are equal to the state of the next frame: made from the states, not recorded commands"
