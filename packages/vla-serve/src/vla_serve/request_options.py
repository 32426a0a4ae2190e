"""What a client asks besides its observation, checked before it is sent."""

from __future__ import annotations

from collections.abc import Mapping

from vla_serve.chunks import Continuation
from vla_serve.client_errors import PolicyClientError
from vla_serve.v1 import policy_pb2 as pb


def write_options(
    request: pb.PredictRequest, seed: int | None, step: int | None, denoise_steps: int | None
) -> None:
    """Whole numbers within what their fields hold.

    Raises:
        PolicyClientError: naming the field.
    """
    for field, value, limit in (
        ("seed", seed, 2**63),
        ("step", step, 2**32),
        ("denoise_steps", denoise_steps, 1001),
    ):
        if value is not None:
            setattr(request, field, _within(value, limit, field))


def write_previous(request: pb.PredictRequest, previous: Continuation | None) -> None:
    """The chunk that the answer continues."""
    if previous is None:
        return
    request.previous.chunk_id = previous.chunk_id
    request.previous.executed_steps = _within(previous.executed_steps, 2**32, "previous.executed_steps")
    request.previous.delay_steps = _within(previous.delay_steps, 2**32, "previous.delay_steps")


def write_view_keys(request: pb.PredictRequest, view_keys: Mapping[str, str] | None) -> None:
    """Keys of pictures by camera."""
    for camera, key in (view_keys or {}).items():
        if not isinstance(key, str):
            field, description = f"view_keys[{camera}]", f"{key!r} must be a text"
            raise PolicyClientError(f"{field}: {description}", {field: description})
        request.view_keys[camera] = key


def _within(value: int, limit: int, field: str) -> int:
    if isinstance(value, str) or not 0 <= value < limit or int(value) != value:
        description = f"{value} is no whole number in 0 to {limit - 1}"
        raise PolicyClientError(f"{field}: {description}", {field: description})
    return int(value)
