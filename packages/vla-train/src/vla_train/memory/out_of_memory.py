"""A step that runs out of GPU memory ends with one line: what is kept, what is missing, and what saves it."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn
from vla_core.errors import UserError

from vla_train.config import RunConfig
from vla_train.engine import Engine
from vla_train.memory.estimate import Estimate, estimate
from vla_train.memory.held import Activations
from vla_train.memory.savings import advice, fixes

FILLED = 0.95
"""Share of what a process can have that its estimate may be: estimates are a few percent low."""
UNITS = {"bytes": 1, "KiB": 2**10, "MiB": 2**20, "GiB": 2**30}
TRIED = re.compile(rf"Tried to allocate ([\d.]+) ({'|'.join(UNITS)})")


@contextmanager
def explained(
    model: nn.Module,
    config: RunConfig,
    engine: Engine,
    step: int,
    activations: Activations | None = None,
) -> Iterator[None]:
    """A block that may run out of GPU memory: a :class:`UserError` says what is kept and what takes less.

    Args:
        model, config, engine: of the run.
        step: in which it is.
        activations: of the run (:mod:`vla_train.memory.activations`).
    """
    try:
        yield
    except torch.OutOfMemoryError as error:
        found = estimate(model, config.trainer, engine, (), activations)
        talks = config.datasets.vlm if config.job != "vla" else None
        could = fixes(model, config.trainer, engine, talks.batch_size if talks else None)
        raise UserError(
            f"out of GPU memory in step {step} ({str(error).splitlines()[0]}); {found.line(engine.name)}; "
            f"{advice(found, could, missing(str(error), found, engine.device))}"
        ) from error


def missing(said: str, found: Estimate, device: torch.device) -> int:
    """Bytes that a process would need beyond what it can have, at least what it asked for last.

    Args:
        said: by the error.
        found: of the run.
        device: of the process, whose tensors are still there.
    """
    asked = TRIED.search(said)
    last = int(float(asked[1]) * UNITS[asked[2]]) if asked else 0
    if device.type != "cuda":
        return last
    room = torch.cuda.mem_get_info(device)[0] + torch.cuda.memory_reserved(device)
    needs = max(found.peak or 0, torch.cuda.memory_allocated(device) + last)
    return max(last, needs - int(FILLED * room))
