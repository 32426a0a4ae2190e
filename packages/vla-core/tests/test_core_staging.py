"""Rows laid in one piece of memory are those that were joined, there and in a copy of that memory."""

from __future__ import annotations

import pytest
import torch
from vla_core.graphs import GraphedModel, GraphedPolicy, leaves, signature
from vla_core.rows import Prepared, Row
from vla_core.staging import ALIGNED, Staging
from vla_core.testing import make_observation, make_spec, tiny_policy

SPEC = make_spec()


@pytest.fixture(scope="module")
def policy():
    torch.manual_seed(0)
    return tiny_policy(SPEC).eval()


def parts(policy, count, first=0):
    return [policy.prepare([Row(make_observation(SPEC, first + i), first + i)]) for i in range(count)]


def tensors(rows):
    return [value for _, value in leaves(rows) if isinstance(value, torch.Tensor)]


def test_staged_rows_are_the_joined_ones_whatever_was_there_before(policy):
    staging = Staging(pinned=False)
    for count, first in [(1, 0), (5, 1), (2, 6), (5, 8), (7, 13)]:
        rows = parts(policy, count, first)
        expected, staged = Prepared.join(rows), staging.join(rows)
        assert signature(staged, None) == signature(expected, None)
        for ours, theirs in zip(tensors(staged), tensors(expected), strict=True):
            assert torch.equal(ours, theirs)


def test_one_copy_of_the_memory_has_all_rows(policy):
    staging = Staging(pinned=False)
    staged = staging.join(parts(policy, 3))
    memory = staging.filled.clone()
    elsewhere = staged._map(staging.onto(memory))
    expected = [tensor.clone() for tensor in tensors(staged)]
    staging.join(parts(policy, 3, 20))  # nothing of it reaches the copy
    for there, theirs in zip(tensors(elsewhere), expected, strict=True):
        assert torch.equal(there, theirs)
        assert (there.data_ptr() - memory.data_ptr()) % ALIGNED == 0


def test_rows_that_share_a_run_are_copied_to_a_graph_as_one(policy):
    copied = []

    class Counting(torch.overrides.TorchFunctionMode):
        def __torch_function__(self, function, kinds, args=(), kwargs=None):
            if function is torch.Tensor.copy_:
                copied.append(args[0].shape)
            return function(*args, **(kwargs or {}))

    def capture(run, pool):
        out = run()
        return lambda: None, out

    graphed = GraphedPolicy(policy, GraphedModel(policy.model, capture=capture))
    rows = parts(graphed, 4)
    together = type(rows[0]).join(rows)
    assert len(together) == 4
    graphed.predict(together)
    with Counting():
        graphed.predict(together)
    assert len(copied) == 2  # what comes in, and the answer
