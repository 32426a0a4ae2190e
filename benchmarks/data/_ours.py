"""This project's samples for PyTorch's DataLoader, as ``vla-train`` sends them, and the memory they take."""

from __future__ import annotations

import math
import multiprocessing
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset
from vla_data import LeRobotConfig, LeRobotSource, keep_memory

HORIZON = 16
KB = 1024


class Ours(Dataset[dict[str, Any]]):
    """The source's samples."""

    def __init__(self, path: str, history: int) -> None:
        config = LeRobotConfig(path, observation_delta_indices=tuple(range(1 - history, 1)))
        self.source = LeRobotSource(config, HORIZON)

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, index: int) -> dict[str, Any]:
        sample = self.source[index]
        numbers = {"action": sample.actions, "mask": sample.action_mask, "state": sample.observation.state}
        return {**sample.observation.images, **numbers}


def stack(samples: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
    """A batch; PyTorch's own collation would make shared tensors, which :class:`Recycled` does not want."""
    return {key: torch.from_numpy(np.stack([one[key] for one in samples])) for key in samples[0]}


def begin(worker: int) -> None:
    """As ``vla-train``'s workers begin."""
    keep_memory()


def pss() -> float:
    """MB of this process and its workers, pages that they share counted once; NaN where no kernel tells."""
    pids = ["self", *(str(child.pid) for child in multiprocessing.active_children())]
    total = 0
    for pid in pids:
        file = Path(f"/proc/{pid}/smaps_rollup")
        if not file.exists():
            return math.nan
        for line in file.read_text().splitlines():
            if line.startswith("Pss:"):
                total += int(line.split()[1])
    return total / KB
