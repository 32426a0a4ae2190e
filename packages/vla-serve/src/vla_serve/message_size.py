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


def largest_request(specs: Iterable[RobotSpec]) -> int:
    """Bytes of the largest request that fits one of ``specs``: raw images and depth.

    A PNG of noise is a little larger than its pixels, and so is allowed for.
    """
    sizes = []
    for spec in specs:
        pixels = sum(camera.height * camera.width for camera in spec.observation.cameras)
        small = SMALL + 8 * spec.observation.state_dim + 1024 * len(spec.observation.cameras)
        sizes.append(small + int(1.05 * pixels * (3 + 4)))
    return max(sizes)


def check_size(specs: Iterable[RobotSpec], limit: int) -> None:
    """Raise :class:`UserError` for contracts whose requests this server would not take."""
    size = largest_request(specs)
    if size > limit:
        raise UserError(
            f"requests of this policy take up to {size} bytes, the server was started for {limit}; "
            "start it with this policy, or one with as large images"
        )
