"""What the garbage collector looks at once a program has settled."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Iterator

import pytest
from vla_core.heap import settle_heap, settled_heap


class Ring:
    """Refers to itself, so that only the collector finds it."""

    def __init__(self) -> None:
        self.own = self


@pytest.fixture(autouse=True)
def _unfrozen() -> Iterator[None]:
    yield
    gc.unfreeze()


def test_what_was_there_is_not_looked_at_again() -> None:
    settle_heap()
    before = len(gc.get_objects())
    kept = [Ring() for _ in range(100)]
    assert gc.get_freeze_count() > 1000
    assert before < 1000
    assert len(gc.get_objects()) >= len(kept)


def test_garbage_is_collected_before_and_found_by_the_next_call() -> None:
    ring, kept = Ring(), Ring()
    seen, later = weakref.ref(ring), weakref.ref(kept)
    del ring
    settle_heap()
    assert seen() is None
    del kept
    gc.collect()
    assert later() is not None
    settle_heap()
    assert later() is None


def test_after_the_block_everything_is_looked_at_again() -> None:
    with settled_heap():
        settle_heap()
    assert gc.get_freeze_count() == 0
