"""LeRobot v3.0 datasets as a source of samples, with pyarrow and PyAV alone.

Shapes: F frames, T action steps, A action dims, S state dims, H, W pixels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray
from vla_core.errors import ConfigError
from vla_core.sources import action_chunk
from vla_core.specs import RobotSpec
from vla_core.types import Bool, Float, Image, Observation, Sample

from vla_data._depth import DepthReader
from vla_data._layout import Episode, Layout, open_layout, read_columns, to_array, to_matrix
from vla_data._spec import read_spec
from vla_data._video import FrameReader, decode_frames
from vla_data.stats import compute_norm_stats


@dataclass(frozen=True)
class LeRobotConfig:
    """Which dataset to read, and how.

    Args:
        path: directory of a LeRobot v3.0 dataset.
        cameras: names in the order the policy sees them; None: all, in the dataset's order.
        cache: ``none`` decodes every image when it is asked for (a few milliseconds); ``ram``
            decodes all images once when the source is opened (49 kB for each 128 x 128 image).
    """

    path: str
    cameras: tuple[str, ...] | None = None
    cache: Literal["none", "ram"] = "none"


class LeRobotSource:
    """Random access to the frames of a LeRobot dataset; implements :class:`vla_core.sources.Source`.

    Sample ``i`` holds frame ``i`` of the chosen episodes and the actions of the T steps from there.
    Beyond the episode's end ``action_mask`` is False (:func:`vla_core.sources.action_chunk`). Picklable, so
    that DataLoader workers can have copies (forked workers share a ``ram`` cache).

    Args:
        config: which dataset.
        horizon: T, at least 1.
        episodes: episode indices to keep, in that order; None: all.

    Raises:
        UserError: no v3.0 dataset there, an unknown camera or episode, or a broken file.
    """

    Config: ClassVar[type] = LeRobotConfig
    spec: RobotSpec

    def __init__(self, config: LeRobotConfig, horizon: int, episodes: Sequence[int] | None = None) -> None:
        if horizon < 1:
            raise ConfigError(f"horizon: must be at least 1, got {horizon}")
        if config.cache not in ("none", "ram"):
            raise ConfigError(f"cache: '{config.cache}' is neither 'none' nor 'ram'")
        self._horizon = horizon
        self._layout = open_layout(config.path)
        self._episodes = _choose(self._layout, episodes)
        spec = read_spec(self._layout, horizon, config.cameras)
        self._cameras = {c.name: self._layout.cameras()[c.name] for c in spec.observation.cameras}
        self._geometry = {
            kind: {name: key for name, key in self._layout.extras(kind).items() if name in self._cameras}
            for kind in ("intrinsics", "extrinsics")
        }
        self._depth = {n: key for n, key in self._layout.extras("depth").items() if n in self._cameras}
        self._load_numbers(has_state=bool(spec.observation.state))
        self.spec = replace(spec, statistics=compute_norm_stats(self))
        self._frames = FrameReader(self._layout.fps)
        self._maps = DepthReader(self._layout)
        self._ram = {name: self._decode(name) for name in self._cameras} if config.cache == "ram" else None

    @classmethod
    def list_episodes(cls, config: LeRobotConfig) -> Sequence[int]:
        """All episode indices."""
        return [e.index for e in open_layout(config.path).episodes]

    def __len__(self) -> int:
        return len(self._actions)

    def rows(self, vector: str) -> Float | None:
        """All rows of ``"state"`` or ``"action"``: ``[F, D]``, or None when the robot has no state."""
        return {"state": self._states, "action": self._actions}[vector]

    def episode(self, index: int) -> int:
        """Episode index of a sample."""
        return self._episodes[self._position[index]].index

    def lengths(self) -> dict[int, int]:
        """Frames of each chosen episode, by episode index."""
        return {e.index: e.stop - e.start for e in self._episodes}

    def instruction(self, episode: int) -> str:
        """What the robot was told at the start of an episode (by episode index)."""
        position = next(i for i, e in enumerate(self._episodes) if e.index == episode)
        return self._layout.tasks[int(self._tasks[self._first[position]])]

    def numeric(self, index: int) -> tuple[Float | None, Float, Bool]:
        """State ``[S]`` or None, actions and mask ``[T, A]``; decodes nothing."""
        actions, mask = action_chunk(
            self._actions,
            index,
            int(self._stop[self._position[index]]),
            self._horizon,
            self.spec.action.groups,
        )
        return None if self._states is None else self._states[index], actions, mask

    def chunk_end(self, index: int) -> int | None:
        """Index of the frame after the T actions of a sample, or None past the episode's last frame."""
        end = index + self._horizon
        return end if end < self._stop[self._position[index]] else None

    def __getitem__(self, index: int) -> Sample:
        if not -len(self) <= index < len(self):
            raise IndexError(f"sample {index} of {len(self)}")
        index %= len(self)
        state, actions, mask = self.numeric(index)
        episode = self._episodes[self._position[index]]
        frame = int(index - self._first[self._position[index]])
        geometry: dict[str, dict[str, Float] | None] = {
            kind: {name: self._numbers[key][index] for name, key in keys.items()} or None
            for kind, keys in self._geometry.items()
        }
        observation = Observation(
            images={name: self._image(name, index, episode, frame) for name in self._cameras},
            instruction=self._layout.tasks[int(self._tasks[index])],
            state=state,
            depth={n: self._maps.read(episode, k, frame) for n, k in self._depth.items()} or None,
            intrinsics=geometry["intrinsics"],
            extrinsics=geometry["extrinsics"],
            embodiment=self.spec.embodiment,
        )
        return Sample(observation, actions, mask, meta={"episode": episode.index, "frame": frame})

    def _load_numbers(self, has_state: bool) -> None:
        keys = [key for kind in self._geometry.values() for key in kind.values()]
        columns = ["action", "task_index", *(["observation.state"] if has_state else []), *keys]
        table = read_columns(self._layout, self._episodes, columns)
        lengths = np.array([e.stop - e.start for e in self._episodes])
        self._stop = np.cumsum(lengths)
        self._first = self._stop - lengths
        self._position = np.repeat(np.arange(len(lengths)), lengths)
        self._tasks = to_array(table["task_index"], np.int64)
        self._actions: Float = to_matrix(table["action"])
        self._states: Float | None = to_matrix(table["observation.state"]) if has_state else None
        shape = {"intrinsics": (3, 3), "extrinsics": (4, 4)}
        self._numbers: dict[str, Float] = {
            key: to_matrix(table[key]).reshape(-1, *shape[kind])
            for kind, names in self._geometry.items()
            for key in names.values()
        }

    def _start_in_video(self, episode: Episode, camera: str) -> int:
        return round(episode.videos[self._cameras[camera]][1] * self._layout.fps)

    def _image(self, camera: str, index: int, episode: Episode, frame: int) -> Image:
        if self._ram is not None:
            return self._ram[camera][index]
        path = episode.videos[self._cameras[camera]][0]
        return self._frames.read(path, self._start_in_video(episode, camera) + frame)

    def _decode(self, camera: str) -> NDArray[np.uint8]:
        """All frames of a camera ``[F, H, W, 3]``, each file decoded once."""
        size = next(c for c in self.spec.observation.cameras if c.name == camera)
        out = np.empty((len(self), size.height, size.width, 3), np.uint8)
        files: dict[Any, tuple[list[NDArray[np.int64]], list[NDArray[np.int64]]]] = {}
        for position, episode in enumerate(self._episodes):
            numbers, rows = files.setdefault(episode.videos[self._cameras[camera]][0], ([], []))
            count = np.arange(episode.stop - episode.start)
            numbers.append(self._start_in_video(episode, camera) + count)
            rows.append(self._first[position] + count)
        for path, (numbers, rows) in files.items():
            place = np.concatenate(rows)

            def store(i: int, image: Image, place: NDArray[np.int64] = place) -> None:
                out[place[i]] = image

            decode_frames(path, np.concatenate(numbers), self._layout.fps, store)
        return out


def _choose(layout: Layout, episodes: Sequence[int] | None) -> tuple[Episode, ...]:
    if episodes is None:
        return layout.episodes
    known = {e.index: e for e in layout.episodes}
    for index in episodes:
        if index not in known:
            raise ConfigError(f"episodes: {layout.root} has no episode {index} (it has {len(known)})")
    if not episodes or len(set(episodes)) < len(episodes):
        raise ConfigError("episodes: name each episode once and at least one")
    return tuple(known[index] for index in episodes)
