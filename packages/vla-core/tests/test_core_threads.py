from __future__ import annotations

import itertools

import pytest
import torch
from vla_core import threads
from vla_core.threads import fastest_thread_count


@pytest.fixture(autouse=True)
def _as_before():
    count = torch.get_num_threads()
    yield
    torch.set_num_threads(count)


@pytest.mark.parametrize(
    ("seconds", "best"),
    [
        ({1: 0.002, 2: 0.02}, 1),
        ({1: 0.03, 2: 0.002}, 2),
        ({1: 0.02, 2: 0.019}, 1),
    ],  # the last gains too little
)
def test_the_fastest_number_of_threads_is_taken(seconds, best, monkeypatch):
    """torch's own number is for large models: a small one is faster with fewer."""
    now, calls = [0.0], itertools.count()

    def run():
        # Some runs take long because something else had the cores.
        now[0] += seconds[torch.get_num_threads()] + 0.5 * (next(calls) % 3 == 0)

    monkeypatch.setattr(threads.time, "perf_counter", lambda: now[0])
    assert fastest_thread_count(run, most=2) == best
    assert torch.get_num_threads() == best
