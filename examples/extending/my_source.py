"""A dataset in one file: a dot is pushed towards the middle of the picture; nothing is stored on disk.

Shape legend: T action steps, A action dims.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from vla_core.sources import action_chunk
from vla_core.specs import ActionSpec, CameraSpec, GroupSpec, ObservationSpec, RobotSpec
from vla_core.stats import NormStats, VectorStats
from vla_core.types import Observation, Sample

STEP = 0.1
Numbers = tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.bool_]]


class MySource:
    """Entry point ``my_source`` in ``vla.sources``."""

    @dataclass(frozen=True)
    class Config:
        """The YAML node of one dataset."""

        episodes: int = 4
        frames: int = 20
        size: int = 32

    def __init__(self, config: Config, horizon: int, episodes: Sequence[int] | None = None) -> None:
        self.config, self.horizon = config, horizon
        self.episodes = list(self.list_episodes(config) if episodes is None else episodes)
        self.states, self.actions = zip(*(self._episode(seed) for seed in self.episodes), strict=True)
        self.spec = RobotSpec(
            observation=ObservationSpec(
                cameras=(CameraSpec("top", config.size, config.size),),
                state=(GroupSpec("position", 2, "m"),),
            ),
            action=ActionSpec((GroupSpec("velocity", 2, "m/s"),), horizon=horizon, control_hz=10.0),
            statistics=NormStats(
                {
                    "state": VectorStats.from_rows(np.concatenate(self.states)),
                    "action": VectorStats.from_rows(np.concatenate(self.actions)),
                }
            ),
        )

    @classmethod
    def list_episodes(cls, config: Any) -> Sequence[int]:
        """Episode indices, without making any."""
        return range(config.episodes)

    def _episode(self, seed: int) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        position = np.random.default_rng(seed).uniform(-1, 1, 2)
        states = [position * (1 - STEP) ** t for t in range(self.config.frames)]
        positions = np.asarray(states, dtype=np.float32)
        return positions, -positions  # the demonstrator's rule

    def _image(self, position: NDArray[np.float32]) -> NDArray[np.uint8]:
        size = self.config.size
        image = np.zeros((size, size, 3), np.uint8)
        x, y = ((position + 1) / 2 * (size - 4)).astype(int)
        image[y : y + 4, x : x + 4] = 255
        return image

    def __len__(self) -> int:
        """Number of frames."""
        return len(self.episodes) * self.config.frames

    def __getitem__(self, index: int) -> Sample:
        """The frame and the actions from there on; steps past the episode's end are masked."""
        state, chunk_TA, mask_TA = self.numeric(index)
        images, instruction = {"top": self._image(state)}, "push the dot to the middle"
        meta = {"episode": self.episode(index), "frame": index % self.config.frames}
        return Sample(Observation(images, instruction, state), chunk_TA, mask_TA, meta=meta)

    def numeric(self, index: int) -> Numbers:
        """State, actions and mask of a sample, without its images: statistics and validation read these."""
        episode, frame = divmod(index, self.config.frames)
        rows = self.actions[episode]
        chunk_TA, mask_TA = action_chunk(rows, frame, len(rows), self.horizon, self.spec.action.groups)
        return self.states[episode][frame], chunk_TA, mask_TA

    def episode(self, index: int) -> int:
        """Episode of a sample: held-out episodes are chosen and drawn by it."""
        return self.episodes[index // self.config.frames]
