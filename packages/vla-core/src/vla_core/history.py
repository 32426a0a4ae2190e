"""Observations of several moments as one: earlier pictures and states beside those of now.

``top@-3`` is what the camera ``top`` showed three control steps ago, ``joints@-3`` the state of then. They
are views and state groups of the contract like all others, so a robot that sends the present alone is refused
by name. Before the first step of an episode there was nothing: its first observation stands in, in training
(the sources of vla-data) as on the robot (:class:`History`), and in Diffusion Policy
(arXiv 2303.04137).
"""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import pairwise
from typing import Annotated, Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from vla_core.envs.protocol import Env, StepResult
from vla_core.errors import ConfigError
from vla_core.ranges import Range
from vla_core.specs import ActionSpec, ObservationSpec
from vla_core.types import Float, Observation, with_own_arrays

T = TypeVar("T")

Past = Annotated[int, Range(high=0)]
"""Steps from now."""
NOW = (0,)
_EARLIER = re.compile(r"(.+)@(-[1-9]\d*)")


def check_deltas(deltas: Sequence[int], field: str) -> None:
    """Raise :class:`ConfigError` unless ``deltas`` are ascending steps that end with 0, the present."""
    if not deltas or deltas[-1] != 0 or any(a >= b for a, b in pairwise(deltas)):
        raise ConfigError(
            f"{field}: must be ascending steps that end with the present, e.g. [-3, -2, -1, 0]; got "
            f"{list(deltas)}"
        )


def moment_name(name: str, delta: int) -> str:
    """What a camera or group is called ``delta`` steps from now."""
    return name if delta == 0 else f"{name}@{delta}"


def present_name(name: str) -> str:
    """A camera or group by its name without the moment."""
    earlier = _EARLIER.fullmatch(name)
    return earlier[1] if earlier else name


def present(views: Mapping[str, T]) -> dict[str, T]:
    """The views of now."""
    return {name: view for name, view in views.items() if present_name(name) == name}


def deltas_of(spec: ObservationSpec) -> tuple[int, ...]:
    """The moments, in steps from now, that a contract asks for; ``(0,)``: the present alone."""
    names = [*(camera.name for camera in spec.cameras), *(group.name for group in spec.state)]
    found = {int(earlier[2]) for name in names if (earlier := _EARLIER.fullmatch(name))}
    return (*sorted(found), 0)


def spec_over(spec: ObservationSpec, deltas: Sequence[int]) -> ObservationSpec:
    """``spec`` of the present, over several moments.

    Views are ordered by camera and then by time, so that a camera's are neighbours; states by time. The
    present comes last.
    """
    return ObservationSpec(
        tuple(replace(c, name=moment_name(c.name, d)) for c in spec.cameras for d in deltas),
        tuple(replace(g, name=moment_name(g.name, d)) for d in deltas for g in spec.state),
    )


def over_moments(
    states: Float | None, first: NDArray[np.integer[Any]], deltas: Sequence[int]
) -> Float | None:
    """States of all moments together ``[F, S x moments]``.

    Args:
        states: ``[F, S]`` of each frame, or None.
        first: ``[F]`` row of the first frame of each frame's episode, which stands in for what was before.
        deltas: see :func:`check_deltas`.
    """
    if states is None or len(deltas) == 1:
        return states
    index = np.arange(len(states))
    return np.concatenate([states[np.maximum(first, index + delta)] for delta in deltas], axis=1)


def join(moments: Sequence[Observation], deltas: Sequence[int]) -> Observation:
    """One observation of the observations at ``deltas``; what is not a view or a state is that of now."""
    now = moments[-1]
    if len(deltas) == 1:
        return now

    def views(kind: str) -> dict[str, Any]:
        given: list[Mapping[str, Any]] = [getattr(moment, kind) or {} for moment in moments]
        pairs = list(zip(given, deltas, strict=True))
        return {moment_name(n, d): g[n] for n in given[-1] for g, d in pairs if n in g}

    states = [moment.state for moment in moments if moment.state is not None]
    return replace(
        now,
        images=views("images"),
        depth=views("depth") or None,
        intrinsics=views("intrinsics") or None,
        extrinsics=views("extrinsics") or None,
        state=np.concatenate(states) if states else None,
    )


class History:
    """The last observations of an episode, one a control step.

    Args:
        deltas: moments that are wanted, see :func:`check_deltas`.
    """

    def __init__(self, deltas: Sequence[int]) -> None:
        check_deltas(deltas, "deltas")
        self.deltas = tuple(deltas)
        self._kept: deque[Observation] = deque(maxlen=1 - self.deltas[0])

    def reset(self) -> None:
        """An episode begins."""
        self._kept.clear()

    def add(self, observation: Observation) -> Observation:
        """The observation of the next control step, with those before; call it at every step, once.

        Its arrays may be written to afterwards.
        """
        self._kept.append(with_own_arrays(observation))
        last = len(self._kept) - 1
        return join([self._kept[max(0, last + delta)] for delta in self.deltas], self.deltas)


class RememberingEnv:
    """A simulator that shows earlier moments too; else as ``env``.

    Args:
        env: whose observations are of the present.
        deltas: moments, see :func:`check_deltas`.
    """

    def __init__(self, env: Env, deltas: Sequence[int]) -> None:
        self.env, self.history = env, History(deltas)
        self.observation_spec = spec_over(env.observation_spec, deltas)
        self.action_spec: ActionSpec = env.action_spec
        self.max_steps = env.max_steps

    def reset(self, seed: int) -> Observation:
        """Start an episode, before which nothing was."""
        self.history.reset()
        return self.history.add(self.env.reset(seed))

    def step(self, action: NDArray[np.float32]) -> StepResult:
        """Execute one action ``[A]``."""
        result = self.env.step(action)
        return replace(result, observation=self.history.add(result.observation))

    def close(self) -> None:
        """End the simulator."""
        self.env.close()
