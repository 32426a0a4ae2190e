"""A video that is damaged in the middle: what quarantine does about it, and what is said where it cannot."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
from vla_core.errors import ConfigError
from vla_train.config import DatasetsConfig
from vla_train.dataloading.data_sets import open_data

SHIPPED = Path(__file__).resolve().parent.parent / "examples" / "data" / "metaworld_faucet"


def test_pictures_that_are_decoded_at_the_start_cannot_be_passed_over(tmp_path: Path) -> None:
    damaged = tmp_path / "damaged"
    shutil.copytree(SHIPPED, damaged)
    video = next(damaged.glob("videos/*corner4/*/*.mp4"))
    content = bytearray(video.read_bytes())
    start = len(content) // 10
    content[start : start + 100_000] = np.random.default_rng(0).bytes(100_000)
    video.write_bytes(content)

    def opened(**more: str) -> int:
        entry = {"name": "lerobot", "path": str(damaged), "episodes": "0:40", **more}
        config = DatasetsConfig(train=[entry], on_bad_sample="quarantine")
        return len(open_data(config, 4).sets[0].train)

    with pytest.raises(
        ConfigError, match=r"can't be decoded .*; with cache: none, quarantine can pass over it"
    ):
        opened(cache="ram")
    assert opened() > 0
