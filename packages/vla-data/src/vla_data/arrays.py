"""Datasets of plain ``.npy`` arrays (``vla-data record --format arrays``) as a source of samples.

Frames are mapped into memory: reading one costs a copy, processes share the page cache, and pixels and
depth are exactly what was recorded. Shapes: F frames, T action steps, A action dims, S state dims.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray
from vla_core.errors import ConfigError, UserError, suggest
from vla_core.history import NOW, Past, check_deltas, join, over_moments, spec_over
from vla_core.sources import action_chunk
from vla_core.specs import RobotSpec
from vla_core.types import Bool, Float, Observation, Sample

from vla_data._arrays_writer import FORMAT, META_FILE
from vla_data._names import check_spec_names, read_json
from vla_data.stats import compute_norm_stats


@dataclass(frozen=True)
class ArraysConfig:
    """Which dataset to read, and how.

    Args:
        path: directory written by ``vla-data record --format arrays``.
        cameras: names in the order the policy sees them; None: all, as recorded.
        depth: give recorded depth; false leaves it unread.
        observation_delta_indices: moments of a sample in steps from now, ascending, the last one 0
            (:mod:`vla_core.history`).
    """

    path: str
    cameras: tuple[str, ...] | None = None
    depth: bool = True
    observation_delta_indices: tuple[Past, ...] = NOW


class ArraysSource:
    """Random access to the frames of an arrays dataset; implements :class:`vla_core.sources.Source`.

    Sample ``i`` holds frame ``i`` of the chosen episodes and the actions of the T steps from there.
    Beyond the episode's end ``action_mask`` is False (:func:`vla_core.sources.action_chunk`). Picklable: a
    copy maps the files again.

    Args:
        config: which dataset.
        horizon: T, at least 1.
        episodes: episode indices to keep, in that order; None: all.

    Raises:
        UserError: no such dataset, an unknown camera or episode, or a file that does not fit.
    """

    Config: ClassVar[type] = ArraysConfig
    spec: RobotSpec

    def __init__(self, config: ArraysConfig, horizon: int, episodes: Sequence[int] | None = None) -> None:
        if horizon < 1:
            raise ConfigError(f"horizon: must be at least 1, got {horizon}")
        self._root, self._config, self._horizon = Path(config.path), config, horizon
        self._deltas = config.observation_delta_indices
        check_deltas(self._deltas, "observation_delta_indices")
        meta = _read_meta(self._root)
        lengths = np.array([e["frames"] for e in meta["episodes"]])
        self._chosen = np.array(_choose(self._root, len(lengths), episodes))
        starts = np.cumsum(lengths) - lengths
        kept = lengths[self._chosen]
        # Frame number in the files, end of the episode in this source, and episode, of every sample.
        self._frame = np.concatenate([starts[e] + np.arange(lengths[e]) for e in self._chosen])
        self._stop = np.repeat(np.cumsum(kept), kept)
        self._first = self._stop - np.repeat(kept, kept)
        self._episode = np.repeat(self._chosen, kept)
        self._instructions = [e["instruction"] for e in meta["episodes"]]
        self._columns = _map_columns(self._root, int(lengths.sum()))
        spec = _spec(self._root, meta["spec"], config.cameras, self._columns)
        self._cameras = [c.name for c in spec.observation.cameras]
        self._actions: Float = np.asarray(self._columns["action"])[self._frame]
        self._now: Float | None = None
        if spec.observation.state:
            self._now = np.asarray(self._columns["observation.state"])[self._frame]
        self._states = over_moments(self._now, self._first, self._deltas)
        spec = replace(
            spec,
            action=replace(spec.action, horizon=horizon),
            observation=spec_over(spec.observation, self._deltas),
        )
        self.spec = replace(spec, statistics=compute_norm_stats(self))

    @classmethod
    def list_episodes(cls, config: ArraysConfig) -> Sequence[int]:
        """All episode indices."""
        return list(range(len(_read_meta(Path(config.path))["episodes"])))

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_columns": len(self._columns["action"])}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._columns = _map_columns(self._root, state["_columns"])

    def __len__(self) -> int:
        return len(self._frame)

    def rows(self, vector: str) -> Float | None:
        """All rows of ``"state"`` or ``"action"``: ``[F, D]``, or None when the robot has no state."""
        return {"state": self._states, "action": self._actions}[vector]

    def episode(self, index: int) -> int:
        """Episode index of a sample."""
        return int(self._episode[index])

    def numeric(self, index: int) -> tuple[Float | None, Float, Bool]:
        """State ``[S]`` or None, actions and mask ``[T, A]``."""
        actions, mask = action_chunk(
            self._actions, index, int(self._stop[index]), self._horizon, self.spec.action.groups
        )
        return None if self._states is None else self._states[index], actions, mask

    def chunk_end(self, index: int) -> int | None:
        """Index of the frame after the T actions of a sample, or None past the episode's last frame."""
        end = index + self._horizon
        return end if end < self._stop[index] else None

    def __getitem__(self, index: int) -> Sample:
        if not -len(self) <= index < len(self):
            raise IndexError(f"sample {index} of {len(self)}")
        index %= len(self)
        _, actions, mask = self.numeric(index)
        first = int(self._first[index])
        moments = [self._observe(max(first, index + delta)) for delta in self._deltas]
        observation = moments[0] if len(moments) == 1 else join(moments, self._deltas)
        return Sample(observation, actions, mask, meta={"episode": self.episode(index)})

    def _observe(self, index: int) -> Observation:
        """One moment."""
        return Observation(
            images=self._views("images", index) or {},
            instruction=self._instructions[self._episode[index]],
            state=None if self._now is None else self._now[index],
            depth=self._views("depth", index) if self._config.depth else None,
            intrinsics=self._views("intrinsics", index),
            extrinsics=self._views("extrinsics", index),
            embodiment=self.spec.embodiment,
        )

    def _views(self, kind: str, index: int) -> dict[str, NDArray[Any]] | None:
        """Camera -> one frame, of the cameras that have this kind of column; None without any."""
        keys = {name: f"observation.{kind}.{name}" for name in self._cameras}
        frame = self._frame[index]
        return {n: np.array(self._columns[k][frame]) for n, k in keys.items() if k in self._columns} or None


def _read_meta(root: Path) -> dict[str, Any]:
    file = root / META_FILE
    if not file.is_file():
        raise UserError(f"{root}: no arrays dataset (no {META_FILE}); record one with --format arrays")
    try:
        meta: dict[str, Any] = read_json(file, "an arrays dataset")
        known = meta["format"], meta["spec"], [(e["frames"], e["instruction"]) for e in meta["episodes"]]
    except (KeyError, TypeError) as error:
        raise UserError(f"{file}: not readable ({error!r}); record the dataset again") from error
    if known[0] != FORMAT:
        raise UserError(f"{file}: format {known[0]} is unknown; this version reads {FORMAT}")
    return meta


def _map_columns(root: Path, frames: int) -> dict[str, NDArray[Any]]:
    columns: dict[str, NDArray[Any]] = {}
    for file in sorted(root.glob("*.npy")):
        try:
            columns[file.stem] = np.load(file, mmap_mode="r", allow_pickle=False)
        except (ValueError, EOFError) as error:
            raise UserError(f"{file}: not a whole array ({error}); record the dataset again") from error
        if len(columns[file.stem]) != frames:
            raise UserError(f"{file}: {len(columns[file.stem])} frames, {META_FILE} says {frames}")
    if "action" not in columns:
        raise UserError(f"{root}: no action.npy")
    return columns


def _choose(root: Path, count: int, episodes: Sequence[int] | None) -> list[int]:
    if episodes is None:
        return list(range(count))
    for index in episodes:
        if not 0 <= index < count:
            raise ConfigError(f"episodes: {root} has no episode {index} (it has {count})")
    if not episodes or len(set(episodes)) < len(episodes):
        raise ConfigError("episodes: name each episode once and at least one")
    return list(episodes)


def _spec(
    root: Path, node: Mapping[str, Any], cameras: Sequence[str] | None, columns: Mapping[str, Any]
) -> RobotSpec:
    try:
        check_spec_names(node, root / META_FILE)
        spec = RobotSpec.from_dict(dict(node))
    except (KeyError, TypeError) as error:
        raise UserError(f"{root / META_FILE}: not a robot spec ({error!r})") from error
    known = {c.name: c for c in spec.observation.cameras}
    names = list(known) if cameras is None else list(cameras)
    for name in names:
        if name not in known or f"observation.images.{name}" not in columns:
            raise ConfigError(f"cameras: {root} has no camera '{name}'{suggest(name, known)}")
    if not names or len(set(names)) < len(names):
        raise ConfigError(f"cameras: name each camera once and at least one, got {names}")
    return replace(spec, observation=replace(spec.observation, cameras=tuple(known[name] for name in names)))
