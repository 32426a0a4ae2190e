"""What a save under FSDP2 costs, by part: what the training waits for, and what goes on beside it.

torchrun --nproc_per_node 2 benchmarks/train/save_parts.py [--width 2048] [--layers 16] [--device cpu]
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from vla_train.checkpointing.snapshots import Snapshots
from vla_train.checkpointing.writer import Writer
from vla_train.config import TrainerConfig
from vla_train.engine import Engine, make_engine


class Layers(nn.Module):
    """Square layers, of which the engine gathers one after the other."""

    def __init__(self, width: int, count: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(width, width) for _ in range(count))

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """A loss."""
        for layer in self.layers:
            x = layer(x).relu()
        return {"loss": x.square().mean()}

    def predict(self, x: Tensor) -> Tensor:
        """As the engine expects it."""
        return x


def timed(engine: Engine, do: Callable[[], Any]) -> tuple[float, Any]:
    """Seconds until all ranks are done, and what ``do`` returned."""
    engine.wait()
    begun = time.perf_counter()
    out = do()
    if engine.device.type == "cuda":
        torch.cuda.synchronize()
    engine.wait()
    return time.perf_counter() - begun, out


def parts(engine: Engine, folder: Path) -> dict[str, float]:
    """Part -> seconds."""
    found: dict[str, float] = {}
    found["in the way: weights gathered"], state = timed(engine, engine.state)

    def write() -> None:
        save_file({name: value.contiguous() for name, value in state.items()}, folder / "weights.safetensors")

    found["in the way: weights written"], _ = timed(engine, lambda: engine.agree(write))
    found["in the way: state written"], _ = timed(engine, lambda: engine.save(folder / "state"))
    snapshots = Snapshots()
    with Writer(engine, beside=True) as writer:
        for save in ("first save", "later save"):
            name = f"{save}, in the way: weights copied"
            found[name], gather = timed(engine, lambda: engine.state_later(snapshots.take, writer.channel))
            found[f"{save}, beside: weights gathered"], _ = timed(engine, gather)
            name, into = f"{save}, in the way: state copied", folder / save
            found[name], rest = timed(
                engine, lambda: engine.save_later(into, snapshots.take, writer.channel)  # noqa: B023
            )  # fmt: skip
            found[f"{save}, beside: state written"], _ = timed(engine, rest)
    return found


def main() -> None:
    """Train two steps, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--width", type=int, default=2048)
    parser.add_argument("--layers", type=int, default=16)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    args = parser.parse_args()
    engine = make_engine(TrainerConfig(device=args.device, sharding="fsdp2"))
    torch.manual_seed(0)
    model = Layers(args.width, args.layers)
    engine.split(model)
    engine.prepare(model, torch.optim.AdamW(model.parameters()))
    for _ in range(2):
        with engine.micro_batch():
            rows = torch.randn(8, args.width, device=engine.device)
            engine.backward(engine.forward(rows)["loss"])
            engine.update(1.0)
    with tempfile.TemporaryDirectory() as own:
        folder = Path(engine.agree(lambda: own))
        found = parts(engine, folder)
        engine.wait()
    if engine.is_main:
        print(f"{sum(p.numel() for p in model.parameters()):,} weights, {engine.world} processes")
        for name, seconds in found.items():
            print(f"{name:40} {1e3 * seconds:8.0f} ms")


if __name__ == "__main__":
    main()
