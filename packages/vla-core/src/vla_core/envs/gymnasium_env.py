"""Any registered gymnasium environment behind the environment protocol, described by one YAML file.

Gymnasium (Towers et al., arXiv 2407.17032) says nothing about cameras, units or success, so a *repack file*
does: see :class:`Repack`. Needs the extra ``vla-core[gymnasium]``.
"""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import gymnasium
import numpy as np
import yaml
from gymnasium.spaces import Box
from numpy.typing import NDArray

from vla_core.config import build_config
from vla_core.envs.protocol import StepResult, checked_action
from vla_core.errors import ConfigError
from vla_core.ranges import Count
from vla_core.specs import ActionSpec, CameraSpec, GroupSpec, ObservationSpec
from vla_core.types import Observation

RENDER = "render"
"""Source of a camera that is what ``render()`` draws."""


@dataclass(frozen=True)
class Repack:
    """What the YAML file says; unknown keys are errors.

    Args:
        cameras: camera name -> where its uint8 ``[H, W, 3]`` image is: a key of the observation (dots go
            deeper: ``pixels.top``), or ``render``.
        state: groups as in a robot description (``name``, ``dim``, ``unit``, ...), each with ``key``: where
            its numbers are (``.``: the observation itself); groups of one key take its dims in turn.
        action: groups of the action vector, in its order.
        control_hz: control steps a second.
        success: an entry of ``info`` that is true when the task is done.
        success_reward: or: the task is done at a step with at least this reward.
        instruction: what the robot is told; null: the name of the task.
        clip: actions are clipped to the bounds that the environment registers; false where those are not what
            it takes (gym-aloha registers -1 to 1 for joint angles that go beyond).
        embodiment: name of the robot.
        imports: modules that register the environment when they are imported; also those beside the file.
        kwargs: for ``gymnasium.make``.
    """

    cameras: dict[str, str]
    action: list[dict[str, Any]]
    control_hz: float
    state: list[dict[str, Any]] = field(default_factory=list)
    success: str | None = None
    success_reward: float | None = None
    instruction: str | None = None
    clip: bool = True
    embodiment: str = "default"
    imports: tuple[str, ...] = ()
    kwargs: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not self.cameras or not self.action:
            raise ConfigError("name at least one camera and one action group")
        if (self.success is None) == (self.success_reward is None):
            raise ConfigError("say what success is: 'success' (an entry of info) or 'success_reward'")


@dataclass(frozen=True)
class GymnasiumConfig:
    """Options of :class:`GymnasiumEnv`.

    Args:
        id: of the environment, as registered, e.g. ``gym_pusht/PushT-v0``.
        repack: YAML file that says what its observations and actions mean.
        task: any name; results are listed under it.
        max_steps: an episode is truncated after so many; null: as registered.
    """

    id: str
    repack: str
    task: str = "task"
    max_steps: Count | None = None


def read_repack(path: str) -> Repack:
    """Read and check a repack file.

    Raises:
        ConfigError: no such file, or a mistake in it.
    """
    try:
        with open(path, encoding="utf-8") as file:
            node = yaml.safe_load(file)
    except (OSError, yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"env.repack: {path}: {' '.join(str(error).split())}") from error
    if not isinstance(node, dict):
        raise ConfigError(f"env.repack: {path}: must hold keys and values (cameras, state, action, ...)")
    repack: Repack = build_config(Repack, node, path)
    return repack


def _groups(nodes: Sequence[Mapping[str, Any]], where: str) -> tuple[GroupSpec, ...]:
    plain = [{k: v for k, v in node.items() if k != "key"} for node in nodes]
    return tuple(build_config(GroupSpec, node, f"{where}.{i}") for i, node in enumerate(plain))


class GymnasiumEnv:
    """One gymnasium environment; implements :class:`~vla_core.envs.protocol.Env`. It has no expert.

    Raises:
        ConfigError: unknown environment, or a repack file that does not fit what it observes and takes.
    """

    Config: ClassVar[type] = GymnasiumConfig

    def __init__(self, config: GymnasiumConfig) -> None:
        self._config, self._repack = config, read_repack(config.repack)
        repack, where = self._repack, config.repack
        if sys.platform == "linux":
            os.environ.setdefault(
                "MUJOCO_GL", "egl"
            )  # without a choice MuJoCo takes one that needs a display
        beside = str(Path(where).resolve().parent)
        if repack.imports and beside not in sys.path:
            sys.path.append(beside)  # last: what is installed goes before
        try:
            for module in repack.imports:
                importlib.import_module(module)
            # What is checked here concerns a policy; gymnasium's own checker warns at every step.
            options: dict[str, Any] = {"disable_env_checker": True}
            if RENDER in repack.cameras.values():
                options["render_mode"] = "rgb_array"
            self._env: Any = gymnasium.make(config.id, **{**options, **repack.kwargs})
        except (gymnasium.error.Error, ModuleNotFoundError, TypeError) as error:
            raise ConfigError(f"env.id: '{config.id}': {' '.join(str(error).split())}") from error
        registered = self._env.spec.max_episode_steps if self._env.spec else None
        limit = config.max_steps if config.max_steps is not None else registered
        if limit is None or limit < 1:
            raise ConfigError(f"env.max_steps: '{config.id}' needs a limit of at least 1, got {limit}")
        self.max_steps: int = limit
        self._states = _groups(repack.state, f"{where}: state")
        self._keys = [str(node.get("key", node.get("name"))) for node in repack.state]
        groups = _groups(repack.action, f"{where}: action")
        self.action_spec = ActionSpec(groups, horizon=1, control_hz=repack.control_hz)
        space = self._env.action_space
        if not isinstance(space, Box) or int(np.prod(space.shape)) != self.action_spec.dim:
            raise ConfigError(
                f"{where}: action: its groups have {self.action_spec.dim} dims, '{config.id}' takes {space}"
            )
        self._space: Any = space
        first = self.reset(0)
        self._steps = limit  # no episode yet
        sizes = {name: image.shape for name, image in first.images.items()}
        cameras = tuple(CameraSpec(name, shape[0], shape[1]) for name, shape in sizes.items())
        self.observation_spec = ObservationSpec(cameras, self._states)

    @classmethod
    def tasks(cls) -> Sequence[str]:
        """None by name: a task may be called anything."""
        return ()

    def reset(self, seed: int) -> Observation:
        """Start the episode of ``seed``, as far as the environment obeys it."""
        raw, _ = self._env.reset(seed=seed)
        self._steps = 0
        return self._observe(raw)

    def step(self, action: NDArray[np.float32]) -> StepResult:
        """Execute one action ``[A]``, clipped to the environment's bounds unless ``Repack.clip`` is off.

        Raises:
            ValueError: wrong shape, NaN, or no :meth:`reset` before.
        """
        command = checked_action(action, self.action_spec.dim, self._steps < self.max_steps)
        command = command.reshape(self._space.shape)
        if self._repack.clip:
            command = np.clip(command, self._space.low, self._space.high)
        raw, reward, terminated, truncated, info = self._env.step(command.astype(self._space.dtype))
        self._steps += 1
        success = self._succeeded(float(reward), info)
        return StepResult(
            observation=self._observe(raw),
            reward=float(reward),
            success=success,
            terminated=bool(terminated),
            truncated=bool(truncated) or self._steps >= self.max_steps,
            achieved=frozenset({self._config.task} if success else ()),
        )

    def close(self) -> None:
        """Close the environment."""
        self._env.close()

    def _succeeded(self, reward: float, info: Mapping[str, Any]) -> bool:
        if self._repack.success_reward is not None:
            return reward >= self._repack.success_reward
        key = str(self._repack.success)
        if key not in info:
            raise ConfigError(f"{self._config.repack}: success: no '{key}' in info, which has {sorted(info)}")
        return bool(np.all(info[key]))

    def _observe(self, raw: Any) -> Observation:
        repack = self._repack
        images = {}
        for name, source in repack.cameras.items():
            image = self._env.render() if source == RENDER else self._find(raw, source)
            image = np.ascontiguousarray(image)
            if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
                raise ConfigError(
                    f"{self._config.repack}: cameras.{name}: '{source}' is {image.dtype} {image.shape}, "
                    "an image is uint8 (H, W, 3)"
                )
            images[name] = image
        return Observation(
            images=images,
            instruction=self._config.task if repack.instruction is None else repack.instruction,
            state=self._state(raw) if self._states else None,
            embodiment=repack.embodiment,
        )

    def _state(self, raw: Any) -> NDArray[np.float32]:
        taken: dict[str, int] = {}
        parts = []
        for group, key in zip(self._states, self._keys, strict=True):
            values = np.asarray(self._find(raw, key), np.float32).reshape(-1)
            start = taken.get(key, 0)
            taken[key] = start + group.dim
            if taken[key] > len(values):
                raise ConfigError(
                    f"{self._config.repack}: state: '{key}' has {len(values)} dims, groups take {taken[key]}"
                )
            parts.append(values[start : taken[key]])
        return np.concatenate(parts)

    def _find(self, raw: Any, path: str) -> Any:
        """A value of the observation; ``.`` is the observation itself."""
        value = raw
        for key in [] if path == "." else path.split("."):
            if not isinstance(value, Mapping) or key not in value:
                has = sorted(map(str, value)) if isinstance(value, Mapping) else type(value).__name__
                raise ConfigError(f"{self._config.repack}: no '{path}' in the observation, which has {has}")
            value = value[key]
        return value
