"""Reading samples: LeRobotSource beside lerobot's own LeRobotDataset, in one run.

    python benchmarks/data/shipped.py [--data DIR] [--samples 200] [--rounds 5]

Random access to (all cameras, state, 16 actions with mask) in one process and one thread of PyTorch.
The readers take turns and the median over ``--rounds`` is printed as a markdown table. torchcodec is
measured where its libraries load (it needs the system's FFmpeg).
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lerobot.datasets.lerobot_dataset import LeRobotDataset
from vla_core.types import Sample
from vla_data import LeRobotConfig, LeRobotSource

HORIZON = 16
Reader = Callable[[int], Any]


def theirs(path: str, backend: str) -> LeRobotDataset:
    """lerobot's dataset with the same action chunk and uint8 images."""
    fps = LeRobotSource(LeRobotConfig(path), 1).spec.action.control_hz
    chunk = {"action": [i / fps for i in range(HORIZON)]}
    return LeRobotDataset(
        "local/data", root=path, delta_timestamps=chunk, video_backend=backend, return_uint8=True
    )


def open_readers(path: str) -> dict[str, tuple[Reader, float]]:
    """Name -> (reader, seconds to open)."""
    makers: dict[str, Callable[[], Any]] = {
        "LeRobotSource, cache: ram": lambda: LeRobotSource(LeRobotConfig(path, cache="ram"), HORIZON),
        "LeRobotSource, cache: none": lambda: LeRobotSource(LeRobotConfig(path), HORIZON),
        "LeRobotDataset, torchcodec": lambda: theirs(path, "torchcodec"),
        "LeRobotDataset, pyav": lambda: theirs(path, "pyav"),
    }
    readers = {}
    for name, make in makers.items():
        started = time.perf_counter()
        dataset = make()
        seconds = time.perf_counter() - started
        try:
            dataset[0]
        except (ImportError, RuntimeError, OSError) as error:
            print(f"{name}: left out, does not load here ({str(error).splitlines()[0]})\n")
            continue
        readers[name] = (dataset.__getitem__, seconds)
    return readers


def check_equal(readers: dict[str, tuple[Reader, float]], indices: list[int]) -> None:
    """All readers must give the same actions and masks, and nearly the same pixels."""
    reference = readers["LeRobotSource, cache: none"][0]
    for name, (read, _) in readers.items():
        for index in indices:
            want, got = reference(index), read(index)
            if isinstance(got, Sample):
                actions, mask, images = got.actions, got.action_mask[:, 0], dict(got.observation.images)
            else:
                actions, mask = got["action"].numpy(), ~got["action_is_pad"].numpy()
                images = {
                    camera: got[f"observation.images.{camera}"].permute(1, 2, 0).numpy()
                    for camera in want.observation.images
                }
            assert np.array_equal(actions, want.actions), name
            assert np.array_equal(mask, want.action_mask[:, 0]), name
            for camera, image in want.observation.images.items():
                assert np.abs(image.astype(int) - images[camera]).mean() < 3, (name, camera)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    default = Path(__file__).parents[2] / "examples" / "data" / "metaworld_faucet"
    parser.add_argument("--data", default=str(default), help="a LeRobot v3.0 dataset")
    parser.add_argument("--samples", type=int, default=200, help="samples per reader and round")
    parser.add_argument("--rounds", type=int, default=5)
    args = parser.parse_args()
    torch.set_num_threads(1)
    readers = open_readers(args.data)
    length = len(LeRobotSource(LeRobotConfig(args.data), HORIZON))
    rng = np.random.default_rng(0)
    check_equal(readers, rng.integers(length, size=5).tolist())
    rates: dict[str, list[float]] = {name: [] for name in readers}
    for _ in range(args.rounds):
        indices = rng.integers(length, size=args.samples).tolist()
        for name, (read, _) in readers.items():
            started = time.perf_counter()
            for index in indices:
                read(index)
            rates[name].append(args.samples / (time.perf_counter() - started))
    print("| reader | samples/s (median) | lowest to highest | ms a sample | to open, s |")
    print("|---|---|---|---|---|")
    for name, (_, seconds) in readers.items():
        middle = statistics.median(rates[name])
        print(
            f"| {name} | {middle:,.0f} | {min(rates[name]):,.0f} to {max(rates[name]):,.0f} "
            f"| {1000 / middle:.3f} | {seconds:.2f} |"
        )


if __name__ == "__main__":
    main()
