"""Graphs of predictions: what is shared, copied and captured. On a CPU a capture is the function itself."""

from __future__ import annotations

import logging
from functools import partial

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from vla_core.graphs import GraphedModel, GraphedPolicy, compile_blocks, signature
from vla_core.rows import Prepared, Row
from vla_core.testing import make_observation, make_spec, tiny_policy

SPEC = make_spec()


def again(run, pool):
    """A capture for CPUs: a replay writes to the tensor of the first run."""
    out = run()

    def replay() -> None:
        out.copy_(run())

    return replay, out


@pytest.fixture
def policy():
    torch.manual_seed(0)
    return tiny_policy(SPEC).eval()


@pytest.fixture
def graphed(policy):
    return GraphedPolicy(policy, GraphedModel(policy.model, capture=again))


def rows(n, first=0):
    return [Row(make_observation(SPEC, first + i), first + i) for i in range(n)]


@pytest.mark.parametrize("steps", [None, 3])
def test_answers_are_those_of_the_plain_policy(policy, graphed, steps):
    for n, first in [(1, 0), (4, 1), (1, 5), (4, 6)]:
        batch = rows(n, first)
        parts = [policy.prepare([row]) for row in batch]
        expected = policy.predict(Prepared.join(parts), steps)
        torch.testing.assert_close(graphed.predict(Prepared.join(parts), steps), expected, rtol=0, atol=0)
    assert graphed.graphs.count == 2


@pytest.mark.parametrize("steps", [None, 3])
def test_single_rows_are_answered_as_joined_ones(policy, graphed, steps):
    for n, first, repeated in [(1, 0, 0), (3, 1, 1), (4, 6, 0), (2, 11, 2)]:
        batch = rows(n, first)
        parts = [graphed.prepare([row]) for row in batch]
        parts += parts[-1:] * repeated  # as a run of a static size does
        expected = policy.predict(Prepared.join([policy.prepare([row]) for row in batch]), steps)
        got = graphed.predict_rows(parts, steps)
        assert len(got) == n + repeated
        torch.testing.assert_close(got[:n], expected, rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(got, policy.predict(Prepared.join(parts), steps), rtol=0, atol=0)
    assert graphed.graphs.count == 2


class Calls(TorchDispatchMode):
    """Names of the operators that are called from Python."""

    def __init__(self):
        super().__init__()
        self.names = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.names.append(func.overloadpacket.__name__)
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("n", [1, 2, 16])
def test_a_replay_is_five_calls_whatever_the_number_of_rows(policy, n):
    """To pinned memory, to the GPU, the graph, and back; on a GPU one that waits: each hands over a lock."""
    replays = []

    def capture(run, pool):
        out = run()
        return lambda: replays.append(out), out

    graphed = GraphedPolicy(policy, GraphedModel(policy.model, capture=capture))
    parts = [graphed.prepare([row]) for row in rows(n)]
    graphed.predict_rows(parts)
    replays.clear()
    with Calls() as calls:
        graphed.predict_rows(parts)
    assert len(replays) == 1
    # Memory made a tensor is no call of an operator that computes.
    assert [name for name in calls.names if name not in ("lift_fresh", "detach")] == [
        "_foreach_copy_",
        "_foreach_copy_",
        "_foreach_copy_",
    ]


def test_an_answer_is_not_overwritten_by_the_next(graphed):
    first = graphed.predict(graphed.prepare(rows(1)))
    kept = first.clone()
    graphed.predict(graphed.prepare(rows(1, 7)))
    torch.testing.assert_close(first, kept, rtol=0, atol=0)


def test_the_callers_tensors_are_not_written_to(graphed):
    prepared = graphed.prepare(rows(1))
    images = prepared.batch.images.clone()
    graphed.predict(prepared)
    graphed.predict(graphed.prepare(rows(1, 7)))
    assert torch.equal(prepared.batch.images, images)


def test_a_sealed_model_runs_new_shapes_eagerly_and_says_so_once(policy, graphed, caplog):
    graphed.predict(graphed.prepare(rows(1)))
    graphed.graphs.seal()
    batch = rows(2)
    with caplog.at_level(logging.WARNING):
        for _ in range(2):
            out = graphed.predict(graphed.prepare(batch))
    torch.testing.assert_close(out, policy.predict(policy.prepare(batch)), rtol=0, atol=0)
    assert caplog.text.count("no graph for rows=2") == 1
    assert graphed.graphs.count == 1


def test_what_cannot_be_captured_runs_eagerly_and_says_why(policy, caplog):
    def refuse(run, pool):
        raise RuntimeError("operation not permitted when stream is capturing\nmore")

    graphed = GraphedPolicy(policy, GraphedModel(policy.model, capture=refuse))
    with caplog.at_level(logging.WARNING):
        out = graphed.predict(graphed.prepare(rows(1)))
    torch.testing.assert_close(out, policy.predict(policy.prepare(rows(1))), rtol=0, atol=0)
    assert "operation not permitted when stream is capturing" in caplog.text


def test_signatures_tell_kinds_apart(policy):
    one, two = policy.prepare(rows(1)), policy.prepare(rows(1, 3))
    assert signature(one, None) == signature(two, None)
    assert signature(one, None) != signature(one, 4)
    assert signature(one, None) != signature(policy.prepare(rows(2)), None)


def test_acting_through_graphs(policy, graphed):
    observation = make_observation(SPEC, 2)
    for ours, plain in zip(graphed.act([observation], [3]), policy.act([observation], [3]), strict=True):
        np.testing.assert_array_equal(ours.actions, plain.actions)
    graphed.model.train()
    with pytest.raises(ValueError, match="eval"):
        graphed.act([observation], [3])


def test_compile_finds_repeated_blocks(policy):
    assert compile_blocks(policy.model) == 0
    policy.model.more = torch.nn.ModuleList(
        [torch.nn.Sequential(torch.nn.Linear(2, 2)), torch.nn.Sequential(torch.nn.Linear(2, 2))]
    )
    assert compile_blocks(policy.model) == 2


@pytest.mark.parametrize("hooks", [True, False])
def test_hooks_are_compiled_with_their_blocks_or_stay_outside(monkeypatch, hooks):
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="eager"))
    model = torch.nn.ModuleList(torch.nn.Sequential(torch.nn.Linear(2, 2)) for _ in range(2))
    compile_blocks(model, hooks=hooks)

    def hook(module, args):
        return (args[0] + (2 if torch.compiler.is_compiling() else 1),)

    plain = torch.nn.Sequential(model[0][0])
    model[0].register_forward_pre_hook(hook)
    x = torch.ones(1, 2)
    torch.testing.assert_close(model[0](x), plain(x + (2 if hooks else 1)))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_real_graph_answers_like_the_eager_model(policy):
    policy.to("cuda")
    graphed = GraphedPolicy(policy)
    for first in (0, 5):
        prepared = policy.prepare(rows(2, first))
        expected = policy.predict(prepared)
        torch.testing.assert_close(graphed.predict(prepared), expected)
        parts = [graphed.prepare([row]) for row in rows(2, first)]
        torch.testing.assert_close(graphed.predict_rows(parts), expected)
    assert graphed.graphs.count == 1
