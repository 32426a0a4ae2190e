"""Many robots at once against a server: what is answered in time, and what is not."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import grpc
import numpy as np
from google.rpc import error_details_pb2 as details_pb
from vla_core.types import Observation

from vla_serve.clients.client import PolicyClient
from vla_serve.clients.errors import PolicyBusy, PolicyTimeout
from vla_serve.messages.observation_codec import encode_observation
from vla_serve.messages.status import details_of, find
from vla_serve.v1 import policy_pb2 as pb
from vla_serve.v1.policy_pb2_grpc import PolicyServiceStub


@dataclass
class Outcome:
    """What came of a load.

    Args:
        seconds: it lasted.
        answered: by client.
        latencies_ms: of the answers.
        other: what else came back, by name.
    """

    seconds: float = 0.0
    answered: Counter[int] = field(default_factory=Counter)
    latencies_ms: list[float] = field(default_factory=list)
    other: Counter[str] = field(default_factory=Counter)

    @property
    def rate(self) -> float:
        """Answers a second."""
        return self.answered.total() / self.seconds

    def percentile(self, q: float) -> float:
        """Of the answers' milliseconds."""
        return float(np.percentile(self.latencies_ms, q)) if self.latencies_ms else float("nan")


def closed_loop(
    address: str,
    observations: Sequence[Observation],
    seconds: float,
    timeout_s: float = 10.0,
    check: Callable[[int, Any], None] | None = None,
) -> Outcome:
    """One client for each of ``observations``, which asks again as soon as it has an answer.

    One that is refused asks again when the server said. ``check`` is told the number of the client
    and its chunk.
    """
    outcome, lock = Outcome(seconds), threading.Lock()
    ready = threading.Barrier(len(observations) + 1)

    def drive(number: int) -> None:
        with PolicyClient(address, timeout_s=timeout_s) as client:
            ready.wait(60)
            end = time.monotonic() + seconds
            while (start := time.monotonic()) < end:
                try:
                    chunk = client.predict(observations[number], seed=number)
                except PolicyBusy as error:
                    with lock:
                        outcome.other["refused"] += 1
                    time.sleep(min(error.retry_after_s, max(0.0, end - time.monotonic())))
                    continue
                except PolicyTimeout:
                    with lock:
                        outcome.other["timed out"] += 1
                    continue
                took = time.monotonic() - start
                if check is not None:
                    check(number, chunk)
                with lock:
                    outcome.answered[number] += start + took <= end
                    outcome.latencies_ms.append(1000 * took)

    threads = [threading.Thread(target=drive, args=(i,), daemon=True) for i in range(len(observations))]
    for thread in threads:
        thread.start()
    ready.wait(60)
    for thread in threads:
        thread.join()
    return outcome


def open_loop(
    address: str, observation: Observation, rate: float, seconds: float, timeout_s: float, clients: int = 8
) -> Outcome:
    """``rate`` requests a second, evenly, by ``clients`` in turn, whatever becomes of them.

    Counted from the first ``timeout_s`` on, when the queue is as long as it gets, to the last request.
    """
    outcome, lock = Outcome(seconds=seconds), threading.Lock()
    options = [("grpc.use_local_subchannel_pool", 1)]
    channels = [grpc.insecure_channel(address, options=options) for _ in range(clients)]
    stubs = [PolicyServiceStub(channel) for channel in channels]
    opened = [stub.OpenSession(pb.OpenSessionRequest(), timeout=10) for stub in stubs]
    with PolicyClient(address) as client:
        message = encode_observation(observation, client.contract.observation)
    requests = [pb.PredictRequest(session_id=o.session_id, observation=message, seed=1) for o in opened]
    left = threading.Semaphore(0)

    def done(call: Any, number: int, sent: float) -> None:
        now, code = time.monotonic(), call.code()
        took = now - sent
        with lock:
            if code is grpc.StatusCode.OK:
                outcome.answered[number] += timeout_s < now - start <= timeout_s + seconds
                outcome.latencies_ms.append(1000 * took)
            else:
                outcome.other[code.name.lower()] += 1
                if code is grpc.StatusCode.RESOURCE_EXHAUSTED:
                    outcome.other["without retry"] += find(details_of(call), details_pb.RetryInfo) is None
        left.release()

    start, count = time.monotonic(), int(rate * (seconds + timeout_s))
    for i in range(count):
        time.sleep(max(0.0, start + i / rate - time.monotonic()))
        number = i % clients
        sent = time.monotonic()
        call = stubs[number].Predict.future(requests[number], timeout=timeout_s)
        call.add_done_callback(partial(done, number=number, sent=sent))
    for _ in range(count):
        left.acquire(timeout=timeout_s + 10)
    for channel in channels:
        channel.close()
    return outcome
