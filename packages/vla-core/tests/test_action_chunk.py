"""Actions past an episode's end: held, zero or held as an offset, by representation; never in the mask."""

from __future__ import annotations

import numpy as np
import pytest
from vla_core.sources import action_chunk
from vla_core.specs import GroupSpec

GROUPS = (
    GroupSpec("target", 2, "m"),
    GroupSpec("step", 1, "m", representation="delta"),
    GroupSpec("offset", 1, "m", representation="relative"),
)


@pytest.mark.parametrize("index", [5, 8, 9, 11])
def test_past_the_end_each_group_stays_where_it_is(index):
    rows = np.arange(1, 61, dtype=np.float32).reshape(15, 4)
    before = rows.copy()
    actions, mask = action_chunk(rows, index, 12, 6, GROUPS)
    left = min(6, 12 - index)
    assert np.array_equal(actions[:left], rows[index : index + left])
    assert mask[:left].all()
    assert not mask[left:].any()
    for step in actions[left:]:
        assert np.array_equal(step[:2], rows[11, :2]), "an absolute target is held"
        assert step[2] == 0, "a delta of zero stays"
        assert step[3] == rows[11, 3], "an offset from the present state is held"
    assert np.array_equal(rows, before), "the data set itself is untouched"
    assert actions.dtype == np.float32
