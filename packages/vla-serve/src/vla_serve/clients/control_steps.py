"""How many control steps pass from one request to the next, checked against chunk and delay."""

from __future__ import annotations

import math

from vla_core.errors import UserError


def default_execute_steps(horizon: int) -> int:
    """Half of the chunk, rounded up: the later half is planned from the older observation."""
    return math.ceil(horizon / 2)


def checked_execute_steps(
    execute_steps: int | None, horizon: int, delay: int = 0, most: int | None = None, ensemble: bool = False
) -> int:
    """Control steps from one request to the next.

    Args:
        execute_steps: as asked for; None: half of the chunk, or with an ensemble as few as there can be.
        horizon: steps of a chunk.
        delay: of an answer, in control steps.
        most: longest delay that the policy bridges; None: as long as the chunk does.
        ensemble: the chunks are averaged.

    Raises:
        UserError: a delay or a number of steps that does not fit.
    """
    if not 0 <= delay <= horizon // 2:
        raise UserError(
            f"delay_steps: {delay} is outside 0 to {horizon // 2}: half of a chunk of {horizon} steps is "
            "executed while the next one is computed, at most"
        )
    if most is not None and delay > most:
        raise UserError(f"delay_steps: {delay}; this policy bridges at most {most}")
    least = max(1, delay)
    wanted = execute_steps
    if wanted is None:
        wanted = least if ensemble else default_execute_steps(horizon)
    if wanted < least:
        why = " (delay_steps: one request at a time)" if delay > 1 else ""
        raise UserError(f"execute_steps: must be at least {least}{why}, got {wanted}")
    if wanted > horizon - delay:
        left = f"; a delay of {delay} leaves {horizon - delay}" if delay else ""
        raise UserError(f"execute_steps: {wanted}, but a chunk has {horizon} steps{left}")
    return wanted
