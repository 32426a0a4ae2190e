"""``datasets.augmentation``: ms a batch on a device, and that a GPU draws and computes what the CPU does.

    python benchmarks/data/augment.py [--device cuda] [--rows 32 --views 2 --size 224] [--repeat 50]

On a GPU the time is between CUDA events around each call, so the host's part counts as far as the device
waits for it; "host" is the time until the call returns. The same seed and step are then computed on the CPU.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import torch
from vla_core.batch import Batch, TokenFields
from vla_train.augment import Augmentation, AugmentationConfig

COLOURS = {"brightness": 0.2, "contrast": 0.2, "saturation": 0.2, "hue": 0.02}
MOVES = {"crop_scale": 0.9, "crop_ratio": 1.05, "rotation": 5.0}
STATE = {"state_dropout": 0.1, "state_noise": 0.02}
CONFIGS = {
    "crop and rotation": AugmentationConfig(**MOVES),
    "colours": AugmentationConfig(**COLOURS),
    "all": AugmentationConfig(**MOVES, **COLOURS, **STATE),
}


def make_batch(rows: int, views: int, size: int) -> Batch:
    """Smooth pictures with grain."""
    rng = torch.Generator().manual_seed(0)
    coarse = torch.rand(rows * views, 3, 8, 8, generator=rng)
    pictures = torch.nn.functional.interpolate(coarse, (size, size), mode="bilinear")
    pictures += 0.05 * torch.randn(pictures.shape, generator=rng)
    ids = torch.zeros(rows, 4, dtype=torch.long)
    return Batch(
        images=(pictures.clamp(0, 1) * 255).to(torch.uint8).unflatten(0, (rows, views)),
        view_mask=torch.ones(rows, views, dtype=torch.bool),
        tokens=TokenFields(ids, ids == 0, ids.to(torch.uint8)),
        embodiment=torch.zeros(rows, dtype=torch.long),
        state=torch.randn(rows, 8, generator=rng),
        state_mask=torch.ones(rows, 8, dtype=torch.bool),
    )


def timed(call: Callable[[int], object], repeat: int, cuda: bool) -> tuple[float, float]:
    """Median ms of a call on the device, and until it returns."""
    for step in range(5):
        call(step)
    whole, host = [], []
    for step in range(repeat):
        if cuda:
            torch.cuda.synchronize()
            events = [torch.cuda.Event(enable_timing=True) for _ in range(2)]
            events[0].record()
        begun = time.perf_counter()
        call(step)
        host.append(1000 * (time.perf_counter() - begun))
        if cuda:
            events[1].record()
            torch.cuda.synchronize()
        whole.append(events[0].elapsed_time(events[1]) if cuda else host[-1])
    return statistics.median(whole), statistics.median(host)


def compare(augmentation: Augmentation, batch: Batch, device: str) -> None:
    """Print how far device and CPU are apart; exit if by more than rounding."""
    here, there = augmentation(batch, 7), augmentation(batch.to(device), 7).to("cpu")
    apart = (here.images.int() - there.images.int()).abs()
    unequal = float((apart > 0).double().mean())
    assert here.state is not None
    assert there.state is not None
    state, largest = float((here.state - there.state).abs().max()), int(apart.max())
    print(f"  from the CPU: at most {largest} of 255 in {unequal:.2e} of the values, state {state:.1e}")
    if largest > 2 or unequal > 0.01 or state > 1e-5:
        raise SystemExit(f"{device} and CPU differ by more than rounding")


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--rows", type=int, default=32)
    parser.add_argument("--views", type=int, default=2)
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--repeat", type=int, default=50)
    args = parser.parse_args()
    batch = make_batch(args.rows, args.views, args.size)
    placed, cuda = batch.to(args.device), args.device.startswith("cuda")
    print(f"{args.rows} x {args.views} pictures of {args.size} x {args.size}, uint8, on {args.device}")
    for name, config in CONFIGS.items():
        augmentation = Augmentation(config, seed=0, rank=0)
        whole, host = timed(lambda step, a=augmentation: a(placed, step), args.repeat, cuda)
        print(f"{name}: {whole:.2f} ms a batch, host {host:.2f} ms")
        compare(augmentation, batch, args.device)


if __name__ == "__main__":
    main()
