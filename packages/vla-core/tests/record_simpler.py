"""Writes ``simpler_recording.npz``: what SimplerEnv saw and did, for ``test_simpler_recording.py``.

    python packages/vla-core/tests/record_simpler.py packages/vla-core/tests/simpler_recording.npz

Needs the Python of SimplerEnv with this project's client in it (``examples/SimplerEnv``). One task of each
robot is done through the client by a script that knows where the objects are; then SimplerEnv's own
evaluator is given the same commands for the same episode, and its pictures are compared with the client's. Of
those every eighth pixel of the first and of the last is kept.
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
import tempfile
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from vla_core.envs._simpler_robots import WIDOWX, in_base
from vla_core.envs.simpler import SimplerConfig, SimplerEnv

EPISODES = {"widowx_carrot_on_plate": 0, "google_robot_pick_standing_coke_can": 12}
PIXEL = 8
TURNS, REST, ANGLE = 4, 2, 0.1


class Tape:
    """The simulator, with notes of what it was given and what it answered."""

    def __init__(self, env: Any) -> None:
        self._env, self.unwrapped = env, env.unwrapped
        self.frames: list[dict[str, Any]] = []

    def reset(self, **words: Any) -> Any:
        self.options = json.dumps(words["options"]["obj_init_options"], default=lambda array: array.tolist())
        self.frames.clear()
        raw, info = self._env.reset(**words)
        self._note(raw)
        return raw, info

    def step(self, action: np.ndarray) -> Any:
        raw, reward, done, truncated, info = self._env.step(action)
        grasped = info["episode_stats"].get("is_src_obj_grasped", False)
        self._note(raw, sent=action.copy(), done=bool(done), truncated=bool(truncated), grasped=bool(grasped))
        return raw, reward, done, truncated, info

    def close(self) -> None:
        self._env.close()

    def _note(self, raw: Mapping[str, Any], **more: Any) -> None:
        hand = self.unwrapped.tcp.pose
        self.seen = json.dumps(dict(sorted(_leaves(raw))), indent=0)
        [self.camera] = [name for name in raw["image"] if name in ("3rd_view_camera", "overhead_camera")]
        self.frames.append(
            {
                "base": raw["agent"]["base_pose"].copy(),
                "tcp": np.concatenate([hand.p, hand.q]),
                "closed": float(self.unwrapped.agent.get_gripper_closedness()),
                "instruction": self.unwrapped.get_language_instruction(),
                "picture": raw["image"][self.camera]["rgb"].copy(),
                **more,
            }
        )


def _leaves(tree: Mapping[str, Any], path: str = "") -> Any:
    for key, value in tree.items():
        if isinstance(value, Mapping):
            yield from _leaves(value, f"{path}{key}.")
        else:
            yield path + key, [str(np.asarray(value).dtype), *np.shape(value)]


class Script:
    """Moves the hand by what the client sees, and notes the wishes and the states."""

    def __init__(self, env: SimplerEnv, seed: int) -> None:
        self.env, self.sim = env, env._simulator
        self.seen, self.left = env.reset(seed), env.max_steps
        self.states, self.wishes = [self.seen.state], list[np.ndarray]()

    def where(self, actor: Any) -> np.ndarray:
        base = self.sim.agent.robot.pose
        return in_base(np.concatenate([base.p, base.q]), np.concatenate([actor.p, actor.q]))[0]

    def wish(self, change: Any, gripper: float) -> None:
        wish = np.array([*change, gripper], np.float32)
        self.result = self.env.step(wish)
        self.seen, self.left = self.result.observation, self.left - 1
        self.wishes.append(wish)
        self.states.append(self.seen.state)

    def reach(self, target: np.ndarray, gripper: float, steps: int) -> None:
        for _ in range(min(steps, self.left)):
            error = target - self.seen.state[:3]
            if np.abs(error).max() < 0.006:
                return
            self.wish([*np.clip(0.8 * error, -0.05, 0.05), 0, 0, 0], gripper)

    def hold(self, gripper: float, steps: int) -> None:
        for _ in range(min(steps, self.left)):
            self.wish([0] * 6, gripper)


def carrot(script: Script) -> None:
    source, above = script.where(script.sim.source_obj_pose), np.array([0, 0, 0.08])
    script.reach(source + above, 1, 12)
    script.reach(source + np.array([0, 0, 0.005]), 1, 10)
    script.hold(0, 3)
    script.reach(source + above, 0, 10)
    plate = script.where(script.sim.target_obj_pose)
    script.reach(plate + above, 0, 15)
    script.reach(plate + np.array([0, 0, 0.045]), 0, 8)
    script.hold(1, 3)
    script.reach(plate + above, 1, 6)
    script.hold(1, script.left)


def can(script: Script) -> None:
    source, above = script.where(script.sim.obj_pose), np.array([0, 0, 0.15])
    script.reach(source + above, 1, 30)
    script.reach(source + np.array([0, 0, 0.02]), 1, 20)
    script.hold(0, 4)
    script.reach(source + above, 0, 20)
    script.hold(0, script.left)


def turned(env: SimplerEnv, seed: int) -> dict[str, np.ndarray]:
    """States while the hand is turned about each axis, and then rests."""
    states = []
    for axis in range(3):
        script = Script(env, seed)
        for step in range(TURNS + REST):
            change = np.zeros(6)
            change[3 + axis] = ANGLE if step < TURNS else 0
            script.wish(change, 1)
        states.append(script.states)
    return {"turn_states": np.array(states)}


def official(env: SimplerEnv, seed: int, sent: np.ndarray) -> tuple[bool, list[np.ndarray]]:
    """SimplerEnv's evaluator of one episode; what it sees of it."""
    from mani_skill2_real2sim import ASSET_DIR
    from simpler_env.evaluation import maniskill2_evaluator as evaluator

    pictures: list[np.ndarray] = []

    class Player:
        def reset(self, sentence: str) -> None:
            self.rest = iter(sent)

        def step(self, image: np.ndarray, sentence: str) -> Any:
            row = next(self.rest)
            words = {"world_vector": row[:3], "rot_axangle": row[3:6], "gripper": row[6:]}
            return words, {**words, "terminate_episode": np.zeros(1)}

        def visualize_epoch(self, actions: Any, images: list[np.ndarray], save_path: str) -> None:
            pictures.extend(images)

    sweep = env._sweep
    variant, start = sweep.episode(seed)
    options = start.options()
    objects, robot = options["obj_init_options"], options["robot_init_options"]
    place = (
        {"obj_episode_id": objects["episode_id"]}
        if "episode_id" in objects
        else dict(zip(("obj_init_x", "obj_init_y"), objects["init_xy"], strict=True))
    )
    evaluator.write_video = lambda *_, **__: None
    with (
        tempfile.TemporaryDirectory() as logs,
        open(os.devnull, "w") as silent,
        contextlib.redirect_stdout(silent),
    ):
        success = evaluator.run_maniskill2_eval_single_episode(
            model=Player(),
            ckpt_path="script",
            robot_name=sweep.robot,
            env_name=variant.environment or sweep.environment,
            scene_name=variant.scene,
            robot_init_x=robot["init_xy"][0],
            robot_init_y=robot["init_xy"][1],
            robot_init_quat=robot["init_rot_quat"],
            control_mode=evaluator.get_robot_control_mode(sweep.robot, "script"),
            additional_env_build_kwargs=dict(variant.keywords),
            rgb_overlay_path=str(ASSET_DIR / "real_inpainting" / start.overlay),
            control_freq=int(env._robot.control_hz),
            sim_freq=500 if env._robot is WIDOWX else 513,
            max_episode_steps=env.max_steps,
            logging_dir=logs,
            **place,
        )
    return success, pictures


def main(out: str) -> None:
    """Record both robots and write the file."""
    scripts: dict[str, Callable[[Script], None]] = dict(zip(EPISODES, (carrot, can), strict=True))
    kept: dict[str, Any] = {}
    for task, seed in EPISODES.items():
        env = SimplerEnv(SimplerConfig(task=task))
        env._env = tape = Tape(env._env)
        script = Script(env, seed)
        scripts[task](script)
        frames = list(tape.frames)
        stacked = {
            key: np.array([frame[key] for frame in frames if key in frame])
            for key in ("base", "tcp", "closed", "instruction", "sent", "done", "truncated", "grasped")
        }
        pictures = [frame["picture"] for frame in frames]
        success, theirs = official(env, seed, stacked["sent"])
        apart = [np.abs(a.astype(int) - b).max() for a, b in zip(pictures, theirs, strict=True)]
        print(task, script.result.success, "evaluator", success, "pictures apart", max(apart))
        episode = {
            **stacked,
            "state": np.array(script.states),
            "wishes": np.array(script.wishes),
            "pictures": np.array([pictures[0], pictures[-1]])[:, ::PIXEL, ::PIXEL],
            "official_pictures": np.array([theirs[0], theirs[-1]])[:, ::PIXEL, ::PIXEL],
            "official_success": success,
            "official_apart": apart,
            "options": tape.options,
            "seen": tape.seen,
            **turned(env, seed),
        }
        kept |= {f"{env._robot.embodiment}/{key}": value for key, value in episode.items()}
        env.close()
    np.savez_compressed(out, **kept)


if __name__ == "__main__":
    main(sys.argv[1])
