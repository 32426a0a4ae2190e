from __future__ import annotations

import time

import pytest
import torch
from vla_core.threads import fastest_thread_count


@pytest.fixture(autouse=True)
def _as_before():
    count = torch.get_num_threads()
    yield
    torch.set_num_threads(count)


@pytest.mark.parametrize(("seconds", "best"), [({1: 0.002, 2: 0.02}, 1), ({1: 0.03, 2: 0.002}, 2)])
def test_the_fastest_number_of_threads_is_taken(seconds, best):
    """torch's own number is for large models: a small one is faster with fewer."""
    assert fastest_thread_count(lambda: time.sleep(seconds[torch.get_num_threads()]), most=2) == best
    assert torch.get_num_threads() == best
