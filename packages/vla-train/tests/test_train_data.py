"""Order, split and caching of the data."""

from __future__ import annotations

from itertools import islice

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from vla_core.errors import ConfigError
from vla_train.data import InfiniteBatches, split_episodes


@given(n=st.integers(2, 200), fraction=st.floats(0.0, 0.9))
def test_split_is_a_partition(n: int, fraction: float) -> None:
    episodes = list(range(100, 100 + n))
    try:
        train, val = split_episodes(episodes, fraction)
    except ConfigError:
        assert round(n * fraction) >= n
        return
    assert sorted(train + val) == episodes
    assert train
    assert bool(val) == (fraction > 0)
    assert split_episodes(episodes, fraction) == (train, val)


def test_split_mixes_alternating_tasks() -> None:
    _, val = split_episodes(range(100), 0.1)
    assert 0 < sum(e % 2 for e in val) < len(val)


@given(size=st.integers(1, 50), batch=st.integers(1, 9), world=st.integers(1, 3), start=st.integers(0, 20))
def test_every_epoch_holds_every_sample_once_over_all_ranks(
    size: int, batch: int, world: int, start: int
) -> None:
    count = -(-3 * size // (batch * world))
    ranks = [
        [key for keys in islice(InfiniteBatches(size, batch, 7, r, world), count) for key in keys]
        for r in range(world)
    ]
    keys = sorted(key for rank in ranks for key in rank)
    positions = [p for p, _ in keys]
    assert positions == list(range(len(keys)))
    order = np.array([i for _, i in keys])
    for epoch in range(len(order) // size):
        assert sorted(order[epoch * size : (epoch + 1) * size]) == list(range(size))
    resumed = list(islice(InfiniteBatches(size, batch, 7, 0, world, start), 3))
    assert resumed == list(islice(InfiniteBatches(size, batch, 7, 0, world), start, start + 3))


def test_seeds_and_epochs_differ() -> None:
    def order(seed: int, n: int) -> list[int]:
        batches = islice(InfiniteBatches(30, 30, seed), n)
        return [i for keys in batches for _, i in keys]

    two = order(0, 2)
    assert two[:30] != two[30:]
    assert order(0, 1) != order(1, 1)


def test_a_split_that_leaves_nothing() -> None:
    with pytest.raises(ConfigError, match="leaves no episode"):
        split_episodes([0], 0.5)
