"""Errors by group and step, against the obvious loop."""

from __future__ import annotations

import numpy as np
import pytest
from vla_core import Pipeline
from vla_core.testing import make_spec
from vla_train.evaluation.group_errors import StepErrors, of_groups
from vla_train.evaluation.validate import _mean_action


def sums(errors: np.ndarray, mask: np.ndarray) -> StepErrors:
    return StepErrors((np.abs(errors) * mask).sum(0), (errors**2 * mask).sum(0), mask.sum(0).astype(float))


def test_means_are_over_valid_entries_of_a_group_and_of_one_step() -> None:
    spec = make_spec(horizon=4).action
    rng = np.random.default_rng(0)
    errors = rng.normal(size=(6, spec.horizon, spec.dim))
    mask = rng.random(errors.shape) > 0.3
    found = of_groups([("data", "robot", spec, sums(errors, mask))])
    start = 0
    for group in spec.groups:
        ours, valid = errors[..., start : start + group.dim], mask[..., start : start + group.dim]
        start += group.dim
        assert found[f"val/group_mae/{group.name}"] == pytest.approx(np.abs(ours)[valid].mean())
        assert found[f"val/group_mse/{group.name}"] == pytest.approx((ours[valid] ** 2).mean())
        for step in range(4):
            expected = np.abs(ours[:, step])[valid[:, step]].mean()
            assert found[f"val/group_mae_at/{group.name}/{step:02d}"] == pytest.approx(expected)
    assert len(found) == len(spec.groups) * (2 + 4)


def test_data_sets_of_one_robot_are_weighed_by_their_entries_and_told_apart_too() -> None:
    spec = make_spec(horizon=2).action
    name = spec.groups[0].name
    shape = (spec.horizon, spec.dim)
    one = StepErrors(np.full(shape, 3.0), np.full(shape, 9.0), np.ones(shape))
    other = StepErrors(np.full(shape, 3.0), np.full(shape, 3.0), np.full(shape, 3.0))
    found = of_groups([("a", "robot", spec, one), ("b", "robot", spec, other)])
    assert found[f"val/group_mae/{name}"] == pytest.approx(1.5)
    assert found[f"data/a/val_group_mae/{name}"] == pytest.approx(3.0)
    assert found[f"data/b/val_group_mae/{name}"] == pytest.approx(1.0)
    apart = of_groups([("a", "left", spec, one), ("b", "right", spec, other)])
    assert apart[f"val/group_mae/left/{name}"] == pytest.approx(3.0)
    assert apart[f"val/group_mse/right/{name}"] == pytest.approx(1.0)


def test_the_mean_action_is_one_action_also_where_each_step_is_normalised_in_its_own_way() -> None:
    spec = make_spec(horizon=4)
    rng = np.random.default_rng(1)
    spread = np.arange(1, 5, dtype=np.float32)[:, None]
    chunks = rng.normal(size=(40, 4, spec.action.dim)).astype(np.float32) * spread + spread
    states = rng.normal(size=(40, spec.observation.state_dim)).astype(np.float32)
    rows = [(state, chunk, np.ones(chunk.shape, bool)) for state, chunk in zip(states, chunks, strict=True)]
    names = [group.name for group in spec.action.groups]
    node = {"name": "normalize", "action": "mean_std", "state": "none", "by_step": names}
    pipeline = Pipeline([node], spec, rows=lambda: rows)
    answer = _mean_action(pipeline)
    assert np.ptp(answer, axis=0).max() > 0.1  # as the model sees it, not one number
    real = pipeline.inverse(answer, None)
    np.testing.assert_allclose(real, np.tile(chunks.mean((0, 1)), (4, 1)), rtol=1e-4, atol=1e-4)
