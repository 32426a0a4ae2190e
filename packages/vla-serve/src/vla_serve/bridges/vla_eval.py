"""vla-eval's protocol (0.8.0): one action for each observation, the chunk stays here. A action dims."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

from aiohttp import WSMsgType, web
from vla_core.errors import ConfigError, UserError
from vla_core.specs import GroupSpec, RobotSpec
from vla_core.types import Float

from vla_serve.bridges.arrays import pack, unpack
from vla_serve.bridges.listener import Asker, refused
from vla_serve.bridges.repack import Repack, VlaEvalConfig
from vla_serve.clients.async_client import AsyncPolicyClient
from vla_serve.clients.chunks import ServedChunk
from vla_serve.clients.control_steps import default_execute_steps
from vla_serve.clients.errors import PolicyServerError, SessionLost

HARNESS_VERSION, PROTOCOL_VERSION = "0.8.0", 1

_GRIPPERS = {"close_positive": "binary_close_positive", "open_positive": "binary_close_negative"}


class VlaEval:
    """Serves the harness's ``Connection``."""

    name, health, health_body = "vla-eval", "/health", '{"status": "ok"}\n'

    def __init__(self, asker: Asker, config: VlaEvalConfig, spec: RobotSpec) -> None:
        self._asker, self._spec, self._params = asker, spec, config.observation_params
        groups = config.state or tuple(group.name for group in spec.observation.state)
        self._repack = Repack(
            spec.observation, config.images, {"states": groups} if groups else {}, "repack.vla_eval"
        )
        horizon = spec.action.horizon
        self._execute = (
            default_execute_steps(horizon) if config.execute_steps is None else config.execute_steps
        )
        if not 1 <= self._execute <= horizon:
            raise ConfigError(
                f"repack.vla_eval.execute_steps: {self._execute} is outside 1 to {horizon}, the chunk's steps"
            )

    async def serve(self, socket: web.WebSocketResponse) -> None:
        """A session of its own; mistakes leave it open."""
        episode = _Episode(self)
        try:
            async for message in socket:
                seq = 0
                try:
                    if message.type is not WSMsgType.BINARY:
                        raise UserError("a text frame, expected a message in msgpack")
                    kind, payload, seq = _envelope(unpack(message.data))
                    reply = await episode.handle(kind, payload)
                except (UserError, PolicyServerError) as error:
                    refused(self.name, error)
                    reply = ("error", {"error": str(error)})
                if reply is not None:
                    content = {"type": reply[0], "payload": reply[1], "seq": seq, "timestamp": time.time()}
                    await socket.send_bytes(pack(content, text_keys=True))
        finally:
            await episode.close()

    def hello(self) -> dict[str, Any]:
        """What the harness compares with the benchmark's specs."""
        images = {key: _dims("image", 0, "rgb_hwc_uint8") for key in self._repack.images.values()}
        observation = {**images, "language": _dims("language", 0, "language")}
        if self._spec.observation.state:
            observation["state"] = _dims("state", self._spec.observation.state_dim, "raw")
        return {
            "harness_version": HARNESS_VERSION,
            "protocol_version": PROTOCOL_VERSION,
            "model_server": "vla-serve",
            "capabilities": {},
            "action_spec": dict(_action(group) for group in self._spec.action.groups),
            "observation_spec": observation,
            "observation_params": self._params,
        }

    async def next_chunk(self, client: AsyncPolicyClient, payload: Mapping[str, Any]) -> ServedChunk:
        """The answer to an observation in their words."""
        images = payload.get("images")
        if not isinstance(images, Mapping):
            raise UserError("images: expected a map of cameras")
        # Benchmarks say states or state.
        values = {"states": payload.get("states", payload.get("state"))}
        if self._repack.state and values["states"] is None:
            raise UserError("'states' is missing; repack.vla_eval.observation_params can ask for it")
        instruction = payload.get("task_description", "")
        return await self._asker.ask(client, self._repack.observation(images, values, instruction))

    def connect(self) -> AsyncPolicyClient:
        """A client, not opened."""
        return self._asker.connect(self._spec.embodiment)

    @property
    def execute_steps(self) -> int:
        """Actions that are given out of a chunk."""
        return self._execute


class _Episode:
    """What is left of the chunk."""

    def __init__(self, server: VlaEval) -> None:
        self._server, self._client = server, server.connect()
        self._chunk: ServedChunk | None = None
        self._given = 0

    async def handle(self, kind: str, payload: Mapping[str, Any]) -> tuple[str, dict[str, Any]] | None:
        if kind == "hello":
            await self._client.open()
            return "hello", self._server.hello()
        if kind == "episode_start":
            self._chunk = None
            await self._client.open()
            try:
                await self._client.reset()
            except SessionLost:  # it expired, or the server was restarted: a new one has no episode before
                await self._client.open()
            return None
        if kind == "episode_end":
            self._chunk = None
            return None
        if kind == "observation":
            return "action", {"actions": await self._act(payload)}
        raise UserError(f"type: '{kind}' is none that a model server answers")

    async def _act(self, payload: Mapping[str, Any]) -> Float:
        if self._chunk is None or self._given >= self._server.execute_steps:
            self._chunk = None
            await self._client.open()
            self._chunk, self._given = await self._server.next_chunk(self._client, payload), 0
        action_A: Float = self._chunk.actions[self._given]
        self._given += 1
        return action_A

    async def close(self) -> None:
        await self._client.close()


def _envelope(message: Any) -> tuple[str, Mapping[str, Any], int]:
    if not isinstance(message, Mapping) or not {"type", "payload", "seq", "timestamp"} <= set(message):
        raise UserError("a message has type, payload, seq and timestamp")
    if not isinstance(message["payload"], Mapping):
        raise UserError(f"payload: a {type(message['payload']).__name__}, expected a map")
    if not isinstance(message["type"], str) or not isinstance(message["seq"], int):
        raise UserError("type: expected a text, and as seq a whole number")
    return message["type"], message["payload"], message["seq"]


def _dims(name: str, dims: int, kind: str) -> dict[str, Any]:
    return {"name": name, "dims": dims, "format": kind}


def _action(group: GroupSpec) -> tuple[str, dict[str, Any]]:
    """A group in the harness's words where it has some."""
    if group.rotation != "none":
        kind = "rot6d_columns" if group.rotation == "rotation_6d" else group.rotation
        return "rotation", _dims("rotation", group.dim, kind)
    if group.gripper != "none":
        return "gripper", _dims("gripper", group.dim, _GRIPPERS[group.gripper])
    if group.dim == 3 and group.unit == "m":
        return "position", _dims("position", 3, f"{group.representation}_xyz")
    return group.name, _dims(group.name, group.dim, "raw")
