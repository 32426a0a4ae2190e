"""Requests prepared alone and joined are what they are when prepared together, for a graph without a join."""

from __future__ import annotations

import threading
from dataclasses import fields, replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from vla_core import PreviousChunk, Row
from vla_core.assemble import build_policy
from vla_core.batch import Cameras, Known, Movable
from vla_core.features import Constraint
from vla_core.flat import Flat, Kind, stacked
from vla_core.framework import FrameworkConfig
from vla_core.graphs import GraphedModel, signature
from vla_core.registry import override
from vla_core.rows import Prepared
from vla_core.testing import FakeHead, make_observation, make_spec, register_fakes
from vla_core.traits import HeadTraits

SPEC = make_spec(horizon=6)
OTHER = replace(
    make_spec(1, horizon=6, embodiment="other"), action=replace(SPEC.action, groups=SPEC.action.groups[:1])
)
SPEC_VIEWS = len(SPEC.observation.cameras)
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


class Echo:
    """A model that answers all that it reads, as one vector."""

    device = torch.device("cpu")
    head = SimpleNamespace(traits=HeadTraits())

    def predict(self, batch, noise, steps, constraint):
        read = [*tensors(batch), ("", noise), *(tensors(constraint) if constraint is not None else ())]
        return torch.cat([value.flatten().double() for _, value in read if isinstance(value, torch.Tensor)])


def again(run, pool):
    """A capture for CPUs: a replay writes to the tensor of the first run."""
    out = run()
    return lambda: out.copy_(run()), out


def echoes(prepared):
    return Echo().predict(prepared.batch, prepared.noise, None, prepared.constraint).float()


@given(batches=st.lists(st.lists(requests(), min_size=1, max_size=4), min_size=1, max_size=3))
def test_a_graph_reads_of_single_rows_what_it_would_of_joined_ones(policy, batches):
    graphs = GraphedModel(Echo(), capture=again)
    for rows in batches + batches[::-1]:  # each graph is replayed after others, with other values
        parts = [policy.prepare([row]) for row in rows]
        joined = Prepared.join(parts)
        kind = stacked([Flat(part) for part in parts])
        assert kind is None or (None, kind) == signature(joined, None)
        assert torch.equal(graphs.predict_rows(parts), echoes(joined))
        assert torch.equal(graphs.predict(joined), echoes(joined))  # of the same graph
    kinds = {Kind.of(Prepared.join([policy.prepare([row]) for row in rows])) for rows in batches}
    assert graphs.count == len(kinds)


def with_tokens(part, **facts):
    return replace(part, batch=replace(part.batch, tokens=replace(part.batch.tokens, **facts)))


def with_views(part, **cameras):
    return replace(part, batch=replace(part.batch, cameras=Cameras(**cameras)))


def test_rows_that_a_graph_takes_without_a_join(policy):
    """With a constraint and without, with a missing view and without; positions count rows in dim 1."""
    previous = PreviousChunk(np.zeros((3, SPEC.action.dim), np.float32), 1)
    plain, kept = (policy.prepare([Row(make_observation(SPEC, 1), 1, previous=p)]) for p in (None, previous))
    tokens = plain.batch.tokens
    shown = with_tokens(plain, all_views=not tokens.all_views, right_padded=not tokens.right_padded)
    turned = [
        with_tokens(
            part, position_ids=torch.arange(3 * tokens.input_ids.numel()).view(3, 1, -1) + i, n_answer=i
        )
        for i, part in enumerate((plain, kept, plain))
    ]
    graphs = GraphedModel(Echo(), capture=again)
    for parts in ([plain] * 2, [plain, kept], [kept, plain, plain], [plain, shown], [shown] * 2, turned):
        assert stacked([Flat(part) for part in parts]) == Kind.of(Prepared.join(parts))
        assert torch.equal(graphs.predict_rows(parts), echoes(Prepared.join(parts)))
    assert graphs.count == 6


def test_rows_that_know_a_part_of_their_views(policy):
    part = policy.prepare([Row(make_observation(SPEC, 1), 1)])
    views = torch.arange(SPEC_VIEWS)[None] > 0
    some = [
        with_views(part, depth=torch.full((1, SPEC_VIEWS, 4, 4), i + 1.0), known=Known(depth=views ^ (i > 0)))
        for i in range(2)
    ]
    assert stacked([Flat(part) for part in some]) == Kind.of(Prepared.join(some))
    graphs = GraphedModel(Echo(), capture=again)
    for parts in (some, some[::-1]):
        assert torch.equal(graphs.predict_rows(parts), echoes(Prepared.join(parts)))
    nothing = with_views(part, known=Known(depth=views))  # what is known of depth that no view has
    assert stacked([Flat(nothing), Flat(nothing)]) is None


def test_rows_that_are_joined_first(policy):
    part = policy.prepare([Row(make_observation(SPEC, 1), 1)])
    two = policy.prepare([Row(make_observation(SPEC, i), i) for i in range(2)])
    calibrated = with_views(part, intrinsics=torch.ones(1, SPEC_VIEWS, 3, 3))
    masked = with_views(part, view_mask=torch.ones(1, SPEC_VIEWS, dtype=torch.bool))
    named = with_views(part, view_keys=(("key",) * SPEC_VIEWS,))
    graphs = GraphedModel(Echo(), capture=again)
    for parts in ([part, two], [part, calibrated], [masked, masked], [named, part]):
        assert stacked([Flat(one) for one in parts]) is None
        assert torch.equal(graphs.predict_rows(parts), echoes(Prepared.join(parts)))
    assert graphs.count == 3  # with keys it is eager
    longer = [
        replace(part, constraint=Constraint(torch.zeros(1, n, 7), torch.zeros(1, n), 0)) for n in (2, 3)
    ]
    assert stacked([Flat(one) for one in longer]) is None


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
