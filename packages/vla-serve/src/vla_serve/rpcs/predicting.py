"""From a PredictRequest to its chunk, whichever RPC it came by. Shapes: T steps, A action dims."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Hashable
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from vla_core.errors import UserError
from vla_core.specs import RobotSpec
from vla_core.types import ActionChunk

from vla_serve.engine.errors import DeadlinePassed, FieldError
from vla_serve.engine.policy import Row
from vla_serve.engine.sessions import Session, SessionEpisode, Sessions
from vla_serve.engine.shelf import Served, Shelf
from vla_serve.engine.ticket import Answer
from vla_serve.messages.codec import encode_tensor
from vla_serve.messages.observation_codec import check_range
from vla_serve.messages.status import without_paths
from vla_serve.observability.watching import Watcher
from vla_serve.rpcs.predict_request import decode_request, steps_of
from vla_serve.v1 import policy_pb2 as pb
from vla_serve.v1 import types_pb2 as types_pb

log = logging.getLogger("vla_serve.server")


@dataclass(frozen=True)
class Caller:
    """Who asks, and until when the answer is of use.

    Args:
        owner: as the connection proves it; see :class:`~vla_serve.engine.sessions.Session`.
        request_id: names the request in the log.
        arrived: on the monotonic clock.
        deadline: on the same, or None.
    """

    owner: str
    request_id: str
    arrived: float
    deadline: float | None


class Predictor:
    """Answers requests in the event loop: what computes is the engine, elsewhere unless it is quick.

    Args:
        denoise_steps: for requests that say nothing; None: the policy's own.
        max_denoise_steps: most that a request may ask for.
    """

    def __init__(
        self,
        shelf: Shelf,
        sessions: Sessions,
        denoise_steps: int | None,
        max_denoise_steps: int,
        watcher: Watcher | None = None,
    ) -> None:
        self._shelf, self._sessions, self._watcher = shelf, sessions, watcher or Watcher()
        self._steps, self._max_steps = denoise_steps, max_denoise_steps

    def pixels(self, *requests: pb.PredictRequest) -> int:
        """Of all pictures, as they will be decoded.

        What a file says of itself is compared with what the request says, and that with the contract, before
        anything is decoded: a picture larger than any contract's is refused there, by its name.
        """
        largest = self._shelf.largest_picture
        sizes = [i.height * i.width for request in requests for i in request.observation.images.values()]
        return sum(size for size in sizes if size <= largest)

    def session(self, session_id: str, caller: Caller) -> Session:
        """The caller's session."""
        self._shelf.check_serving()
        return self._sessions.get(session_id, caller.owner)

    async def __call__(
        self, request: pb.PredictRequest, caller: Caller, session: Session
    ) -> pb.PredictResponse:
        """The chunk.

        Raises:
            FieldError: what is wrong with the request.
            EngineError: why there is no answer.
        """
        episode = session.episode
        wanted = steps_of(request, self._steps, self._max_steps)
        step = request.step if request.HasField("step") else None
        if step is not None:
            self._sessions.advance(episode, step)
        served = self._shelf.current(session.policy)
        engine, steps = served.engine, served.engine.steps(wanted)
        # Nothing is awaited between the two: no other revision can take this one's place here.
        future = engine.submit(
            session.id,
            partial(decode_request, request, engine.policy, session.spec, episode, steps),
            steps=steps,
            deadline=caller.deadline,
            step=step,
            supersedes=request.supersedes,
            alike=_alike(request, session, episode),
        )
        left = None if caller.deadline is None else max(0.0, caller.deadline - time.monotonic())
        try:
            # A client that went away cancels this call, and with it the request, wherever it waits.
            answer = await asyncio.wait_for(asyncio.wrap_future(future), left)
        except asyncio.TimeoutError:
            future.cancel()
            raise DeadlinePassed from None
        except FieldError:
            raise
        except UserError as error:  # the policy's own, which may name files beside cameras
            raise FieldError("observation", without_paths(str(error), names_of(session.spec))) from error
        engine.replied(answer)
        notes = list(session.reach.lines(answer.row.observation))
        for line in notes:
            log.warning("session %s, request %s: %s", session.id, caller.request_id, line)
        check_actions(answer.chunk, session.spec, answer.row)
        chunk_id = episode.chunks.put(answer.chunk, answer.row.observation.state, step)
        reply = _reply(answer, served, chunk_id, caller)
        reply.notes.extend(notes)
        self._watcher.answered(session, answer, reply.timings.total_ms, caller.request_id)
        return reply

    def executed(self, report: pb.ExecutedSteps, session: Session) -> None:
        """A robot says how far it is; see ``ExecutedSteps`` in policy.proto.

        Raises:
            FieldError: what is wrong with the report.
        """
        episode = session.episode
        episode.chunks.get(report.chunk_id, "executed.chunk_id")
        horizon = session.spec.action.horizon
        if report.executed_steps > horizon:
            description = f"{report.executed_steps}, but a chunk has {horizon} steps"
            raise FieldError("executed.executed_steps", description)
        if report.HasField("step"):
            self._sessions.advance(episode, report.step, "executed.step")
            self._shelf.current(session.policy).engine.drop_past(session.id, report.step)
        episode.chunks.forget_before(report.chunk_id)
        self._watcher.executed(session.policy, report.executed_steps)


def _alike(request: pb.PredictRequest, session: Session, episode: SessionEpisode) -> Hashable:
    """What takes about as long to prepare has the same; None where a picture must be unpacked first."""
    seen = request.observation
    if any(image.encoding != types_pb.IMAGE_ENCODING_RAW for image in seen.images.values()):
        return None
    more = (bool(seen.depth), request.HasField("previous"), bool(request.view_keys))
    return session.spec.embodiment, seen.instruction or episode.instruction, more


def names_of(spec: RobotSpec) -> frozenset[str]:
    """Cameras and groups of a contract."""
    seen, groups = spec.observation, (*spec.observation.state, *spec.action.groups)
    return frozenset([camera.name for camera in seen.cameras] + [group.name for group in groups])


def revision_of(served: Served) -> pb.PolicyRevision:
    """What a reply says of who answered."""
    return pb.PolicyRevision(
        policy=served.name,
        revision=served.revision,
        weights_digest=served.digests.weights,
        statistics_digest=served.digests.statistics,
        data_digest=served.digests.data,
        checkpoint=served.digests.checkpoint,
    )


def _reply(answer: Answer, served: Served, chunk_id: str, caller: Caller) -> pb.PredictResponse:
    row = answer.row
    return pb.PredictResponse(
        actions=encode_tensor(answer.chunk.actions, "actions"),
        seed=row.seed,
        chunk_id=chunk_id,
        frozen_steps=row.previous.n_frozen if row.previous is not None else 0,
        revision=revision_of(served),
        request_id=caller.request_id,
        timings=pb.ServerTimings(
            queue_ms=answer.queue_ms,
            decode_ms=answer.decode_ms,
            prepare_ms=answer.prepare_ms,
            model_ms=answer.model_ms,
            finish_ms=answer.finish_ms,
            total_ms=(time.monotonic() - caller.arrived) * 1000,
            batch=answer.batch,
            queue_depth=answer.depth,
        ),
    )


def check_actions(chunk: ActionChunk, spec: RobotSpec, row: Row) -> None:
    """A chunk that breaks the contract never reaches a robot."""
    expected = (spec.action.horizon, spec.action.dim)
    actions_TA: Any = chunk.actions
    if actions_TA.shape != expected or actions_TA.dtype != np.float32:
        raise ValueError(
            f"the policy answered {actions_TA.dtype} {actions_TA.shape}, its contract says float32 {expected}"
        )
    if not np.isfinite(actions_TA).all():
        check_range(row.observation, spec)
        raise ValueError("the policy answered NaN or infinity")
    kept = row.previous
    if kept is not None and (actions_TA[: kept.n_frozen] != kept.actions[: kept.n_frozen]).any():
        raise ValueError(f"the policy did not keep the {kept.n_frozen} frozen steps of the previous chunk")
