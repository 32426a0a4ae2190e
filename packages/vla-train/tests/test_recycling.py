"""Batches in recycled shared memory: always what the worker made, for as long as somebody has them."""

from __future__ import annotations

import gc
import os
import signal
import subprocess
import sys
from typing import Any

import pytest
import torch
from torch.utils.data import DataLoader, Dataset
from vla_train.dataloading.recycling import PLACES, Recycled

BATCH, BATCHES = 3, 30


class Numbers(Dataset[torch.Tensor]):
    def __init__(self, deadly: int = -1) -> None:
        self.deadly = deadly

    def __len__(self) -> int:
        return BATCH * BATCHES

    def __getitem__(self, index: int) -> torch.Tensor:
        if index == self.deadly:
            os.kill(os.getpid(), signal.SIGKILL)
        return torch.full((5, 1 + index // (BATCH * 10)), float(index))  # later batches are larger


def collate(samples: list[torch.Tensor]) -> dict[str, Any]:
    stacked = torch.stack(samples)
    parts = (stacked[:, :2].to(torch.uint8).transpose(0, 1), [torch.zeros(0), "text", stacked > 40])
    return {"x": stacked, "parts": parts, "n": len(samples), "half": stacked.bfloat16(), "one": stacked.sum()}


def same(a: Any, b: Any) -> bool:
    if isinstance(a, torch.Tensor):
        return torch.equal(a, b) and a.dtype == b.dtype
    if isinstance(a, dict):
        return all(same(a[k], b[k]) for k in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(map(same, a, b))
    return bool(a == b)


def loader(context: str = "fork", **options: Any) -> DataLoader[Any]:
    return DataLoader(
        options.pop("data", Numbers()), BATCH, num_workers=2, collate_fn=Recycled(collate),
        multiprocessing_context=context, **options,
    )  # fmt: skip


WANTED = [collate([Numbers()[i] for i in range(k * BATCH, (k + 1) * BATCH)]) for k in range(BATCHES)]


@pytest.mark.parametrize("persistent", [True, False])
def test_batches_are_whole_and_places_are_used_again(persistent: bool) -> None:
    read = loader(persistent_workers=persistent)
    for _ in range(2):
        where = []
        for number, batch in enumerate(read):
            assert same(batch, WANTED[number])
            where.append(batch["x"].data_ptr())
            del batch
        assert len(set(where)) < BATCHES / 2


def test_a_kept_batch_never_changes() -> None:
    read = iter(loader())
    first = next(read)["parts"][1][2]  # a view of one tensor is enough
    kept = [next(read) for _ in range(2 * PLACES + 4)]  # more than there are places
    later = [batch["one"].clone() for batch in read]
    assert same(first, WANTED[0]["parts"][1][2])
    assert all(same(batch, wanted) for batch, wanted in zip(kept, WANTED[1:], strict=False))
    assert len(kept) + len(later) + 1 == BATCHES


def test_an_abandoned_epoch_and_a_child_take_nothing_away() -> None:
    read = loader()
    for _ in range(PLACES + 2):  # what was under way is lost, not what the next workers can use
        begun = iter(read)
        held = next(begun)
        del begun
    pointers = set()
    for number, batch in enumerate(read):
        if number == 3 and not os.fork():  # a child that drops its copies
            held = batch = None
            gc.collect()
            os._exit(0)
        assert same(batch, WANTED[number])
        pointers.add(batch["x"].data_ptr())
        del batch
    assert len(pointers) < BATCHES / 2
    assert same(held, WANTED[0])


def test_a_dead_worker_is_an_error() -> None:
    # Shared memory that was under way is met first at times, in PyTorch's own transport too.
    with pytest.raises((RuntimeError, ConnectionError, EOFError)):
        list(loader(data=Numbers(deadly=20)))


@pytest.mark.slow
def test_workers_that_are_spawned() -> None:
    subprocess.run([sys.executable, __file__], check=True, timeout=60)


def test_without_workers_it_is_the_collate_alone() -> None:
    batch = Recycled(collate)([Numbers()[i] for i in range(BATCH)])
    assert same(batch, WANTED[0])
    assert not batch["x"].is_shared()


if __name__ == "__main__":
    read = list(loader("spawn"))
    assert len(read) == BATCHES
    assert all(same(batch, wanted) for batch, wanted in zip(read, WANTED, strict=True))
