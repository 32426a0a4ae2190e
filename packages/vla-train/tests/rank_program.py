"""What one rank of the tests on two processes runs: ``vla-train`` several times, with the toy sources known.

``python rank_program.py PLAN``: a JSON file of ``[{"name": ..., "argv": [...]}, ...]``; ``env`` adds to the
environment, ``full`` is a rank whose files cannot grow past 12 KiB from its second save on, ``aloud`` sends
what a run prints to standard error, which tests read. Beside it every rank writes ``NAME-RANK.json``: a draw
after each step, the sum of the weights before the first and after the last, what is frozen, the samples of
each step, what DDP's buckets hold after it, the exit code; and in the end ``threads-RANK.json``, the names of
the threads that are left.
"""

from __future__ import annotations

import atexit
import contextlib
import importlib.util
import json
import os
import resource
import signal
import sys
from pathlib import Path
from typing import Any

import torch
from torch import nn
from vla_core.batch import Batch
from vla_core.registry import override
from vla_core.testing import register_fakes
from vla_train import trainer
from vla_train.checkpointing import resume
from vla_train.cli import main
from vla_train.engine.ddp import DDP
from vla_train.parts import whole


def total(model: nn.Module) -> float:
    """Sum of all weights, by all ranks together."""
    return float(sum(whole(p.detach()).double().sum() for p in model.parameters()))


def samples(batch: Any) -> list[int] | None:
    """Which samples a batch is of, where its states are those of ``counted`` without transforms."""
    if not isinstance(batch, Batch) or batch.state is None:
        return None
    return [int(x) for x in batch.state[:, 0]]


def recorded(seen: dict[str, Any]) -> Any:
    """``Trainer._step`` that writes down what it sees."""
    step = trainer.Trainer._step

    def record(self: trainer.Trainer, number: int, batches: Any, meter: Any) -> Any:
        if number == 1:
            seen["first"] = total(self.model)
            seen["unreached"] = self.unreached
        seen["samples"].append([samples(batch) for batch in batches])
        out = step(self, number, batches, meter)
        seen["draws"].append(torch.rand(3).tolist())
        if isinstance(self.engine, DDP):
            stores = self.engine.buckets.stores
            seen["buckets"].append([bool(stores), sum(store.nbytes() for store in stores)])
        seen["weights"] = total(self.model)
        return out

    return record


def without_compiler() -> None:
    """DeepSpeed's shared-memory collective would be compiled first, for minutes."""
    import deepspeed.ops

    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False


def fill_the_disk(seen: dict[str, Any]) -> None:
    """From the second save on."""
    save, calls = resume.save, []

    def full(*args: Any) -> None:
        calls.append(args)
        if len(calls) == 2:
            signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
            resource.setrlimit(resource.RLIMIT_FSIZE, (12_288, resource.RLIM_INFINITY))
        seen["saves"] = len(calls)
        save(*args)

    resume.save = full


def run(plan: Path) -> int:
    """The runs of a plan one after the other, to the first that fails."""
    seen: dict[str, Any] = {}
    trainer.Trainer._step = recorded(seen)
    for one in json.loads(plan.read_text()):
        seen.update(draws=[], samples=[], buckets=[])
        os.environ.update(one.get("env", {}))
        if "ACCELERATE_USE_DEEPSPEED" in os.environ:
            without_compiler()
        if one.get("full") == int(os.environ["RANK"]):
            fill_the_disk(seen)
        with contextlib.redirect_stdout(sys.stderr if one.get("aloud") else sys.stdout):
            seen["code"] = main(one["argv"])
        name = f"{one['name']}-{os.environ['RANK']}.json"
        plan.with_name(name).write_text(json.dumps(seen))
        if seen["code"]:
            return int(seen["code"])
    return 0


def note_threads(file: Path) -> None:
    """Those of the process, Python's or not."""
    names = []
    for task in Path("/proc/self/task").iterdir():
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):  # it has just ended
            names.append(task.joinpath("comm").read_text("utf-8").strip())
    file.write_text(json.dumps(names))


if __name__ == "__main__":
    torch.set_num_threads(1)
    # Registered first, called last.
    atexit.register(note_threads, Path(sys.argv[1]).with_name(f"threads-{os.environ['RANK']}.json"))
    spec = importlib.util.spec_from_file_location("toys", Path(__file__).with_name("conftest.py"))
    assert spec is not None
    assert spec.loader is not None
    toys = sys.modules["toys"] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(toys)
    override("vla.sources", "toy", toys.ToySource)
    override("vla.sources", "counted", toys.CountedSource)
    with register_fakes():
        sys.exit(run(Path(sys.argv[1])))
