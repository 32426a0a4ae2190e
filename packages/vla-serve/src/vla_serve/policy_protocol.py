"""What the server needs of a policy; ``vla_core.policy.VLAPolicy`` is one. Importable without torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from vla_core.errors import UserError
from vla_core.specs import RobotSpec
from vla_core.types import ActionChunk, Observation, PreviousChunk


class Policy(Protocol):
    """Answers observations with action chunks. Called from one thread.

    One that can continue a chunk (real-time chunking) has ``longest_delay(embodiment) -> int`` too, and its
    :meth:`act` an argument ``previous``; one that can reuse what it knows of a picture has
    ``check_view_keys()``, and its :meth:`act` an argument ``view_keys``. See ``VLAPolicy``.
    """

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


@dataclass(frozen=True)
class Row:
    """One request to a policy; ``view_keys`` camera name -> key, None: no keys."""

    observation: Observation
    seed: int
    steps: int | None = None
    previous: PreviousChunk | None = None
    view_keys: Mapping[str, str] | None = None


def act(policy: Policy, row: Row) -> ActionChunk:
    """The answer to one row; a policy is given only the arguments that the row has."""
    more: dict[str, Any] = {}
    if row.previous is not None:
        more["previous"] = [row.previous]
    if row.view_keys is not None:
        more["view_keys"] = [row.view_keys]
    return policy.act([row.observation], [row.seed], row.steps, **more)[0]


def longest_delay(policy: Policy, embodiment: str) -> int:
    """Most steps that a previous chunk may have frozen; :class:`UserError` when the policy takes none."""
    ask = getattr(policy, "longest_delay", None)
    if ask is None:
        raise UserError(
            f"previous chunk: a {type(policy).__name__} cannot keep the start of an earlier chunk"
        )
    limit: int = ask(embodiment)
    return limit


def check_view_keys(policy: Policy) -> None:
    """Raise :class:`UserError` unless the policy takes view keys."""
    check = getattr(policy, "check_view_keys", None)
    if check is None:
        raise UserError(f"view_keys: given, but a {type(policy).__name__} computes nothing to reuse")
    check()


def fake_observation(spec: RobotSpec) -> Observation:
    """Zeros that fit ``spec``, to warm a policy up."""
    cameras, dim = spec.observation.cameras, spec.observation.state_dim
    return Observation(
        images={c.name: np.zeros((c.height, c.width, 3), np.uint8) for c in cameras},
        instruction="warm up",
        state=np.zeros(dim, np.float32) if dim else None,
        embodiment=spec.embodiment,
    )
