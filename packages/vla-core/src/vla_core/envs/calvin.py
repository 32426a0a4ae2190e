"""CALVIN (a Panda arm at a desk, five instructions in a row) behind the environment protocol.

Source: Mees et al., CALVIN (arXiv 2112.03227): ``evaluate_policy.py`` of the repository mees/calvin at commit
fa03f01 for the protocol, mees/calvin_env at 797142c for the simulator, which is installed from its repository
(see ``examples/calvin``).

An episode is a chain of instructions from one start. The next one is said as soon as the one before is done;
the chain ends when one is not done within its steps. ``achieved`` of a step names what has been done so far,
as ``1_open_drawer``: their number is the length that the benchmark counts, and ``score`` its share of the
chain.
"""

from __future__ import annotations

import importlib
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import yaml
from numpy.typing import NDArray

from vla_core.envs.protocol import StepResult, checked_action
from vla_core.errors import ConfigError
from vla_core.ranges import Count, check_ranges
from vla_core.specs import ActionSpec, CameraSpec, GroupSpec, ObservationSpec
from vla_core.types import Observation

__all__ = ["CalvinConfig", "CalvinEnv", "Chain", "read_chains"]

CAMERAS = {"static": "rgb_static", "gripper": "rgb_gripper"}
"""Name here -> name in the simulator."""
STATE = (
    GroupSpec("end_effector_position", 3, "m"),
    GroupSpec("end_effector_angles", 3, "rad"),
    GroupSpec("gripper_opening", 1, "m", gripper="open_positive"),
    GroupSpec("joints", 7, "rad"),
    GroupSpec("gripper", 1, "1", gripper="open_positive"),
)
ACTION = (
    GroupSpec("end_effector_position", 3, "1", representation="delta"),
    GroupSpec("end_effector_angles", 3, "1", representation="delta"),
    GroupSpec("gripper", 1, "1", gripper="open_positive"),
)


@dataclass(frozen=True)
class CalvinConfig:
    """Options of :class:`CalvinEnv`.

    Args:
        task: name of the evaluation; any.
        dataset: directory of CALVIN's data set with ``validation/.hydra/merged_config.yaml``, which says how
            its scene, robot and cameras are set.
        repository: a checkout of mees/calvin: its sentences and its criteria of success.
        chains: file of the starts and instructions, as ``examples/calvin/eval_files/write_chains.py`` writes
            it.
        steps: within which each instruction must be done.
        egl: render on a GPU; false renders on the CPU.
    """

    task: str = "calvin"
    dataset: str = ""
    repository: str = ""
    chains: str = ""
    steps: Count = 360
    egl: bool = True


@dataclass(frozen=True)
class Chain:
    """A start and what to do there. ``robot [15]`` and ``scene [24]`` are CALVIN's observations of it."""

    robot: NDArray[np.float64]
    scene: NDArray[np.float64]
    tasks: tuple[str, ...]


def read_chains(path: str) -> tuple[Chain, ...]:
    """Read a file of chains: a JSON list of ``{robot_obs, scene_obs, tasks}``.

    Raises:
        ConfigError: no such file, or another content.
    """
    try:
        nodes = json.loads(Path(path).expanduser().read_text("utf-8"))
        chains = tuple(
            Chain(np.asarray(n["robot_obs"], float), np.asarray(n["scene_obs"], float), tuple(n["tasks"]))
            for n in nodes
        )
    except OSError as error:
        raise ConfigError(f"env.chains: {path}: {error.strerror}; write it with write_chains.py") from error
    except (KeyError, TypeError, ValueError) as error:
        raise ConfigError(f"env.chains: {path}: not a list of chains: {error}") from error
    if not chains or any(c.robot.shape != (15,) or c.scene.shape != (24,) or not c.tasks for c in chains):
        raise ConfigError(f"env.chains: {path}: a chain has 15 robot_obs, 24 scene_obs and at least one task")
    return chains


class CalvinEnv:
    """CALVIN's long-horizon evaluation; implements :class:`~vla_core.envs.protocol.Env`. It has no expert.

    State ``[15]``: position (m) and Euler angles (rad) of the hand, opening of the gripper (m), seven joints
    (rad), the gripper's last command. Action ``[7]``: ``rel_actions`` of the data set, changes of position (1
    is 2 cm) and of Euler angles (1 is 0.05 rad), clipped to +-1, and the gripper: opens above 0, closes
    elsewhere.

    Raises:
        ConfigError: a file is missing, or the simulator is not installed.
    """

    Config: ClassVar[type] = CalvinConfig

    def __init__(self, config: CalvinConfig) -> None:
        check_ranges(config, "env.")
        settings = _file(config.dataset, "validation/.hydra/merged_config.yaml", "dataset")
        models = Path("calvin_models/conf")
        criteria = _file(
            config.repository, models / "callbacks/rollout/tasks/new_playtable_tasks.yaml", "repository"
        )
        sentences = _file(
            config.repository, models / "annotations/new_playtable_validation.yaml", "repository"
        )
        self._chains = read_chains(config.chains)
        self._sentences: dict[str, list[str]] = yaml.safe_load(sentences.read_text("utf-8"))
        try:
            hydra: Any = importlib.import_module("hydra")
            omegaconf: Any = importlib.import_module("omegaconf")

            if not hydra.core.global_hydra.GlobalHydra.instance().is_initialized():
                hydra.initialize_config_dir(os.fspath(settings.parent))
            merged = omegaconf.OmegaConf.load(settings)
            self._env: Any = hydra.utils.instantiate(
                merged.env, show_gui=False, use_vr=False, use_scene_info=True, use_egl=config.egl
            )
            self._oracle: Any = hydra.utils.instantiate(omegaconf.OmegaConf.load(criteria))
        except ModuleNotFoundError as error:
            raise ConfigError(
                f"env: CALVIN needs the module '{error.name}', in an environment of its own (examples/calvin)"
            ) from error
        self._config = config
        self.max_steps = config.steps * max(len(chain.tasks) for chain in self._chains)
        self._chain: Chain | None = None
        self._done: tuple[str, ...] = ()
        self._steps = 0  # of the present instruction
        self._before: Any = None
        images = self._env.get_obs()["rgb_obs"]
        self.observation_spec = ObservationSpec(
            tuple(CameraSpec(name, *images[source].shape[:2]) for name, source in CAMERAS.items()),
            STATE,
        )
        self.action_spec = ActionSpec(ACTION, horizon=1, control_hz=30.0)

    @classmethod
    def tasks(cls) -> Sequence[str]:
        """None by name: a chain has its own."""
        return ()

    def reset(self, seed: int) -> Observation:
        """Start chain number ``seed``, counted round."""
        self._chain = chain = self._chains[seed % len(self._chains)]
        self._done, self._steps = (), 0
        # The simulator keeps the last command of the chain before, and shows it in the state.
        self._env.robot.gripper_action = 1 if chain.robot[14] > 0.0 else -1
        raw = self._env.reset(robot_obs=chain.robot, scene_obs=chain.scene)
        self._before = self._env.get_info()
        return self._observe(raw)

    def step(self, action: NDArray[np.float32]) -> StepResult:
        """Execute one action ``[7]``.

        Raises:
            ValueError: wrong shape, NaN, or no :meth:`reset` before.
        """
        chain = self._chain
        command = checked_action(action, self.action_spec.dim, chain is not None)
        assert chain is not None
        command = np.clip(command, -1.0, 1.0)
        command[6] = 1.0 if command[6] > 0.0 else -1.0
        raw, _, _, info = self._env.step(command)
        self._steps += 1
        task = chain.tasks[len(self._done)]
        if self._oracle.get_task_info_for_set(self._before, info, {task}):
            self._done = (*self._done, f"{len(self._done) + 1}_{task}")
            self._before, self._steps = info, 0
        whole = len(self._done) == len(chain.tasks)
        over = self._steps >= self._config.steps
        result = StepResult(
            observation=self._observe(raw),
            reward=float(len(self._done)),
            success=whole,
            terminated=whole or over,
            truncated=False,
            achieved=frozenset(self._done),
            score=len(self._done) / len(chain.tasks),
        )
        if whole or over:
            self._chain = None
        return result

    def close(self) -> None:
        """Disconnect from the physics engine."""
        self._env.close()
        self._env.cid = -1  # its destructor would disconnect again

    def _observe(self, raw: Mapping[str, Any]) -> Observation:
        assert self._chain is not None
        task = self._chain.tasks[min(len(self._done), len(self._chain.tasks) - 1)]
        return Observation(
            images={
                name: np.ascontiguousarray(raw["rgb_obs"][source], np.uint8)
                for name, source in CAMERAS.items()
            },
            instruction=self._sentences[task][0],
            state=np.asarray(raw["robot_obs"], np.float32),
            embodiment="calvin_panda",
        )


def _file(folder: str, name: str | Path, option: str) -> Path:
    path = Path(folder).expanduser().resolve() / name
    if not folder or not path.is_file():
        raise ConfigError(f"env.{option}: say where it is; there is no {path}")
    return path
