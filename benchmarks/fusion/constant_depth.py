"""A recording whose every depth is one metre: what is left of ``position_3d`` on it is calibration.

    uv run python benchmarks/fusion/constant_depth.py runs/fusion/train runs/fusion/train_constant

All other arrays are linked, not copied.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np

DEPTH_M = 1.0


def main() -> None:
    """Write the directory."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("source", type=Path)
    parser.add_argument("out", type=Path)
    args = parser.parse_args()
    args.out.mkdir(parents=True)
    for path in sorted(args.source.iterdir()):
        target = args.out / path.name
        if path.name.startswith("observation.depth."):
            recorded = np.load(path, mmap_mode="r")
            np.save(target, np.full(recorded.shape, DEPTH_M, recorded.dtype))
        else:
            target.symlink_to(path.resolve())


if __name__ == "__main__":
    main()
