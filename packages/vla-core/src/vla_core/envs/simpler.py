"""SimplerEnv (real-to-sim evaluation of WidowX and of the Google robot) behind the environment protocol.

Source: Li et al., SIMPLER (arXiv 2405.05941), its repository at commit 4ab7178. The simulator is no package:
it lives in an environment of its own, beside the torch-free client (see ``examples/SimplerEnv``).

The episodes are those of the official scripts (``vla_core.envs.simpler_protocol``), or SimplerEnv's
prepackaged scenes, which draw by chance what the scripts go through.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray

from vla_core.envs._simpler_robots import (
    GOOGLE_ROBOT,
    WIDOWX,
    StickyGripper,
    command_of,
    in_base,
    state_of,
)
from vla_core.envs.protocol import StepResult, checked_action
from vla_core.envs.simpler_protocol import Start, Sweep, Variant, sweep
from vla_core.errors import ConfigError, suggest
from vla_core.images import resize
from vla_core.ranges import Count, check_ranges
from vla_core.specs import CameraSpec, ObservationSpec
from vla_core.types import Observation

__all__ = ["TASKS", "SimplerConfig", "SimplerEnv"]

TASKS: dict[str, int] = {
    "widowx_spoon_on_towel": 60,
    "widowx_carrot_on_plate": 60,
    "widowx_stack_cube": 60,
    "widowx_put_eggplant_in_basket": 120,
    "google_robot_pick_coke_can": 80,
    "google_robot_pick_horizontal_coke_can": 80,
    "google_robot_pick_vertical_coke_can": 80,
    "google_robot_pick_standing_coke_can": 80,
    "google_robot_move_near": 80,
    "google_robot_open_drawer": 113,
    "google_robot_open_top_drawer": 113,
    "google_robot_open_middle_drawer": 113,
    "google_robot_open_bottom_drawer": 113,
    "google_robot_close_drawer": 113,
    "google_robot_close_top_drawer": 113,
    "google_robot_close_middle_drawer": 113,
    "google_robot_close_bottom_drawer": 113,
    "google_robot_place_apple_in_closed_top_drawer": 200,
}
"""SimplerEnv's name of a task -> control steps of an episode; the official settings know those that leave
nothing to chance."""

_EPISODES = {"widowx": 24, "google_robot_move_near": 60}
_PHYSICS_HZ = {"widowx": 500, "google_robot": 513}
# SimplerEnv's grid of a can's place: --obj-init-x -0.35 -0.12 5 --obj-init-y -0.02 0.42 5.
_CAN_X, _CAN_Y = np.linspace(-0.35, -0.12, 5), np.linspace(-0.02, 0.42, 5)


@dataclass(frozen=True)
class SimplerConfig:
    """Options of :class:`SimplerEnv`.

    Args:
        task: SimplerEnv's name, see ``TASKS``.
        setting: ``visual_matching`` and ``variant_aggregation``: the official scripts' episodes, one after
            the other by the seed; ``prepackaged``: ``simpler_env.make``, which draws the colour of the Google
            robot's arm and its place before a cabinet.
        max_steps: an episode is truncated after so many steps; null: the task's.
        success: ``last``: the task is done at an episode's last step, as SimplerEnv counts, so that a success
            that is undone is none and every episode has its full length; ``any``: at some step.
        sticky_steps: for how many control steps the Google robot's gripper repeats a command.
        height, width: pictures are resized to it; null: what the data set of the robot has.
    """

    task: str = "widowx_spoon_on_towel"
    setting: Literal["visual_matching", "variant_aggregation", "prepackaged"] = "visual_matching"
    max_steps: Count | None = None
    success: Literal["last", "any"] = "last"
    sticky_steps: Count = 15
    height: Count | None = None
    width: Count | None = None


class SimplerEnv:
    """One SimplerEnv task; implements :class:`~vla_core.envs.protocol.Env`. It has no expert.

    Actions ``[7]`` are those of Bridge and Fractal after Open X-Embodiment's standardisation: change of
    position (m), of roll, pitch and yaw (rad), and how far the gripper shall be open (0 to 1).

    Raises:
        ConfigError: unknown task, or the simulator is not installed.
    """

    Config: ClassVar[type] = SimplerConfig

    def __init__(self, config: SimplerConfig) -> None:
        check_ranges(config, "env.")
        if config.task not in TASKS:
            raise ConfigError(f"env.task: no task '{config.task}'{suggest(config.task, TASKS)}")
        self._config = config
        self._sweep: Sweep | None = None
        if config.setting != "prepackaged":
            self._sweep = sweep(config.task, config.setting)
        self._robot = robot = WIDOWX if config.task.startswith("widowx") else GOOGLE_ROBOT
        self.max_steps = TASKS[config.task] if config.max_steps is None else config.max_steps
        self._env: Any = None
        self._unused: tuple[Variant | str, str | None] | None = None  # what the simulator is of
        try:
            self._open()
        except ModuleNotFoundError as error:
            raise ConfigError(
                f"env: SimplerEnv needs the module '{error.name}', in an environment of its own "
                "(examples/SimplerEnv)"
            ) from error
        self._gripper = StickyGripper(config.sticky_steps)
        self._steps = self.max_steps  # no episode yet
        self._size = (config.height or robot.size[0], config.width or robot.size[1])
        camera = CameraSpec(robot.camera[0], *self._size)
        self.observation_spec = ObservationSpec((camera,), robot.state)
        self.action_spec = robot.action_spec

    @classmethod
    def tasks(cls) -> Sequence[str]:
        """SimplerEnv's names."""
        return tuple(TASKS)

    def reset(self, seed: int) -> Observation:
        """Start the episode number ``seed`` of the setting, counted round, whatever was run before.

        Prepackaged: the benchmark's own number where it has numbers. Drawers, and the robot's colour where it
        varies, are drawn by ``seed``.
        """
        if self._sweep is None:
            options = _prepackaged(self._config.task, self._robot is WIDOWX, seed)
            self._make()
            self._unused = None
            raw, _ = self._env.reset(seed=seed % 2**32, options=options)
        else:
            variant, start = self._sweep.episode(seed)
            self._build(self._sweep, variant, start)
            self._unused = None
            raw, _ = self._env.reset(options=start.options())
        self._steps = 0
        self._gripper.reset()
        return self._observe(raw)

    def step(self, action: NDArray[np.float32]) -> StepResult:
        """Execute one action ``[7]``.

        Raises:
            ValueError: wrong shape, NaN, or no :meth:`reset` before.
        """
        wish = checked_action(action, self.action_spec.dim, self._steps < self.max_steps)
        if self._robot is WIDOWX:
            gripper = 1.0 if wish[6] > 0.5 else -1.0
        else:
            gripper = self._gripper.command(float(wish[6]))
        raw, reward, done, _, info = self._env.step(command_of(wish, gripper))
        self._steps += 1
        last = self._steps >= self.max_steps
        success = bool(done) and (last or self._config.success == "any")
        # Partial success of WidowX, as the benchmark counts it: the object was once grasped.
        grasped = info.get("episode_stats", {}).get("is_src_obj_grasped")
        return StepResult(
            observation=self._observe(raw),
            reward=float(reward),
            success=success,
            terminated=success,
            truncated=last and not success,
            achieved=frozenset({self._config.task} if success else ()),
            score=None if grasped is None else float(grasped),
        )

    def close(self) -> None:
        """Close the simulator."""
        self._env.close()

    def _open(self) -> None:
        """The simulator of the first episode: what is missing shows before a policy is asked for."""
        if self._sweep is not None:
            self._build(self._sweep, *self._sweep.episode(0))
            return
        self._make()

    def _make(self) -> None:
        """The prepackaged simulator, which is made anew for each episode as well."""
        if self._unused is not None:
            return
        simulators: Any = importlib.import_module("simpler_env")
        if self._env is not None:
            self._env.close()
        self._env = simulators.make(self._config.task, max_episode_steps=self.max_steps)
        self._simulator: Any = self._env.unwrapped
        self._unused = self._config.task, None

    def _build(self, episodes: Sweep, variant: Variant, start: Start) -> None:
        """The simulator of one episode, which is built anew for each as SimplerEnv's evaluator does.

        In a used one things settle otherwise, up to a millimetre by what was run before; and with a seed of
        its own the simulator puts distractors where the evaluator's do not stand.
        """
        if self._unused == (variant, start.overlay):
            return
        builder: Any = importlib.import_module("simpler_env.utils.env.env_builder")
        keywords = dict(variant.keywords)
        if start.overlay is not None:
            assets: Any = importlib.import_module("mani_skill2_real2sim")
            keywords["rgb_overlay_path"] = str(assets.ASSET_DIR / "real_inpainting" / start.overlay)
        if self._env is not None:
            self._env.close()
        self._env = builder.build_maniskill2_env(
            variant.environment or episodes.environment,
            **keywords,
            obs_mode="rgbd",
            robot=episodes.robot,
            scene_name=variant.scene,
            control_mode=builder.get_robot_control_mode(episodes.robot, "vla"),
            control_freq=int(self._robot.control_hz),
            sim_freq=_PHYSICS_HZ[self._robot.embodiment],
            max_episode_steps=self.max_steps,
            camera_cfgs={"add_segmentation": True},
        )
        self._simulator = self._env.unwrapped
        self._unused = variant, start.overlay

    def _observe(self, raw: Mapping[str, Any]) -> Observation:
        name, source = self._robot.camera
        picture = np.ascontiguousarray(raw["image"][source]["rgb"], np.uint8)
        hand = self._simulator.tcp.pose  # not every task has it among its observations
        position, rotation = in_base(raw["agent"]["base_pose"], np.concatenate([hand.p, hand.q]))
        closed = float(self._simulator.agent.get_gripper_closedness())
        return Observation(
            images={name: resize(picture, *self._size)},
            instruction=self._simulator.get_language_instruction(),
            state=state_of(self._robot, position, rotation, closed),
            embodiment=self._robot.embodiment,
        )


def _prepackaged(task: str, widowx: bool, seed: int) -> dict[str, Any]:
    """Options of ``reset``."""
    options = dict[str, Any]()
    episodes = _EPISODES.get(task, _EPISODES["widowx"] if widowx else 0)
    if episodes:
        options["episode_id"] = seed % episodes
    elif "coke_can" in task:
        column, row = divmod(seed % (len(_CAN_X) * len(_CAN_Y)), len(_CAN_Y))
        options["init_xy"] = np.array([_CAN_X[column], _CAN_Y[row]])
    return {"obj_init_options": options} if options else {}
