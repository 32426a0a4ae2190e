"""Messages with mistakes of any kind in them: a bridge says what is wrong, and goes on."""

from __future__ import annotations

import asyncio
import io
import random
from collections.abc import Iterable
from functools import partial
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image
from vla_core.errors import UserError
from vla_core.testing import make_spec
from vla_serve import AsyncPolicyClient, PolicyClient, PolicyServer
from vla_serve.testing import TimedPolicy

pytest.importorskip("aiohttp", reason="needs the extra vla-serve[bridge]")
pytest.importorskip("msgpack", reason="needs the extra vla-serve[bridge]")

import msgpack
from aiohttp import WSMsgType
from vla_serve.bridges.arrays import unpack
from vla_serve.bridges.listener import Asker
from vla_serve.bridges.openpi import Openpi
from vla_serve.bridges.repack import OpenpiConfig, StarvlaConfig, VlaEvalConfig
from vla_serve.bridges.starvla import Starvla
from vla_serve.bridges.vla_eval import VlaEval

SPEC = make_spec()
FRAMES = 400


def array(values, text_keys=False):
    fields = {"__ndarray__": True, "data": values.tobytes(), "dtype": values.dtype.str, "shape": values.shape}
    return fields if text_keys else {key.encode(): value for key, value in fields.items()}


def png(values):
    file = io.BytesIO()
    Image.fromarray(values).save(file, "PNG")
    return {"__image__": True, "data": file.getvalue(), "format": "png"}


def scalar(value, dtype):
    return {b"__npgeneric__": True, b"data": value, b"dtype": dtype}


PICTURE, STATE = np.zeros((32, 32, 3), np.uint8), np.zeros(7, np.float32)
EXAMPLE = {"image": [array(PICTURE), png(PICTURE)], "lang": "go", "state": array(STATE)}
VALID = {
    "openpi": [
        {"front": array(PICTURE), "wrist": png(PICTURE), "pose": array(STATE), "prompt": "go"},
    ],
    "starvla": [
        {"examples": [EXAMPLE], "unnorm_key": "default", "use_ddim": True, "num_ddim_steps": 2},
        {"type": "infer", "request_id": "7", "payload": {"examples": [EXAMPLE, EXAMPLE]}},
        {"type": "ping", "request_id": "7"},
    ],
    "vla_eval": [
        {
            "type": "observation",
            "payload": {
                "images": {"a": png(PICTURE), "b": array(PICTURE, True)},
                "task_description": "go",
                "states": array(STATE, True),
            },
            "seq": 1,
            "timestamp": 1.0,
        },
        {"type": "hello", "payload": {}, "seq": 0, "timestamp": 1.0},
    ],
}
WRONG = [
    *(None, True, -1, 2**63, float("nan"), "", b"\xff", [], {}, [[1], [1, 2]], {"a": {"b": 1}}, [None] * 3),
    *(array(np.zeros((0, 3))), array(np.full(7, np.nan)), array(np.zeros(7, bool)), array(PICTURE[None])),
    *(png(PICTURE), {"__image__": True, "data": b"junk", "format": "png"}, {"__ndarray__": 5}),
    *(scalar(float("nan"), b"<i4"), scalar(300, b"|u1"), scalar(3, b"|u1")),
    *(msgpack.ExtType(5, b"x"), msgpack.Timestamp(1, 1)),
]


def spoiled(draw: random.Random, value):
    """``value`` with something else somewhere in it."""
    if draw.random() < 0.25 or not isinstance(value, (dict, list)) or not value:
        return draw.choice(WRONG)
    out = value.copy()
    key = draw.choice(list(out)) if isinstance(out, dict) else draw.randrange(len(out))
    kind = draw.random()
    if isinstance(out, dict) and kind < 0.1:
        del out[key]
    elif isinstance(out, dict) and kind < 0.2:
        out[draw.choice(["more", b"more", "type", "payload"])] = draw.choice(WRONG)
    else:
        out[key] = spoiled(draw, out[key])
    return out


def frames(name: str) -> list[bytes]:
    draw = random.Random(0)
    out = []
    for _ in range(FRAMES):
        frame = bytearray(msgpack.packb(spoiled(draw, draw.choice(VALID[name]))))
        if draw.random() < 0.2:
            frame[draw.randrange(len(frame))] = draw.randrange(256)
        out.append(bytes(frame[: draw.randrange(len(frame))] if draw.random() < 0.1 else frame))
    return out


class Socket:
    """A connection that has sent all its frames before it reads."""

    def __init__(self, sent: Iterable[bytes]) -> None:
        self._sent, self.got, self.code = sent, [], None

    async def __aiter__(self):
        for frame in self._sent:
            yield SimpleNamespace(type=WSMsgType.BINARY, data=frame)

    async def send_bytes(self, data):
        self.got.append(msgpack.unpackb(data, strict_map_key=False))

    async def send_str(self, text):
        self.got.append(text)

    async def close(self, code, message):
        self.code = code


def connect(address, embodiment):
    return AsyncPolicyClient(address, embodiment=embodiment)


def speaker(name, asker):
    if name == "openpi":
        images = {"camera_0": "front", "camera_1": "wrist"}
        state = {"pose": tuple(group.name for group in SPEC.observation.state)}
        return Openpi(asker, OpenpiConfig(images, state), SPEC)
    if name == "starvla":
        return Starvla(asker, StarvlaConfig(), {"default": SPEC})
    return VlaEval(asker, VlaEvalConfig({"camera_0": "a", "camera_1": "b"}), SPEC)


@pytest.mark.parametrize("name", VALID)
def test_a_spoiled_message_is_answered(name):
    sent = frames(name)

    async def talk(server):
        asker = Asker(partial(connect, server.address), 5.0)
        speaks = speaker(name, asker)
        if name == "openpi":  # an error ends its connection
            sockets = [Socket([frame]) for frame in sent]
        else:
            sockets = [Socket(sent)]
        for socket in sockets:
            await speaks.serve(socket)
        return sockets

    with PolicyServer(TimedPolicy(SPEC), max_denoise_steps=20) as server:
        sockets = asyncio.run(talk(server))
    if name == "openpi":
        assert all(len(socket.got) == 2 for socket in sockets)  # the metadata, and an answer
        assert all((socket.code == 1011) == isinstance(socket.got[1], str) for socket in sockets)
    elif name == "starvla":
        (socket,) = sockets
        assert len(socket.got) == 1 + FRAMES
        assert 0 < sum(reply["ok"] for reply in socket.got[1:]) < FRAMES
    else:
        (socket,) = sockets
        assert {reply["type"] for reply in socket.got} == {"error", "hello", "action"}
        assert FRAMES * 0.9 < len(socket.got) <= FRAMES  # a message that is now 'episode_end' has no answer


@pytest.mark.parametrize("value", [scalar(float("nan"), b"<i4"), scalar(300, b"|u1"), scalar(-1, b"<u8")])
def test_a_number_that_its_type_cannot_hold_is_no_other_number(value):
    with pytest.raises(UserError, match=r"a numpy scalar of u?int"):
        unpack(msgpack.packb(value))


def test_an_episode_of_vla_eval_begins_in_a_new_session_where_the_old_one_was_lost():
    observation, hello = VALID["vla_eval"]

    async def talk(server):
        def lose():
            server.sessions._sessions.clear()
            return {**hello, "type": "episode_start"}

        said = (lambda: hello, lambda: observation, lose, lambda: observation)
        socket = Socket(msgpack.packb(say()) for say in said)  # each when the one before was answered
        await speaker("vla_eval", Asker(partial(connect, server.address), 5.0)).serve(socket)
        return [reply["type"] for reply in socket.got]

    with PolicyServer(TimedPolicy(SPEC)) as server:
        assert asyncio.run(talk(server)) == ["hello", "action", "action"]


def test_openpi_is_told_of_a_server_without_a_place_where_it_waits_for_an_answer():
    async def talk(server):
        socket = Socket([msgpack.packb(VALID["openpi"][0])])
        await speaker("openpi", Asker(partial(connect, server.address), 0.1)).serve(socket)
        return socket

    with PolicyServer(TimedPolicy(SPEC), max_sessions=1) as server, PolicyClient(server.address):
        socket = asyncio.run(talk(server))
    metadata, said = socket.got
    assert metadata["action_dim"] == SPEC.action.dim
    assert "1 sessions are open" in said
    assert socket.code == 1011


def test_what_is_refused_is_in_the_log(caplog):
    async def talk(server):
        asker = Asker(partial(connect, server.address), 5.0)
        await speaker("openpi", asker).serve(Socket([msgpack.packb({"front": 1})]))

    with caplog.at_level("INFO"), PolicyServer(TimedPolicy(SPEC)) as server:
        asyncio.run(talk(server))
    assert "openpi refused: 'prompt' is missing, which has the instruction" in caplog.text
