"""What a server does once a second: forget what has expired, give back what a burst took."""

from __future__ import annotations

import asyncio

from vla_serve.engine.sessions import Sessions
from vla_serve.host.memory import give_back_freed_memory
from vla_serve.rpcs.in_flight import InFlight

SWEEP_S = 1.0


async def sweep(sessions: Sessions, in_flight: InFlight) -> None:
    """Until it is cancelled."""
    while True:
        await asyncio.sleep(SWEEP_S)
        sessions.sweep()
        if in_flight.burst_is_over():
            await asyncio.to_thread(give_back_freed_memory)
