"""What a step costs the host under each engine, beside that of one process: two ranks on a CPU, over gloo.

    python benchmarks/train/host.py                                all engines, about four minutes
    python benchmarks/train/host.py --row local --row zero2 --row fsdp2,gather_mb=0 --rounds 3
    python benchmarks/train/host.py --row zero2 --profile zero2.txt

The model has as many parameters (1,604) in as many blocks (110) as the 3B policy has, but they are 8 wide:
what takes the time is Python and the dispatch of operators, as it does on a GPU that waits for its host.
The engines are those of ``vla-train``, with bf16 weights, masters in fp32 and clipping; groups and buckets
are as many as in the true model. Every row is started in turn, ``--rounds`` times, and compared with the
first.

Counted is the time that the main thread of the first rank spends on a CPU in a step (medians): not what it
waits for the other rank, nor what gloo's threads take. ZeRO updates in its backward part; the update of the
others is slower here than on a GPU, where it is a kernel a parameter. ``waits`` is how often the host would
wait for a GPU (outside of that update, and without DeepSpeed's wait after a backward pass, which it leaves
out on a CPU). Loss and weights are a mean of 16 steps and a sum after them: engines that do the same agree.
A row is an engine (local, ddp, zero1, zero2, zero3, fsdp2) and keys of ``trainer``.
"""

from __future__ import annotations

import argparse
import contextlib
import cProfile
import itertools
import json
import os
import pstats
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any
from unittest.mock import patch

ROWS = (
    "local",
    "ddp",
    "zero1",
    "zero2",
    "zero3",
    "fsdp2,gather_mb=0",
    "fsdp2,gather_mb=250",
    "fsdp2,gather_mb=500",
    "fsdp2,gather_mb=0,reshard=false",
    "fsdp2,gather_mb=500,reshard=false",
)
BLOCKS, LINEARS, WIDTH = 110, 7, 8
OUTSIDE = 32
"""Linear layers that are in no block."""
REAL_MB = 66
"""Megabytes of a block of the true model, roughly: for as large each is taken where groups are cut."""
BUCKETS = 76
"""4 billion gradients in bf16, 100 MiB at a time."""
WARM, STEPS = 4, 12


def model_of(seed: int) -> Any:
    """110 blocks of 14 parameters, and 64 parameters beside them."""
    import torch
    from torch import Tensor, nn
    from vla_core.shard import ShardUnit

    class Block(nn.Module, ShardUnit):
        def __init__(self) -> None:
            super().__init__()
            self.layers = nn.ModuleList(nn.Linear(WIDTH, WIDTH) for _ in range(LINEARS))

        def forward(self, x: Tensor) -> Tensor:
            y = x
            for layer in self.layers:
                y = layer(y)
            return x + y

    class Model(nn.Module):
        geometry = None

        def __init__(self) -> None:
            super().__init__()
            self.blocks = nn.ModuleList(Block() for _ in range(BLOCKS))
            self.outside = nn.ModuleList(nn.Linear(WIDTH, WIDTH) for _ in range(OUTSIDE))

        def forward(self, x: Tensor) -> dict[str, Tensor]:
            for block in self.blocks:
                x = block(x)
            for layer in self.outside:
                x = x + 0.1 * layer(x)
            return {"loss": x.float().square().mean()}

        def predict(self, x: Tensor) -> Tensor:
            return self(x)["loss"]

    torch.manual_seed(seed)
    return Model()


def train(keys: dict[str, Any], out: Path, profile: bool) -> None:
    """One rank of one row."""
    import torch
    from vla_train.config import TrainerConfig
    from vla_train.engine import make_engine
    from vla_train.guards.guard import Guard
    from vla_train.optimizer.optim import parameter_groups
    from vla_train.optimizer.precision import make_optimizer, set_precision
    from vla_train.parts import whole

    if os.environ.get("ACCELERATE_USE_DEEPSPEED"):
        import deepspeed.ops

        # Its collective over shared memory would be compiled first.
        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    device = "auto" if "ACCELERATE_USE_DEEPSPEED" in os.environ else "cpu"
    settings = TrainerConfig(
        precision="bf16", device=device, threads=1, batch_size=2, eps=1e-3, clip_norm=0.05, **keys
    )
    model = model_of(0)
    if "ACCELERATE_USE_DEEPSPEED" in os.environ:
        from vla_train.engine import deepspeed as zero

        # As many buckets a step as of the true size.
        numbers, told = sum(p.numel() for p in model.parameters()) // BUCKETS // 2 * 2, zero._zero
        zero._zero = lambda stage, *_: {
            key: numbers if key.endswith("_size") else value for key, value in told(stage, 1, 1).items()
        }
    engine = make_engine(settings)
    set_precision(model, settings, engine)
    if (spread := keys.get("gather_mb")) is not None:
        # As many blocks a group as of the true size.
        of_block = sum(p.numel() * p.element_size() for p in model.blocks[0].parameters())
        import vla_train.engine.groups as groups

        groups.MB = of_block / REAL_MB if spread else 1
    engine.split(model)
    optimizer = make_optimizer(parameter_groups(model, settings), settings, engine)
    engine.prepare(model, optimizer)
    guard = Guard(engine, Path("metrics.jsonl"))
    dtype = torch.bfloat16
    draw = torch.Generator().manual_seed(engine.rank if engine.world > 1 else 0)
    readings: list[list[float]] = []
    walls: list[float] = []
    losses: list[Any] = []
    profiler = cProfile.Profile(time.thread_time)
    for step in range(1, WARM + STEPS + 1):
        x = torch.randn(2, WIDTH, generator=draw).to(dtype)
        if profile and step == WARM + 1:
            profiler.enable()
        began, times = time.perf_counter(), [time.thread_time()]
        with engine.micro_batch():
            loss = engine.forward(x)["loss"]
            times.append(time.thread_time())
            engine.backward(loss)
            times.append(time.thread_time())
            norm = engine.update(settings.clip_norm)
            times.append(time.thread_time())
        guard.see(step, loss.detach(), norm)
        times.append(time.thread_time())
        walls.append(time.perf_counter() - began)
        readings.append([1e3 * (b - a) for a, b in itertools.pairwise(times)])
        losses.append(loss.detach())
    profiler.disable()
    waits = waits_of(engine, torch.randn(2, WIDTH, generator=draw).to(dtype), settings.clip_norm)
    guard.check()
    mean = float(engine.sum(torch.stack(losses).double().mean()) / engine.world)
    # Under ZeRO-3 they are elsewhere.
    held = [] if engine.gathers_inside else list(model.parameters())
    total = sum(float(whole(p.detach()).double().abs().sum()) for p in held)
    if engine.is_main:
        out.write_text(
            json.dumps(
                {
                    "parts": readings[WARM:],
                    "walls": walls[WARM:],
                    "loss": mean,
                    "weights": total,
                    "waits": waits,
                }
            )
        )
        if profile:
            with out.with_suffix(".txt").open("w") as file:
                stats = pstats.Stats(profiler, stream=file)
                stats.sort_stats("tottime").print_stats(60)
                stats.sort_stats("cumulative").print_stats(90)
    engine.wait()


def waits_of(engine: Any, x: Any, clip_norm: float) -> int:
    """How often in a step the host would wait for a GPU: for a number to read or to send, or for all work.

    What the optimizers themselves do is left out: on a CPU it is another update than on a GPU.
    """
    import torch
    from torch.optim.optimizer import register_optimizer_step_post_hook, register_optimizer_step_pre_hook
    from torch.utils._python_dispatch import TorchDispatchMode

    waits: list[str] = []
    stepping = False

    def step(*_: Any) -> None:
        nonlocal stepping
        stepping = not stepping

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            aten = torch.ops.aten
            if func in (aten._local_scalar_dense.default, aten.lift_fresh.default) and not stepping:
                waits.append(str(func))
            return func(*args, **kwargs or {})

    with contextlib.ExitStack() as stack:
        for register in (register_optimizer_step_pre_hook, register_optimizer_step_post_hook):
            stack.callback(register(step).remove)
        if hasattr(engine.module, "checkpoint_engine"):
            from deepspeed.accelerator import get_accelerator

            device = get_accelerator()
            stack.enter_context(patch.object(device, "synchronize", lambda *_: waits.append("device")))
        stack.enter_context(Watch())
        with engine.micro_batch():
            engine.backward(engine.forward(x)["loss"])
            engine.update(clip_norm)
    return len(waits)


def environment(engine: str) -> dict[str, str]:
    """What a launcher sets for an engine."""
    if engine.startswith("zero"):
        return {
            "ACCELERATE_USE_DEEPSPEED": "true",
            "ACCELERATE_DEEPSPEED_ZERO_STAGE": engine.removeprefix("zero"),
            "ACCELERATE_MIXED_PRECISION": "no",
            "DS_ACCELERATOR": "cpu",
        }
    return {}


def run(row: str, folder: Path, number: int, profile: bool) -> dict[str, Any]:
    """Start a row on its ranks; returns what the first one found."""
    from vla_train.testing.ranks import run_ranks

    engine, *pairs = row.split(",")
    keys: dict[str, Any] = {k: json.loads(v) for k, _, v in (pair.partition("=") for pair in pairs)}
    if engine == "fsdp2":
        keys["sharding"] = "fsdp2"
    out = folder / f"{engine}-{number}.json"
    words = ["--rank", json.dumps(keys), "--out", str(out), *(["--profile", "-"] if profile else [])]
    set_here = environment(engine)
    os.environ.update(set_here)
    try:
        ended = run_ranks(
            [sys.executable, __file__, *words], 1 if engine == "local" else 2, folder, 300, forked=True
        )
    finally:
        for key in set_here:
            del os.environ[key]
    if not out.exists() or any(rank.code for rank in ended):
        raise SystemExit(f"{row}: " + "\n".join(rank.said[-2000:] for rank in ended))
    found: dict[str, Any] = json.loads(out.read_text())
    if profile:
        found["profile"] = out.with_suffix(".txt").read_text()
    return found


def main() -> None:
    """Run the rows in turn and print a table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--row", action="append", help="ENGINE[,key=value...]")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--profile", help="file for the profile of the rows, the first round alone")
    parser.add_argument("--out", type=Path, help="every figure, as JSON")
    parser.add_argument("--rank", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.rank is not None:
        train(json.loads(args.rank), args.out, args.profile is not None)
        return
    rows = list(dict.fromkeys(args.row or ROWS))
    found: dict[str, list[dict[str, Any]]] = {row: [] for row in rows}
    with tempfile.TemporaryDirectory() as name:
        for number in range(args.rounds):
            for row in rows:
                found[row].append(run(row, Path(name), number, bool(args.profile)))
    if args.profile:
        Path(args.profile).write_text("\n".join(f"{row}\n{found[row][0]['profile']}" for row in rows))
    steps = {row: [sum(parts) for one in several for parts in one["parts"]] for row, several in found.items()}
    alone = statistics.median(steps[rows[0]])
    print(
        "| engine | host ms a step | beyond | ratio | forward / backward / update | waits | loss | weights |"
    )
    print("|---|---|---|---|---|---|---|---|")
    for row, several in found.items():
        own = statistics.median(steps[row])
        parts = [statistics.median(p[i] for one in several for p in one["parts"]) for i in range(3)]
        print(
            f"| {row} | {own:.1f} | {own - alone:+.1f} | {own / alone:.2f} | "
            + " / ".join(f"{part:.0f}" for part in parts)
            + f" | {several[0]['waits']} | {several[0]['loss']:.8f} | {several[0]['weights']:.6f} |"
        )
    if args.out:
        args.out.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
