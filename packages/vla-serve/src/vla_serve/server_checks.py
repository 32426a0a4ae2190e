"""The numbers that a server is started with, each within what makes sense."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from vla_core.errors import UserError

from vla_serve.clients.arguments import within
from vla_serve.rpcs.predict_request import MAX_DENOISE_STEPS

_RANGES: dict[str, tuple[int, int]] = {
    "port": (0, 65535),
    "admin_port": (0, 65535),
    "metrics_port": (0, 65535),
    "max_queue": (0, 10_000),
    "max_batch": (1, 1024),
    "batch_wait_ms": (0, 10_000),
    "max_sessions": (1, 100_000),
    "max_denoise_steps": (1, MAX_DENOISE_STEPS),
    "max_message_mb": (1, 1024),
    "max_in_flight": (1, 100_000),
    "max_in_flight_mb": (1, 2**20),
    "max_in_flight_mpx": (1, 2**20),
    "dashboard": (0, 65535),
}


def check_options(options: Mapping[str, Any]) -> None:
    """Raise :class:`UserError` for an option of ``PolicyServer`` that makes no sense, by name."""
    ranges = {**_RANGES, "denoise_steps": (1, options["max_denoise_steps"])}
    for option, (low, high) in ranges.items():
        within(option, options[option], low, high)
    for option in ("session_idle_s", "body_timeout_s", "model_timeout_s"):
        if not options[option] > 0:
            raise UserError(f"{option}: must be positive, got {options[option]}")
    if not options["policies"]:
        raise UserError("policy: there is none to serve")
