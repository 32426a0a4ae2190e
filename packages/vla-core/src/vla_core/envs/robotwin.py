"""RoboTwin 2.0 (two arms, simulated in SAPIEN) behind the environment protocol.

Source: Chen et al., RoboTwin 2.0 (arXiv 2506.18088): ``script/eval_policy.py`` at commit 0c3f24c for the
protocol, ``envs/_base_task.py`` at cf47ab5 for the API. The simulator is no package: programs run in a
checkout of its repository, in an environment of its own (see ``examples/Robotwin``).
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal, TypeAlias

import numpy as np
import yaml
from numpy.typing import NDArray

from vla_core.envs.protocol import StepResult, checked_action, until_success
from vla_core.errors import ConfigError, UserError, suggest
from vla_core.ranges import Count, Natural, check_ranges
from vla_core.specs import ActionSpec, CameraSpec, GroupSpec, ObservationSpec
from vla_core.types import Observation

__all__ = ["RobotwinConfig", "RobotwinEnv"]

CAMERAS = {"head": "head_camera", "left_wrist": "left_camera", "right_wrist": "right_camera"}
"""Name here -> name in the simulator."""

_FIRST_SCENE = 100_000  # scenes of the evaluation: 100000 * (1 + split) and on
_NEXT_TRY = 1_000  # of an episode whose scene the expert cannot solve: no scene of another episode
_TRIES = 50  # scenes that fail before the episode is given up
_EXPERT_FAILS = (
    ArithmeticError,
    AssertionError,
    AttributeError,
    LookupError,
    RuntimeError,
    TypeError,
    ValueError,
)
"""Planners of the expert fail in all these ways; the official loop drops such a scene as well."""

_Scene: TypeAlias = tuple[int, Mapping[str, Any]]
"""Number of a scene, and what the expert's demonstration of it is about."""

_JOINTS = (
    GroupSpec("left_joints", 6, "rad"),
    GroupSpec("left_gripper", 1, "1", gripper="open_positive"),
    GroupSpec("right_joints", 6, "rad"),
    GroupSpec("right_gripper", 1, "1", gripper="open_positive"),
)


@dataclass(frozen=True)
class RobotwinConfig:
    """Options of :class:`RobotwinEnv`.

    Args:
        task: a module of the simulator's ``envs``, e.g. ``beat_block_hammer``.
        task_config: ``demo_clean`` (easy), ``demo_randomized`` (hard), or another file of its task configs.
        split: the official ``seed``: which hundred thousand scenes.
        scenes: ``consecutive``: the episode of seed n has the n-th scene that the expert solves, as the
            official loop counts them; in each process the expert plays all scenes before it, once. ``own``:
            it has the scene of its number, or one far off where the expert fails, whatever ran before.
        sentences: ``unseen`` or ``seen`` in the demonstrations.
        max_steps: an episode is truncated after so many actions; null: the task's own limit.
    """

    task: str = "beat_block_hammer"
    task_config: str = "demo_clean"
    split: Natural = 0
    scenes: Literal["own", "consecutive"] = "own"
    sentences: Literal["unseen", "seen"] = "unseen"
    max_steps: Count | None = None


class RobotwinEnv:
    """One RoboTwin task with the robot aloha-agilex; implements :class:`~vla_core.envs.protocol.Env`.

    State and action ``[14]``: six joints and the gripper (0 closed, 1 open) of the left arm, then of the
    right one; targets, which the simulator reaches along a trajectory of its own.

    Raises:
        ConfigError: not in a checkout of RoboTwin, an unknown task or task config, or another robot.
    """

    Config: ClassVar[type] = RobotwinConfig

    def __init__(self, config: RobotwinConfig) -> None:
        check_ranges(config, "env.")
        root = Path.cwd()
        if not (root / "envs" / "_base_task.py").is_file():
            raise ConfigError(
                f"env: {root} is no checkout of RoboTwin; start in its root (examples/Robotwin)"
            )
        for folder in (root, root / "description" / "utils"):
            if str(folder) not in sys.path:
                sys.path.insert(0, str(folder))
        found = sorted(file.stem for file in (root / "envs").glob("[!_]*.py"))
        if config.task not in found:
            raise ConfigError(f"env.task: no task '{config.task}'{suggest(config.task, found)}")
        self._config = config
        self._arguments = _arguments(config)
        limits = _read(self._configs() / "_eval_step_limit.yml")
        self.max_steps = int(limits[config.task]) if config.max_steps is None else config.max_steps
        self._arguments["eval_mode"] = True
        self._task: Any = getattr(importlib.import_module(f"envs.{config.task}"), config.task)()
        self._running, self._steps = False, self.max_steps
        self._first = self._next = _FIRST_SCENE * (1 + config.split)
        self._scenes: list[_Scene] = []  # solved ones, in their order
        height, width = self._arguments["head_camera_h"], self._arguments["head_camera_w"]
        self.observation_spec = ObservationSpec(
            tuple(CameraSpec(name, height, width) for name in CAMERAS), _JOINTS
        )
        self.action_spec = ActionSpec(_JOINTS, horizon=1, control_hz=25.0)

    @classmethod
    def tasks(cls) -> Sequence[str]:
        """None by name here: a checkout has its own."""
        return ()

    @staticmethod
    def _configs() -> Path:
        return Path(importlib.import_module("envs").CONFIGS_PATH)

    def reset(self, seed: int) -> Observation:
        """Start the episode of ``seed``, in a scene that the expert solves.

        Raises:
            UserError: the expert solves none of many scenes.
        """
        if self._config.scenes == "own":
            scene, described = self._own(seed)
        else:
            scene, described = self._consecutive(seed)
        self._close_scene()
        self._task.setup_demo(now_ep_num=0, seed=scene, is_test=True, **self._arguments)
        self._running, self._steps = True, 0
        self._task.set_instruction(instruction=self._sentence(described, scene))
        return self._observe()

    def _own(self, seed: int) -> _Scene:
        first = self._first + seed % _NEXT_TRY + seed // _NEXT_TRY * _NEXT_TRY * _TRIES
        for scene in range(first, first + _TRIES * _NEXT_TRY, _NEXT_TRY):
            described = self._solved(scene)
            if described is not None:
                return scene, described
        raise UserError(f"env: the expert solves none of the {_TRIES} scenes of seed {seed}")

    def _consecutive(self, seed: int) -> _Scene:
        failed = 0
        while len(self._scenes) <= seed:
            scene = self._next
            described = self._solved(scene)
            self._next += 1
            if described is not None:
                self._scenes.append((scene, described))
                failed = 0
                continue
            failed += 1
            if failed == _TRIES:
                raise UserError(f"env: the expert solves none of the scenes {scene - _TRIES + 1} to {scene}")
        return self._scenes[seed]

    def step(self, action: NDArray[np.float32]) -> StepResult:
        """Execute one action ``[14]``.

        Raises:
            ValueError: wrong shape, NaN, or no :meth:`reset` before.
        """
        command = checked_action(action, self.action_spec.dim, self._steps < self.max_steps)
        self._task.take_action(command)
        self._steps += 1
        success = bool(self._task.eval_success)
        result = until_success(self._observe(), success, self._config.task, self._steps, self.max_steps)
        if success:
            self._steps = self.max_steps  # the simulator ignores what follows
        return result

    def close(self) -> None:
        """Close the scene."""
        self._close_scene()

    def _close_scene(self) -> None:
        if self._running:
            self._task.close_env()
        self._running = False

    def _solved(self, scene: int) -> Mapping[str, Any] | None:
        """What the expert's demonstration of a scene is about (it fills in sentences); None if it fails."""
        unstable = importlib.import_module("envs.utils.create_actor").UnStableError
        self._close_scene()
        self._running = True
        try:
            self._task.setup_demo(now_ep_num=0, seed=scene, is_test=True, **self._arguments)
            played: Mapping[str, Any] = self._task.play_once()
            done = self._task.plan_success and self._task.check_success()
        except (unstable, *_EXPERT_FAILS):
            return None
        return played["info"] if done else None

    def _sentence(self, described: Mapping[str, Any], scene: int) -> str:
        """One of the benchmark's sentences for this scene, drawn by its number."""
        language = importlib.import_module("generate_episode_instructions")
        made = language.generate_episode_descriptions(self._config.task, [described], 100)
        sentences = made[0][self._config.sentences]
        return str(sentences[np.random.default_rng(scene).integers(len(sentences))])

    def _observe(self) -> Observation:
        raw = self._task.get_obs()
        pictures = raw["observation"]
        return Observation(
            images={
                name: np.ascontiguousarray(pictures[source]["rgb"][..., :3], np.uint8)
                for name, source in CAMERAS.items()
            },
            instruction=str(self._task.get_instruction()),
            state=np.asarray(raw["joint_action"]["vector"], np.float32),
            embodiment="robotwin_aloha_agilex",
        )


def _read(path: Path) -> dict[str, Any]:
    try:
        node = yaml.safe_load(path.read_text("utf-8"))
    except OSError as error:
        raise ConfigError(f"env: {path}: {error.strerror}") from error
    return dict(node)


def _arguments(config: RobotwinConfig) -> dict[str, Any]:
    """What ``setup_demo`` takes, as ``script/eval_policy.py`` makes it of the config files."""
    configs = RobotwinEnv._configs()
    arguments = _read(configs / f"{config.task_config}.yml")
    if arguments["embodiment"] != ["aloha-agilex"]:
        raise ConfigError(
            f"env.task_config: its robot is {arguments['embodiment']}, this client's is aloha-agilex"
        )
    robot = Path(_read(configs / "_embodiment_config.yml")["aloha-agilex"]["file_path"])
    camera = _read(configs / "_camera_config.yml")[arguments["camera"]["head_camera_type"]]
    described = _read(robot / "config.yml")
    return {
        **arguments,
        "task_name": config.task,
        "task_config": config.task_config,
        "left_robot_file": str(robot),
        "right_robot_file": str(robot),
        "left_embodiment_config": described,
        "right_embodiment_config": described,
        "dual_arm_embodied": True,
        "head_camera_h": camera["h"],
        "head_camera_w": camera["w"],
        "render_freq": 0,
        "eval_video_log": False,
    }
