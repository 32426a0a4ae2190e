"""PolicyAdminService: policies come and go while the server runs. For who runs it, on this machine alone."""

from __future__ import annotations

import math
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, TypeVar

import grpc
from google.protobuf.message import Message
from vla_core.errors import UserError

from vla_serve.engine.errors import FieldError
from vla_serve.engine.manager import PolicyManager
from vla_serve.engine.shelf import Served, State
from vla_serve.messages.status import invalid
from vla_serve.rpcs.predicting import revision_of
from vla_serve.rpcs.rpc import Rpcs
from vla_serve.v1 import admin_pb2 as pb

ADMIN_SERVICE: str = pb.DESCRIPTOR.services_by_name["PolicyAdminService"].full_name

_STATES = {
    State.STANDBY: pb.POLICY_STATE_STANDBY,
    State.CURRENT: pb.POLICY_STATE_CURRENT,
    State.DRAINED: pb.POLICY_STATE_DRAINED,
}

T = TypeVar("T")
M = TypeVar("M", bound=Message)
R = TypeVar("R", bound=Message)


class PolicyAdminService:
    """Its methods run in the event loop and never compute."""

    def __init__(self, manager: PolicyManager) -> None:
        self._manager = manager

    def handler(self, rpcs: Rpcs) -> grpc.GenericRpcHandler[Any, Any]:
        """What a server adds."""
        methods = {
            "ListPolicies": rpcs.unary(pb.ListPoliciesRequest, self.ListPolicies),
            "LoadPolicy": rpcs.unary(pb.LoadPolicyRequest, _saying(self.LoadPolicy)),
            "PromotePolicy": rpcs.unary(pb.PromotePolicyRequest, self.PromotePolicy),
            "DrainPolicy": rpcs.unary(pb.DrainPolicyRequest, self.DrainPolicy),
            "UnloadPolicy": rpcs.unary(pb.UnloadPolicyRequest, self.UnloadPolicy),
        }
        return grpc.method_handlers_generic_handler(ADMIN_SERVICE, methods)

    async def ListPolicies(self, request: pb.ListPoliciesRequest, context: Any) -> pb.ListPoliciesResponse:
        """All revisions."""
        return pb.ListPoliciesResponse(policies=[_status(served) for served in self._manager.shelf])

    async def LoadPolicy(self, request: pb.LoadPolicyRequest, context: Any) -> pb.LoadPolicyResponse:
        """A new revision."""
        if not request.policy or not request.policy.isprintable() or len(request.policy) > 64:
            raise FieldError("policy", "must be a name of 1 to 64 printable characters")
        if not request.path:
            raise FieldError("path", "missing; the checkpoint directory on the server")
        served = await self._manager.load(request.policy, Path(request.path), request.promote)
        return pb.LoadPolicyResponse(status=_status(served))

    async def PromotePolicy(self, request: pb.PromotePolicyRequest, context: Any) -> pb.PromotePolicyResponse:
        """It answers from now on."""
        served = self._manager.promote(request.policy, request.revision, request.unload_previous)
        return pb.PromotePolicyResponse(status=_status(served))

    async def DrainPolicy(self, request: pb.DrainPolicyRequest, context: Any) -> pb.DrainPolicyResponse:
        """It takes no more requests."""
        served, empty = await self._manager.drain(request.policy, _seconds(request.timeout_s))
        return pb.DrainPolicyResponse(status=_status(served), empty=empty)

    async def UnloadPolicy(self, request: pb.UnloadPolicyRequest, context: Any) -> pb.UnloadPolicyResponse:
        """It goes."""
        await self._manager.unload(request.policy, request.revision, _seconds(request.timeout_s))
        return pb.UnloadPolicyResponse()


def _saying(method: Callable[[M, Any], Awaitable[R]]) -> Callable[[M, Any], Awaitable[R]]:
    """What is wrong with a checkpoint, in full: who may load one may know where it lies."""

    async def call(request: M, context: Any) -> R:
        try:
            return await method(request, context)
        except FieldError:
            raise
        except UserError as error:
            raise invalid("path", str(error)) from None

    call.__name__ = method.__name__
    return call


def _seconds(value: float) -> float:
    if not 0 <= value < math.inf:
        raise FieldError("timeout_s", f"{value} is no time")
    return min(value, 3600.0)


def _status(served: Served) -> pb.PolicyStatus:
    return pb.PolicyStatus(
        revision=revision_of(served),
        state=_STATES[served.state],
        framework=served.engine.policy.framework,
        embodiments=sorted(served.specs),
        pending=served.engine.pending,
    )
