"""The loss of each row: with every head, its sums make up the head's own term."""

from __future__ import annotations

import pytest
import torch
from vla_core.features import ROWS
from vla_train.testing import framework_tree
from vla_train.testing.trace import build, training_batch


@pytest.mark.slow
@pytest.mark.parametrize("preset", ["QwenOFT", "QwenAdapter", "QwenGR00T", "QwenPI", "PI0", "QwenFast"])
def test_rows_make_up_the_term(preset: str) -> None:
    torch.set_num_threads(1)
    policy = build(framework_tree(preset, "tiny"), "tiny")
    policy.model.train()
    batch = training_batch(policy, 3)
    assert batch.action_mask is not None
    batch.action_mask[1, 2:] = False

    def terms(rows: bool) -> dict[str, torch.Tensor]:
        torch.manual_seed(0)
        return policy.model(batch, rows=rows)

    plain, told = terms(False), terms(True)
    rows = told.pop(ROWS)
    assert told.keys() == plain.keys()
    for name in plain:
        torch.testing.assert_close(told[name], plain[name], rtol=0, atol=0)
    assert rows.shape == (3, 2)
    assert not rows.requires_grad
    torch.testing.assert_close(rows[:, 0].sum() / rows[:, 1].sum(), plain["action_loss"].detach())
    if preset != "QwenFast":  # it counts ids that were said, not actions
        assert rows[1, 1] < rows[0, 1]
