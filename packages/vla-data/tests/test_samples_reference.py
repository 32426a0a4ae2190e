"""Every sample of every layout equals a slow, obvious reference: numbers, masks, chunk ends, pictures."""

from __future__ import annotations

import json
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from hypothesis import given, settings
from hypothesis import strategies as st
from vla_core.specs import ActionSpec, CameraSpec, GroupSpec, ObservationSpec, RobotSpec
from vla_core.transforms import Pipeline
from vla_data.arrays import ArraysConfig, ArraysSource
from vla_data.lerobot import LeRobotConfig, LeRobotSource

KINDS = ("absolute", "delta", "relative")
SIDE = 32


@dataclass(frozen=True)
class Layout:
    """Episodes, which of them in which order, chunk length, groups as (dims, representation), moments."""

    lengths: list[int]
    chosen: list[int]
    horizon: int
    groups: list[tuple[int, str]]
    deltas: tuple[int, ...]

    @property
    def spec(self) -> RobotSpec:
        groups = tuple(
            GroupSpec(f"g{i}", dim, "m", representation=kind) for i, (dim, kind) in enumerate(self.groups)
        )
        state = tuple(GroupSpec(f"g{i}", dim, "m") for i, (dim, _) in enumerate(self.groups))
        cameras = (CameraSpec("top", SIDE, SIDE),)
        return RobotSpec(ObservationSpec(cameras, state), ActionSpec(groups, 1, 20.0), embodiment="toy")

    @property
    def dim(self) -> int:
        return sum(dim for dim, _ in self.groups)

    def numbers(self) -> tuple[np.ndarray, np.ndarray]:
        """State and action of every frame of the data set."""
        rng = np.random.default_rng(len(self.lengths) + self.dim)
        shape = (sum(self.lengths), self.dim)
        return rng.normal(size=shape).astype(np.float32), rng.normal(size=shape).astype(np.float32)


@st.composite
def layouts(draw: Any) -> Layout:
    lengths = draw(st.lists(st.integers(1, 8), min_size=1, max_size=4))
    chosen = draw(st.lists(st.sampled_from(range(len(lengths))), min_size=1, unique=True))
    groups = draw(st.lists(st.tuples(st.integers(1, 3), st.sampled_from(KINDS)), min_size=1, max_size=3))
    earlier = draw(st.sets(st.integers(-9, -1), max_size=3))
    return Layout(lengths, chosen, draw(st.integers(1, 10)), groups, (*sorted(earlier), 0))


def reference(layout: Layout, episode: int, frame: int) -> dict[str, Any]:
    """One sample, a step and a dim at a time, from the definition alone."""
    states, actions = layout.numbers()
    first, length = sum(layout.lengths[:episode]), layout.lengths[episode]
    chunk = np.zeros((layout.horizon, layout.dim), np.float32)
    mask = np.zeros((layout.horizon, layout.dim), bool)
    for step in range(layout.horizon):
        column = 0
        for dim, kind in layout.groups:
            for d in range(column, column + dim):
                if frame + step < length:
                    chunk[step, d] = actions[first + frame + step, d]
                    mask[step, d] = True
                elif kind != "delta":
                    chunk[step, d] = actions[first + length - 1, d]
            column += dim
    end = frame + layout.horizon
    return {
        "state": states[first + frame],
        "moments": [max(0, frame + delta) for delta in layout.deltas],
        "states": np.concatenate([states[first + max(0, frame + delta)] for delta in layout.deltas]),
        "actions": chunk,
        "mask": mask,
        "end": end if end < length else None,
        "row": first + frame,
    }


def check(source: Any, layout: Layout, picture: Any) -> None:
    """All samples of ``source``, in the order of the chosen episodes."""
    places = [(e, f) for e in layout.chosen for f in range(layout.lengths[e])]
    assert len(source) == len(places)
    for index, (episode, frame) in enumerate(places):
        expected, sample = reference(layout, episode, frame), source[index]
        state, actions, mask = source.numeric(index)
        for got in ((sample.observation.state, sample.actions, sample.action_mask), (state, actions, mask)):
            np.testing.assert_array_equal(got[0], expected["states"])
            np.testing.assert_array_equal(got[1], expected["actions"])
            np.testing.assert_array_equal(got[2], expected["mask"])
        assert source.episode(index) == episode
        end = source.chunk_end(index)
        assert end == (None if expected["end"] is None else index - frame + expected["end"])
        names = ["top" if delta == 0 else f"top@{delta}" for delta in layout.deltas]
        assert list(sample.observation.images) == names
        for name, moment in zip(names, expected["moments"], strict=True):
            difference = sample.observation.images[name].astype(float) - picture(episode, moment)
            assert np.abs(difference).mean() < 8
        assert sample.observation.instruction == f"task {episode % 2}"
    # Statistics are those of the chosen episodes, whatever their order.
    references = [reference(layout, e, f) for e, f in places]
    rows = {"state": np.array([r["states"] for r in references])}
    rows["action"] = layout.numbers()[1][[r["row"] for r in references]]
    for vector, kept in rows.items():
        np.testing.assert_allclose(source.spec.statistics[vector].mean, kept.mean(0), atol=1e-6)
        np.testing.assert_array_equal(source.spec.statistics[vector].max, kept.max(0))


def grey(episode: int, frame: int) -> int:
    return 20 + 50 * episode + 6 * frame


@settings(max_examples=25, deadline=None)
@given(layout=layouts())
def test_arrays(layout: Layout) -> None:
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        states, actions = layout.numbers()
        levels = [grey(e, f) for e, n in enumerate(layout.lengths) for f in range(n)]
        np.save(root / "observation.state.npy", states)
        np.save(root / "action.npy", actions)
        images = np.array(levels, np.uint8)[:, None, None, None] * np.ones((1, SIDE, SIDE, 3), np.uint8)
        np.save(root / "observation.images.top.npy", images)
        episodes = [{"frames": n, "instruction": f"task {e % 2}"} for e, n in enumerate(layout.lengths)]
        meta = {"format": 1, "spec": layout.spec.to_dict(), "episodes": episodes}
        (root / "arrays.json").write_text(json.dumps(meta))
        source = ArraysSource(
            ArraysConfig(str(root), observation_delta_indices=layout.deltas), layout.horizon, layout.chosen
        )
        check(source, layout, grey)


@settings(max_examples=4, deadline=None)
@given(layout=layouts())
def test_lerobot(write_lerobot: Any, layout: Layout) -> None:
    with tempfile.TemporaryDirectory() as folder:
        states, actions = layout.numbers()
        root = write_lerobot(
            Path(folder) / "set",
            lengths=layout.lengths,
            size=SIDE,
            cameras=("observation.images.top",),
            columns={"observation.state": states, "action": actions},
        )
        (root / "meta" / "vla_spec.json").write_text(json.dumps(layout.spec.to_dict()))
        tasks = root / "meta" / "tasks.parquet"
        pq.write_table(pa.table({"task_index": [0, 1], "task": ["task 0", "task 1"]}), tasks)
        config = LeRobotConfig(str(root), observation_delta_indices=layout.deltas)
        source = LeRobotSource(config, layout.horizon, layout.chosen)

        def picture(episode: int, frame: int) -> np.ndarray:
            yy, xx = np.mgrid[0:SIDE, 0:SIDE]
            level = 127 + 100 * np.sin(0.2 * xx + 0.15 * (3 * episode + 1) * yy + 0.5 * frame + 3 * episode)
            return level[..., None].astype(np.uint8).astype(float)

        check(source, layout, picture)


@settings(max_examples=30, deadline=None)
@given(layout=layouts(), mode=st.sampled_from(["relative", "delta"]), data=st.data())
def test_transformed_chunks(layout: Layout, mode: str, data: Any) -> None:
    """``relative_actions`` on whole chunks of every frame, against its definition step by step."""
    absolute = [i for i, (_, kind) in enumerate(layout.groups) if kind == "absolute"]
    if not absolute:
        return
    named = data.draw(st.lists(st.sampled_from(absolute), min_size=1, unique=True))
    spec = layout.spec
    spec = RobotSpec(spec.observation, ActionSpec(spec.action.groups, layout.horizon, 20.0), embodiment="toy")
    node = {"name": "relative_actions", "mode": mode, "groups": {f"g{i}": f"g{i}" for i in named}}
    pipeline = Pipeline([node], spec)
    slices = spec.action.slices()
    for episode in layout.chosen:
        for frame in range(layout.lengths[episode]):
            expected = reference(layout, episode, frame)
            actions, mask, state = expected["actions"], expected["mask"], expected["state"]
            got, kept = pipeline.targets(state, actions, mask)
            wanted = actions.astype(np.float64)
            for i in named:
                part = slices[f"g{i}"]
                for step in range(layout.horizon):
                    before = state[part] if mode == "relative" or step == 0 else actions[step - 1][part]
                    wanted[step, part] = actions[step, part] - before
            np.testing.assert_array_equal(kept, mask)
            np.testing.assert_allclose(got, np.where(mask, wanted, 0), atol=1e-5)
            real = mask.all(axis=1)
            back = pipeline.inverse(got[real], state)
            np.testing.assert_allclose(back, actions[real], atol=1e-4)
