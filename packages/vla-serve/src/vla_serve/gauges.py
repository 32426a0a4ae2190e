"""What stands in a server at the moment, as numbers for its metrics."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from vla_serve.engine.sessions import Sessions
from vla_serve.engine.shelf import Shelf
from vla_serve.rpc import Rpcs


def gauges(
    shelf: Shelf, sessions: Sessions, rpcs: Rpcs
) -> Iterator[tuple[str, str, Mapping[str, str], float]]:
    """(name, help, labels, value); safe in any thread."""
    yield "sessions", "Open sessions.", {}, len(sessions)
    yield "in_flight", "Requests under way.", {}, rpcs.in_flight
    yield "in_flight_bytes", "Bytes of the requests under way.", {}, rpcs.in_flight_bytes
    for served in shelf:
        which = {"policy": served.name, "revision": served.revision}
        yield "queue", "Requests that wait for the model.", which, served.engine.waiting
        yield "pending", "Requests that wait or run.", which, served.engine.pending
        info = {
            **which,
            "state": served.state.value,
            "weights": served.digests.weights,
            "statistics": served.digests.statistics,
        }
        yield "policy_info", "1 for each revision that is loaded.", info, 1
