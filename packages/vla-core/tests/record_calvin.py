"""Writes ``calvin_recording.npz``: what CALVIN's simulator saw and did, for ``test_calvin_recording.py``.

    python packages/vla-core/tests/record_calvin.py packages/vla-core/tests/calvin_recording.npz \
        --dataset task_D_D --repository calvin

Needs the Python of calvin_env with this project's client in it (``examples/calvin``) and scene D. A script
that knows where things are does a chain of two tasks through the client. Of the pictures every fourth pixel
of the first and of the last is kept.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from vla_core.envs.calvin import CalvinConfig, CalvinEnv

TASKS = ("turn_on_led", "lift_pink_block_table")
PIXEL = 4
TURNS, REST = 4, 4
# The benchmark's own start of the robot, and two blocks in the slider, one on the table, all shut and off.
ROBOT = [
    0.02586889, -0.2313129, 0.5712808, 3.09045411, -0.02908596, 1.50013585, 0.07999963, -1.21779124,
    1.03987629, 2.11978254, -2.34205014, -0.87015899, 1.64119093, 0.55344928, 1.0,
]  # fmt: skip
SCENE = np.zeros(24)
SCENE[6:12] = [0.0703416330, 0.0924044687, 0.460990009, 0, 0, 1.5]
SCENE[12:18] = [-0.240851662, 0.0924044687, 0.460990009, 0, 0, 1.5]
SCENE[18:24] = [0.229995412, -0.119995140, 0.459990010, 0, 0, 1.5]


class Tape:
    """The simulator and its criteria, with notes of what they were given and what they answered."""

    def __init__(self, env: Any, oracle: Any) -> None:
        self._env, self._oracle, self.scene = env, oracle, env.scene
        self.robot, self.sent, self.done, self.pictures = ([] for _ in range(4))

    def reset(self, **words: Any) -> Mapping[str, Any]:
        return self._note(self._env.reset(**words))

    def step(self, action: np.ndarray) -> Any:
        self.sent.append(action.copy())
        raw, *rest = self._env.step(action)
        return self._note(raw), *rest

    def get_info(self) -> Any:
        return self._env.get_info()

    def get_task_info_for_set(self, before: Any, now: Any, tasks: set[str]) -> set[str]:
        done = self._oracle.get_task_info_for_set(before, now, tasks)
        self.done.append(" ".join(done))
        return done

    def _note(self, raw: Mapping[str, Any]) -> Mapping[str, Any]:
        self.robot.append(raw["robot_obs"].copy())
        self.pictures.append({name: picture.copy() for name, picture in raw["rgb_obs"].items()})
        self.seen = {name: [str(p.dtype), *p.shape] for name, p in raw["rgb_obs"].items()}
        return raw


class Script:
    """Moves the hand by what the client sees, and notes the wishes."""

    def __init__(self, env: CalvinEnv) -> None:
        self.env, self.seen = env, env.reset(0)
        self.said, self.wishes = [self.seen.instruction], list[np.ndarray]()

    def wish(self, move: Any, gripper: float, turn: Any = (0, 0, 0)) -> int:
        wish = np.array([*move, *turn, gripper], np.float32)
        self.result = self.env.step(wish)
        self.seen = self.result.observation
        self.wishes.append(wish)
        self.said.append(self.seen.instruction)
        return len(self.result.achieved)

    def reach(self, target: Any, gripper: float, until: int = 9) -> None:
        for _ in range(60):
            error = np.asarray(target) - self.seen.state[:3]
            if np.abs(error).max() < 0.006 or self.wish(error / 0.02, gripper) >= until:
                return

    def hold(self, gripper: float, steps: int) -> None:
        for _ in range(steps):
            self.wish([0] * 3, gripper)


def main() -> None:
    """Record the chain and write the file."""
    parser = argparse.ArgumentParser(description="Record CALVIN's simulator.")
    parser.add_argument("out")
    parser.add_argument("--dataset", required=True)
    parser.add_argument("--repository", required=True)
    words = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        chains = Path(folder, "chains.json")
        chains.write_text(json.dumps([{"robot_obs": ROBOT, "scene_obs": list(SCENE), "tasks": TASKS}]))
        env = CalvinEnv(
            CalvinConfig(dataset=words.dataset, repository=words.repository, chains=str(chains), egl=False)
        )
    simulator = env._env
    env._env = env._oracle = tape = Tape(simulator, env._oracle)
    script = Script(env)

    [button] = tape.scene.buttons
    at = np.array(button.p.getLinkState(button.uid, button.joint_index, physicsClientId=button.cid)[0])
    up = np.array([0, 0, 1])
    script.hold(-1, 5)
    script.reach(at + 0.08 * up, -1)
    script.reach(at - 0.02 * up, -1, until=1)
    script.reach(at + 0.1 * up, -1)

    [block] = [o.get_info()["current_pos"] for o in tape.scene.movable_objects if o.name == "block_pink"]
    script.reach([*block[:2], 0.58], 1)
    script.reach(block, 1)
    script.hold(-1, 8)
    script.reach([*block[:2], 0.6], -1, until=2)
    print("achieved", sorted(script.result.achieved), "in", len(script.wishes), "steps")

    env._env = simulator
    turns = []
    for axis in np.eye(3):
        turning = Script(env)
        for step in range(TURNS + REST):
            turning.wish([0] * 3, 1, axis if step < TURNS else 0 * axis)
        turns.append(turning.seen.state)
    ends = (tape.pictures[0], tape.pictures[-1])
    np.savez_compressed(
        words.out,
        robot_start=ROBOT,
        scene_start=SCENE,
        robot=tape.robot,
        sent=tape.sent,
        done=tape.done,
        said=script.said,
        wishes=script.wishes,
        turns=turns,
        seen=json.dumps(tape.seen),
        **{name: np.stack([end[name] for end in ends])[:, ::PIXEL, ::PIXEL] for name in ends[0]},
    )
    env.close()


if __name__ == "__main__":
    main()
