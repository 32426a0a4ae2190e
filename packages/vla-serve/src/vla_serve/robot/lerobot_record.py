"""What a robot did, as a LeRobot v3.0 data set to train on. Source: LeRobotDataset of lerobot (0.6)."""

from __future__ import annotations

import json
import logging
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import av
import av.logging
from datasets import disable_progress_bars
from lerobot.configs import RGBEncoderConfig
from lerobot.datasets.lerobot_dataset import LeRobotDataset
from vla_core.errors import UserError
from vla_core.specs import GroupSpec, RobotSpec
from vla_core.types import Float, Observation

SPEC_FILE = "meta/vla_spec.json"
# As vla-data records: a short GOP keeps random access cheap.
GOP, CRF, PRESET = 10, 20, "veryfast"


class LeRobotRecorder:
    """Writes episodes as they happen; a context manager, and only what it leaves behind is a data set.

    Args:
        root: directory that appears on leaving, if there was an episode; must not exist.
        spec: cameras, state and actions as they are recorded; written beside the data with their units.
        instruction: of all episodes.
        provenance: how it was recorded, as plain data.

    Raises:
        UserError: ``root`` exists, or a rate that is no whole number, which the format cannot say.
    """

    def __init__(self, root: Path, spec: RobotSpec, instruction: str, provenance: Mapping[str, Any]) -> None:
        if root.exists():
            raise UserError(f"--record: {root} exists already; remove it or choose another directory")
        hz = spec.action.control_hz
        if hz != round(hz):
            raise UserError(f"--record: the contract's rate is {hz:g} Hz; a LeRobot data set has whole ones")
        self._root, self._spec, self._instruction = root, spec, instruction
        self._provenance = dict(provenance)
        self._partial = root.with_name(f".{root.name}.{os.getpid()}.partial")
        root.parent.mkdir(parents=True, exist_ok=True)
        logging.getLogger("lerobot").setLevel(logging.ERROR)
        av.logging.set_libav_level(av.logging.ERROR)
        disable_progress_bars()
        self._dataset = LeRobotDataset.create(
            repo_id=f"local/{root.name}",
            root=self._partial,
            fps=round(hz),
            robot_type=spec.embodiment,
            features=_features(spec),
            rgb_encoder=RGBEncoderConfig(vcodec="h264", g=GOP, crf=CRF, preset=PRESET),
            streaming_encoding=True,
            encoder_queue_maxsize=1024,
            encoder_threads=1,
            video_backend="pyav",
        )
        self._frames, self.episodes, self.frames = 0, 0, 0

    def __enter__(self) -> LeRobotRecorder:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def add(self, observation: Observation, action: Float) -> None:
        """See :class:`~vla_serve.robot.Recorder`.

        Raises:
            UserError: a video falls behind, and lerobot has left a picture out: each later one would be
                beside the numbers of another moment. The episode is not kept.
        """
        row: dict[str, Any] = {"action": action, "task": self._instruction}
        row |= {f"observation.images.{name}": image for name, image in observation.images.items()}
        if observation.state is not None:
            row["observation.state"] = observation.state
        self._dataset.add_frame(row)
        self._frames += 1
        videos = self._dataset.writer._streaming_encoder  # None: of no camera
        if videos is not None and (lost := videos._dropped_frames):  # lerobot says it in its log alone
            self._dataset.clear_episode_buffer()
            self._frames, camera = 0, next(iter(lost)).removeprefix("observation.images.")
            raise UserError(
                f"--record: the video of camera '{camera}' falls behind, and this episode is not kept; "
                "record smaller pictures, or on a quicker computer"
            )

    def end_episode(self) -> None:
        """See :class:`~vla_serve.robot.Recorder`."""
        if self._frames:
            self._dataset.save_episode()
            self.episodes, self.frames = self.episodes + 1, self.frames + self._frames
            self._frames = 0

    def close(self) -> None:
        """Finish all files; the directory appears if an episode was recorded."""
        self.end_episode()
        self._dataset.finalize()
        if not self.episodes:
            shutil.rmtree(self._partial, ignore_errors=True)
            return
        data = {**self._spec.to_dict(), "provenance": self._provenance}
        (self._partial / SPEC_FILE).write_text(json.dumps(data, indent=1) + "\n")
        for path in self._partial.rglob("*.mp4"):
            path.chmod(0o644)  # lerobot's temporary files are private to the user
        self._partial.rename(self._root)


def _names(groups: tuple[GroupSpec, ...]) -> list[str]:
    return [g.name if g.dim == 1 else f"{g.name}.{i}" for g in groups for i in range(g.dim)]


def _features(spec: RobotSpec) -> dict[str, dict[str, Any]]:
    table: dict[str, dict[str, Any]] = {}
    for camera in spec.observation.cameras:
        shape = (camera.height, camera.width, 3)
        names = ["height", "width", "channels"]
        table[f"observation.images.{camera.name}"] = {"dtype": "video", "shape": shape, "names": names}
    for key, groups in (("observation.state", spec.observation.state), ("action", spec.action.groups)):
        if groups:
            table[key] = {"dtype": "float32", "shape": (len(_names(groups)),), "names": _names(groups)}
    return table
