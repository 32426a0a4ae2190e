"""Statistics block by block: exact while rows fit, and within the stated error beyond."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from vla_core.stats import VectorStats
from vla_core.streaming import StreamingStats


def blocks(rows: np.ndarray, sizes: list[int]) -> list[np.ndarray]:
    return np.split(rows, np.cumsum(sizes)[: len(sizes)].clip(max=len(rows)))


@given(n=st.integers(1, 300), sizes=st.lists(st.integers(0, 90), max_size=6), seed=st.integers(0, 99))
def test_what_fits_is_exact(n: int, sizes: list[int], seed: int) -> None:
    rows = np.random.default_rng(seed).normal(3, 2, (n, 3)).astype(np.float32)
    stats = StreamingStats()
    for block in blocks(rows, sizes):
        stats.add(block)
    assert stats.result() == VectorStats.from_rows(rows)
    assert stats.rank_error == 0


@settings(deadline=None, max_examples=60)
@given(
    n=st.integers(200, 6000),
    sizes=st.lists(st.integers(0, 900), max_size=8),
    buffer=st.sampled_from([32, 64, 256]),
    seed=st.integers(0, 99),
    kind=st.sampled_from(["normal", "sorted", "heavy", "discrete"]),
)
def test_beyond_the_error_is_the_stated_one(
    n: int, sizes: list[int], buffer: int, seed: int, kind: str
) -> None:
    rng = np.random.default_rng(seed)
    rows = {
        "normal": lambda: rng.normal(5, 1, (n, 2)),
        "sorted": lambda: np.sort(rng.normal(0, 1, (n, 2)), axis=0),
        "heavy": lambda: rng.standard_cauchy((n, 2)),
        "discrete": lambda: rng.integers(0, 3, (n, 2)).astype(float),
    }[kind]().astype(np.float32)
    stats = StreamingStats(exact=100, buffer=buffer)
    for block in blocks(rows, sizes):
        stats.add(block)
    got, exact = stats.result(), VectorStats.from_rows(rows)
    assert got.count == n
    np.testing.assert_allclose(got.mean, exact.mean, rtol=1e-9, atol=1e-9)
    np.testing.assert_allclose(got.std, exact.std, rtol=1e-9)
    np.testing.assert_array_equal(got.min, exact.min)
    np.testing.assert_array_equal(got.max, exact.max)
    error = stats.rank_error
    assert (error > 0) == (n >= buffer)
    for q, values in ((0.01, got.q01), (0.99, got.q99)):
        for dim, value in enumerate(values):
            column = rows[:, dim]
            assert (column < value).mean() <= q + error + 1e-9
            assert (column <= value).mean() >= q - error - 1e-9


def test_memory_does_not_grow_with_the_rows() -> None:
    stats = StreamingStats(exact=1000, buffer=512)
    for seed in range(200):
        stats.add(np.random.default_rng(seed).normal(size=(500, 2)))
    held = sum(part.size for level in stats._levels for part in level.parts)
    held += sum(block.size for block in stats._waiting)
    assert held < 2 * 512 * (len(stats._levels) + 2)
    assert stats.rank_error < 0.02


@pytest.mark.parametrize("buffer", [0, 3])
def test_a_buffer_that_cannot_be_halved(buffer: int) -> None:
    with pytest.raises(ValueError, match="even"):
        StreamingStats(buffer=buffer)
