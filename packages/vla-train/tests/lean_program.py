"""What one rank does in the test of the lean ZeRO: ``python lean_program.py LEAN [WIDTH|streams]``.

It trains a stack of layers in both precisions, two micro-batches a step, in buckets that hold a few
gradients, with one gradient that is larger than a bucket; and writes losses, norms and a digest of the
weights to ``LEAN-RANK.json``. LEAN: ``false`` is DeepSpeed's own optimizer, ``true`` ours. On two GPUs, where
both must agree as well, in layers that take their time::

    export ACCELERATE_USE_DEEPSPEED=true ACCELERATE_DEEPSPEED_ZERO_STAGE=2 ACCELERATE_MIXED_PRECISION=no
    for lean in true false; do torchrun --nproc_per_node 2 lean_program.py $lean 2048; done
    cmp true-0.json false-0.json && cmp true-1.json false-1.json

With ``streams`` the CPU is taken for a device with streams; who waits for whom goes to ``LEAN-RANK.txt``.
"""

from __future__ import annotations

import hashlib
import json
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from vla_train.config import TrainerConfig
from vla_train.engine import deepspeed as settings_of_zero
from vla_train.engine import lean_zero, make_engine


class Stack(nn.Module):
    """Of matrices, vectors and a large table, some rows of which are read."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.table = nn.Embedding(5 * width, width)
        self.layers = nn.ModuleList(nn.Linear(width, width) for _ in range(9))

    def forward(self, rows: torch.Tensor) -> dict[str, torch.Tensor]:
        """A loss."""
        x = self.table(rows)
        for layer in self.layers:
            x = x + layer(x).tanh()
        return {"loss": x.float().square().mean()}


def train(lean: bool, width: int, precision: Any, broken: bool) -> dict[str, Any]:
    """Four steps; ``broken``: the gradient of the third is not finite on the second rank."""
    settings = TrainerConfig(
        precision=precision, device="auto", batch_size=3, gradient_accumulation_steps=2, clip_norm=0.05
    )
    torch.manual_seed(5)
    engine = make_engine(settings)
    model = Stack(width)
    vectors = [p for p in model.parameters() if p.ndim == 1]
    matrices = [p for p in model.parameters() if p.ndim > 1]
    groups = [{"params": matrices, "weight_decay": 0.1}, {"params": vectors, "weight_decay": 0.0}]
    engine.prepare(model, torch.optim.AdamW(groups, lr=1e-2))
    assert isinstance(engine.module.optimizer, lean_zero.LeanZero) == lean
    draw = torch.Generator().manual_seed(engine.rank)
    losses, norms = [], []
    for micro in range(8):
        with engine.micro_batch():
            loss = engine.forward(torch.randint(50, (3,), generator=draw).to(engine.device))["loss"]
            losses.append(float(loss))
            spoilt = broken and micro == 4 and engine.rank == 1
            engine.backward(loss * torch.tensor(torch.inf if spoilt else 1.0))
            norm = engine.update(settings.clip_norm)
        if norm is not None:
            norms.append(float(norm))
        if broken and norm is not None and norms[-1] == torch.inf:
            break
    digest = hashlib.sha256()
    for parameter in model.parameters():
        digest.update(parameter.detach().float().cpu().numpy().tobytes())
    return {"losses": losses, "norms": norms, "weights": None if broken else digest.hexdigest()}


LOG: list[str] = []


@dataclass(frozen=True)
class Pretended:
    """A stream by its name."""

    name: str

    def wait_stream(self, other: Pretended) -> None:
        """For what the other has to do by now."""
        LOG.append(f"{self.name} waits for {other.name}")


def pretend_streams() -> None:
    """DeepSpeed finds a device with streams; they only write down what they are told."""
    from deepspeed import comm
    from deepspeed.accelerator import get_accelerator

    device, current, reduce = get_accelerator(), [Pretended("main")], comm.all_reduce

    @contextmanager
    def entered(stream: Pretended) -> Iterator[None]:
        current.append(stream)
        yield
        current.pop()

    def all_reduce(tensor: torch.Tensor, *words: Any, **more: Any) -> Any:
        LOG.append(f"{current[-1].name} reduces {tensor.numel()}")
        return reduce(tensor, *words, **more)

    comm.all_reduce = all_reduce
    kind: Any = type(device)
    kind.Stream = property(lambda self: lambda *words, **more: Pretended("exchange"))
    kind.current_stream = lambda *words: current[-1]
    kind.stream = lambda self, stream: entered(stream)
    kind.resolves_data_dependency = kind.is_synchronized_device = lambda self: False
    kind.synchronize = lambda *words: LOG.append("the host waits")
    torch.Tensor.record_stream = lambda tensor, stream: LOG.append(f"{stream.name} keeps {tensor.numel()}")


def main(lean: bool, width: int) -> None:
    """All of it."""
    import deepspeed.ops

    # It would be compiled first, for minutes.
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    told = settings_of_zero._zero
    size = 3 * width * width - 32
    more = {"reduce_bucket_size": size, "allgather_bucket_size": size}
    more |= {} if lean else {"reduce_scatter": True}
    # As a file of DeepSpeed's own settings could say.
    settings_of_zero._zero = lambda *words: {**told(*words), **more}
    if not lean:
        lean_zero.make_lean = lambda optimizer: False
    found = {
        f"{precision} {'broken' if broken else ''}": train(lean, width, precision, broken)
        for precision in ("fp32", "bf16")
        for broken in (False, True)
    }
    out = Path(f"{json.dumps(lean)}-{os.environ['RANK']}.json")
    out.write_text(json.dumps(found))
    out.with_suffix(".txt").write_text("\n".join(LOG))


if __name__ == "__main__":
    torch.set_num_threads(1)
    how = sys.argv[2] if len(sys.argv) > 2 else "12"
    if how == "streams":
        pretend_streams()
    main(json.loads(sys.argv[1]), 12 if how == "streams" else int(how))
