"""What a PredictRequest asks of the policy, every field checked. Shapes: T steps."""

from __future__ import annotations

import secrets

from vla_core.errors import UserError, suggest
from vla_core.specs import RobotSpec
from vla_core.types import Observation, PreviousChunk

from vla_serve.engine.errors import FieldError
from vla_serve.engine.kept_chunks import carry_over
from vla_serve.engine.policy import Described, Row, camera_inputs, check_view_keys, longest_delay
from vla_serve.engine.sessions import SessionEpisode
from vla_serve.messages.observation_codec import decode_observation
from vla_serve.v1 import policy_pb2 as pb

MAX_DENOISE_STEPS = 1000
MAX_VIEW_KEY = 256
"""Most characters of a view key."""


def steps_of(request: pb.PredictRequest, default: int | None, limit: int) -> int | None:
    """Denoise steps of a request; :class:`FieldError` when they are more than the operator allows."""
    steps = request.denoise_steps if request.HasField("denoise_steps") else default
    if steps is not None and not 1 <= steps <= limit:
        raise FieldError("denoise_steps", f"{steps} is outside 1 to {limit}")
    return steps


def decode_request(
    request: pb.PredictRequest, policy: Described, spec: RobotSpec, episode: SessionEpisode, steps: int | None
) -> Row:
    """The row that a request of ``episode`` is; a seed is drawn if it has none.

    Raises:
        FieldError: what is wrong, and where.
    """
    seed = request.seed if request.HasField("seed") else secrets.randbits(63)
    if seed >= 2**63:
        raise FieldError("seed", f"{seed} is not below 2^63")
    observation = decode_observation(
        *(request.observation, spec.observation, spec.embodiment, episode.instruction),
        camera_inputs=camera_inputs(policy),
    )
    keys = _view_keys(request, policy, spec, episode)
    previous = _previous(request, policy, spec, episode, observation)
    return Row(observation, seed, keys, previous, steps)


def _previous(
    request: pb.PredictRequest,
    policy: Described,
    spec: RobotSpec,
    episode: SessionEpisode,
    observation: Observation,
) -> PreviousChunk | None:
    """What is left of the chunk being executed, as seen from the observation."""
    if not request.HasField("previous"):
        return None
    try:
        longest = longest_delay(policy, spec.embodiment)
    except UserError as error:
        raise FieldError("previous", str(error), "UNSUPPORTED") from None
    previous, horizon = request.previous, spec.action.horizon
    for field in ("executed_steps", "delay_steps"):
        if not previous.HasField(field):
            raise FieldError(f"previous.{field}", "missing; 0 must be said too")
    kept = episode.chunks.get(previous.chunk_id)
    executed, delay = previous.executed_steps, previous.delay_steps
    if executed >= horizon:
        description = (
            f"{executed} of the chunk's {horizon} steps leave nothing to continue; leave previous out"
        )
        raise FieldError("previous.executed_steps", description)
    if not request.HasField("step"):
        raise FieldError("step", "missing; with previous it is compared with executed_steps")
    if kept.step is None:
        raise FieldError(
            "previous.chunk_id", "the request that this chunk answered had no step; send it always"
        )
    if request.step - kept.step != executed:
        description = (
            f"{executed}, but step {request.step} comes {request.step - kept.step} after step {kept.step}, "
            "whose observation the chunk answered"
        )
        raise FieldError("previous.executed_steps", description)
    if delay > horizon - executed:
        description = (
            f"{delay}, but {horizon - executed} of the chunk's {horizon} steps are left; request earlier"
        )
        raise FieldError("previous.delay_steps", description)
    if delay > longest:
        raise FieldError(
            "previous.delay_steps", f"{delay}; this policy bridges at most {longest} of {horizon} steps"
        )
    try:
        return PreviousChunk(carry_over(kept, executed, observation.state, spec), delay)
    except UserError as error:
        raise FieldError("previous", str(error), "UNSUPPORTED") from None


def _view_keys(
    request: pb.PredictRequest, policy: Described, spec: RobotSpec, episode: SessionEpisode
) -> dict[str, str] | None:
    """Keys that no other episode, session or camera can say."""
    if not request.view_keys:
        return None
    cameras = [camera.name for camera in spec.observation.cameras]
    for camera, key in request.view_keys.items():
        if camera not in cameras:
            raise FieldError(f"view_keys[{camera[:64]}]", f"no such camera{suggest(camera[:64], cameras)}")
        if not 1 <= len(key) <= MAX_VIEW_KEY:
            raise FieldError(f"view_keys[{camera}]", f"{len(key)} characters, expected 1 to {MAX_VIEW_KEY}")
    try:
        check_view_keys(policy)
    except UserError as error:
        raise FieldError("view_keys", str(error).removeprefix("view_keys: "), "UNSUPPORTED") from None
    return {camera: f"{episode.name}/{camera}/{key}" for camera, key in request.view_keys.items()}
