"""Errors by group and step, against the obvious loop."""

from __future__ import annotations

import numpy as np
import pytest
from vla_core.testing import make_spec
from vla_train.group_errors import StepErrors, of_groups


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
