"""How large a request of a contract can be: what is larger is refused before it is read."""

from __future__ import annotations

from collections.abc import Iterable

from vla_core.errors import UserError
from vla_core.specs import RobotSpec

SMALL = 2**17
"""Bytes of all that is no picture: names, instruction, state, matrices, view keys."""

BATCH_ROOM = 8
"""A request for several chunks may be so many times as large as the largest one for one: what is received
of all connections together has a bound, and a client sends more in several calls at a time."""


def pixels_of(spec: RobotSpec) -> int:
    """Of the pictures of one observation."""
    return sum(camera.height * camera.width for camera in spec.observation.cameras)


def largest_request(specs: Iterable[RobotSpec]) -> int:
    """Bytes of the largest request that fits one of ``specs``: raw images and depth.

    A PNG of noise is a little larger than its pixels, and so is allowed for.
    """
    sizes = []
    for spec in specs:
        small = SMALL + 8 * spec.observation.state_dim + 1024 * len(spec.observation.cameras)
        sizes.append(small + int(1.05 * pixels_of(spec) * (3 + 4)))
    return max(sizes)


class Sizes:
    """What the messages of a server may be, by the contracts that it starts with.

    Args:
        specs: those contracts.
        most: bytes that the operator allows a request.
        pixels: of pictures under way that the operator allows.

    Raises:
        UserError: an observation of one of them has more pixels.
    """

    def __init__(self, specs: Iterable[RobotSpec], most: int, pixels: int) -> None:
        specs = list(specs)
        self._pixels = pixels
        self.request = min(most, largest_request(specs))
        """Bytes of a request for one chunk."""
        self.batch = max(self.request, min(most, BATCH_ROOM * self.request))
        """Bytes of one for several."""
        self._check_pixels(specs)

    def check(self, specs: Iterable[RobotSpec]) -> None:
        """Raise :class:`UserError` for contracts whose requests this server would not take."""
        specs = list(specs)
        size = largest_request(specs)
        if size > self.request:
            raise UserError(
                f"requests of this policy take up to {size} bytes, the server was started for "
                f"{self.request}; start it with this policy, or one with as large images"
            )
        self._check_pixels(specs)

    def _check_pixels(self, specs: Iterable[RobotSpec]) -> None:
        needed = max(pixels_of(spec) for spec in specs)
        if needed > self._pixels:
            raise UserError(
                f"max_in_flight_mpx: one observation has {needed / 1e6:.3g} megapixels, the server takes "
                f"{self._pixels / 1e6:.3g} at a time"
            )
