"""LIBERO-plus (LIBERO's tasks under seven kinds of perturbation) behind the environment protocol.

Source: Fei et al., LIBERO-Plus (arXiv 2510.13626), its repository at commit 4976dc3, which takes the place of
LIBERO's package: it lives in an environment of its own (see ``examples/LIBERO-plus``). Pictures are the
simulator's own, because it blurs and fogs them where a task says so.
"""

from __future__ import annotations

import contextlib
import io
import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray

from vla_core.envs import _libero_robot
from vla_core.envs.protocol import StepResult, checked_action, until_success
from vla_core.errors import ConfigError
from vla_core.ranges import Count, Natural, Range, check_ranges
from vla_core.specs import CameraSpec, ObservationSpec
from vla_core.types import Observation

__all__ = ["LiberoPlusConfig", "LiberoPlusEnv"]

_CAMERAS = {"agentview": "agentview_image", "wrist": "robot0_eye_in_hand_image"}
_SUITES = {
    "libero_spatial": (2402, 220),
    "libero_object": (2518, 280),
    "libero_goal": (2591, 300),
    "libero_10": (2519, 520),
}
"""Suite -> number of its tasks, and the steps of an episode (OpenVLA's, arXiv 2406.09246)."""
_SCENE_SEED = 0  # of where fixtures stand


@dataclass(frozen=True)
class LiberoPlusConfig:
    """Options of :class:`LiberoPlusEnv`.

    Args:
        task: suite and number in the benchmark's order from 0, e.g. ``libero_spatial_17``.
        sentence: ``task``: the task's ``language``, as published evaluations take it, which ends in the
            perturbation's numbers ("... on the plate view 0 0 100 2 352 initstate 0") where that is not of
            language; ``scene``: what the scene's file says, without them.
        settle_steps: without motion before the first observation.
        max_steps: an episode is truncated after so many steps; null: the suite's.
        gripper: what the policy's number means, as of :class:`vla_core.envs.libero.LiberoConfig`.
        image_size: H = W in pixels.
    """

    task: str = "libero_spatial_0"
    sentence: Literal["task", "scene"] = "task"
    settle_steps: Natural = 10
    max_steps: Count | None = None
    gripper: Literal["close_positive", "open_positive"] = "close_positive"
    image_size: Annotated[int, Range(low=16, high=4096)] = 256


class LiberoPlusEnv:
    """One LIBERO-plus task; implements :class:`~vla_core.envs.protocol.Env`. It has no expert.

    State ``[8]`` and action ``[7]`` are those of :class:`vla_core.envs.libero.LiberoEnv`, pictures are turned
    by half a turn as there: a policy of LIBERO's demonstrations fits as it is.

    Raises:
        ConfigError: unknown task, or LIBERO-plus is not what is installed as ``libero``.
    """

    Config: ClassVar[type] = LiberoPlusConfig

    def __init__(self, config: LiberoPlusConfig) -> None:
        check_ranges(config, "env.")
        suite, _, number = config.task.rpartition("_")
        count, horizon = _SUITES.get(suite, (0, 0))
        if not number.isdecimal() or int(number) >= count:
            known = ", ".join(f"{name}_0 to {name}_{n - 1}" for name, (n, _) in _SUITES.items())
            raise ConfigError(f"env.task: no task '{config.task}'; there are {known}")
        if sys.platform == "linux":
            os.environ.setdefault("MUJOCO_GL", "egl")
        try:
            # It prints the order of its thousands of tasks.
            with contextlib.redirect_stdout(io.StringIO()):
                from libero.libero.benchmark import get_benchmark_dict
                from libero.libero.envs import OffScreenRenderEnv

                benchmark: Any = get_benchmark_dict()[suite]()
        except ModuleNotFoundError as error:
            raise ConfigError(
                f"env: LIBERO-plus needs the module '{error.name}', in an environment of its own "
                "(examples/LIBERO-plus)"
            ) from error
        if benchmark.get_num_tasks() != count:
            raise ConfigError(
                f"env: the installed 'libero' has {benchmark.get_num_tasks()} tasks in {suite}, LIBERO-plus "
                f"{count}: it is another one"
            )
        self._config = config
        self.max_steps = horizon if config.max_steps is None else config.max_steps
        self._starts: Any = benchmark.get_task_init_states(int(number))
        size = config.image_size
        self._env: Any = OffScreenRenderEnv(
            bddl_file_name=benchmark.get_task_bddl_file_path(int(number)),
            camera_heights=size,
            camera_widths=size,
        )
        named = (
            self._env.language_instruction
            if config.sentence == "scene"
            else benchmark.get_task(int(number)).language
        )
        self._sentence = str(named)
        self._steps = self.max_steps  # no episode yet
        self.observation_spec = ObservationSpec(
            tuple(CameraSpec(name, size, size) for name in _CAMERAS), _libero_robot.STATE
        )
        self.action_spec = _libero_robot.action_spec(config.gripper)

    @classmethod
    def tasks(cls) -> Sequence[str]:
        """Names of the 10,030 tasks, suite by suite."""
        return tuple(f"{suite}_{i}" for suite, (count, _) in _SUITES.items() for i in range(count))

    def reset(self, seed: int) -> Observation:
        """Start from the initial state number ``seed``, counted round, and let it settle."""
        self._env.seed(_SCENE_SEED)
        self._env.reset()
        raw = self._env.set_init_state(self._starts[seed % len(self._starts)])
        for _ in range(self._config.settle_steps):
            raw, _, _, _ = self._env.step(_libero_robot.REST)
        self._steps = 0
        return self._observe(raw)

    def step(self, action: NDArray[np.float32]) -> StepResult:
        """Execute one action ``[7]``.

        Raises:
            ValueError: wrong shape, NaN, or no :meth:`reset` before.
        """
        command = checked_action(action, self.action_spec.dim, self._steps < self.max_steps)
        raw, _, done, _ = self._env.step(_libero_robot.command_of(command, self._config.gripper))
        self._steps += 1
        success = bool(done)
        result = until_success(self._observe(raw), success, self._config.task, self._steps, self.max_steps)
        if success:
            self._steps = self.max_steps  # the simulator refuses to go on
        return result

    def close(self) -> None:
        """Free the GL context and the simulator."""
        self._env.close()

    def _observe(self, raw: Mapping[str, Any]) -> Observation:
        return Observation(
            images={
                name: np.ascontiguousarray(np.asarray(raw[source], np.uint8)[::-1, ::-1])
                for name, source in _CAMERAS.items()
            },
            instruction=self._sentence,
            state=_libero_robot.state_of(raw),
            embodiment=_libero_robot.EMBODIMENT,
        )
