"""One request to a policy, as a robot's side makes it. Numpy alone: a server's engine needs no torch."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from dataclasses import dataclass

from vla_core.types import Observation, PreviousChunk


@dataclass(frozen=True)
class Row:
    """One request.

    Args:
        observation: in real units; it names its embodiment.
        seed: of the noise: the answer depends on the row's own observation and seed alone.
        view_keys: camera name -> key of its picture, for cameras that stand still before a scene that does
            not change. What a geometry encoder with a cache knows of a key is not computed again, and the
            picture that comes with it is not looked at.
        previous: what is left of the chunk being executed: the answer keeps its frozen steps exactly and
            goes on from them (real-time chunking, arXiv 2506.07339).
        steps: denoise steps that are asked for, None: the policy's own. Who gathers rows into a batch gives
            them to ``predict``.
    """

    observation: Observation
    seed: int = 0
    view_keys: Mapping[str, str] | None = None
    previous: PreviousChunk | None = None
    steps: int | None = None

    @property
    def kind(self) -> Hashable:
        """Rows of one kind can share a run of the model: the same tensors are there, of the same shapes."""
        geometry = [getattr(self.observation, field) for field in ("depth", "intrinsics", "extrinsics")]
        known = tuple(None if values is None else frozenset(values) for values in geometry)
        return self.steps, self.previous is not None, self.view_keys is not None, known
