"""lerobot's samples for PyTorch's DataLoader, where lerobot is installed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from _ours import HORIZON
from _synthetic import FPS
from torch.utils.data import Dataset


def theirs(path: str, history: int, backend: str) -> Dataset[Any]:
    """lerobot's dataset with the same chunk and history, uint8 images asked for.

    Raises:
        ImportError: lerobot is not installed.
    """
    from lerobot.datasets.lerobot_dataset import LeRobotDataset

    info = json.loads((Path(path) / "meta/info.json").read_text())
    wanted = {"action": [i / FPS for i in range(HORIZON)]}
    if history > 1:
        seen = [key for key in info["features"] if key.startswith("observation.")]
        wanted |= {key: [-k / FPS for k in range(history - 1, -1, -1)] for key in seen}
    return LeRobotDataset(
        "local/synthetic", root=path, delta_timestamps=wanted, video_backend=backend, return_uint8=True
    )


def close_decoders() -> None:
    """Drop the decoders that lerobot keeps open: workers would read them from a shared file, and fail."""
    try:
        from lerobot.datasets.video_utils import _default_decoder_cache
    except ImportError:
        return
    _default_decoder_cache.clear()
