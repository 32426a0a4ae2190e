"""A demonstration is recorded whole, however far behind its videos are."""

from __future__ import annotations

import json
import queue
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

pytest.importorskip("lerobot", reason="needs the extra vla-data[record]")

import av
from vla_core.specs import ActionSpec, CameraSpec, GroupSpec, ObservationSpec, RobotSpec
from vla_data._lerobot_writer import LeRobotWriter

COUNT, SIZE = 60, 128


def test_no_picture_is_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """lerobot waits a tenth of a second for an encoder, and then goes on without the picture."""
    spec = RobotSpec(
        ObservationSpec((CameraSpec("top", SIZE, SIZE),), ()),
        ActionSpec((GroupSpec("move", 1, "m"),), horizon=1, control_hz=10.0),
    )
    pictures = np.random.default_rng(0).integers(0, 255, (COUNT, SIZE, SIZE, 3), np.uint8)
    columns = {"observation.images.top": pictures, "action": np.zeros((COUNT, 1), np.float32)}
    episode = SimpleNamespace(instruction="push", columns=columns)
    put = queue.Queue.put

    def hasty(self, item, block=True, timeout=None) -> None:
        put(self, item, block=block and timeout is None)

    monkeypatch.setattr(queue.Queue, "put", hasty)
    writer = LeRobotWriter(tmp_path / "data", spec, episode, "toy")
    writer._dataset.writer._streaming_encoder.queue_maxsize = 1
    for _ in range(2):
        writer.add(episode)
    writer.close({})
    info = json.loads((tmp_path / "data/meta/info.json").read_text("utf-8"))
    assert info["total_frames"] == 2 * COUNT
    (video,) = (tmp_path / "data").rglob("*.mp4")
    with av.open(str(video)) as container:
        assert sum(1 for _ in container.decode(video=0)) == 2 * COUNT
