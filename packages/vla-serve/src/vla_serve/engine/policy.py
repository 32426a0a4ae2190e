"""What the engine needs of a policy; ``vla_core.policy.VLAPolicy`` is one. Importable without torch."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, cast

import numpy as np
from vla_core.errors import UserError
from vla_core.row import Row as Row
from vla_core.specs import RobotSpec
from vla_core.types import ActionChunk, Observation

from vla_serve.probing.made_up import made_up_inputs


class Described(Protocol):
    """What both kinds of policies say of themselves.

    One that can continue a chunk (real-time chunking) has ``longest_delay(embodiment) -> int`` too; one that
    can reuse what it knows of a picture has ``check_view_keys()``; one that cannot do without depth or the
    calibration of cameras names them in ``camera_inputs``. See ``VLAPolicy``.
    """

    @property
    def specs(self) -> Mapping[str, RobotSpec]:
        """Embodiment -> contract."""
        ...

    @property
    def framework(self) -> str:
        """Name of the framework it was built from."""
        ...


class Policy(Described, Protocol):
    """Answers rows in three steps, which run in different threads.

    What ``prepare`` returns has a static method ``join(parts)``: the rows of all parts, as if they had been
    prepared together. A policy that can do without joining has ``predict_rows(parts, steps)``, which answers
    as ``predict(join(parts), steps)`` does and is called in its place. What either returns is sliced by row.
    """

    def prepare(self, rows: Sequence[Any]) -> Any:
        """What the model reads of some rows: CPU work, called from several threads at a time."""
        ...

    def predict(self, prepared: Any, steps: int | None = None) -> Any:
        """The model, one entry a row; called from one thread. ``steps`` None: the policy's own."""
        ...

    def finish(self, actions: Any, rows: Sequence[Any]) -> Sequence[ActionChunk]:
        """Un-normalised chunks ``[T, A]`` of what was predicted for ``rows``; from several threads."""
        ...


class ActingPolicy(Described, Protocol):
    """The simple kind: one call does everything, a row at a time, from one thread.

    One that continues chunks takes ``previous``, one that reuses pictures ``view_keys``.
    """

    def act(
        self, observations: Sequence[Observation], seeds: Sequence[int], steps: int | None = None
    ) -> Sequence[ActionChunk]:
        """One un-normalised chunk ``[T, A]`` per observation; ``steps`` are denoise steps, None the own."""
        ...


@dataclass(frozen=True)
class _Rows:
    rows: tuple[Row, ...]

    @staticmethod
    def join(parts: Sequence[_Rows]) -> _Rows:
        return _Rows(tuple(row for part in parts for row in part.rows))


class RowByRow:
    """An :class:`ActingPolicy` as a :class:`Policy`; the engine gives it one row at a time."""

    def __init__(self, policy: ActingPolicy) -> None:
        self.policy = policy

    @property
    def specs(self) -> Mapping[str, RobotSpec]:
        """See :class:`Described`."""
        return self.policy.specs

    @property
    def framework(self) -> str:
        """See :class:`Described`."""
        return self.policy.framework

    def prepare(self, rows: Sequence[Row]) -> _Rows:
        """Nothing to do."""
        return _Rows(tuple(rows))

    def predict(self, prepared: _Rows, steps: int | None = None) -> list[ActionChunk]:
        """The chunks; a policy is given only the arguments that a row has."""
        chunks: list[ActionChunk] = []
        for row in prepared.rows:
            more: dict[str, Any] = {}
            if row.previous is not None:
                more["previous"] = [row.previous]
            if row.view_keys is not None:
                more["view_keys"] = [row.view_keys]
            chunks += self.policy.act([row.observation], [row.seed], steps, **more)
        return chunks

    def finish(self, actions: list[ActionChunk], rows: Sequence[Row]) -> list[ActionChunk]:
        """Nothing to do."""
        return actions


def as_policy(policy: Policy | ActingPolicy) -> Policy:
    """``policy``, wrapped if it is of the simple kind."""
    return cast(Policy, policy) if hasattr(policy, "prepare") else RowByRow(policy)


def longest_delay(policy: Described, embodiment: str) -> int:
    """Most steps that a previous chunk may have frozen; :class:`UserError` when the policy takes none."""
    policy = _inner(policy)
    ask = getattr(policy, "longest_delay", None)
    if ask is None:
        raise UserError(
            f"previous chunk: a {type(policy).__name__} cannot keep the start of an earlier chunk"
        )
    limit: int = ask(embodiment)
    return limit


def check_view_keys(policy: Described) -> None:
    """Raise :class:`UserError` unless the policy takes view keys."""
    policy = _inner(policy)
    check = getattr(policy, "check_view_keys", None)
    if check is None:
        raise UserError(f"view_keys: given, but a {type(policy).__name__} computes nothing to reuse")
    check()


def _inner(policy: Described) -> Described:
    return policy.policy if isinstance(policy, RowByRow) else policy


def camera_inputs(policy: Described) -> frozenset[str]:
    """What a policy cannot do without, of ``depth``, ``intrinsics`` and ``extrinsics``."""
    return frozenset(getattr(_inner(policy), "camera_inputs", ()))


def fake_observation(spec: RobotSpec, inputs: Collection[str] = ()) -> Observation:
    """Zeros that fit ``spec``, to warm a policy up; ``inputs``: see :func:`camera_inputs`."""
    cameras, dim = spec.observation.cameras, spec.observation.state_dim
    return Observation(
        images={c.name: np.zeros((c.height, c.width, 3), np.uint8) for c in cameras},
        instruction="warm up",
        state=np.zeros(dim, np.float32) if dim else None,
        embodiment=spec.embodiment,
        **made_up_inputs(cameras, inputs),
    )
