"""The numpy side of the toolkit: what a robot, simulator or dataset gives and takes.

Shapes: H, W image size in pixels; S state dims; T action steps; A action dims.
All values are in real (un-normalised) units.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vla_core.specs import ActionSpec

Image = NDArray[np.uint8]
Float = NDArray[np.float32]
Bool = NDArray[np.bool_]


@dataclass(frozen=True)
class Observation:
    """One time step as the robot sees it.

    Args:
        images: camera name -> uint8 RGB ``[H, W, 3]``.
        instruction: what to do, in natural language.
        state: float32 ``[S]`` proprioception in the units of the spec, or None.
        depth: camera name -> float32 ``[H, W]`` metres along the optical axis, or None.
        intrinsics: camera name -> float32 ``[3, 3]`` pinhole matrix in pixels, or None.
        extrinsics: camera name -> float32 ``[4, 4]`` camera-to-world pose (OpenCV axes:
            x right, y down, z forward; metres), or None.
        embodiment: which :class:`~vla_core.specs.RobotSpec` of the checkpoint applies.
    """

    images: Mapping[str, Image]
    instruction: str
    state: Float | None = None
    depth: Mapping[str, Float] | None = None
    intrinsics: Mapping[str, Float] | None = None
    extrinsics: Mapping[str, Float] | None = None
    embodiment: str = "default"


def with_own_arrays(observation: Observation) -> Observation:
    """A copy that stays what it is: cameras, drivers and simulators write each moment to the same arrays."""

    def copied(value: Any) -> Any:
        return value.copy() if isinstance(value, np.ndarray) else value

    def copies(values: Mapping[str, Any] | None) -> dict[str, Any] | None:
        return None if values is None else {name: copied(value) for name, value in values.items()}

    return replace(
        observation,
        images=copies(observation.images) or {},
        state=copied(observation.state),
        depth=copies(observation.depth),
        intrinsics=copies(observation.intrinsics),
        extrinsics=copies(observation.extrinsics),
    )


@dataclass(frozen=True)
class Sample:
    """One training example: raw and model-agnostic, no tokens, no encoding.

    Args:
        observation: the current time step.
        actions: float32 ``[T, A]``.
        action_mask: bool ``[T, A]``; False where the episode has ended or the dim is padding.
        future: the observation at the chunk's end (after its T actions), for auxiliaries that
            predict it; None if nobody asked, or if the episode ends before.
        meta: where the sample comes from (episode and frame index), for reports only.
    """

    observation: Observation
    actions: Float
    action_mask: Bool
    future: Observation | None = None
    meta: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class ActionChunk:
    """Actions to execute, always un-normalised: float32 ``[T, A]`` in the units of ``spec``."""

    actions: Float
    spec: ActionSpec


@dataclass(frozen=True)
class PreviousChunk:
    """What is left of the chunk that is being executed while the next one is computed.

    The next chunk keeps the frozen steps and goes on smoothly from there (real-time chunking,
    arXiv 2506.07339).

    Args:
        actions: float32 ``[R, A]`` in the units of the spec: the step that is executed now, and those
            after it. Groups whose raw representation is relative count from the present state.
        n_frozen: how many of them are executed before the next chunk arrives (the delay in steps).
    """

    actions: Float
    n_frozen: int
