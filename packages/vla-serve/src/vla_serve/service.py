"""The RPCs: from messages to the engine and back. Shapes: T steps, A action dims."""

from __future__ import annotations

import asyncio
import importlib.metadata
import logging
import threading
import time
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import grpc
import numpy as np
from vla_core.errors import SpecMismatch, UserError, suggest
from vla_core.specs import RobotSpec, check_action, check_observation
from vla_core.types import ActionChunk

from vla_serve.codec import encode_tensor
from vla_serve.engine.engine import Engine
from vla_serve.engine.errors import DeadlinePassed, FieldError, NotServing
from vla_serve.engine.kept_chunks import CHUNKS_KEPT, check_carries_over
from vla_serve.engine.policy import Row, longest_delay
from vla_serve.engine.sessions import Session, Sessions
from vla_serve.engine.ticket import Answer
from vla_serve.observation_codec import MAX_INSTRUCTION
from vla_serve.predict_request import decode_request, steps_of
from vla_serve.rpc import RpcLimits, Rpcs
from vla_serve.spec_codec import decode_action_spec, decode_observation_spec, encode_spec
from vla_serve.status import invalid, mismatch, unsupported
from vla_serve.v1 import policy_pb2 as pb

log = logging.getLogger("vla_serve.server")

SERVICE: str = pb.DESCRIPTOR.services_by_name["PolicyService"].full_name


@dataclass(frozen=True)
class ServiceSettings:
    """What the service tells and enforces.

    Args:
        name: of the policy in requests.
        denoise_steps: for requests that say nothing; None: the policy's own.
        max_denoise_steps: most that a request may ask for.
        max_message_bytes: told to clients; gRPC enforces it.
    """

    name: str
    denoise_steps: int | None
    max_denoise_steps: int
    max_message_bytes: int


class PolicyService:
    """Serves one policy; its methods run in the event loop and never compute."""

    def __init__(
        self, engine: Engine, sessions: Sessions, settings: ServiceSettings, limits: RpcLimits
    ) -> None:
        self._engine, self._sessions, self._settings, self._limits = engine, sessions, settings, limits
        self._specs: Mapping[str, RobotSpec] = dict(engine.policy.specs)
        self._version = importlib.metadata.version("vla-serve")
        self.draining = False

    def handler(self, rpcs: Rpcs) -> grpc.GenericRpcHandler[Any, Any]:
        """What a server adds."""
        free = partial(rpcs.unary, counted=False)
        methods = {
            "GetServerInfo": free(pb.GetServerInfoRequest, self.GetServerInfo),
            "GetPolicyContract": free(pb.GetPolicyContractRequest, self.GetPolicyContract),
            "OpenSession": rpcs.unary(pb.OpenSessionRequest, self.OpenSession),
            "ResetSession": rpcs.unary(pb.ResetSessionRequest, self.ResetSession),
            "CloseSession": rpcs.unary(pb.CloseSessionRequest, self.CloseSession),
            "HoldSession": rpcs.stream(pb.HoldSessionRequest, self.HoldSession),
            "Predict": rpcs.unary(pb.PredictRequest, self.Predict),
        }
        return grpc.method_handlers_generic_handler(SERVICE, methods)

    async def GetServerInfo(self, request: pb.GetServerInfoRequest, context: Any) -> pb.GetServerInfoResponse:
        """What the server is, serves and allows."""
        policy = pb.PolicyInfo(
            name=self._settings.name,
            framework=self._engine.policy.framework,
            embodiments=sorted(self._specs),
        )
        return pb.GetServerInfoResponse(
            server_version=self._version,
            policies=[policy],
            max_message_bytes=self._settings.max_message_bytes,
            max_queue=self._engine.max_queue,
            max_sessions=self._sessions.limit,
            session_idle_timeout_s=self._sessions.idle_s,
            limits=self._said_limits(),
        )

    def _said_limits(self) -> pb.Limits:
        return pb.Limits(
            max_denoise_steps=self._settings.max_denoise_steps,
            max_in_flight=self._limits.max_in_flight,
            max_batch=self._engine.max_batch,
            max_in_flight_bytes=self._limits.max_in_flight_bytes,
            body_timeout_s=self._limits.body_timeout_s,
        )

    async def GetPolicyContract(
        self, request: pb.GetPolicyContractRequest, context: Any
    ) -> pb.GetPolicyContractResponse:
        """The contract of one embodiment."""
        spec = self._find(request.policy, request.embodiment, "")
        return pb.GetPolicyContractResponse(policy=self._settings.name, contract=encode_spec(spec))

    async def OpenSession(self, request: pb.OpenSessionRequest, context: Any) -> pb.OpenSessionResponse:
        """The handshake."""
        self._check_serving()
        config = request.config
        spec = self._find(config.policy, config.embodiment, "config.")
        _handshake(config, spec)
        limit = self._longest_delay(spec, config.real_time_chunking)
        session = self._sessions.open(spec, _owner(context))
        log.info(
            "session opened id=%s... embodiment=%s peer=%s", session.id[:8], spec.embodiment, context.peer()
        )
        reply = pb.OpenSessionResponse(
            session_id=session.id,
            policy=self._settings.name,
            contract=encode_spec(spec),
            max_message_bytes=self._settings.max_message_bytes,
            idle_timeout_s=self._sessions.idle_s,
            limits=self._said_limits(),
        )
        if limit is not None:
            reply.real_time_chunking.max_delay_steps = limit
            reply.real_time_chunking.chunks_kept = CHUNKS_KEPT
        return reply

    async def HoldSession(
        self, request: pb.HoldSessionRequest, context: Any
    ) -> AsyncIterator[pb.HoldSessionResponse]:
        """Until the client goes."""
        with self._sessions.hold(request.session_id, _owner(context)):
            yield pb.HoldSessionResponse()
            await asyncio.Event().wait()  # the call is cancelled when the client goes, or the server stops

    async def ResetSession(self, request: pb.ResetSessionRequest, context: Any) -> pb.ResetSessionResponse:
        """A new episode."""
        self._check_serving()
        if len(request.instruction) > MAX_INSTRUCTION:
            raise FieldError("instruction", f"longer than {MAX_INSTRUCTION} characters")
        self._sessions.reset(request.session_id, request.instruction, _owner(context))
        return pb.ResetSessionResponse()

    async def CloseSession(self, request: pb.CloseSessionRequest, context: Any) -> pb.CloseSessionResponse:
        """Forget the session."""
        self._sessions.close(request.session_id, _owner(context))
        log.info("session closed id=%s...", request.session_id[:8])
        return pb.CloseSessionResponse()

    async def Predict(self, request: pb.PredictRequest, context: Any) -> pb.PredictResponse:
        """One chunk."""
        arrived, remaining = time.monotonic(), context.time_remaining()
        if remaining is not None and remaining > threading.TIMEOUT_MAX:
            remaining = None  # a client without deadline: gRPC says some centuries
        self._check_serving()
        session = self._sessions.get(request.session_id, _owner(context))
        episode = session.episode
        steps = steps_of(request, self._settings.denoise_steps, self._settings.max_denoise_steps)
        step = request.step if request.HasField("step") else None
        if step is not None:
            self._sessions.advance(episode, step)
        policy = self._engine.policy
        future = self._engine.submit(
            session.id,
            partial(decode_request, request, policy, session.spec, episode, steps),
            steps=steps,
            deadline=None if remaining is None else arrived + remaining,
            supersedes=request.supersedes,
        )
        try:
            # A client that went away cancels this call, and with it the request, wherever it waits.
            answer = await asyncio.wait_for(asyncio.wrap_future(future), remaining)
        except asyncio.TimeoutError:
            future.cancel()
            raise DeadlinePassed from None
        self._engine.replied(answer)
        _check_actions(answer.chunk, session.spec, answer.row)
        return self._reply(
            answer, session, episode.chunks.put(answer.chunk, answer.row.observation.state, step), arrived
        )

    @staticmethod
    def _reply(answer: Answer, session: Session, chunk_id: str, arrived: float) -> pb.PredictResponse:
        row = answer.row
        return pb.PredictResponse(
            actions=encode_tensor(answer.chunk.actions, "actions"),
            seed=row.seed,
            chunk_id=chunk_id,
            frozen_steps=row.previous.n_frozen if row.previous is not None else 0,
            timings=pb.ServerTimings(
                queue_ms=answer.queue_ms,
                decode_ms=answer.decode_ms,
                prepare_ms=answer.prepare_ms,
                model_ms=answer.model_ms,
                finish_ms=answer.finish_ms,
                total_ms=(time.monotonic() - arrived) * 1000,
                batch=answer.batch,
                queue_depth=answer.depth,
            ),
        )

    def _check_serving(self) -> None:
        if self.draining:
            raise NotServing("the server is shutting down")

    def _find(self, policy: str, embodiment: str, prefix: str) -> RobotSpec:
        name = self._settings.name
        if policy not in ("", name):
            raise invalid(f"{prefix}policy", f"'{policy[:64]}' is not served{suggest(policy[:64], [name])}")
        if not embodiment:
            if len(self._specs) == 1:
                return next(iter(self._specs.values()))
            raise invalid(f"{prefix}embodiment", f"name one of {', '.join(sorted(self._specs))}")
        if embodiment not in self._specs:
            raise invalid(
                f"{prefix}embodiment",
                f"the policy has no '{embodiment[:64]}'{suggest(embodiment[:64], self._specs)}",
            )
        return self._specs[embodiment]

    def _longest_delay(self, spec: RobotSpec, wanted: bool) -> int | None:
        """What the policy can bridge; None: it cannot continue a chunk, and nobody ``wanted`` it."""
        try:
            check_carries_over(spec)
            return longest_delay(self._engine.policy, spec.embodiment)
        except UserError as error:
            if wanted:
                raise unsupported("config.real_time_chunking", str(error)) from None
            return None


def _owner(context: Any) -> str:
    """Who calls, where the connection proves it: the subject of the client's certificate."""
    names = context.auth_context().get("x509_common_name", ())
    return ",".join(name.decode(errors="replace") for name in names)


def _handshake(config: pb.SessionConfig, spec: RobotSpec) -> None:
    who = ("the policy", "the client")
    try:
        if config.HasField("observation_spec"):
            got = decode_observation_spec(config.observation_spec, "config.observation_spec")
            check_observation(spec.observation, got, who)
        if config.HasField("action_spec"):
            got_action = decode_action_spec(config.action_spec, "config.action_spec")
            check_action(spec.action, got_action, who, horizon=False)
    except SpecMismatch as error:
        raise mismatch(str(error)) from None


def _check_actions(chunk: ActionChunk, spec: RobotSpec, row: Row) -> None:
    """A chunk that breaks the contract never reaches a robot."""
    expected = (spec.action.horizon, spec.action.dim)
    actions_TA = chunk.actions
    if actions_TA.shape != expected or actions_TA.dtype != np.float32:
        raise ValueError(
            f"the policy answered {actions_TA.dtype} {actions_TA.shape}, its contract says float32 {expected}"
        )
    if not np.isfinite(actions_TA).all():
        raise ValueError("the policy answered NaN or infinity")
    kept = row.previous
    if kept is not None and (actions_TA[: kept.n_frozen] != kept.actions[: kept.n_frozen]).any():
        raise ValueError(f"the policy did not keep the {kept.n_frozen} frozen steps of the previous chunk")
