"""openpi's protocol (openpi-client 0.1.2): metadata first, then a flat observation for each chunk.

Shapes: T steps of a chunk, A action dims.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

from aiohttp import WSMsgType, web
from vla_core.errors import UserError
from vla_core.specs import RobotSpec

from vla_serve.bridges.arrays import pack, unpack
from vla_serve.bridges.listener import Asker, refused
from vla_serve.bridges.repack import OpenpiConfig, Repack
from vla_serve.clients.async_client import AsyncPolicyClient
from vla_serve.clients.errors import PolicyServerError

INTERNAL_ERROR = 1011


class Openpi:
    """Serves ``WebsocketClientPolicy`` of openpi-client."""

    name, health, health_body = "openpi", "/healthz", "OK\n"

    def __init__(self, asker: Asker, config: OpenpiConfig, spec: RobotSpec) -> None:
        self._asker, self._spec, self._prompt = asker, spec, config.prompt
        self._repack = Repack(spec.observation, config.images, config.state, "repack.openpi")

    async def serve(self, socket: web.WebSocketResponse) -> None:
        """A session of its own; an error ends it, as that client expects."""
        client = self._asker.connect(self._spec.embodiment)
        try:
            await socket.send_bytes(pack(self._metadata()))
            await self._answers(socket, client)
        except (UserError, PolicyServerError) as error:
            refused(self.name, error)
            await socket.send_str(str(error))
            await socket.close(code=INTERNAL_ERROR, message=b"the text frame before this says why")
        finally:
            await client.close()

    def _metadata(self) -> dict[str, Any]:
        action = self._spec.action
        return {
            "embodiment": self._spec.embodiment,
            "action_horizon": action.horizon,
            "action_dim": action.dim,
            "control_hz": action.control_hz,
            "image_keys": list(self._repack.images.values()),
            "state_keys": list(self._repack.state),
        }

    async def _answers(self, socket: web.WebSocketResponse, client: AsyncPolicyClient) -> None:
        previous_ms: float | None = None
        async for message in socket:
            start = time.perf_counter()
            if message.type is not WSMsgType.BINARY:
                raise UserError("a text frame, expected an observation in msgpack")
            given = unpack(message.data)
            if not isinstance(given, Mapping):
                raise UserError(f"the observation is a {type(given).__name__}, expected a map")
            if self._prompt not in given:
                raise UserError(
                    f"'{self._prompt}' is missing, which has the instruction (repack.openpi.prompt)"
                )
            observation = self._repack.observation(given, given, given[self._prompt])
            asked = time.perf_counter()
            # Not before: that client reads an error where it waits for an answer, and nowhere else.
            await client.open()
            chunk = await self._asker.ask(client, observation)
            timing = {"infer_ms": (time.perf_counter() - asked) * 1000}
            if previous_ms is not None:
                timing["prev_total_ms"] = previous_ms
            await socket.send_bytes(pack({"actions": chunk.actions, "server_timing": timing}))
            previous_ms = (time.perf_counter() - start) * 1000
