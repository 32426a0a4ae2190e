"""Writes demonstrations as a LeRobot v3.0 dataset, through ``lerobot`` itself.

Source: LeRobotDataset (package ``lerobot``, extra ``vla-data[record]``).
"""

from __future__ import annotations

import json
import logging
import time
from pathlib import Path
from typing import Any

import av
import av.logging
from datasets import disable_progress_bars
from lerobot.configs import RGBEncoderConfig
from lerobot.datasets.lerobot_dataset import LeRobotDataset
from vla_core.specs import GroupSpec, RobotSpec

from vla_data._episode import Episode
from vla_data.formats.layout import SPEC_FILE

# A short GOP keeps random access cheap (at most 10 frames to decode); crf 20 and preset slow give
# about 32 dB at 1 kB for two 128 x 128 frames.
GOP, CRF, PRESET = 10, 20, "slow"


def _names(groups: tuple[GroupSpec, ...]) -> list[str]:
    return [g.name if g.dim == 1 else f"{g.name}.{i}" for g in groups for i in range(g.dim)]


def features(spec: RobotSpec, episode: Episode) -> dict[str, dict[str, Any]]:
    """LeRobot's feature table for the columns of ``episode``."""
    table: dict[str, dict[str, Any]] = {}
    for key, values in episode.columns.items():
        shape = tuple(values.shape[1:])
        if key.startswith("observation.images."):
            table[key] = {"dtype": "video", "shape": shape, "names": ["height", "width", "channels"]}
        elif key == "action":
            table[key] = {"dtype": "float32", "shape": shape, "names": _names(spec.action.groups)}
        elif key == "observation.state":
            table[key] = {"dtype": "float32", "shape": shape, "names": _names(spec.observation.state)}
        else:
            table[key] = {"dtype": "float32", "shape": shape, "names": None}
    return table


def _quieten() -> None:
    """Only errors: x264 alone prints 30 lines a video, and ``datasets`` a bar per episode."""
    logging.getLogger("lerobot").setLevel(logging.ERROR)
    av.logging.set_libav_level(av.logging.ERROR)
    disable_progress_bars()


class LeRobotWriter:
    """Appends demonstrations to a new dataset directory.

    Args:
        root: the directory; must not exist.
        spec: of the robot; written to ``meta/vla_spec.json`` so that units and groups survive.
        first: any episode, for the columns and their shapes.
        name: the dataset's name.
    """

    def __init__(self, root: Path, spec: RobotSpec, first: Episode, name: str) -> None:
        _quieten()
        self._root, self._spec = root, spec
        self._dataset = LeRobotDataset.create(
            repo_id=f"local/{name}",
            root=root,
            fps=round(spec.action.control_hz),
            robot_type=spec.embodiment,
            features=features(spec, first),
            rgb_encoder=RGBEncoderConfig(vcodec="h264", g=GOP, crf=CRF, preset=PRESET),
            streaming_encoding=True,
            encoder_queue_maxsize=64,
            encoder_threads=1,
            video_backend="pyav",
        )

    def add(self, episode: Episode) -> None:
        """Append one episode."""
        columns = episode.columns
        for i in range(len(columns["action"])):
            row = {key: values[i] for key, values in columns.items()}
            self._wait_for_videos()
            self._dataset.add_frame({**row, "task": episode.instruction})
        self._dataset.save_episode()

    def _wait_for_videos(self) -> None:
        """Else lerobot leaves pictures out where an encoder is far behind, and says so in its log alone."""
        videos = self._dataset.writer._streaming_encoder
        if videos is None:  # of no camera
            return
        for name, pictures in videos._frame_queues.items():
            while pictures.full() and videos._threads[name].is_alive():  # lerobot says why one has ended
                time.sleep(0.001)

    def close(self, provenance: dict[str, Any]) -> None:
        """Finish all files; ``provenance`` says how the dataset was made."""
        self._dataset.finalize()
        data = {**self._spec.to_dict(), "provenance": provenance}
        (self._root / SPEC_FILE).write_text(json.dumps(data, indent=1) + "\n")
        for path in self._root.rglob("*.mp4"):
            path.chmod(0o644)  # lerobot's temporary files are private to the user
