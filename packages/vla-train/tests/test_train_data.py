"""Order, split and caching of the data."""

from __future__ import annotations

from hashlib import sha256
from itertools import islice

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from vla_core.errors import ConfigError
from vla_core.registry import load
from vla_core.transforms import Pipeline
from vla_data.mixture import Mixture
from vla_train.dataloading.data import InfiniteBatches, TransformedDataset
from vla_train.dataloading.data_sets import Data, DataSet, split_episodes


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


@given(
    size=st.integers(1, 50),
    batch=st.integers(1, 9),
    world=st.integers(1, 3),
    start=st.integers(0, 20),
    run=st.sampled_from([1, 3, 8]),
)
def test_every_epoch_holds_every_sample_once_over_all_ranks(
    size: int, batch: int, world: int, start: int, run: int
) -> None:
    count = -(-3 * size // (batch * world))
    ranks = [
        [
            key
            for keys in islice(
                InfiniteBatches(Mixture([size], seed=7, neighbours=run), batch, r, world), count
            )
            for key in keys
        ]
        for r in range(world)
    ]
    keys = sorted(key for rank in ranks for key in rank)
    positions = [p for p, _ in keys]
    assert positions == list(range(len(keys)))
    order = np.array([i for _, i in keys])
    for epoch in range(len(order) // size):
        assert sorted(order[epoch * size : (epoch + 1) * size]) == list(range(size))
    resumed = list(
        islice(InfiniteBatches(Mixture([size], seed=7, neighbours=run), batch, 0, world, start), 3)
    )
    assert resumed == list(
        islice(InfiniteBatches(Mixture([size], seed=7, neighbours=run), batch, 0, world), start, start + 3)
    )


def test_seeds_and_epochs_differ() -> None:
    def order(seed: int, n: int) -> list[int]:
        batches = islice(InfiniteBatches(Mixture([30], seed=seed), 30), n)
        return [i for keys in batches for _, i in keys]

    two = order(0, 2)
    assert two[:30] != two[30:]
    assert order(0, 1) != order(1, 1)


@pytest.mark.parametrize("cache", [False, True])
def test_the_future_is_the_frame_at_the_chunks_end(toy: None, cache: bool) -> None:
    cls = load("vla.sources", "toy")
    sources = [cls(cls.Config(n_episodes=2, seed=seed), 4) for seed in (0, 1)]
    nodes = [{"name": "color_jitter"}, {"name": "normalize"}]
    pipeline = Pipeline(nodes, sources[0].spec)
    pipelines = {"default": pipeline}
    plain = TransformedDataset(sources, pipelines, None)
    asked, still = (TransformedDataset(sources, pipelines, s, cache, future=True) for s in (3, None))
    for index in range(len(plain)):
        assert plain[index].future is None
        future, frame = still[index].future, index % 10
        assert (future is None) == (frame + 4 >= 10)
        if future is not None:
            image = plain[index + 4].observation.images["front"]
            np.testing.assert_array_equal(future.images["front"], image)
            # An episode of the toy is all of one colour: seen in the same light, it still is.
            sample = asked[7, index]
            assert sample.future is not None
            seen = sample.observation.images["front"]
            np.testing.assert_array_equal(sample.future.images["front"], seen)
            assert (seen != image).any()


def test_a_source_without_chunk_ends_is_one_line() -> None:
    class Plain:
        def __len__(self) -> int:
            return 1

    with pytest.raises(ConfigError, match="Plain has no method 'chunk_end'"):
        TransformedDataset([Plain()], {}, None, future=True)  # type: ignore[list-item]


def test_a_split_that_leaves_nothing() -> None:
    with pytest.raises(ConfigError, match="leaves no episode"):
        split_episodes([0], 0.5)


def test_a_fingerprint_is_the_sources_own_or_its_numbers(toy: None) -> None:
    def data(source: object) -> Data:
        return Data([DataSet("x", 1.0, source, None, "datasets.train.0")], {})  # type: ignore[arg-type]

    plain, counted = load("vla.sources", "toy"), load("vla.sources", "counted")
    assert data(plain(plain.Config(), 4)).fingerprint is None
    assert data(plain(plain.Config(), 4)).digest == ""

    class Telling(plain):  # type: ignore[misc, valid-type]
        def fingerprint(self) -> str:
            return "mine"

    assert data(Telling(plain.Config(), 4)).fingerprint == "default:mine"
    assert data(Telling(plain.Config(), 4)).digest == sha256(b"default:mine").hexdigest()
    told = {
        data(counted(counted.Config(lengths=lengths, number=number), 4, episodes)).fingerprint
        for lengths, number, episodes in (
            ((6, 5), 0, None),
            ((5, 6), 0, None),  # the same rows, cut elsewhere
            ((6, 5), 1, None),
            ((6, 5), 0, [1, 0]),
            ((6, 5), 0, [0]),
        )
    }
    assert len(told) == 5
    again = counted(counted.Config(lengths=(6, 5)), 9)
    assert data(again).fingerprint in told
