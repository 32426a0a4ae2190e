"""A policy that answers NaN or infinity: its own fault, or that of a number in the request."""

from __future__ import annotations

import re
from dataclasses import replace

import numpy as np
import pytest
from vla_core.stats import NormStats, VectorStats
from vla_core.testing import make_observation, make_spec
from vla_serve import PolicyClient, PolicyClientError, PolicyServer, PolicyServerError
from vla_serve.engine.errors import FieldError
from vla_serve.messages.observation_codec import check_range
from vla_serve.testing import TimedPolicy


@pytest.mark.parametrize(
    ("kind", "where"), [("state", "observation.state"), ("depth", "observation.depth[camera_1]")]
)
def test_a_number_that_makes_the_policy_overflow_is_the_clients_mistake(client, policy, spec, kind, where):
    policy.answer = np.full((4, 7), np.inf, np.float32)
    seen = make_observation(spec)
    numbers = seen.state.copy() if kind == "state" else np.ones((32, 32), np.float32)
    numbers.flat[5] = -1e30
    seen = replace(seen, **{kind: numbers if kind == "state" else {"camera_1": numbers}})
    with pytest.raises(PolicyClientError, match=re.escape(f"{where}: -1e+30 at ")) as caught:
        client.predict(seen)
    assert list(caught.value.fields) == [where]


def test_no_number_that_the_policy_has_learned_from_is_blamed_for_its_overflow(spec):
    rows = np.linspace(-1, 1, 20)[:, None] * [3e8, 1, 0, 0, 1e-3, 1, 1]
    rows[:, 3] = 5e6
    known = replace(spec, statistics=NormStats({"state": VectorStats.from_rows(rows)}))
    seen = make_observation(known)

    def check(dim: int, value: float, spec=known) -> None:
        state = rows[0].astype(np.float32)
        state[dim] = value
        check_range(replace(seen, state=state), spec)

    for dim, value in ((0, 2.9e8), (0, -1e12), (1, 9e3), (2, 1e5), (3, 5e6), (4, 9)):
        check(dim, value)
    for dim, value in ((0, 4e12), (1, -2e4), (2, 2e6), (3, 7e6), (4, 11)):
        with pytest.raises(FieldError, match=rf"observation.state: .* at \[{dim}\] is out of range"):
            check(dim, value)
    with pytest.raises(FieldError, match=r"-3e\+08 at \[0\]"):
        check(1, 0, replace(spec, statistics=NormStats()))  # nothing is known


def test_ticks_of_an_encoder_do_not_hide_that_the_model_failed():
    spec = make_spec()
    rows = np.linspace(0, 2e7, 20)[:, None] * np.ones(spec.observation.state_dim)
    policy = TimedPolicy(replace(spec, statistics=NormStats({"state": VectorStats.from_rows(rows)})))
    seen = replace(make_observation(spec), state=rows[11].astype(np.float32))
    with PolicyServer(policy) as server, PolicyClient(server.address) as client:
        policy.predict = lambda prepared, steps=None: np.full(
            (len(prepared), spec.action.horizon, spec.action.dim), np.nan, np.float32
        )
        with pytest.raises(PolicyServerError, match="INTERNAL"):
            client.predict(seen)
