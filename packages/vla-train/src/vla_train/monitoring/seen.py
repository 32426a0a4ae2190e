"""Pictures of a few training samples as the policy gets them: ``seen.npz`` of a run, for its report."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike
from vla_data.errors import BadDataError

from vla_train.dataloading.data import TransformedDataset

FILE = "seen.npz"
PER_SET, MOST_SETS = 6, 4


def save_seen(dataset: TransformedDataset, labels: Sequence[str], path: Path) -> None:
    """Write evenly spaced samples of the first :data:`MOST_SETS` data sets, random transforms included.

    Arrays of K samples, one set after the other: ``label [K]``, ``episode [K]``, ``frame [K]``,
    ``instruction [K]``; for camera ``j`` of sample ``k``, in order, ``image_k_j [H, W, 3]`` uint8 and
    ``camera_k_j``. A sample that cannot be read is left out: the run itself counts those.
    """
    about: dict[str, list[str | int]] = {"label": [], "episode": [], "frame": [], "instruction": []}
    arrays: dict[str, ArrayLike] = {}
    for number, source in enumerate(dataset.sources[:MOST_SETS]):
        for i in np.unique(np.linspace(0, len(source) - 1, PER_SET).round().astype(int)):
            index = dataset.index(number, int(i))
            try:
                sample = dataset[(0, index)]
            except BadDataError:
                continue
            _, episode, frame = dataset.place(index)
            k = len(about["label"])
            for j, (camera, image) in enumerate(sample.observation.images.items()):
                arrays[f"camera_{k}_{j}"], arrays[f"image_{k}_{j}"] = camera, image
            values: tuple[str | int, ...] = (labels[number], episode, frame, sample.observation.instruction)
            for key, value in zip(about, values, strict=True):
                about[key].append(value)
    columns: dict[str, Any] = {key: np.array(values) for key, values in about.items()}
    np.savez_compressed(path, **(columns | arrays))
