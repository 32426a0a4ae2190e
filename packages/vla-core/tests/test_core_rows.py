"""Requests prepared alone and joined are what they are when prepared together."""

from __future__ import annotations

import threading
from dataclasses import fields, replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from vla_core import PreviousChunk, Row
from vla_core.assemble import build_policy
from vla_core.batch import Movable
from vla_core.framework import FrameworkConfig
from vla_core.registry import override
from vla_core.rows import Prepared
from vla_core.testing import FakeHead, make_observation, make_spec, register_fakes
from vla_core.traits import HeadTraits

SPEC = make_spec(horizon=6)
OTHER = replace(
    make_spec(1, horizon=6, embodiment="other"), action=replace(SPEC.action, groups=SPEC.action.groups[:1])
)
GEOMETRY = {"intrinsics": (3, 3), "extrinsics": (4, 4), "depth": (32, 32)}


class KeepingHead(FakeHead):
    traits = HeadTraits(takes_constraint=True)

    def sample(self, inputs, noise, steps=None, constraint=None):
        return super().sample(inputs, noise, steps)


@pytest.fixture(scope="module")
def policy():
    with register_fakes():
        undo = override("vla.heads", "keeping", KeepingHead)
        config = FrameworkConfig(
            horizon=6, vlm={"name": "fake"}, head={"name": "keeping"}, transforms=[{"name": "normalize"}]
        )
        action = replace(
            OTHER.statistics["action"],
            **{
                name: getattr(OTHER.statistics["action"], name)[:3]
                for name in ("mean", "std", "min", "max", "q01", "q99")
            },
        )
        other = replace(
            OTHER,
            statistics=replace(OTHER.statistics, vectors={**OTHER.statistics.vectors, "action": action}),
        )
        built = build_policy(config, {"default": SPEC, "other": other}).eval()
        undo()
    return built


def tensors(value, name=""):
    if isinstance(value, torch.Tensor):
        yield name, value
    elif isinstance(value, Movable | Prepared):
        for field in fields(value):
            yield from tensors(getattr(value, field.name), f"{name}.{field.name}")
    elif not callable(value):
        yield name, value


def same(a, b):
    for (name, x), (other, y) in zip(tensors(a), tensors(b), strict=True):
        assert name == other
        if isinstance(x, torch.Tensor):
            assert x.dtype == y.dtype
            assert torch.equal(x, y), name
        else:
            assert x == y, name


@st.composite
def requests(draw):
    spec = draw(st.sampled_from([SPEC, OTHER]))
    seed = draw(st.integers(0, 99))
    observation = make_observation(spec, seed)
    rng = np.random.default_rng(seed)
    for kind in draw(st.sets(st.sampled_from(sorted(GEOMETRY)))):
        names = draw(st.sets(st.sampled_from(sorted(observation.images)), min_size=1))
        values = {n: rng.normal(size=GEOMETRY[kind]).astype(np.float32) for n in names}
        observation = replace(observation, **{kind: values})
    previous = None
    if draw(st.booleans()):
        actions = rng.uniform(-1, 1, (draw(st.integers(1, 6)), spec.action.dim)).astype(np.float32)
        previous = PreviousChunk(actions, draw(st.integers(0, min(len(actions), 5))))
    return Row(observation, seed, previous=previous)


@given(rows=st.lists(requests(), min_size=1, max_size=4))
def test_joined_rows_are_rows_prepared_together(policy, rows):
    same(Prepared.join([policy.prepare([row]) for row in rows]), policy.prepare(rows))


def test_act_is_its_three_steps(policy):
    rows = [Row(make_observation(SPEC, i), seed=i + 3) for i in range(3)]
    steps = policy.finish(policy.predict(policy.prepare(rows)), rows)
    whole = policy.act([row.observation for row in rows], [3, 4, 5])
    for a, b in zip(steps, whole, strict=True):
        np.testing.assert_array_equal(a.actions, b.actions)


def test_rows_are_prepared_in_many_threads(policy):
    rows = [Row(replace(make_observation(SPEC, i), instruction=f"lift {i % 7}"), seed=i) for i in range(40)]
    got = {}

    def work(part):
        for i in part:
            got[i] = policy.prepare([rows[i]])

    threads = [threading.Thread(target=work, args=(range(k, 40, 8),)) for k in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for i, row in enumerate(rows):
        same(got[i], policy.prepare([row]))
