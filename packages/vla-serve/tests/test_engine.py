"""The engine by itself: batches, turns, deadlines, and what becomes of a model that fails. No transport."""

from __future__ import annotations

import threading
import time
from concurrent.futures import CancelledError
from dataclasses import replace

import numpy as np
import pytest
from vla_core.errors import UserError
from vla_core.testing import make_observation, make_spec
from vla_serve.engine.engine import Engine
from vla_serve.engine.errors import DeadlinePassed, ModelFailed, NotServing, Refused, Superseded
from vla_serve.engine.estimates import REMEMBERED, Estimates
from vla_serve.engine.policy import Row
from vla_serve.testing import TimedPolicy, until

SPEC = make_spec(1)


class Gated(TimedPolicy):
    """Holds its runs back, and keeps the seeds of each."""

    def __init__(self, spec=SPEC, **times) -> None:
        super().__init__(spec, **times)
        self.gate, self.running = threading.Event(), threading.Event()
        self.gate.set()
        self.seeds: list[list[int]] = []
        self.bad: dict[int, BaseException] = {}

    def predict(self, prepared, steps=None):
        self.running.set()
        assert self.gate.wait(20)
        seeds = [row.seed for row in prepared.rows]
        self.seeds.append(seeds)
        for seed in seeds:
            if seed in self.bad:
                raise self.bad[seed]
        return super().predict(prepared, steps)


@pytest.fixture
def policy():
    return Gated()


def started(policy, **options) -> Engine:
    running = Engine(policy, **options)
    running.start()
    running._desk.estimates = even = Estimates()  # a busy machine finds eight rows far slower than four
    for size in running._sizes:
        for _ in range(REMEMBERED):
            even.record(None, size, 1e-4)
    return running


@pytest.fixture
def engine(policy):
    running = started(policy, max_batch=8)
    policy.seeds.clear()
    policy.running.clear()
    yield running
    policy.gate.set()
    running.close()


def ask(engine, seed, session="robot", **options):
    row = Row(replace(make_observation(SPEC, seed), embodiment="default"), seed, steps=options.get("steps"))
    return engine.submit(session, lambda: row, **options)


def hold(engine, policy, seed=100):
    """A run that lasts until the gate opens."""
    policy.gate.clear()
    first = ask(engine, seed, "first")
    until(policy.running.is_set)
    policy.running.clear()
    return first


def values(futures):
    return [float(f.result(10).chunk.actions[0, 0]) for f in futures]


def expected(seed):
    return np.float32(seed + make_observation(SPEC, seed).state.mean())


def test_what_waits_is_run_together_and_each_gets_its_own(engine, policy):
    first = hold(engine, policy)
    futures = [ask(engine, seed, f"robot {seed}") for seed in range(5)]
    until(lambda: len(engine._desk._ready) == 5)
    policy.gate.set()
    np.testing.assert_allclose(values(futures), [expected(seed) for seed in range(5)], rtol=1e-6)
    own, more = policy.seeds[1][:5], policy.seeds[1][5:]  # a static size: the last row fills it up
    assert (sorted(own), more) == ([0, 1, 2, 3, 4], 3 * own[-1:])
    assert futures[0].result().batch == 5
    assert first.result().batch == 1


def test_a_policy_that_takes_rows_apart_is_not_given_joined_ones():
    class Apart(Gated):
        taken: list[int] = []  # noqa: RUF012

        def predict_rows(self, parts, steps=None):
            self.taken.append(len(parts))
            return np.concatenate([self.predict(part, steps) for part in parts])

    policy = Apart()
    engine = started(policy, max_batch=8)
    policy.running.clear()
    first = hold(engine, policy)
    policy.seeds.clear()
    policy.taken.clear()
    futures = [ask(engine, seed, f"robot {seed}") for seed in range(5)]
    until(lambda: len(engine._desk._ready) == 5)
    policy.gate.set()
    np.testing.assert_allclose(
        values([first, *futures]), [expected(seed) for seed in (100, *range(5))], rtol=1e-6
    )
    engine.close()
    assert policy.taken == [8]
    seeds = [seed for (seed,) in policy.seeds][1:]
    assert sorted(seeds[:5]) == [0, 1, 2, 3, 4]
    assert seeds[5:] == 3 * seeds[4:5]  # the last row fills it up


def test_a_lone_request_is_not_delayed(engine, policy):
    waited, wait = [], engine._desk._for_model.wait
    engine._desk._for_model.wait = lambda seconds=None: waited.append(seconds) or wait(seconds)
    ask(engine, 1).result(10)
    assert policy.seeds == [[1]]
    assert set(waited) <= {None}  # for a request, and never for a time


def test_a_lone_answer_is_finished_where_the_model_runs_and_others_beside_it(engine, policy):
    threads, finish = [], policy.finish

    def noted(actions, rows):
        threads.append(threading.current_thread().name.split("-")[1])
        return finish(actions, rows)

    policy.finish = noted
    ask(engine, 1).result(10)
    policy.running.clear()
    calls = [hold(engine, policy), *(ask(engine, seed, f"robot {seed}") for seed in range(3))]
    until(lambda: len(engine._desk._ready) == 3)
    policy.gate.set()
    values(calls)
    assert threads == ["model"] + ["prepare"] * 4  # where others wait, the model has them to answer


def test_rows_that_cannot_share_a_run_are_run_apart(engine, policy):
    hold(engine, policy)
    futures = [ask(engine, seed, f"r{seed}", steps=steps) for seed, steps in enumerate([None, 4, None, 4])]
    until(lambda: len(engine._desk._ready) == 4)
    policy.gate.set()
    values(futures)
    assert policy.seeds[1:] == [[0, 2], [1, 3]]


def test_batch_wait_ms_fills_a_run():
    policy = Gated()
    engine = started(policy, max_batch=2, batch_wait_s=60.0)
    policy.seeds.clear()
    first = ask(engine, 1)
    until(lambda: len(engine._desk._ready) == 1)
    assert not policy.seeds
    second = ask(engine, 2, "other")
    values([first, second])
    assert policy.seeds == [[1, 2]]
    engine.close()


def test_deterministic_runs_have_one_shape_and_equal_the_solo_run_bit_by_bit():
    torch = pytest.importorskip("torch")
    from vla_core.testing import tiny_policy

    policy = tiny_policy(SPEC).eval()
    weight = torch.randn(333, 1024, generator=torch.Generator().manual_seed(0))

    class Batched(TimedPolicy):
        """Rows through a matrix product whose kernels differ by batch size."""

        shapes: list[int] = []  # noqa: RUF012

        def predict(self, prepared, steps=None):
            self.shapes.append(len(prepared))
            flat = [
                torch.from_numpy(r.observation.images["camera_0"].ravel()[:333].copy()) for r in prepared.rows
            ]
            out = torch.tanh(torch.stack(flat).float() @ weight / 1000)
            return out[:, : SPEC.action.horizon * 7].reshape(len(flat), -1, 7).numpy()

    assert policy is not None
    engine = Engine(Batched(SPEC), max_batch=8, deterministic=True)
    engine.start()
    solo = [ask(engine, seed).result(10).chunk.actions for seed in range(20)]
    together = [ask(engine, seed, f"r{seed % 5}") for seed in range(20)]
    for alone, future in zip(solo, together, strict=True):
        np.testing.assert_array_equal(future.result(10).chunk.actions, alone)
    assert set(engine.policy.shapes) == {8}
    engine.close()


def test_turns_go_round_the_sessions(engine, policy):
    engine._sizes = (1,)
    engine._desk._known = (1,)
    hold(engine, policy)
    flood = [ask(engine, seed, "flood") for seed in range(20)]
    other = ask(engine, 50, "other")
    policy.gate.set()
    values([*flood, other])
    assert [seeds[0] for seeds in policy.seeds].index(50) <= 2


def test_a_newer_observation_takes_the_place_of_the_sessions_older_ones(engine, policy):
    hold(engine, policy)
    old, others = [ask(engine, 1), ask(engine, 2)], ask(engine, 3, "other")
    new = ask(engine, 4, supersedes=True)
    policy.gate.set()
    for future in old:
        with pytest.raises(Superseded):
            future.result(10)
    values([new, others])
    assert not {1, 2} & {seed for seeds in policy.seeds for seed in seeds}


def test_the_cancelled_are_never_run(engine, policy):
    hold(engine, policy)
    gone, stays = ask(engine, 1), ask(engine, 2)
    assert gone.cancel()
    until(lambda: engine.pending == 2)
    policy.gate.set()
    values([stays])
    with pytest.raises(CancelledError):
        gone.result(1)
    assert 1 not in {seed for seeds in policy.seeds for seed in seeds}


def test_one_bad_row_costs_nobody_else_an_answer(engine, policy, caplog):
    policy.bad[3] = RuntimeError("poison")
    policy.bad[5] = UserError("state: outside the workspace")
    hold(engine, policy)
    futures = {seed: ask(engine, seed, f"r{seed}") for seed in range(8)}
    until(lambda: len(engine._desk._ready) == 8)
    policy.gate.set()
    good = [seed for seed in futures if seed not in policy.bad]
    np.testing.assert_allclose(
        values([futures[s] for s in good]), [expected(seed) for seed in good], rtol=1e-6
    )
    with pytest.raises(ModelFailed, match="poison"):
        futures[3].result(10)
    with pytest.raises(UserError, match="outside the workspace"):
        futures[5].result(10)
    assert "a run of 8 rows failed; in halves: RuntimeError: poison" in caplog.text


def test_out_of_memory_halves_a_batch_once_and_the_next_request_works(engine, policy, caplog):
    policy.bad[3] = MemoryError()
    hold(engine, policy)
    futures = [ask(engine, seed, f"r{seed}") for seed in range(8)]
    until(lambda: len(engine._desk._ready) == 8)
    policy.gate.set()
    values(futures[4:])
    for future in futures[:4]:
        with pytest.raises(Refused, match="out of memory") as caught:
            future.result(10)
        assert caught.value.reason == "OUT_OF_MEMORY"
    assert [len(seeds) for seeds in policy.seeds[1:]] == [8, 4, 4]
    warned = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert warned == [
        "a run of 8 rows failed; in halves: MemoryError: ",
        "a run of 4 rows failed: MemoryError: ",
    ]
    policy.bad.clear()
    values([ask(engine, 3)])


def test_a_row_that_cannot_be_prepared_is_its_own_mistake(engine):
    def broken():
        raise UserError("state: missing")

    with pytest.raises(UserError, match="missing"):
        engine.submit("robot", broken).result(10)
    values([ask(engine, 1)])


@pytest.mark.parametrize("error", [SystemExit(3), KeyboardInterrupt()])
def test_a_dead_model_thread_ends_the_engine_and_says_so(policy, error):
    said = []
    engine = Engine(policy, on_failure=said.append)
    engine.start()
    policy.bad[1] = error
    policy.gate.clear()
    asked, waits = ask(engine, 1), ask(engine, 2, "other")
    policy.gate.set()
    for future in (asked, waits):
        with pytest.raises(NotServing, match="model thread died"):
            future.result(10)
    with pytest.raises(NotServing):
        ask(engine, 3)
    until(lambda: said)
    assert "model thread died" in said[0]


def test_a_hung_model_ends_the_engine_and_says_so(policy):
    said = []
    engine = Engine(policy, model_timeout_s=0.2, on_failure=said.append)
    engine.start()
    policy.running.clear()
    future = hold(engine, policy)
    with pytest.raises(NotServing, match=r"has not answered for 0\.2 s"):
        future.result(10)
    until(lambda: said)
    policy.gate.set()


def test_a_warm_up_that_fails_is_raised():
    policy = Gated()
    policy.bad[0] = ValueError("no weights")
    with pytest.raises(ValueError, match="no weights"):
        Engine(policy).start()


def test_what_cannot_be_in_time_is_refused_at_once():
    policy = Gated()
    engine = started(policy, max_batch=1)
    for _ in range(REMEMBERED):
        engine._desk.estimates.record(None, 1, 100.0)
    hold(engine, policy)
    with pytest.raises(
        Refused, match=r"an answer takes 2[123]\d s now, the deadline leaves 1[12]\d"
    ) as caught:
        ask(engine, 1, deadline=time.monotonic() + 125)  # while the run goes on
    assert caught.value.reason == "TOO_LATE"
    assert 80 < caught.value.retry_after_s < 170
    policy.gate.set()
    engine.close()


def test_a_deadline_that_passes_in_the_queue_costs_no_run(engine, policy):
    hold(engine, policy)
    late = ask(engine, 1, deadline=time.monotonic() + 60)
    until(lambda: len(engine._desk._ready) == 1)
    (waiting,) = engine._desk._ready
    waiting.deadline = time.monotonic()
    policy.gate.set()
    with pytest.raises(DeadlinePassed):
        late.result(10)
    values([ask(engine, 2)])
    assert [1] not in policy.seeds


def test_an_old_measurement_refuses_nobody_for_ever(engine):
    engine._desk.estimates.record(None, 1, 3600.0)
    engine._desk.estimates._latest -= 60
    values([ask(engine, 1, deadline=time.monotonic() + 5)])


def test_a_thread_that_dies_before_the_warm_up_ends_the_start():
    """The start waited for ever."""

    def die(kind):
        if kind == "model":
            raise RuntimeError("no such device")

    engine = Engine(TimedPolicy(SPEC), on_thread=die)
    with pytest.raises(RuntimeError, match="no such device"):
        engine.start()
    engine.close()
