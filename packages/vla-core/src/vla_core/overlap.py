"""Two independent pieces of GPU work at the same time, on two streams."""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import fields, is_dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor

S = TypeVar("S")
M = TypeVar("M")
_ALLOWED = ContextVar("allowed", default=True)
_DEPTH = ContextVar("depth", default=0)


def side_by_side(side: Callable[[], S], main: Callable[[], M], device: torch.device) -> tuple[S, M]:
    """Results of ``side()`` and ``main()``, of which neither may need the other's.

    On a GPU ``side`` is launched first, on a stream of its own that forks from the current one and joins
    it before this returns: later work on the current stream may read both results, and what both read
    may be freed. Inside a CUDA graph's capture the two become branches of the graph. Off a GPU, and
    wherever gradients are recorded, one simply runs after the other. Calls within ``side`` and ``main`` are
    fine: what they put aside goes to a further stream.

    Args:
        side: gives a tensor, or a dataclass, list, tuple or dict of tensors.
        main: runs on the current stream.
        device: where both run.
    """
    if device.type != "cuda" or torch.is_grad_enabled() or not _ALLOWED.get():
        return side(), main()
    depth = _DEPTH.get()
    here, there = torch.cuda.current_stream(device), _side_stream(device, threading.get_ident(), depth)
    there.wait_stream(here)
    token = _DEPTH.set(depth + 1)
    try:
        with torch.cuda.stream(there):
            aside = side()
        result = main()
    finally:  # also after an error: what the side reads must not be freed under it
        _DEPTH.reset(token)
        here.wait_stream(there)
    for tensor in _tensors(aside):
        # The allocator knows only the stream a tensor was made on; without this its memory could be handed
        # out there again while the current stream still reads it.
        tensor.record_stream(here)
    return aside, result


@contextmanager
def in_turn() -> Iterator[None]:
    """Within the block nothing overlaps: to measure what overlapping saves."""
    token = _ALLOWED.set(False)
    try:
        yield
    finally:
        _ALLOWED.reset(token)


@functools.cache
def _side_stream(device: torch.device, thread: int, depth: int) -> torch.cuda.Stream:
    """One a device, thread and depth of calls for good: memory is pooled by stream, a new one has none."""
    return torch.cuda.Stream(device)


def _tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif is_dataclass(value):
        for field in fields(value):
            yield from _tensors(getattr(value, field.name))
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from _tensors(item)
    elif isinstance(value, dict):
        yield from _tensors(list(value.values()))
