"""What is under way: requests of a connection, and bytes and pixels of all connections together."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from vla_serve.engine.admission import with_jitter
from vla_serve.engine.errors import FieldError, Refused

BURST = 64 * 2**20
"""Bytes under way at a time: what more than that needed of memory is not kept for the next ones."""


@dataclass(frozen=True)
class RpcLimits:
    """What one connection, and all together, may have under way.

    Args:
        max_in_flight: requests of one connection.
        max_in_flight_bytes: of the requests of all connections, as they were sent.
        max_in_flight_pixels: of their pictures, as they are when decoded: a file of a few kB may be one of
            millions of pixels.
        body_timeout_s: a body must have arrived after so long.
        token: that every call must bring, or None.
    """

    max_in_flight: int = 64
    max_in_flight_bytes: int = 256 * 2**20
    max_in_flight_pixels: int = 128 * 10**6
    body_timeout_s: float = 10.0
    token: str | None = None


@dataclass
class Place:
    """One request under way, and the bytes and pixels that it accounts for."""

    _in_flight: InFlight
    size: int = field(default=0, init=False)
    pixels: int = field(default=0, init=False)

    def take(self, size: int) -> None:
        """Account for a message; :class:`Refused` when all together are too large."""
        self._in_flight.take(size)
        self.size += size

    def take_pixels(self, pixels: int) -> None:
        """Account for pictures before one of them is decoded.

        Raises:
            Refused: those of all requests together are too many.
            FieldError: those of this one alone are.
        """
        self._in_flight.take_pixels(pixels)
        self.pixels += pixels


class InFlight:
    """Counts. Used in the front's event loop alone; the numbers may be read anywhere."""

    def __init__(self, limits: RpcLimits) -> None:
        self.limits = limits
        self._requests: Counter[str] = Counter()
        self.bytes = 0
        """Of the requests under way."""
        self._peak = self._recent = 0
        self.pixels = 0
        """Of their pictures."""

    @property
    def requests(self) -> int:
        """RPCs under way that a stop waits for."""
        return sum([*self._requests.values()])

    def burst_is_over(self) -> bool:
        """Whether many bytes were under way, also of what was refused, and few since this was asked last.

        Says so once. Between two of many large requests there may be none under way, for a moment.
        """
        recent, self._recent = self._recent, self.bytes
        over = self._peak > BURST and 4 * recent < self._peak
        if over:
            self._peak = 0
        return over

    @contextmanager
    def place(self, peer: str, counted: bool = True) -> Iterator[Place]:
        """A place among the connection's requests."""
        limit = self.limits.max_in_flight
        if counted and self._requests[peer] >= limit:
            message = f"{limit} requests of this connection are under way (--max_in_flight)"
            raise Refused(message, "TOO_MANY_IN_FLIGHT", with_jitter(0.1))
        if counted:
            self._requests[peer] += 1
        place = Place(self)
        try:
            yield place
        finally:
            self.bytes -= place.size
            self.pixels -= place.pixels
            if counted:
                self._requests[peer] -= 1
                if not self._requests[peer]:
                    del self._requests[peer]

    def take(self, size: int) -> None:
        """See :meth:`Place.take`."""
        limit = self.limits.max_in_flight_bytes
        self._recent = max(self._recent, self.bytes + size)
        self._peak = max(self._peak, self._recent)
        if self.bytes and self.bytes + size > limit:
            message = f"requests of {limit >> 20} MiB are under way (--max_in_flight_mb)"
            raise Refused(message, "TOO_MANY_BYTES", with_jitter(0.1))
        self.bytes += size

    def take_pixels(self, pixels: int) -> None:
        """See :meth:`Place.take_pixels`."""
        limit = self.limits.max_in_flight_pixels
        if pixels > limit:
            description = (
                f"{pixels} pixels in one message, the server decodes {limit} at a time "
                "(--max_in_flight_mpx); send fewer observations in one"
            )
            raise FieldError("images", description, "TOO_MANY_PIXELS")
        if self.pixels + pixels > limit:
            message = f"pictures of {self.pixels / 1e6:.3g} megapixels are under way (--max_in_flight_mpx)"
            raise Refused(message, "TOO_MANY_PIXELS", with_jitter(0.1))
        self.pixels += pixels
