"""Makes ``lerobot_v21``: a data set that lerobot 0.3.3 wrote (LeRobot v2.1), and what it reads from it.

    python make_lerobot_v21.py    in an environment of its own: lerobot==0.3.3, datasets==3.6.0, any torch

One camera as video, one as pictures in parquet (their files beside it are not needed, and not kept).
``read.npz`` has every frame as ``LeRobotDataset`` gives it with chunks of 4 actions. lerobot 0.3.3
decodes through ``torchvision.io.VideoReader``, which recent torchvision no
longer has; a loop over PyAV stands in for it then. Which frame belongs to a row is lerobot's own doing.
"""

from __future__ import annotations

from pathlib import Path

import av
import numpy as np
import torch
import torchvision

HERE = Path(__file__).parent / "lerobot_v21"
CHUNK, FPS, SIZE = 4, 10, 32


class _Reader:
    """What lerobot 0.3.3 uses of ``torchvision.io.VideoReader``."""

    def __init__(self, path, stream):
        self.container = av.open(str(path))
        self.stream = self.container.streams.video[0]

    def seek(self, seconds, keyframes_only=False):
        self.container.seek(int(seconds / float(self.stream.time_base)), stream=self.stream)
        return self

    def __iter__(self):
        for frame in self.container.decode(self.stream):
            image = torch.from_numpy(frame.to_rgb().to_ndarray()).permute(2, 0, 1).contiguous()
            yield {"data": image, "pts": float(frame.pts * frame.time_base)}


if not hasattr(torchvision.io, "VideoReader"):
    torchvision.io.VideoReader = _Reader
    torchvision.set_video_backend = lambda name: None

from lerobot.datasets.lerobot_dataset import LeRobotDataset  # noqa: E402


def _picture(step: float, seed: int) -> np.ndarray:
    yy, xx = np.mgrid[0:SIZE, 0:SIZE]
    grey = 127 + 100 * np.sin(0.2 * xx + 0.15 * (seed + 1) * yy + 0.5 * step)
    return np.stack([grey, 255 - grey, grey / 2], -1).astype(np.uint8)


def write() -> None:
    """Two episodes of 7 and 5 frames."""
    names = ["height", "width", "channels"]
    data = LeRobotDataset.create(
        "local/golden",
        FPS,
        root=HERE / "data_set",
        robot_type="toy",
        features={
            "observation.images.top": {"dtype": "video", "shape": (SIZE, SIZE, 3), "names": names},
            "observation.images.wrist": {"dtype": "image", "shape": (SIZE, SIZE, 3), "names": names},
            "observation.state": {"dtype": "float32", "shape": (3,), "names": ["x", "y", "gripper"]},
            "action": {"dtype": "float32", "shape": (2,), "names": ["x", "y"]},
        },
    )
    rng = np.random.default_rng(0)
    for episode, frames in enumerate((7, 5)):
        for step in range(frames):
            frame = {
                "observation.images.top": _picture(step, 3 * episode),
                "observation.images.wrist": _picture(step, 3 * episode + 1),
                "observation.state": rng.standard_normal(3).astype(np.float32),
                "action": rng.standard_normal(2).astype(np.float32),
            }
            data.add_frame(frame, ["push it", "pull it"][episode])
        data.save_episode()


def read() -> None:
    """Every frame, as lerobot reads it."""
    chunk = {"action": [i / FPS for i in range(CHUNK)]}
    data = LeRobotDataset(
        "local/golden", root=HERE / "data_set", video_backend="pyav", delta_timestamps=chunk
    )
    items = [data[i] for i in range(len(data))]
    columns = {key: np.stack([np.asarray(item[key]) for item in items]) for key in items[0] if key != "task"}
    for key in [key for key in columns if key.startswith("observation.images.")]:
        columns[key] = (columns[key].transpose(0, 2, 3, 1) * 255).round().astype(np.uint8)
    np.savez_compressed(HERE / "read.npz", task=[item["task"] for item in items], **columns)


if __name__ == "__main__":
    write()
    read()
