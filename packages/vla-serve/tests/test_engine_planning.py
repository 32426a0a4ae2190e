"""What the engine plans with: sizes, who shares a run, and how long an answer is expected to take."""

from __future__ import annotations

import pytest
from vla_core.testing import make_observation, make_spec
from vla_serve.engine.admission import ahead_of, expected_s
from vla_serve.engine.estimates import Estimates
from vla_serve.engine.plan import choose, sizes
from vla_serve.engine.policy import Row
from vla_serve.engine.ticket import Ticket

SPEC = make_spec(1)


def test_sizes():
    assert sizes(1, False) == (1,)
    assert sizes(8, False) == (1, 2, 4, 8)
    assert sizes(12, False) == (1, 2, 4, 8, 12)
    assert sizes(8, True) == (8,)


def ticket(deadline=None, session="a"):
    made = Ticket(session, lambda: None, None, deadline, 0)
    made.row = Row(make_observation(SPEC), 0)
    return made


def linear(steps, size):
    return 0.1 * size


def flat(steps, size):
    return 0.1


def test_the_size_that_answers_most_a_second_is_run():
    waiting = [ticket() for _ in range(5)]
    assert len(choose(waiting, 0.0, linear, 0.0, (1, 2, 4, 8))[0]) == 1  # a larger one would only delay
    assert len(choose(waiting, 0.0, flat, 0.0, (1, 2, 4, 8))[0]) == 5


def test_rows_that_a_larger_run_would_make_late_are_left_out():
    def seconds(steps, size):
        return {1: 0.1, 2: 0.12, 4: 0.16, 8: 0.2}[size]

    waiting = [ticket(deadline=0.15), *(ticket() for _ in range(7)), ticket(deadline=0.05)]
    batch, late = choose(waiting, 0.0, seconds, 0.0, (1, 2, 4, 8))
    assert batch == waiting[1:8]
    assert late == waiting[8:]


def test_rows_that_only_a_small_run_answers_in_time_take_no_place_of_a_large_one():
    """They did, and under load a fifth of each run was empty."""

    def seconds(steps, size):
        return {1: 0.13, 2: 0.14, 4: 0.16, 8: 0.2}[size]

    hurried = [ticket(deadline=0.15) for _ in range(3)]
    others = [ticket(deadline=1.0) for _ in range(8)]
    batch, late = choose([*hurried, *others], 0.0, seconds, 0.0, (1, 2, 4, 8))
    assert batch == others
    assert late == []


def test_expected_times():
    assert ahead_of("me", {"flood": 50}) == 1  # turns: one of the flood's goes before
    assert ahead_of("me", {"flood": 50, "me": 2}) == 5
    assert 0.2 < expected_s(1, 0.0, 0.0, lambda size: 0.1, (1,)) < 0.25
    assert 0.1 < expected_s(7, 0.0, 0.0, lambda size: 0.1, (1, 2, 4, 8)) < 0.13


def test_estimates_take_the_nearest_that_is_known():
    estimates = Estimates()
    assert estimates.seconds(None, 1) == 0
    for seconds in (0.1, 0.1, 0.1, 5.0):
        estimates.record(None, 1, seconds)
    assert estimates.seconds(None, 1) == 0.1  # one slow run is no rule
    assert estimates.seconds(4, 1) == 0.1
    assert estimates.seconds(None, 8) == 0.1


def test_denoise_steps_near_slow_ones_are_not_taken_for_quick_ones():
    """Of a client that asked for another number each time, runs of seconds were taken for quick ones."""
    estimates = Estimates()
    estimates.record(None, 1, 0.01)
    estimates.record(None, 2, 0.02)
    assert estimates.seconds(997, 1) == 0.01  # nobody knows
    estimates.record(997, 1, 3.0)
    assert estimates.seconds(998, 1) == 3.0
    assert estimates.seconds(998, 2) == 3.0
    assert estimates.seconds(500, 1) == pytest.approx(3.0 * 500 / 997)
    assert estimates.seconds(1, 1) == 0.01
    assert estimates.seconds(None, 1) == 0.01
    assert estimates.seconds(None, 2) == 0.02
