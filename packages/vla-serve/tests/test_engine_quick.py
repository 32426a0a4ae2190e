"""Lone requests that are quick to prepare: where that is done."""

from __future__ import annotations

import threading
from dataclasses import replace

import pytest
from vla_core.errors import UserError
from vla_core.testing import make_observation, make_spec
from vla_serve.engine import quick
from vla_serve.engine.engine import Engine
from vla_serve.engine.errors import NotServing
from vla_serve.engine.policy import Row
from vla_serve.testing import GatedPolicy, until

SPEC = make_spec(1)


@pytest.fixture
def policy(monkeypatch):
    """It knows the threads that prepared; everything is quick once its kind is known."""
    monkeypatch.setattr(quick, "LIMIT_S", 60.0)
    policy = GatedPolicy(SPEC)
    policy.threads, prepare = [], policy.prepare
    policy.prepare = lambda rows: policy.threads.append(threading.current_thread()) or prepare(rows)
    return policy


@pytest.fixture
def engine(policy):
    running = Engine(policy)
    running.start()
    policy.threads.clear()
    yield running
    policy.gate.set()
    running.close()


def ask(engine, seed, kind=None, session="robot"):
    row = Row(replace(make_observation(SPEC, seed), embodiment="default"), seed)
    return engine.submit(session, lambda: row, alike=kind)


def test_it_is_prepared_where_it_is_submitted_once_its_kind_was_measured(policy, engine):
    here = threading.current_thread()
    for seed in range(3):
        assert ask(engine, seed, "kind").result(10).row.seed == seed
        until(lambda: engine._desk.running_s == 0)  # the answer is there a moment before the run is over
    assert [thread is here for thread in policy.threads] == [False, True, True]


def test_what_nobody_knows_and_what_was_slow_is_prepared_beside(policy, engine):
    here = threading.current_thread()
    ask(engine, 0, "kind").result(10)
    until(lambda: engine._desk.running_s == 0)
    ask(engine, 1, "another").result(10)
    until(lambda: engine._desk.running_s == 0)
    ask(engine, 2).result(10)
    until(lambda: engine._desk.running_s == 0)
    engine._quick.took("kind", quick.LIMIT_S)
    ask(engine, 3, "kind").result(10)
    until(lambda: engine._desk.running_s == 0)
    assert here not in policy.threads
    ask(engine, 4, "kind").result(10)  # the last one was measured to be quick again
    assert policy.threads[4:] == [here]


def test_it_is_prepared_beside_where_others_run_or_wait(policy, engine):
    ask(engine, 0, "kind").result(10)
    until(lambda: engine._desk.running_s == 0)
    policy.gate.clear()
    first = ask(engine, 1, session="first")
    until(lambda: engine._desk.running_s > 0)
    policy.threads.clear()
    futures = [ask(engine, seed, "kind", f"robot {seed}") for seed in (2, 3)]
    until(lambda: len(policy.threads) == 2)
    policy.gate.set()
    assert [future.result(10).row.seed for future in (first, *futures)] == [1, 2, 3]
    assert threading.current_thread() not in policy.threads


def test_a_mistake_found_there_is_the_futures(policy, engine):
    ask(engine, 0, "kind").result(10)
    until(lambda: engine._desk.running_s == 0)

    def wrong():
        raise UserError(f"in {threading.current_thread().name}")

    future = engine.submit("robot", wrong, alike="kind")
    with pytest.raises(UserError, match=f"in {threading.current_thread().name}"):
        future.result(0)
    assert (engine.waiting, engine.pending) == (0, 0)
    assert ask(engine, 1, "kind").result(10).depth == 0


def test_what_would_end_the_callers_thread_ends_the_engine_instead(policy, engine):
    ask(engine, 0, "kind").result(10)
    until(lambda: engine._desk.running_s == 0)

    def prepare(rows):
        raise SystemExit(3)

    policy.prepare = prepare
    future = ask(engine, 1, "kind")
    with pytest.raises(NotServing, match="the prepare thread died"):
        future.result(10)
    assert engine.ended == "the prepare thread died (SystemExit)"


def test_only_the_latest_kinds_are_remembered():
    known = quick.Quick()
    for kind in range(quick.REMEMBERED + 1):
        known.took(kind, 0.0)
    assert (0 in known, 1 in known, None in known) == (False, True, False)


def test_the_thread_that_prepares_there_is_told_so_once_before(policy):
    told = []

    def on_thread(kind: str) -> None:
        told.append((kind, threading.current_thread(), len(policy.threads)))

    running = Engine(policy, on_thread=on_thread)
    running.start()
    policy.threads.clear()
    here = threading.current_thread()
    try:
        for seed in range(3):
            ask(running, seed, "kind").result(10)
            until(lambda: running._desk.running_s == 0)
    finally:
        policy.gate.set()
        running.close()
    assert [told_of for told_of in told if told_of[1] is here] == [("prepare", here, 1)]
