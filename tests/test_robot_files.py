"""configs/robots: every file is valid, names its sources, and reads a data set laid out as it says."""

from __future__ import annotations

import io
import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image
from vla_data import LeRobotConfig, LeRobotSource
from vla_data.robot.config import RobotConfig, load_robot

ROOT = Path(__file__).resolve().parent.parent
FILES = sorted((ROOT / "configs" / "robots").glob("*.yaml"))
FRAMES = 3


def _data_set(root: Path, robot: RobotConfig) -> dict[str, np.ndarray]:
    """A v2.1 data set with the columns and cameras of ``robot``, and its values."""
    rng = np.random.default_rng(0)
    width: dict[str, int] = {}
    for group in (*robot.state, *robot.action):
        assert group.key is not None
        assert group.end is not None
        width[group.key] = max(width.get(group.key, 0), group.end)
    values = {key: rng.standard_normal((FRAMES, n)).astype(np.float32) for key, n in width.items()}
    cameras = list(robot.cameras.values()) or ["observation.images.any"]
    picture = io.BytesIO()
    Image.fromarray(np.zeros((4, 6, 3), np.uint8)).save(picture, "png")
    cell = {"bytes": picture.getvalue(), "path": "0.png"}
    columns = {key: pa.array(list(value)) for key, value in values.items()}
    columns |= {key: pa.array([cell] * FRAMES) for key in cameras}
    features = {key: {"dtype": "float32", "shape": [n], "names": None} for key, n in width.items()}
    features |= {key: {"dtype": "image", "shape": [4, 6, 3], "names": None} for key in cameras}
    (root / "meta").mkdir(parents=True)
    (root / "data/chunk-000").mkdir(parents=True)
    table = pa.table({**columns, "task_index": [0] * FRAMES})
    pq.write_table(table, root / "data/chunk-000/episode_000000.parquet")
    info = {"codebase_version": "v2.1", "fps": 10, "features": features}
    (root / "meta/info.json").write_text(json.dumps(info))
    (root / "meta/tasks.jsonl").write_text('{"task_index": 0, "task": "go"}\n')
    (root / "meta/episodes.jsonl").write_text(json.dumps({"episode_index": 0, "length": FRAMES}) + "\n")
    return values


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_a_robot_file_reads_its_data_set(file: Path, tmp_path: Path) -> None:
    robot = load_robot(file)
    values = _data_set(tmp_path / "data", robot)
    source = LeRobotSource(LeRobotConfig(str(tmp_path / "data"), robot=str(file)), 2)
    spec = source.spec
    assert spec.embodiment == robot.embodiment
    assert spec.action.control_hz == (robot.control_hz or 10)
    assert [c.name for c in spec.observation.cameras] == (list(robot.cameras) or ["any"])
    for which, groups in (("state", robot.state), ("action", robot.action)):
        rows, start = source.rows(which), 0
        assert rows is not None
        for group in groups:
            stored = values[str(group.key)][:, group.start : group.end]
            # No shipped file converts: what a policy sees is what stands in the column.
            assert np.array_equal(rows[:, start : start + stored.shape[1]], stored), group.name
            start += stored.shape[1]
        assert start == rows.shape[1]


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_a_robot_file_names_its_sources(file: Path) -> None:
    assert "# Sources: " in file.read_text()


def test_there_are_robots() -> None:
    assert {"robotwin", "behavior_r1pro", "xarm"} <= {file.stem for file in FILES}
