"""Worker processes: what was opened in the parent is never read in a forked child."""

from __future__ import annotations

import multiprocessing
from pathlib import Path

import numpy as np
import pytest
from vla_data import ArraysConfig, ArraysSource, LeRobotConfig, LeRobotSource
from vla_data._arrays_writer import ArraysWriter

WORKERS = 4


# As text, because a spawned process cannot import a test module.
READ = """
import zlib
import numpy as np

def sums(sample):
    seen = sample.observation
    views = [*seen.images.values(), *(seen.depth or {}).values()]
    return [zlib.crc32(np.ascontiguousarray(view).tobytes()) for view in views]

if out is not None:
    out.put([(int(i), sums(source[int(i)])) for i in indices])
"""
_space: dict = {"out": None}
exec(READ, _space)
_sums = _space["sums"]


def _in_workers(source, indices, method) -> dict[int, list[int]]:
    context = multiprocessing.get_context(method)
    out = context.Queue()
    parts = np.array_split(indices, WORKERS)
    workers = [
        context.Process(target=exec, args=(READ, {"source": source, "indices": part, "out": out}))
        for part in parts
    ]
    for worker in workers:
        worker.start()
    found = dict(pair for _ in workers for pair in out.get(timeout=120))
    for worker in workers:
        worker.join(timeout=30)
        assert worker.exitcode == 0
    return found


def _compare(source, samples, method, seed=0) -> None:
    indices = np.random.default_rng(seed).integers(0, len(source), samples)
    source[0]
    alone = {int(i): _sums(source[int(i)]) for i in np.unique(indices)}
    source[0]
    assert _in_workers(source, indices, method) == alone
    assert _sums(source[int(indices[0])]) == alone[int(indices[0])], "the parent goes on with its own files"


@pytest.mark.parametrize("codec", ["h264", "av1"])
@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_workers_read_what_one_process_reads(write_lerobot, tmp_path, codec, method):
    root = write_lerobot(tmp_path / codec, codec=codec, lengths=(30, 20), size=192)
    _compare(LeRobotSource(LeRobotConfig(str(root)), horizon=4), 120, method)


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_pictures_in_parquet(method):
    golden = Path(__file__).parent / "golden/lerobot_v21/data_set"
    _compare(LeRobotSource(LeRobotConfig(str(golden)), horizon=4), 60, method)


@pytest.mark.slow
@pytest.mark.parametrize(("codec", "size", "samples"), [("h264", 256, 1200), ("av1", 128, 800)])
@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_thousands_of_pictures_are_the_right_ones(write_lerobot, tmp_path, codec, size, samples, method):
    root = write_lerobot(tmp_path / codec, codec=codec, lengths=(60, 45, 70), size=size, gop=10)
    _compare(LeRobotSource(LeRobotConfig(str(root)), horizon=4), samples, method)


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_depth_in_parquet_and_arrays(toy, toy_spec, toy_demonstrations, tmp_path, method):
    _compare(LeRobotSource(LeRobotConfig(toy.path), horizon=4), 120, method)
    writer = ArraysWriter(tmp_path / "arrays", toy_spec, toy_demonstrations[0], "toy")
    for demonstration in toy_demonstrations:
        writer.add(demonstration)
    writer.close({})
    _compare(ArraysSource(ArraysConfig(str(tmp_path / "arrays")), horizon=4), 200, method)
