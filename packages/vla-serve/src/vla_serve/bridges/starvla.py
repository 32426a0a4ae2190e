"""StarVLA's protocol (its repository of August 2026): several examples a request, errors in band.

Shapes: B examples, T steps of a chunk, D action dims.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from contextlib import AsyncExitStack
from typing import Any

import numpy as np
from aiohttp import WSMsgType, web
from vla_core.errors import ConfigError, UserError, suggest
from vla_core.specs import RobotSpec

from vla_serve.bridges.arrays import EncodedImage, pack, unpack
from vla_serve.bridges.listener import Asker, refused
from vla_serve.bridges.repack import Repack, StarvlaConfig
from vla_serve.clients.async_client import AsyncPolicyClient
from vla_serve.clients.errors import PolicyClientError, PolicyServerError

OPTIONS = ("do_sample", "use_ddim", "num_ddim_steps")
"""Sampling: its clients send all three with each request, by default false, true and 10."""

MAX_EXAMPLES = 256


class Starvla:
    """Serves StarVLA's evaluation clients."""

    name, health, health_body = "StarVLA", "/healthz", "OK\n"

    def __init__(self, asker: Asker, config: StarvlaConfig, specs: Mapping[str, RobotSpec]) -> None:
        self._asker = asker
        self._asks_steps = config.num_ddim_steps == "request"
        self._keys = config.unnorm_keys or {name: name for name in specs}
        self._specs: dict[str, RobotSpec] = {}
        self._repacks: dict[str, Repack] = {}
        for key, embodiment in self._keys.items():
            if embodiment not in specs:
                raise ConfigError(
                    f"repack.starvla.unnorm_keys[{key}]: the policy has no '{embodiment}'"
                    f"{suggest(embodiment, specs)}"
                )
            spec = specs[embodiment]
            cameras = config.images or tuple(camera.name for camera in spec.observation.cameras)
            groups = config.state or tuple(group.name for group in spec.observation.state)
            images = {camera: f"image[{i}]" for i, camera in enumerate(cameras)}
            self._specs[key] = spec
            self._repacks[key] = Repack(
                spec.observation, images, {"state": groups} if groups else {}, "repack.starvla"
            )

    async def serve(self, socket: web.WebSocketResponse) -> None:
        """Sessions of its own, one for each robot that it asks for; mistakes leave it open."""
        async with AsyncExitStack() as stack:
            clients: dict[str, AsyncPolicyClient] = {}
            await socket.send_bytes(pack(self._metadata()))
            async for message in socket:
                reply: dict[str, Any] = {"type": "inference_result", "request_id": "default"}
                try:
                    if message.type is not WSMsgType.BINARY:
                        raise UserError("a text frame, expected a request in msgpack")
                    await self._answer(unpack(message.data), reply, clients, stack)
                    reply |= {"status": "ok", "ok": True}
                except (UserError, PolicyServerError) as error:
                    refused(self.name, error)
                    reply |= {"status": "error", "ok": False, "error": {"message": str(error)}}
                await socket.send_bytes(pack(reply))

    def _metadata(self) -> dict[str, Any]:
        default = next(iter(self._keys)) if len(self._keys) == 1 else None
        spec = self._specs[default or next(iter(self._keys))]
        sizes = {(camera.height, camera.width) for camera in spec.observation.cameras}
        metadata = {
            "env": "vla_serve",
            "ckpt_path": "",
            "action_chunk_size": spec.action.horizon,
            "available_unnorm_keys": list(self._keys),
            "default_unnorm_key": default,
            "training_data_mix": None,
            "training_obs_image_size": list(sizes.pop()) if len(sizes) == 1 else None,
            "eval_image_contract": "an example's images, in order: "
            + ", ".join(f"{c.name} {c.height} x {c.width}" for c in self._ordered(spec, default)),
        }
        if default is not None:
            metadata["action_keys"] = [group.name for group in spec.action.groups]
            metadata["state_keys"] = list(self._repacks[default].state.get("state", ()))
        return metadata

    def _ordered(self, spec: RobotSpec, key: str | None) -> list[Any]:
        cameras = {camera.name: camera for camera in spec.observation.cameras}
        return [cameras[name] for name in self._repacks[key or next(iter(self._keys))].images]

    async def _answer(
        self,
        request: Any,
        reply: dict[str, Any],
        clients: dict[str, AsyncPolicyClient],
        stack: AsyncExitStack,
    ) -> None:
        if not isinstance(request, Mapping):
            raise UserError(f"the request is a {type(request).__name__}, expected a map")
        name = request.get("request_id", "default")
        if not isinstance(name, (str, int)):
            raise UserError(f"request_id: {_short(name)}, expected a text")
        reply["request_id"] = name
        kind = request.get("type", "infer")
        if not isinstance(kind, str):
            raise UserError(f"type: {_short(kind)}, expected a text")
        if kind == "ping":
            reply["type"] = "ping"
            return
        if kind not in ("infer", "predict_action"):
            reply["type"] = "unknown"
            raise UserError(f"type: {_short(kind)} is not known (infer, predict_action or ping)")
        payload = request.get(
            "payload", {k: v for k, v in request.items() if k not in ("type", "request_id")}
        )
        if not isinstance(payload, Mapping):
            raise UserError(f"payload: a {type(payload).__name__}, expected a map")
        for name in payload:
            if name not in ("examples", "unnorm_key", *OPTIONS):
                raise UserError(f"payload: unknown '{name}'{suggest(str(name), ('examples', 'unnorm_key'))}")
        steps = _denoise_steps(payload) if self._asks_steps else None
        key = self._key(payload.get("unnorm_key"))
        observations = [self._observation(example, key, i) for i, example in enumerate(_examples(payload))]
        if key not in clients:
            client = self._asker.connect(self._keys[key])
            clients[key] = await stack.enter_async_context(client)
        try:
            answers = await asyncio.gather(*(self._asker.ask(clients[key], o, steps) for o in observations))
        except PolicyClientError as error:
            if "denoise_steps" not in error.fields or self._asker.denoise_steps is not None:
                raise
            raise UserError(f"num_ddim_steps: {error.fields['denoise_steps']}") from None
        reply["data"] = {"actions": np.stack([chunk.actions for chunk in answers])}

    def _key(self, given: Any) -> str:
        known = ", ".join(self._keys)
        if given is None:
            if len(self._keys) > 1:
                raise UserError(f"unnorm_key: name one of {known}")
            return next(iter(self._keys))
        if not isinstance(given, str) or given not in self._keys:
            raise UserError(f"unnorm_key: {_short(given)} is not known (known: {known})")
        return given

    def _observation(self, example: Any, key: str, i: int) -> Any:
        if not isinstance(example, Mapping):
            raise UserError(f"examples[{i}]: a {type(example).__name__}, expected image, lang, state")
        images = example.get("image")
        if isinstance(images, EncodedImage) or (isinstance(images, np.ndarray) and images.ndim == 3):
            images = [images]
        if not isinstance(images, (Sequence, np.ndarray)) or isinstance(images, (str, bytes)):
            raise UserError(f"examples[{i}].image: expected a list of images")
        repack = self._repacks[key]
        if len(images) != len(repack.images):
            cameras = ", ".join(repack.images)
            raise UserError(f"examples[{i}].image: {len(images)} images, expected {cameras} in this order")
        pictures = {f"image[{n}]": image for n, image in enumerate(images)}
        try:
            return repack.observation(pictures, example, example.get("lang", ""))
        except UserError as error:
            raise UserError(f"examples[{i}]: {error}") from None


def _denoise_steps(payload: Mapping[str, Any]) -> int | None:
    """What a request asks of the sampler; None: the policy's own steps.

    Raises:
        UserError: what no policy here can do.
    """
    given = {name: payload[name] for name in OPTIONS if payload.get(name) is not None}
    for name in ("do_sample", "use_ddim"):
        if not isinstance(given.get(name, False), bool):
            raise UserError(f"{name}: {_short(given[name])}, expected true or false")
    if given.get("do_sample", False):
        raise UserError(
            "do_sample: true is for policies that sample tokens, which none here does; send false"
        )
    steps = given.get("num_ddim_steps")
    if steps is None or not given.get("use_ddim", True):
        return None
    if not isinstance(steps, (int, np.integer)) or isinstance(steps, bool) or steps < 1:
        raise UserError(f"num_ddim_steps: {_short(steps)}, expected a whole number of at least 1")
    return int(steps)


def _short(value: Any) -> str:
    return repr(value)[:64]


def _examples(payload: Mapping[str, Any]) -> Sequence[Any]:
    examples = payload.get("examples")
    if not isinstance(examples, Sequence) or isinstance(examples, (str, bytes)) or not examples:
        raise UserError("examples: expected a list of at least one")
    if len(examples) > MAX_EXAMPLES:
        raise UserError(f"examples: {len(examples)}, at most {MAX_EXAMPLES} a request")
    return examples
