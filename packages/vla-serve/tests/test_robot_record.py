"""What a robot did is recorded whole: no picture beside the numbers of another moment."""

from __future__ import annotations

import json
import queue
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from vla_core.errors import UserError
from vla_core.testing import make_observation, make_spec

pytest.importorskip("lerobot", reason="needs the extra vla-serve[robot]")

from vla_serve.robot.lerobot_record import LeRobotRecorder


def test_a_robot_without_cameras_is_recorded(tmp_path: Path) -> None:
    spec = make_spec()
    spec = replace(spec, observation=replace(spec.observation, cameras=()))
    with LeRobotRecorder(tmp_path / "data", spec, "do", {}) as recorder:
        for seed in range(2):
            recorder.add(make_observation(spec, seed), np.zeros(spec.action.dim, np.float32))
    assert (recorder.episodes, recorder.frames) == (1, 2)


def test_an_episode_whose_video_falls_behind_is_not_kept(tmp_path: Path, monkeypatch) -> None:
    spec = make_spec()
    action = np.zeros(spec.action.dim, np.float32)
    root = tmp_path / "data"
    with LeRobotRecorder(root, spec, "do", {}) as recorder:
        for seed in range(3):
            recorder.add(make_observation(spec, seed), action)
        recorder.end_episode()
        recorder.add(make_observation(spec, 3), action)
        put, full = queue.Queue.put, []

        def late(self, item, block=True, timeout=None) -> None:
            if isinstance(item, np.ndarray) and not full:
                full.append(item)
                raise queue.Full
            put(self, item, block, timeout)

        monkeypatch.setattr(queue.Queue, "put", late)
        with pytest.raises(UserError, match=r"--record: the video of camera '.*' falls behind"):
            recorder.add(make_observation(spec, 4), action)
    info = json.loads((root / "meta" / "info.json").read_text("utf-8"))
    assert (info["total_episodes"], info["total_frames"]) == (1, 3)
