"""The RPCs of PolicyService: from messages to the engine and back."""

from __future__ import annotations

import asyncio
import importlib.metadata
import logging
from collections.abc import AsyncGenerator, AsyncIterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import grpc
from vla_core.errors import UserError
from vla_core.provenance import describe as provenance
from vla_core.specs import RobotSpec

from vla_serve.engine.errors import FieldError
from vla_serve.engine.kept_chunks import CHUNKS_KEPT
from vla_serve.engine.sessions import Sessions
from vla_serve.engine.shelf import Served, Shelf
from vla_serve.messages.observation_codec import MAX_INSTRUCTION
from vla_serve.messages.status import unsupported
from vla_serve.rpcs.connections import Connections
from vla_serve.rpcs.handshake import check_config, contract_of, delay_of, differences, spec_of
from vla_serve.rpcs.in_flight import RpcLimits
from vla_serve.rpcs.many import answer_all, stream_answers
from vla_serve.rpcs.predicting import Predictor, revision_of
from vla_serve.rpcs.rpc import Rpcs, caller_of, owner_of
from vla_serve.v1 import policy_pb2 as pb

log = logging.getLogger("vla_serve.server")

SERVICE: str = pb.DESCRIPTOR.services_by_name["PolicyService"].full_name

# Named beside what brings parts of policies.
_PACKAGES = ("vla-serve", "grpcio", "torch", "transformers")


@dataclass(frozen=True)
class ServiceSettings:
    """What the service tells and enforces.

    Args:
        max_queue, max_batch: of an engine.
        max_denoise_steps: most that a request may ask for.
        max_message_bytes: of a request for one chunk.
        max_batch_bytes: of one for several; gRPC enforces it.
        max_batch_items: of one for several.
    """

    max_queue: int
    max_batch: int
    max_denoise_steps: int
    max_message_bytes: int
    max_batch_bytes: int
    max_batch_items: int


class PolicyService:
    """Serves the policies of a shelf; its methods run in the event loop; what computes is the engine."""

    def __init__(
        self,
        shelf: Shelf,
        sessions: Sessions,
        predictor: Predictor,
        rpcs: Rpcs,
        settings: ServiceSettings,
        limits: RpcLimits,
    ) -> None:
        self._shelf, self._sessions, self._predictor, self._rpcs = shelf, sessions, predictor, rpcs
        self._settings, self._limits = settings, limits
        self._connections = Connections()
        self._version = importlib.metadata.version("vla-serve")
        made_with = provenance(packages=_PACKAGES)
        self._made_with = pb.MadeWith(**{**made_with, "git_commit": made_with["git_commit"] or ""})

    def handler(self) -> grpc.GenericRpcHandler[Any, Any]:
        """What a server adds."""
        small, large = self._settings.max_message_bytes, self._settings.max_batch_bytes
        unary, stream = partial(self._rpcs.unary, limit=small), self._rpcs.stream
        free = partial(unary, counted=False)
        methods = {
            "GetServerInfo": free(pb.GetServerInfoRequest, self.GetServerInfo),
            "GetPolicyContract": free(pb.GetPolicyContractRequest, self.GetPolicyContract),
            "CheckCompatibility": unary(pb.CheckCompatibilityRequest, self.CheckCompatibility),
            "OpenSession": unary(pb.OpenSessionRequest, self.OpenSession),
            "ResetSession": unary(pb.ResetSessionRequest, self.ResetSession),
            "CloseSession": unary(pb.CloseSessionRequest, self.CloseSession),
            "HoldSession": stream(pb.HoldSessionRequest, self.HoldSession),
            "Predict": unary(
                pb.PredictRequest,
                self.Predict,
                pixels=self._predictor.pixels,
                # What is late already is not read as well: a server that fell behind would stay behind.
                unread=self._check_in_time,
            ),
            "PredictBatch": self._rpcs.unary(
                pb.PredictBatchRequest,
                self.PredictBatch,
                limit=large,
                pixels=lambda request: self._predictor.pixels(*request.items),
            ),
            "StreamActions": self._rpcs.duplex(pb.StreamActionsRequest, self.StreamActions, limit=small),
        }
        return grpc.method_handlers_generic_handler(SERVICE, methods)

    async def GetServerInfo(self, request: pb.GetServerInfoRequest, context: Any) -> pb.GetServerInfoResponse:
        """What the server is, serves and allows."""
        policies = [
            pb.PolicyInfo(
                name=served.name,
                framework=served.engine.policy.framework,
                embodiments=sorted(served.specs),
                revision=revision_of(served),
            )
            for served in self._shelf.answering()
        ]
        return pb.GetServerInfoResponse(
            server_version=self._version,
            policies=policies,
            max_message_bytes=self._settings.max_message_bytes,
            max_queue=self._settings.max_queue,
            max_sessions=self._sessions.limit,
            session_idle_timeout_s=self._sessions.idle_s,
            limits=self._said_limits(),
            made_with=self._made_with,
        )

    def _said_limits(self) -> pb.Limits:
        return pb.Limits(
            max_denoise_steps=self._settings.max_denoise_steps,
            max_in_flight=self._limits.max_in_flight,
            max_batch=self._settings.max_batch,
            max_in_flight_bytes=self._limits.max_in_flight_bytes,
            body_timeout_s=self._limits.body_timeout_s,
            max_batch_bytes=self._settings.max_batch_bytes,
            max_batch_items=self._settings.max_batch_items,
            max_in_flight_pixels=self._limits.max_in_flight_pixels,
        )

    async def GetPolicyContract(
        self, request: pb.GetPolicyContractRequest, context: Any
    ) -> pb.GetPolicyContractResponse:
        """The contract of one embodiment."""
        served = self._shelf.named(request.policy)
        spec = spec_of(served, request.embodiment)
        return pb.GetPolicyContractResponse(policy=served.name, contract=contract_of(served, spec))

    async def CheckCompatibility(
        self, request: pb.CheckCompatibilityRequest, context: Any
    ) -> pb.CheckCompatibilityResponse:
        """All that differs."""
        served, spec = self._asked_for(request.config)
        return pb.CheckCompatibilityResponse(
            mismatches=differences(request.config, served, spec),
            contract=contract_of(served, spec),
            revision=revision_of(served),
        )

    async def OpenSession(self, request: pb.OpenSessionRequest, context: Any) -> pb.OpenSessionResponse:
        """The handshake."""
        config = request.config
        served, spec = self._asked_for(config)
        check_config(config, served, spec)
        limit = _longest_delay(served, spec, config.real_time_chunking)
        session = self._sessions.open(spec, owner_of(context), served.name)
        self._connections.used(context.peer(), session)
        log.info(
            "session opened id=%s... policy=%s embodiment=%s peer=%s",
            *(session.id[:8], served.name, spec.embodiment, context.peer()),
        )
        reply = pb.OpenSessionResponse(
            session_id=session.id,
            policy=served.name,
            contract=contract_of(served, spec),
            max_message_bytes=self._settings.max_message_bytes,
            idle_timeout_s=self._sessions.idle_s,
            limits=self._said_limits(),
            revision=revision_of(served),
        )
        if limit is not None:
            reply.real_time_chunking.max_delay_steps = limit
            reply.real_time_chunking.chunks_kept = CHUNKS_KEPT
        return reply

    async def HoldSession(
        self, request: pb.HoldSessionRequest, context: Any
    ) -> AsyncIterator[pb.HoldSessionResponse]:
        """Until the client goes."""
        with self._sessions.hold(request.session_id, owner_of(context)) as session:
            self._connections.used(context.peer(), session)
            yield pb.HoldSessionResponse()
            await asyncio.Event().wait()  # the call is cancelled when the client goes, or the server stops

    async def ResetSession(self, request: pb.ResetSessionRequest, context: Any) -> pb.ResetSessionResponse:
        """A new episode."""
        self._shelf.check_serving()
        if len(request.instruction) > MAX_INSTRUCTION:
            raise FieldError("instruction", f"longer than {MAX_INSTRUCTION} characters")
        self._sessions.reset(request.session_id, request.instruction, owner_of(context))
        return pb.ResetSessionResponse()

    async def CloseSession(self, request: pb.CloseSessionRequest, context: Any) -> pb.CloseSessionResponse:
        """Forget the session."""
        self._sessions.close(request.session_id, owner_of(context))
        log.info("session closed id=%s...", request.session_id[:8])
        return pb.CloseSessionResponse()

    async def Predict(self, request: pb.PredictRequest, context: Any) -> pb.PredictResponse:
        """One chunk."""
        caller = caller_of(context)
        session = self._predictor.session(request.session_id, caller)
        self._connections.used(context.peer(), session, request.supersedes)
        return await self._predictor(request, caller, session)

    def _check_in_time(self, left_s: float, peer: str) -> None:
        self._shelf.check_in_time(left_s, self._connections.session_of(peer))

    async def PredictBatch(self, request: pb.PredictBatchRequest, context: Any) -> pb.PredictBatchResponse:
        """A chunk for each item, or why there is none."""
        self._shelf.check_serving()
        most = self._settings.max_batch_items
        if not 1 <= len(request.items) <= most:
            raise FieldError("items", f"{len(request.items)}, expected 1 to {most}")
        return await answer_all(self._predictor, self._rpcs, request, caller_of(context))

    def StreamActions(
        self, requests: AsyncIterator[pb.StreamActionsRequest], context: Any
    ) -> AsyncGenerator[pb.StreamActionsResponse, None]:
        """Observations in, chunks out."""
        caller = caller_of(context)
        return stream_answers(self._predictor, self._rpcs, self._sessions, requests, caller, context.peer())

    def _asked_for(self, config: pb.SessionConfig) -> tuple[Served, RobotSpec]:
        served = self._shelf.named(config.policy, "config.")
        return served, spec_of(served, config.embodiment, "config.")


def _longest_delay(served: Served, spec: RobotSpec, wanted: bool) -> int | None:
    """What the policy can bridge; None: it cannot continue a chunk, and nobody ``wanted`` it."""
    try:
        return delay_of(served, spec)
    except UserError as error:
        if wanted:
            raise unsupported("config.real_time_chunking", str(error)) from None
        return None
