"""The RPCs: checks, decoding, hand-over to the model thread, encoding. Shapes: T steps, A action dims."""

from __future__ import annotations

import importlib.metadata
import logging
import secrets
import threading
import time
from collections.abc import Mapping
from concurrent.futures import CancelledError
from concurrent.futures import TimeoutError as FutureTimeout
from types import TracebackType
from typing import Any

import grpc
import numpy as np
from vla_core.errors import SpecMismatch, UserError, suggest
from vla_core.specs import RobotSpec, check_action, check_observation
from vla_core.types import ActionChunk

from vla_serve.codec import FieldError, encode_tensor
from vla_serve.kept_chunks import CHUNKS_KEPT, check_carries_over
from vla_serve.model_queue import Answer, DeadlinePassed, ModelQueue
from vla_serve.observation_codec import MAX_INSTRUCTION
from vla_serve.policy_protocol import Policy, Row, longest_delay
from vla_serve.predict_request import decode_request
from vla_serve.sessions import Sessions
from vla_serve.spec_codec import decode_action_spec, decode_observation_spec, encode_spec
from vla_serve.status import RpcFailure, internal, invalid, mismatch, to_wire, unsupported
from vla_serve.v1 import policy_pb2 as pb
from vla_serve.v1.policy_pb2_grpc import PolicyServiceServicer

log = logging.getLogger("vla_serve.server")


class _Boundary:
    """Turns whatever leaves an RPC into a status; only an id of an unexpected error gets out."""

    def __init__(self, context: grpc.ServicerContext, rpc: str) -> None:
        self._context, self._rpc = context, rpc

    def __enter__(self) -> None:
        return None

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is None or not isinstance(error, Exception):
            return
        if isinstance(error, FieldError):
            error = invalid(error.field, error.description)
        if not isinstance(error, RpcFailure):
            request_id = secrets.token_hex(8)
            log.error("%s failed id=%s", self._rpc, request_id, exc_info=error)
            error = internal(request_id)
        elif error.code is not grpc.StatusCode.CANCELLED:
            log.info("%s refused: %s: %s", self._rpc, error.code.name, error.message)
        self._context.abort_with_status(to_wire(error))


class PolicyServicer(PolicyServiceServicer):
    """Serves one policy.

    Args:
        policy: what is served.
        name: its name in requests.
        queue: runs it.
        sessions: open sessions.
        denoise_steps: for requests that say nothing; None: the policy's own.
        max_message_bytes: told to clients; gRPC enforces it.
    """

    def __init__(
        self,
        policy: Policy,
        name: str,
        queue: ModelQueue,
        sessions: Sessions,
        denoise_steps: int | None,
        max_message_bytes: int,
    ) -> None:
        self._policy = policy
        self._specs: Mapping[str, RobotSpec] = dict(policy.specs)
        self._framework, self._name = policy.framework, name
        self._queue, self._sessions = queue, sessions
        self._denoise_steps, self._max_message_bytes = denoise_steps, max_message_bytes
        self._version = importlib.metadata.version("vla-serve")

    def GetServerInfo(self, request: pb.GetServerInfoRequest, context: Any) -> pb.GetServerInfoResponse:
        with _Boundary(context, "GetServerInfo"):
            policy = pb.PolicyInfo(
                name=self._name, framework=self._framework, embodiments=sorted(self._specs)
            )
            return pb.GetServerInfoResponse(
                server_version=self._version,
                policies=[policy],
                max_message_bytes=self._max_message_bytes,
                max_queue=self._queue.limit,
                max_sessions=self._sessions.limit,
                session_idle_timeout_s=self._sessions.idle_s,
            )

    def GetPolicyContract(
        self, request: pb.GetPolicyContractRequest, context: Any
    ) -> pb.GetPolicyContractResponse:
        with _Boundary(context, "GetPolicyContract"):
            spec = self._find(request.policy, request.embodiment, "")
            return pb.GetPolicyContractResponse(policy=self._name, contract=encode_spec(spec))

    def OpenSession(self, request: pb.OpenSessionRequest, context: Any) -> pb.OpenSessionResponse:
        with _Boundary(context, "OpenSession"):
            config = request.config
            spec = self._find(config.policy, config.embodiment, "config.")
            self._handshake(config, spec)
            limit = self._longest_delay(spec, config.real_time_chunking)
            session = self._sessions.open(spec)
            log.info(
                "session opened id=%s embodiment=%s peer=%s", session.id, spec.embodiment, context.peer()
            )
            reply = pb.OpenSessionResponse(
                session_id=session.id,
                policy=self._name,
                contract=encode_spec(spec),
                max_message_bytes=self._max_message_bytes,
                idle_timeout_s=self._sessions.idle_s,
            )
            if limit is not None:
                reply.real_time_chunking.max_delay_steps = limit
                reply.real_time_chunking.chunks_kept = CHUNKS_KEPT
            return reply

    def ResetSession(self, request: pb.ResetSessionRequest, context: Any) -> pb.ResetSessionResponse:
        with _Boundary(context, "ResetSession"):
            if len(request.instruction) > MAX_INSTRUCTION:
                raise invalid("instruction", f"longer than {MAX_INSTRUCTION} characters")
            self._sessions.reset(request.session_id, request.instruction)
            return pb.ResetSessionResponse()

    def CloseSession(self, request: pb.CloseSessionRequest, context: Any) -> pb.CloseSessionResponse:
        with _Boundary(context, "CloseSession"):
            self._sessions.close(request.session_id)
            log.info("session closed id=%s", request.session_id)
            return pb.CloseSessionResponse()

    def Predict(self, request: pb.PredictRequest, context: Any) -> pb.PredictResponse:
        arrived = time.monotonic()
        with _Boundary(context, "Predict"):
            remaining = context.time_remaining()
            if remaining is not None and remaining > threading.TIMEOUT_MAX:
                remaining = None  # a client without deadline: gRPC says some centuries
            session = self._sessions.get(request.session_id)
            spec, episode = session.spec, session.episode
            row = decode_request(request, self._policy, spec, episode, self._denoise_steps)
            step = request.step if request.HasField("step") else None
            if step is not None:
                self._sessions.advance(episode, step)
            decoded = time.monotonic()
            deadline = None if remaining is None else arrived + remaining
            future = self._queue.submit(row, deadline)
            # A client that went away, and a deadline that passes, take the request off the queue.
            context.add_callback(future.cancel)
            answer = self._wait(future, deadline)
            _check_actions(answer.chunk, spec, row)
            reply = pb.PredictResponse(
                actions=encode_tensor(answer.chunk.actions, "actions"),
                seed=row.seed,
                chunk_id=episode.chunks.put(answer.chunk, row.observation.state, step),
                frozen_steps=row.previous.n_frozen if row.previous is not None else 0,
            )
            reply.timings.queue_ms, reply.timings.model_ms = answer.queue_ms, answer.model_ms
            reply.timings.decode_ms = (decoded - arrived) * 1000
            reply.timings.total_ms = (time.monotonic() - arrived) * 1000
            return reply

    @staticmethod
    def _wait(future: Any, deadline: float | None) -> Answer:
        late = RpcFailure(grpc.StatusCode.DEADLINE_EXCEEDED, "the deadline passed before the model answered")
        try:
            error = future.exception(None if deadline is None else max(0.0, deadline - time.monotonic()))
        except FutureTimeout:
            future.cancel()
            raise late from None
        except CancelledError:
            raise RpcFailure(grpc.StatusCode.CANCELLED, "the client went away") from None
        if isinstance(error, DeadlinePassed):
            raise late
        if isinstance(error, UserError):
            raise invalid("observation", str(error))
        answer: Answer = future.result()
        return answer

    def _find(self, policy: str, embodiment: str, prefix: str) -> RobotSpec:
        if policy not in ("", self._name):
            raise invalid(
                f"{prefix}policy", f"'{policy[:64]}' is not served{suggest(policy[:64], [self._name])}"
            )
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
            return longest_delay(self._policy, spec.embodiment)
        except UserError as error:
            if wanted:
                raise unsupported("config.real_time_chunking", str(error)) from None
            return None

    @staticmethod
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
