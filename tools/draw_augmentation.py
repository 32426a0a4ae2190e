"""Draw what ``datasets.augmentation`` does to a frame of a data set, with a point that its cameras follow.

python tools/draw_augmentation.py --out docs/images/augmentation.jpg
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw
from vla_core.batch import Batch, Cameras, TokenFields
from vla_data import LeRobotConfig, LeRobotSource
from vla_train.augment import Augmentation, AugmentationConfig

STRENGTHS = AugmentationConfig(0.75, 1.1, 8, 0.2, 0.2, 0.3, 0.05)
COLUMNS, CELL = 5, 160
FOCAL = 160.0
"""Pixels; the shipped data set does not say."""


def frames(path: str) -> torch.Tensor:
    """Every camera of a frame in the middle: uint8 ``[1, V, 3, H, W]``."""
    source = LeRobotSource(LeRobotConfig(path), 1)
    images = source[len(source) // 2].observation.images
    return torch.from_numpy(np.stack(list(images.values()))).permute(0, 3, 1, 2)[None]


def main() -> None:
    """Draw a row a camera: as recorded, then four draws."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", default="examples/data/metaworld_faucet")
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    images = frames(args.data)
    _, views, _, high, wide = images.shape
    pinhole = torch.tensor([[FOCAL, 0, wide / 2], [0, FOCAL, high / 2], [0, 0, 1]])
    cameras = Cameras(pinhole.expand(1, views, 3, 3), torch.eye(4).expand(1, views, 4, 4))
    ids = torch.zeros(1, 1, dtype=torch.long)
    batch = Batch(images, torch.ones(1, views, dtype=torch.bool), TokenFields(ids, ids == 0, ids), ids[0])
    batch.cameras = cameras
    point = torch.tensor([0.12, 0.1, 1.0])
    augment = Augmentation(STRENGTHS, seed=0, rank=0)
    sheet = Image.new("RGB", (COLUMNS * CELL, views * CELL), "white")
    for column in range(COLUMNS):
        shown = batch if column == 0 else augment(batch, column)
        assert shown.cameras is not None
        k, pose = shown.cameras.intrinsics, shown.cameras.extrinsics
        assert k is not None
        assert pose is not None
        for v in range(views):
            picture = Image.fromarray(shown.images[0, v].permute(1, 2, 0).numpy()).resize((CELL - 6,) * 2)
            seen = k[0, v] @ (pose[0, v, :3, :3].T @ (point - pose[0, v, :3, 3]))
            x, y = (float(seen[i] / seen[2]) * (CELL - 6) / size for i, size in enumerate((wide, high)))
            ImageDraw.Draw(picture).ellipse((x - 4, y - 4, x + 4, y + 4), outline="red", width=2)
            sheet.paste(picture, (column * CELL + 3, v * CELL + 3))
    sheet.save(args.out, quality=88)


if __name__ == "__main__":
    main()
