"""What a client can ask besides one chunk: several at once, and whether it fits the policy at all.

As in :mod:`vla_serve.clients.session`, all but how the bytes travel.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from vla_core.types import Observation

from vla_serve.clients import arguments
from vla_serve.clients.chunks import ServedChunk, served_chunk
from vla_serve.clients.errors import PolicyClientError, PolicyServerError, from_failure
from vla_serve.clients.session import ClientSession
from vla_serve.messages.wire import serialise_batch
from vla_serve.v1 import policy_pb2 as pb

MARGIN = 1024
"""Bytes of a batch that are none of its items'."""

Item = tuple[int, bytes]
"""Place among the observations, and the bytes of its request."""


@dataclass(frozen=True)
class Difference:
    """One thing in which client and policy differ; ``policy`` and ``client`` are what each has."""

    field: str
    policy: str
    client: str
    description: str


class BatchSession(ClientSession):
    """The part of both clients that asks for more than one chunk."""

    _limits: pb.Limits | None = None

    def _opened(self, reply: pb.OpenSessionResponse) -> None:
        self._limits = None  # a server that was restarted may have others
        super()._opened(reply)

    def _differences(self, reply: pb.CheckCompatibilityResponse) -> list[Difference]:
        return [Difference(m.field, m.policy, m.client, m.description) for m in reply.mismatches]

    def _items(
        self,
        observations: Sequence[Observation],
        seeds: Sequence[int] | None,
        steps: Sequence[int] | None,
        denoise_steps: int | None,
    ) -> tuple[list[Any], list[Item]]:
        """What is known of each observation's answer so far, and the requests for the others."""
        self._open_session()
        seen = arguments.several(observations, "observations")
        numbers: dict[str, list[Any]] = {}
        for name, given in (("seeds", seeds), ("steps", steps)):
            numbers[name] = [None] * len(seen) if given is None else arguments.several(given, name)
            if len(numbers[name]) != len(seen):
                raise PolicyClientError(f"{name}: {len(numbers[name])} for {len(seen)} observations")
        results: list[Any] = [None] * len(seen)
        items: list[Item] = []
        for place, (one, seed, step) in enumerate(zip(seen, *numbers.values(), strict=True)):
            try:
                items.append((place, self._bytes(*self._message(one, seed, step, denoise_steps))))
            except PolicyClientError as error:
                results[place] = error
        return results, items

    def _known_limits(self, info: pb.GetServerInfoResponse) -> pb.Limits:
        if not info.limits.max_batch_items:
            raise PolicyServerError(f"{self._address}: the server is of a version without PredictBatch")
        self._limits = info.limits
        return info.limits

    def _waves(self, items: list[Item], limits: pb.Limits) -> Iterator[list[list[Item]]]:
        """Calls that may be under way together, so that the model sees all of their items."""
        cameras = self.contract.observation.cameras
        pixels = max(1, sum(camera.height * camera.width for camera in cameras))
        most = limits.max_in_flight_pixels // pixels  # 0: a server of a version without that limit
        most = min(limits.max_batch_items, most) if most else limits.max_batch_items
        for start in range(0, len(items), most):
            yield list(_calls(items[start : start + most], limits.max_batch_bytes))

    def _send(self, call: list[Item], end: float) -> Any:
        """Ask for these; the call's future."""
        data = serialise_batch(self._open_session(), [item for _, item in call])
        left = max(0.001, end - time.monotonic())
        return self._connection.predict_batch.future(data, timeout=left, metadata=self._metadata)

    def _receive(self, results: list[Any], call: list[Item], response: pb.PredictBatchResponse) -> None:
        """Put the answers, or why there are none, where they belong."""
        for (place, _), result in zip(call, response.results, strict=True):
            if result.HasField("answer"):
                results[place] = served_chunk(result.answer, self.contract.action, self._address)
            else:
                results[place] = self._noted(from_failure(result.failure, self._address))


Results = list[ServedChunk | PolicyClientError | PolicyServerError]


def _calls(items: list[Item], most: int) -> Iterator[list[Item]]:
    """In order, as many a call as its size allows."""
    call: list[Item] = []
    size = MARGIN
    for item in items:
        more = len(item[1]) + 8
        if call and size + more > most:
            yield call
            call, size = [], MARGIN
        call.append(item)
        size += more
    if call:
        yield call
