"""What stands in a server at the moment, for those who look on."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from vla_serve.engine.sessions import Sessions
from vla_serve.engine.shelf import Shelf
from vla_serve.rpcs.in_flight import InFlight


@dataclass(frozen=True)
class Standing:
    """Policies, sessions and requests of a server; may be read in any thread."""

    shelf: Shelf
    sessions: Sessions
    in_flight: InFlight

    def gauges(self) -> Iterator[tuple[str, str, Mapping[str, str], float]]:
        """(name, help, labels, value)."""
        yield "sessions", "Open sessions.", {}, len(self.sessions)
        yield "in_flight", "Requests under way.", {}, self.in_flight.requests
        yield "in_flight_bytes", "Bytes of the requests under way.", {}, self.in_flight.bytes
        yield "in_flight_pixels", "Pixels of the requests under way.", {}, self.in_flight.pixels
        for served in self.shelf:
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
