"""BEHAVIOR-1K (an R1Pro in houses, simulated by OmniGibson) behind the environment protocol.

Source: Li et al., BEHAVIOR-1K (arXiv 2403.09227), its evaluator ``omnigibson/learning/eval.py`` at commit
0b5348f and the index tables of ``eval_utils.py`` at 031729c: the 2025 challenge's standard track. The
simulator is installed from its repository into an environment of its own (see ``examples/Behavior``).

``score`` of an episode's last step is the challenge's ``q_score``: 1 for success, else the greatest share of
an option's goal predicates that did not hold at the start and hold now
(``omnigibson/metrics/task_metric.py``).

The evaluator is the benchmark's own, observation by observation; only the policy in it is a stand-in that
answers what :meth:`BehaviorEnv.step` was given.
"""

from __future__ import annotations

import csv
import importlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray

from vla_core.envs.protocol import StepResult, checked_action
from vla_core.errors import ConfigError, suggest
from vla_core.ranges import Count, check_ranges
from vla_core.specs import ActionSpec, CameraSpec, GroupSpec, ObservationSpec
from vla_core.types import Observation

__all__ = ["BehaviorConfig", "BehaviorEnv"]

_CAMERAS = {
    "head": "robot_r1::robot_r1:zed_link:Camera:0::rgb",
    "left_wrist": "robot_r1::robot_r1:left_realsense_link:Camera:0::rgb",
    "right_wrist": "robot_r1::robot_r1:right_realsense_link:Camera:0::rgb",
}
_PROPRIOCEPTION = "robot_r1::proprio"
_STATE = {
    GroupSpec("base_velocity", 3, "unknown"): slice(253, 256),
    GroupSpec("torso", 4, "rad"): slice(236, 240),
    GroupSpec("left_arm", 7, "rad"): slice(158, 165),
    GroupSpec("left_gripper", 2, "m", gripper="open_positive"): slice(193, 195),
    GroupSpec("right_arm", 7, "rad"): slice(197, 204),
    GroupSpec("right_gripper", 2, "m", gripper="open_positive"): slice(232, 234),
}
"""Group -> dims of the 256 numbers; the pose in the world is left out, as the standard track asks."""
_ACTION = (
    GroupSpec("base_velocity", 3, "unknown"),
    GroupSpec("torso", 4, "unknown"),
    GroupSpec("left_arm", 7, "unknown"),
    GroupSpec("left_gripper", 1, "unknown"),
    GroupSpec("right_arm", 7, "unknown"),
    GroupSpec("right_gripper", 1, "unknown"),
)
_INSTANCES = 10


class _Given:
    """The policy in the evaluator: it answers the action that was put here."""

    def __init__(self) -> None:
        self.action: Any = None

    def forward(self, obs: Mapping[str, Any]) -> Any:
        return self.action

    def reset(self) -> None:
        self.action = None


@dataclass(frozen=True)
class BehaviorConfig:
    """Options of :class:`BehaviorEnv`.

    Args:
        task: one of the benchmark's, e.g. ``turning_on_radio``.
        sentences: ``meta/tasks.jsonl`` of the demonstrations: what each task is called in words.
        wrapper: of the benchmark: ``DefaultWrapper`` has the resolution of the demonstrations (head 720,
            wrists 480), ``RGBLowResWrapper`` 224, for a policy trained on pictures of that size.
        max_steps: an episode is truncated after so many steps; null: twice the mean length of the
            demonstrations.
        partial_scene: load only the rooms that the task needs.
    """

    task: str = "turning_on_radio"
    sentences: str = ""
    wrapper: Literal["DefaultWrapper", "RGBLowResWrapper"] = "DefaultWrapper"
    max_steps: Count | None = None
    partial_scene: bool = True


class BehaviorEnv:
    """One BEHAVIOR-1K task; implements :class:`~vla_core.envs.protocol.Env`. It has no expert.

    State ``[25]`` and action ``[23]``: velocity of the base, torso, arms and grippers. Nothing is clipped or
    binarised here: the robot's controllers take the numbers as the demonstrations recorded them.

    Raises:
        ConfigError: unknown task, no sentence for it, or the simulator is not installed.
    """

    Config: ClassVar[type] = BehaviorConfig

    def __init__(self, config: BehaviorConfig) -> None:
        check_ranges(config, "env.")
        self._sentence = _sentence(config.sentences, config.task)
        try:
            evaluation = importlib.import_module("omnigibson.learning.eval")
            tables = importlib.import_module("omnigibson.learning.utils.eval_utils")
            self._torch: Any = importlib.import_module("torch")
            omegaconf = importlib.import_module("omegaconf")
        except ModuleNotFoundError as error:
            raise ConfigError(
                f"env: BEHAVIOR-1K needs the module '{error.name}', in an environment of its own "
                "(examples/Behavior)"
            ) from error
        numbers: Mapping[str, int] = tables.TASK_NAMES_TO_INDICES
        if config.task not in numbers:
            raise ConfigError(f"env.task: no task '{config.task}'{suggest(config.task, numbers)}")
        evaluation.gm.HEADLESS = True
        self._instances = _test_instances(Path(evaluation.gm.DATA_PATH), numbers[config.task], config.task)
        settings = {
            "env_wrapper": {"_target_": f"omnigibson.learning.wrappers.{config.wrapper}"},
            "task": {"name": config.task},
            "robot": {"type": "R1Pro", "controllers": None},
            "partial_scene_load": config.partial_scene,
            "max_steps": config.max_steps,
            "write_video": False,
            "model": {"_target_": f"{__name__}._Given"},
            "policy_name": "given",
        }
        self._evaluator: Any = evaluation.Evaluator(omegaconf.OmegaConf.create(settings))
        twice_human = int(self._evaluator.human_stats["length"] * 2)
        self.max_steps = twice_human if config.max_steps is None else config.max_steps
        self._config = config
        self._steps = self.max_steps  # no episode yet
        self._before: list[list[bool]] = []
        sizes = {name: np.shape(self._evaluator.obs[key])[:2] for name, key in _CAMERAS.items()}
        cameras = tuple(CameraSpec(name, height, width) for name, (height, width) in sizes.items())
        self.observation_spec = ObservationSpec(cameras, tuple(_STATE))
        self.action_spec = ActionSpec(_ACTION, horizon=1, control_hz=30.0)

    @classmethod
    def tasks(cls) -> Sequence[str]:
        """None by name here: the simulator has its own."""
        return ()

    def reset(self, seed: int) -> Observation:
        """Start the test instance number ``seed``, counted round the ten of the task."""
        self._evaluator.reset()
        self._evaluator.load_task_instance(self._instances[seed % len(self._instances)])
        self._evaluator.reset()
        self._before = self._goals()
        self._steps = 0
        return self._observe()

    def step(self, action: NDArray[np.float32]) -> StepResult:
        """Execute one action ``[23]``.

        Raises:
            ValueError: wrong shape, NaN, or no :meth:`reset` before.
        """
        command = checked_action(action, self.action_spec.dim, self._steps < self.max_steps)
        self._evaluator.policy.action = self._torch.from_numpy(command.astype(np.float32))
        terminated, truncated = self._evaluator.step()
        self._steps += 1
        success = self._evaluator.n_success_trials > 0
        over = bool(truncated) or self._steps >= self.max_steps
        return StepResult(
            observation=self._observe(),
            reward=float(success),
            success=success,
            terminated=bool(terminated),
            truncated=over,
            achieved=frozenset({self._config.task} if success else ()),
            score=self._score(success) if terminated or over else None,
        )

    def _goals(self) -> list[list[bool]]:
        """Whether each predicate holds, in each way (option) to reach the goal."""
        options = self._evaluator.env.task.ground_goal_state_options
        return [[bool(predicate.evaluate()) for predicate in option] for option in options]

    def _score(self, success: bool) -> float:
        if success:
            return 1.0
        shares = [
            sum(holds and not held for held, holds in zip(before, now, strict=True)) / len(now)
            for before, now in zip(self._before, self._goals(), strict=True)
        ]
        return max(shares)

    def close(self) -> None:
        """Close the simulator's environment."""
        self._evaluator.env.close()

    def _observe(self) -> Observation:
        raw = self._evaluator.obs
        numbers = np.asarray(raw[_PROPRIOCEPTION], np.float32)
        if numbers.shape != (256,):
            raise ConfigError(
                f"env: the robot reports {numbers.shape} numbers, this client knows the edition with 256"
            )
        return Observation(
            images={
                name: np.ascontiguousarray(np.asarray(raw[key])[..., :3], np.uint8)
                for name, key in _CAMERAS.items()
            },
            instruction=self._sentence,
            state=np.concatenate([numbers[dims] for dims in _STATE.values()]),
            embodiment="r1pro",
        )


def _sentence(path: str, task: str) -> str:
    file = Path(path).expanduser()
    if not path or not file.is_file():
        raise ConfigError(f"env.sentences: name meta/tasks.jsonl of the demonstrations; there is no {file}")
    lines = [json.loads(line) for line in file.read_text("utf-8").splitlines() if line.strip()]
    known = {str(line["task_name"]): str(line["task"]) for line in lines}
    if task not in known:
        raise ConfigError(f"env.sentences: {file}: no task '{task}'{suggest(task, known)}")
    return known[task]


def _test_instances(data: Path, number: int, task: str) -> tuple[int, ...]:
    """Numbers of the task's public test instances, in the benchmark's order."""
    path = data / "2025-challenge-task-instances" / "metadata" / "test_instances.csv"
    with path.open(encoding="utf-8") as file:
        row = list(csv.reader(file))[1 + number]
    if row[1] != task:
        raise ConfigError(f"env: {path}: row {1 + number} is of '{row[1]}', not of '{task}'")
    return tuple(int(instance) for instance in row[2].strip().split(",")[:_INSTANCES])
