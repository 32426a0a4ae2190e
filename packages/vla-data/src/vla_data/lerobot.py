"""LeRobot datasets (v2.0, v2.1, v3.0) as a source of samples, with pyarrow and PyAV alone.

Shapes: F frames, T action steps, A action dims, S state dims, H, W pixels.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar, Literal

import numpy as np
from numpy.typing import NDArray
from vla_core.errors import ConfigError
from vla_core.history import NOW, Past, check_deltas, join, over_moments, spec_over
from vla_core.odd_calibration import odd_calibration
from vla_core.ranges import Natural, Positive
from vla_core.sources import action_chunk
from vla_core.specs import RobotSpec
from vla_core.types import Bool, Float, Image, Observation, Sample

from vla_data.choice import chosen_episodes
from vla_data.errors import BadDataError
from vla_data.formats.depth import DepthReader, depth_of_cameras
from vla_data.formats.features import cameras as camera_names
from vla_data.formats.layout import Episode, Layout
from vla_data.formats.opening import open_layout
from vla_data.formats.pictures import Pictures, of_size
from vla_data.formats.video_checks import (
    camera_sizes,
    check_depth_sizes,
    check_videos,
    odd_looks,
    scan_videos,
    surplus,
)
from vla_data.frames import CALIBRATION, Frames, read_frames
from vla_data.resample import check_rate, check_velocities, kept_frames, rate_note, resample
from vla_data.robot.binding import Binding, bind, make_spec
from vla_data.stats import compute_norm_stats


@dataclass(frozen=True)
class LeRobotConfig:
    """Which dataset to read, and how.

    Args:
        path: directory of a LeRobot dataset (v2.0, v2.1 or v3.0), or a hub id that lerobot or the hub's
            client has downloaded before.
        cameras: names in the order the policy sees them; None: all, in the dataset's order.
        cache: ``none`` decodes every image when it is asked for (a few milliseconds); ``ram``
            decodes all images once when the source is opened (49 kB for each 128 x 128 image).
        robot: YAML file that describes the robot (``vla-data describe`` proposes one); None: what the
            data set says (``meta/vla_spec.json``, ``meta/modality.json`` or its feature table).
        episodes: which to use: a range of indices ``"0:40"``, several ``"0:40,50:"`` (in quotes), or a
            list; None: all.
        exclude_episodes: which of them to leave out, written in the same way.
        instruction: what every episode is told, in place of what was recorded.
        fps: control rate to read the episodes at, not above the recorded one; deltas are composed over the
            frames between (:mod:`vla_data.resample`). None: as recorded.
        depth: read recorded depth maps; false saves decoding them for a policy that does not look at them.
        observation_delta_indices: moments of a sample in steps from now, ascending, the last one 0. Earlier
            ones are views and state groups of their own, ``top@-3`` (:mod:`vla_core.history`).
    """

    path: str
    cameras: tuple[str, ...] | None = None
    cache: Literal["none", "ram"] = "none"
    robot: str | None = None
    episodes: str | tuple[Natural, ...] | None = None
    exclude_episodes: str | tuple[Natural, ...] | None = None
    instruction: str | None = None
    fps: Positive | None = None
    depth: bool = True
    observation_delta_indices: tuple[Past, ...] = NOW


class LeRobotSource:
    """Random access to the frames of a LeRobot dataset; implements :class:`vla_core.sources.Source`.

    Sample ``i`` holds frame ``i`` of the chosen episodes and the actions of the T steps from there; with
    ``fps`` step ``i`` of that rate, and ``meta["frame"]`` is the frame that it begins at.
    Beyond the episode's end ``action_mask`` is False (:func:`vla_core.sources.action_chunk`). Picklable, so
    that DataLoader workers can have copies (forked workers share a ``ram`` cache).

    Row ``i`` of an episode belongs to picture ``i`` of its video, by the time stamps of the video; the column
    ``timestamp`` is not read, because hardware clocks drift. Opening scans the packets of every video
    (:mod:`vla_data.formats.scan`) and refuses those that do not hold what the metadata lists.

    Args:
        config: which dataset.
        horizon: T, at least 1.
        episodes: episode indices to keep, in that order; None: those of the config.

    Raises:
        UserError: no dataset there, an unknown camera or episode, or a broken file.
    """

    Config: ClassVar[type] = LeRobotConfig
    spec: RobotSpec
    binding: Binding
    """Where the robot's parts are in the data set."""
    notes: tuple[str, ...]
    """What a user should know of a data set that can be read."""
    frames: Frames
    """All numbers of the chosen episodes, at the rate of ``spec``."""

    def __init__(self, config: LeRobotConfig, horizon: int, episodes: Sequence[int] | None = None) -> None:
        if horizon < 1:
            raise ConfigError(f"horizon: must be at least 1, got {horizon}")
        if config.cache not in ("none", "ram"):
            raise ConfigError(f"cache: '{config.cache}' is neither 'none' nor 'ram'")
        self._deltas = config.observation_delta_indices
        self._recent: OrderedDict[int, Observation] = OrderedDict()
        check_deltas(self._deltas, "observation_delta_indices")
        self._horizon = horizon
        self._layout = layout = open_layout(config.path)
        allowed = _allowed(config, layout)
        self._episodes = _choose(layout, allowed if episodes is None else episodes)
        self.binding = binding = bind(layout, self._episodes, config.robot, config.cameras)
        self._cameras = binding.cameras
        depth = depth_of_cameras(layout, self._episodes)[0] if config.depth else {}
        self._depth = self._of_cameras(depth)
        videos = scan_videos(layout, [*self._cameras.values(), *self._depth.values()], self._episodes)
        check_videos(layout, videos)
        self._geometry = {kind: self._of_cameras(layout.extras(kind)) for kind in CALIBRATION}
        calibration = {key: kind for kind, keys in self._geometry.items() for key in keys.values()}
        hz = binding.robot.control_hz or layout.fps
        note = rate_note(layout.fps, binding.robot.control_hz, config.fps, binding.where)
        if config.fps is not None:
            check_rate(config.fps, layout.fps, binding.robot.control_hz, binding.where)
            hz = config.fps
        recorded = [len(e) for e in self._episodes]
        self._kept = kept_frames(recorded, 1.0 if config.fps is None else max(1.0, layout.fps / config.fps))
        beyond = {file: text for key, facts in videos.items() for file, text in surplus(layout, key, facts)}
        frames = read_frames(layout, self._episodes, binding, calibration, config.instruction, beyond)
        shown = {key: videos[key] for key in self._cameras.values() if key in videos}
        self.notes = (*([] if note is None else [note]), *odd_looks(shown), *frames.notes)
        if config.fps is not None:
            check_velocities(frames.action.groups, binding.where)
            frames = resample(frames, recorded, self._kept)
        self.frames = frames
        lengths = np.array([len(k) for k in self._kept])
        self._stop = np.cumsum(lengths)
        self._first = self._stop - lengths
        self._position = np.repeat(np.arange(len(lengths)), lengths)
        self._now = self.frames.state.rows
        states = over_moments(self._now, self._first[self._position], self._deltas)
        self._rows = {"state": states, "action": self.frames.action.rows}
        self._pictures, self._maps = Pictures(layout), DepthReader(layout)
        row = int(self.frames.rows[0])
        sizes = camera_sizes(self._pictures, self._cameras, videos, self._episodes[0], row)
        check_depth_sizes(layout.root, sizes, {n: k for n, k in self._depth.items() if k in videos}, videos)
        spec = make_spec(binding, self.frames.state, self.frames.action, sizes, horizon, hz)
        known = {k: {n: frames.calibration[c] for n, c in of.items()} for k, of in self._geometry.items()}
        self.notes += tuple(odd_calibration(known, sizes))
        self._sizes = {c.name: (c.height, c.width) for c in spec.observation.cameras}
        spec = replace(spec, observation=spec_over(spec.observation, self._deltas))
        self.spec = replace(spec, statistics=compute_norm_stats(self))
        self._ram = self._decode_all() if config.cache == "ram" else None

    @classmethod
    def list_episodes(cls, config: LeRobotConfig) -> Sequence[int]:
        """The episode indices that the config chooses."""
        return _allowed(config, open_layout(config.path))

    def __len__(self) -> int:
        return len(self._position)

    def rows(self, vector: str) -> Float | None:
        """All rows of ``"state"`` or ``"action"``: ``[F, D]``, or None when the robot has no state."""
        return self._rows[vector]

    def episode(self, index: int) -> int:
        """Episode index of a sample."""
        return self._episodes[self._position[index]].index

    def lengths(self) -> dict[int, int]:
        """Samples of each chosen episode, by episode index."""
        return {e.index: len(k) for e, k in zip(self._episodes, self._kept, strict=True)}

    def dim_names(self, vector: str) -> list[str]:
        """What the data set calls each dim of ``"state"`` or ``"action"``; "" where it says nothing."""
        which = self.frames.state if vector == "state" else self.frames.action
        return self.binding.dim_names(self._layout, vector, which)

    def instruction(self, episode: int) -> str:
        """What the robot was told at the start of an episode (by episode index)."""
        position = next(i for i, e in enumerate(self._episodes) if e.index == episode)
        return self.frames.instructions[int(self._first[position])]

    def numeric(self, index: int) -> tuple[Float | None, Float, Bool]:
        """State ``[S]`` or None, actions and mask ``[T, A]``; decodes nothing."""
        states, rows = self._rows["state"], self._rows["action"]
        assert rows is not None
        stop = int(self._stop[self._position[index]])
        actions, mask = action_chunk(rows, index, stop, self._horizon, self.spec.action.groups)
        return None if states is None else states[index], actions, mask

    def chunk_end(self, index: int) -> int | None:
        """Index of the frame after the T actions of a sample, or None past the episode's last frame."""
        end = index + self._horizon
        return end if end < self._stop[self._position[index]] else None

    def __getitem__(self, index: int) -> Sample:
        if not -len(self) <= index < len(self):
            raise IndexError(f"sample {index} of {len(self)}")
        index %= len(self)
        if len(self._deltas) == 1:
            return self._sample(self._observe(index), index)
        # In the order of time, so that the frames of a video are decoded in one pass.
        moments = [self._moment(i) for i in self._moments(index)]
        return self._sample(join(moments, self._deltas), index)

    def _sample(self, observation: Observation, index: int) -> Sample:
        _, actions, mask = self.numeric(index)
        meta = {"episode": self.episode(index), "frame": self._frame(index)}
        return Sample(observation, actions, mask, meta=meta)

    def _moments(self, index: int) -> list[int]:
        """Samples of the same episode at the wanted moments; before its first one there is the first."""
        first = int(self._first[self._position[index]])
        return [max(first, index + delta) for delta in self._deltas]

    def _moment(self, index: int) -> Observation:
        """One moment; neighbouring samples share most of theirs, so the last ones are kept."""
        if index not in self._recent:
            while len(self._recent) > -self._deltas[0]:
                self._recent.popitem(last=False)
            self._recent[index] = self._observe(index)
        self._recent.move_to_end(index)
        return self._recent[index]

    def _frame(self, index: int) -> int:
        position = int(self._position[index])
        return int(self._kept[position][index - self._first[position]])

    def _observe(self, index: int) -> Observation:
        """One moment."""
        episode, frame = self._episodes[self._position[index]], self._frame(index)
        geometry: dict[str, dict[str, Float] | None] = {
            kind: {name: self.frames.calibration[key][index] for name, key in keys.items()} or None
            for kind, keys in self._geometry.items()
        }
        row = int(self.frames.rows[index])
        try:
            images = {name: self._image(name, index, episode, frame) for name in self._cameras}
            depth = {n: self._maps.read(episode, k, frame, row) for n, k in self._depth.items()} or None
        except BadDataError as error:
            where = f"{self._layout.root}: episode {episode.index}, frame {frame}"
            raise BadDataError(f"{where}: {error}") from error
        return Observation(
            images=images,
            instruction=self.frames.instructions[index],
            state=None if self._now is None else self._now[index],
            depth=depth,
            intrinsics=geometry["intrinsics"],
            extrinsics=geometry["extrinsics"],
            embodiment=self.spec.embodiment,
        )

    def _of_cameras(self, columns: Mapping[str, str]) -> dict[str, str]:
        """Camera -> its column, of ``columns`` by the data set's own names of cameras."""
        own = camera_names(self._layout.features)
        return {name: columns[own[key]] for name, key in self._cameras.items() if own[key] in columns}

    def _image(self, camera: str, index: int, episode: Episode, frame: int) -> Image:
        if self._ram is not None:
            return self._ram[camera][index]
        key = self._cameras[camera]
        image = self._pictures.read(key, episode, frame, int(self.frames.rows[index]))
        return of_size(image, self._sizes[camera], key)

    def _decode_all(self) -> dict[str, NDArray[np.uint8]]:
        """All frames of each camera ``[F, H, W, 3]``."""
        return {
            name: self._pictures.read_all(
                self._cameras[name], self._episodes, self._kept, self.frames.rows, size
            )
            for name, size in self._sizes.items()
        }


def _allowed(config: LeRobotConfig, layout: Layout) -> list[int]:
    known = [e.index for e in layout.episodes]
    if config.episodes is None and config.exclude_episodes is None:
        return known
    return chosen_episodes(known, config.episodes, config.exclude_episodes, layout.root)


def _choose(layout: Layout, episodes: Sequence[int]) -> tuple[Episode, ...]:
    known = {e.index: e for e in layout.episodes}
    for index in episodes:
        if index not in known:
            raise ConfigError(f"episodes: {layout.root} has no episode {index} (it has {len(known)})")
    if not episodes or len(set(episodes)) < len(episodes):
        raise ConfigError("episodes: name each episode once and at least one")
    return tuple(known[index] for index in episodes)
