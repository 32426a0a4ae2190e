"""Where the time of an answer went."""

from __future__ import annotations

from dataclasses import dataclass

from vla_serve.v1 import policy_pb2 as pb


@dataclass(frozen=True)
class Timings:
    """Milliseconds of the last answer: the round trip, encoding included, and the share of the server.

    ``batch``: rows that the model answered in the same run; ``queue_depth``: requests that waited before.
    """

    round_trip_ms: float
    queue_ms: float
    decode_ms: float
    model_ms: float
    server_ms: float
    prepare_ms: float = 0.0
    finish_ms: float = 0.0
    batch: int = 1
    queue_depth: int = 0

    @classmethod
    def of(cls, round_trip_ms: float, message: pb.ServerTimings) -> Timings:
        """What the server says beside the round trip that the client saw."""
        return cls(
            round_trip_ms=round_trip_ms,
            queue_ms=message.queue_ms,
            decode_ms=message.decode_ms,
            model_ms=message.model_ms,
            server_ms=message.total_ms,
            prepare_ms=message.prepare_ms,
            finish_ms=message.finish_ms,
            batch=message.batch,
            queue_depth=message.queue_depth,
        )
