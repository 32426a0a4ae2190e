"""gRPC server reflection: tools learn the API from a server that runs. Needs ``vla-serve[reflection]``."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from typing import Any

import grpc
from google.protobuf.message import Message
from vla_core.errors import UserError

from vla_serve.rpcs.rpc import Rpcs

V1 = "grpc.reflection.v1.ServerReflection"
V1ALPHA = "grpc.reflection.v1alpha.ServerReflection"
"""Two names of one protocol, message by message: newer tools ask for the first."""


def handlers(services: Sequence[str], rpcs: Rpcs) -> list[grpc.GenericRpcHandler[Any, Any]]:
    """What a server adds so that it describes ``services``; behind its token, as all else.

    Raises:
        UserError: the extra is not installed.
    """
    try:
        from grpc_reflection.v1alpha import reflection, reflection_pb2
    except ModuleNotFoundError as error:
        raise UserError(
            f"reflection: '{error.name}' is not installed: pip install 'vla-serve[reflection]'"
        ) from None
    aio: Any = vars(reflection)["aio"]  # its stubs know nothing of its asyncio half
    servicer = aio.ReflectionServicer([*services, V1ALPHA])

    async def ServerReflectionInfo(
        requests: AsyncIterator[Any], context: Any
    ) -> AsyncGenerator[Message, None]:
        async for reply in servicer.ServerReflectionInfo(requests, context):
            yield reply

    method = rpcs.duplex(reflection_pb2.ServerReflectionRequest, ServerReflectionInfo)
    return [
        grpc.method_handlers_generic_handler(name, {"ServerReflectionInfo": method}) for name in (V1, V1ALPHA)
    ]
