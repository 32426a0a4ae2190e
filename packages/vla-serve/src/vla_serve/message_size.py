"""How large a request of a contract can be: what is larger is refused before it is read."""

from __future__ import annotations

from collections.abc import Iterable

from vla_core.specs import RobotSpec

SMALL = 2**17
"""Bytes of all that is no picture: names, instruction, state, matrices, view keys."""


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
