"""What the server needs of a policy; ``vla_core.policy.VLAPolicy`` is one. Importable without torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

import numpy as np
from vla_core.specs import RobotSpec
from vla_core.types import ActionChunk, Observation


class Policy(Protocol):
    """Answers observations with action chunks. Called from one thread."""

    @property
    def specs(self) -> Mapping[str, RobotSpec]:
        """Embodiment -> contract."""
        ...

    @property
    def framework(self) -> str:
        """Name of the framework it was built from."""
        ...

    def act(
        self, observations: Sequence[Observation], seeds: Sequence[int], steps: int | None = None
    ) -> Sequence[ActionChunk]:
        """One un-normalised chunk ``[T, A]`` per observation; ``steps`` are denoise steps, None the own."""
        ...


def fake_observation(spec: RobotSpec) -> Observation:
    """Zeros that fit ``spec``, to warm a policy up."""
    cameras, dim = spec.observation.cameras, spec.observation.state_dim
    return Observation(
        images={c.name: np.zeros((c.height, c.width, 3), np.uint8) for c in cameras},
        instruction="warm up",
        state=np.zeros(dim, np.float32) if dim else None,
        embodiment=spec.embodiment,
    )
