"""An error that was explained is forgotten, whatever led to it, and who raised it goes on."""

from __future__ import annotations

import asyncio
import threading
from concurrent.futures import Future

import pytest
from vla_core.testing import make_observation, make_spec
from vla_serve import PolicyClient, PolicyServer, PolicyServerError
from vla_serve.engine.boundary import let_go, without_frames
from vla_serve.testing import TimedPolicy

SPEC = make_spec(1)


def own_cause():
    error = ValueError("its own cause")
    try:
        raise error from error
    except ValueError as caught:
        return caught


def two_that_led_to_each_other():
    first, second = ValueError("first"), KeyError("second")
    first.__cause__, second.__cause__ = second, first
    return first


@pytest.mark.parametrize("make", [own_cause, two_that_led_to_each_other])
@pytest.mark.parametrize("forget", [without_frames, let_go])
def test_errors_that_led_to_themselves_come_to_an_end(make, forget):
    thread = threading.Thread(target=forget, args=(make(),), daemon=True)
    thread.start()
    thread.join(10)
    assert not thread.is_alive()


def test_what_an_error_came_out_of_beside_its_cause_is_forgotten_too():
    try:
        try:
            raise ValueError("came before")
        except ValueError as before:
            context = before
            raise KeyError("after") from OSError("the cause")
    except KeyError as after:
        without_frames(after)
    assert context.__traceback__ is None


class Asking(TimedPolicy):
    """Its model is asked by a coroutine of its own, that goes on after an error."""

    def __init__(self, spec):
        super().__init__(spec)
        self.loop = asyncio.new_event_loop()
        self.queue: asyncio.Queue[tuple[int, Future[None]] | None] = asyncio.Queue()
        self.thread = threading.Thread(target=self.loop.run_until_complete, args=(self.work(),))

    async def work(self):
        while (job := await self.queue.get()) is not None:
            seed, done = job
            try:
                if seed == 13:
                    raise RuntimeError("no answer to this one")
                done.set_result(None)
            except RuntimeError as error:
                done.set_exception(error)

    def put(self, job):
        self.loop.call_soon_threadsafe(self.queue.put_nowait, job)

    def predict(self, prepared, steps=None):
        for row in prepared.rows:
            done = Future()
            self.put((row.seed, done))
            done.result(10)
        return super().predict(prepared, steps)


def test_a_policy_s_own_coroutine_goes_on_after_an_error_of_it():
    policy = Asking(SPEC)
    policy.thread.start()
    try:
        with PolicyServer(policy) as server, PolicyClient(server.address) as client:
            for _ in range(2):
                with pytest.raises(PolicyServerError, match="its log has the cause"):
                    client.predict(make_observation(SPEC), seed=13)
                client.predict(make_observation(SPEC), seed=1)
    finally:
        policy.put(None)
        policy.thread.join(10)
        policy.loop.close()
