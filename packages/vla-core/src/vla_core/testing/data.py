"""Made-up robots and data, deterministic in their seed."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from vla_core.specs import ActionSpec, CameraSpec, GroupSpec, ObservationSpec, RobotSpec
from vla_core.stats import NormStats, VectorStats
from vla_core.types import Observation, Sample


def make_spec(
    n_cameras: int = 2, height: int = 32, width: int = 32, horizon: int = 4, embodiment: str = "default"
) -> RobotSpec:
    """An arm with position (m), rotation (rad) and gripper; actions are absolute targets."""
    state = (
        GroupSpec("position", 3, "m"),
        GroupSpec("rotation", 3, "rad", rotation="axis_angle"),
        GroupSpec("gripper", 1, "1", gripper="open_positive"),
    )
    rows = np.random.default_rng(0).uniform(-1, 1, (200, 7))
    rows[:, 6] = rows[:, 6] > 0
    stats = VectorStats.from_rows(rows)
    return RobotSpec(
        observation=ObservationSpec(
            tuple(CameraSpec(f"camera_{i}", height, width) for i in range(n_cameras)), state
        ),
        action=ActionSpec(state, horizon, 10.0),
        statistics=NormStats({"state": stats, "action": stats}),
        embodiment=embodiment,
    )


def make_observation(spec: RobotSpec, seed: int = 0) -> Observation:
    """Random images and state that fit ``spec``."""
    rng = np.random.default_rng(seed)
    state = rng.uniform(-1, 1, spec.observation.state_dim).astype(np.float32)
    return Observation(
        images={
            c.name: rng.integers(0, 256, (c.height, c.width, 3), dtype=np.uint8)
            for c in spec.observation.cameras
        },
        instruction=("open the drawer", "close the drawer")[seed % 2],
        state=state if spec.observation.state_dim else None,
        embodiment=spec.embodiment,
    )


def make_sample(spec: RobotSpec, seed: int = 0, valid: int | None = None) -> Sample:
    """A sample whose first ``valid`` action steps (default: all) are real and the rest padding."""
    rng = np.random.default_rng(seed + 10_000)
    shape = (spec.action.horizon, spec.action.dim)
    actions = rng.uniform(-1, 1, shape).astype(np.float32)
    mask = np.zeros(shape, np.bool_)
    mask[: spec.action.horizon if valid is None else valid] = True
    return Sample(replace(make_observation(spec, seed)), actions, mask, meta={"episode": 0, "frame": seed})
