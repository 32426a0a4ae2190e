"""What a client asks besides its observation, checked before it is sent."""

from __future__ import annotations

from collections.abc import Mapping

from vla_serve.clients.arguments import text, whole, wrong
from vla_serve.clients.chunks import Continuation
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
            setattr(request, field, whole(value, limit, field))


def write_previous(request: pb.PredictRequest, previous: Continuation | None) -> None:
    """The chunk that the answer continues."""
    if previous is None:
        return
    if not isinstance(previous, Continuation):
        raise wrong("previous", f"a {type(previous).__name__}, expected chunk.after(executed, delay)")
    request.previous.chunk_id = previous.chunk_id
    request.previous.executed_steps = whole(previous.executed_steps, 2**32, "previous.executed_steps")
    request.previous.delay_steps = whole(previous.delay_steps, 2**32, "previous.delay_steps")


def write_view_keys(request: pb.PredictRequest, view_keys: Mapping[str, str] | None) -> None:
    """Keys of pictures by camera."""
    if view_keys is not None and not isinstance(view_keys, Mapping):
        raise wrong("view_keys", f"a {type(view_keys).__name__}, expected camera name -> key")
    for camera, key in (view_keys or {}).items():
        request.view_keys[text(camera, "view_keys")] = text(key, f"view_keys[{camera}]")
