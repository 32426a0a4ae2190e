"""A tiny dataset of the real format, made without a simulator, and recording of fake demonstrations."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from vla_core.specs import ActionSpec, CameraSpec, GroupSpec, ObservationSpec, RobotSpec
from vla_data._demonstrate import Demonstration, Job

SIZE = 32
CAMERAS = ("left", "right")


def _spec() -> RobotSpec:
    return RobotSpec(
        ObservationSpec(
            tuple(CameraSpec(name, SIZE, SIZE) for name in CAMERAS),
            (GroupSpec("position", 2, "m"), GroupSpec("gripper", 1, "m", gripper="open_positive")),
        ),
        ActionSpec((GroupSpec("position", 2, "m", representation="delta"),), 1, 20.0),
        embodiment="toy",
    )


def _demonstration(index: int, frames: int) -> Demonstration:
    rng = np.random.default_rng(index)
    yy, xx = np.mgrid[0:SIZE, 0:SIZE]
    columns = {
        "action": rng.standard_normal((frames, 2)).astype(np.float32),
        "observation.state": rng.standard_normal((frames, 3)).astype(np.float32),
    }
    for c, name in enumerate(CAMERAS):
        # Smooth images that drift from frame to frame, so that a wrong frame is far off after h264.
        phase = np.arange(frames)[:, None, None] * 0.5 + index
        grey = 127 + 100 * np.sin(0.2 * xx[None] + 0.15 * (c + 1) * yy[None] + phase)
        columns[f"observation.images.{name}"] = np.repeat(grey[..., None], 3, -1).astype(np.uint8)
        columns[f"observation.intrinsics.{name}"] = rng.random((frames, 3, 3)).astype(np.float32)
        columns[f"observation.extrinsics.{name}"] = rng.random((frames, 4, 4)).astype(np.float32)
        columns[f"observation.depth.{name}"] = rng.random((frames, SIZE, SIZE)).astype(np.float32)
    job = Job("toy", (("task", "push"),), index, 0.0)
    return Demonstration(job, True, f"push it, way {index % 2}", columns)


@dataclasses.dataclass(frozen=True)
class Toy:
    """A written dataset and what was put in."""

    path: str
    spec: RobotSpec
    demonstrations: tuple[Demonstration, ...]

    def truth(self, key: str) -> np.ndarray:
        """All frames of a feature."""
        return np.concatenate([d.columns[key] for d in self.demonstrations])


@pytest.fixture(scope="session")
def toy_spec() -> RobotSpec:
    return _spec()


@pytest.fixture(scope="session")
def toy_demonstrations() -> tuple[Demonstration, ...]:
    return tuple(_demonstration(i, frames) for i, frames in enumerate((23, 9, 31)))


@pytest.fixture(scope="session")
def toy(tmp_path_factory, toy_spec, toy_demonstrations) -> Toy:
    pytest.importorskip("lerobot")
    from vla_data._lerobot_writer import LeRobotWriter

    root = tmp_path_factory.mktemp("data") / "toy"
    writer = LeRobotWriter(root, toy_spec, toy_demonstrations[0], "toy")
    for demonstration in toy_demonstrations:
        writer.add(demonstration)
    writer.close({})
    return Toy(str(root), toy_spec, toy_demonstrations)
