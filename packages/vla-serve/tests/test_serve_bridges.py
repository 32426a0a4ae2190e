"""``vla-serve bridge`` as its clients see it: their bytes, written out here, against the program itself."""

from __future__ import annotations

import asyncio
import io
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from PIL import Image
from vla_core.testing import make_spec
from vla_core.types import ActionChunk
from vla_serve import PolicyServer

pytest.importorskip("aiohttp", reason="needs the extra vla-serve[bridge]")
pytest.importorskip("msgpack", reason="needs the extra vla-serve[bridge]")

import aiohttp
import msgpack

SPECS = {"left": make_spec(embodiment="left"), "right": make_spec(embodiment="right")}
REPACK = """
openpi:
  images: {camera_0: observation/image, camera_1: observation/wrist_image}
  state: {observation/gripper: [gripper], observation/pose: [position, rotation]}
starvla:
  images: [camera_1, camera_0]
  unnorm_keys: {franka: left, widowx: right}
vla_eval:
  images: {camera_0: agentview, camera_1: wrist}
  execute_steps: 3
  observation_params: {send_state: true}
"""


class Looking:
    """Answers what it saw: a pixel of each camera, the words, the state, and its embodiment."""

    framework, specs = "Looking", SPECS

    def __init__(self):
        self.steps = []  # of each call

    def act(self, observations, seeds, steps=None):
        self.steps.append(steps)
        chunks = []
        for o in observations:
            spec = self.specs[o.embodiment].action
            actions = np.zeros((spec.horizon, spec.dim), np.float32)
            actions[:, 0] = o.images["camera_0"][0, 0, 0]
            actions[:, 1] = o.images["camera_1"][0, 0, 0]
            actions[:, 2] = len(o.instruction)
            actions[:, 3:5] = o.state[[0, 6]]
            actions[:, 5] = o.embodiment == "right"
            actions[:, 6] = np.arange(spec.horizon)
            chunks.append(ActionChunk(actions, spec))
        return chunks


@pytest.fixture(scope="module")
def serving():
    with PolicyServer(Looking(), max_denoise_steps=100) as server:
        yield server


@pytest.fixture(scope="module")
def bridge(tmp_path_factory, serving):
    """Protocol -> WebSocket address of the program."""
    folder = tmp_path_factory.mktemp("bridge")
    (folder / "repack.yaml").write_text(REPACK)
    (folder / "token").write_text("secret\n")

    def start(*words):
        command = [sys.executable, "-m", "vla_serve.server_cli", "bridge", "--address", serving.address]
        repack = ["--repack", str(folder / "repack.yaml")]
        return subprocess.Popen([*command, *repack, *words], stdout=subprocess.PIPE, text=True)

    both = start("--starvla_port", "0", "--max_connections", "3")
    one = start(
        *("--embodiment", "left", "--openpi_port", "0", "--vla_eval_port", "0"),
        *("--listen_token_file", str(folder / "token")),
    )
    urls = dict(line.split() for line in (both.stdout.readline(), *(one.stdout.readline() for _ in "ab")))
    yield urls
    for process in (both, one):
        process.send_signal(signal.SIGTERM)
        assert process.wait(20) == 0


def array(values):
    return {
        b"__ndarray__": True,
        b"data": values.tobytes(),
        b"dtype": values.dtype.str,
        b"shape": values.shape,
    }


def numbers(packed):
    return np.frombuffer(packed[b"data"], packed[b"dtype"]).reshape(packed[b"shape"])


def picture(value):
    return np.full((32, 32, 3), value, np.uint8)


async def talk(url, talker, token="secret"):
    headers = {"Authorization": f"Api-Key {token}"}
    async with (
        aiohttp.ClientSession(headers=headers) as http,
        http.ws_connect(url, compress=0, max_msg_size=0) as socket,
    ):
        return await talker(socket)


def test_openpi(bridge):
    observation = {
        "observation/image": array(picture(11)),
        "observation/wrist_image": array(picture(22)),
        "observation/pose": array(np.arange(1.0, 7.0)),  # float64, and the state in two keys
        "observation/gripper": array(np.float64(0.5).reshape(())),
        "prompt": "four",
    }

    async def client(socket):
        metadata = msgpack.unpackb(await socket.receive_bytes())
        assert (metadata["action_horizon"], metadata["action_dim"]) == (4, 7)
        replies = []
        for _ in range(2):
            await socket.send_bytes(msgpack.packb(observation))
            replies.append(msgpack.unpackb(await socket.receive_bytes()))
        first, second = replies
        assert set(first) == {"actions", "server_timing"}
        assert set(first["server_timing"]) == {"infer_ms"}
        assert set(second["server_timing"]) == {"infer_ms", "prev_total_ms"}
        actions = numbers(second["actions"])
        assert actions.shape == (4, 7)
        np.testing.assert_allclose(actions[0], [11, 22, 4, 1.0, 0.5, 0, 0])
        bad = {**observation, "observation/wrist": observation["observation/wrist_image"]}
        del bad["observation/wrist_image"]
        await socket.send_bytes(msgpack.packb(bad))
        error = await socket.receive_str()
        assert error == "'observation/wrist_image' is missing (did you mean 'observation/wrist'?)"
        assert (await socket.receive()).type is aiohttp.WSMsgType.CLOSE
        assert socket.close_code == 1011

    asyncio.run(talk(bridge["openpi"], client))


def test_health_needs_no_token_and_the_rest_does(bridge):
    async def ask():
        async with aiohttp.ClientSession() as http:
            for name, path, body in (
                ("openpi", "/healthz", "OK\n"),
                ("vla_eval", "/health", '{"status": "ok"}\n'),
            ):
                url = bridge[name].replace("ws:", "http:")
                async with http.get(url + path) as reply:
                    assert (reply.status, await reply.text()) == (200, body)
                async with http.get(url) as reply:
                    assert reply.status == 401
            async with http.get(bridge["starvla"].replace("ws:", "http:")) as reply:
                assert reply.status == 426

    asyncio.run(ask())

    async def nothing(socket):
        raise AssertionError

    with pytest.raises(aiohttp.WSServerHandshakeError):
        asyncio.run(talk(bridge["openpi"], nothing, token="guess"))


def test_starvla(bridge, serving):
    def example(value):
        images = [array(picture(value)), array(picture(value + 1))]  # camera_1 first: see the repack file
        return {"image": images, "lang": "go", "state": array(np.arange(7.0)[None])}

    async def client(socket):
        async def ask(request):
            await socket.send_bytes(msgpack.packb(request))
            return msgpack.unpackb(await socket.receive_bytes())

        metadata = msgpack.unpackb(await socket.receive_bytes())
        assert metadata["available_unnorm_keys"] == ["franka", "widowx"]
        assert metadata["default_unnorm_key"] is None
        assert metadata["action_chunk_size"] == 4
        assert metadata["training_obs_image_size"] == [32, 32]
        flat = {
            "examples": [example(n) for n in (10, 20, 30)],
            "unnorm_key": "widowx",
            "do_sample": False,
            "use_ddim": True,
            "num_ddim_steps": 10,
        }
        reply = await ask(flat)
        assert {k: reply[k] for k in ("status", "ok", "type", "request_id")} == {
            "status": "ok",
            "ok": True,
            "type": "inference_result",
            "request_id": "default",
        }
        actions = numbers(reply["data"]["actions"])
        assert actions.shape == (3, 4, 7)
        np.testing.assert_array_equal(actions[:, 0, :2], [[11, 10], [21, 20], [31, 30]])
        np.testing.assert_array_equal(actions[:, 0, 5], 1)
        wrapped = {"type": "infer", "request_id": "a", "payload": {**flat, "unnorm_key": "franka"}}
        reply = await ask(wrapped)
        assert reply["request_id"] == "a"
        np.testing.assert_array_equal(numbers(reply["data"]["actions"])[:, 0, 5], 0)
        assert await ask({"type": "ping", "request_id": "b"}) == {
            "status": "ok",
            "ok": True,
            "type": "ping",
            "request_id": "b",
        }
        for request, words in (
            ({**flat, "unnorm_key": "bridge"}, "unnorm_key: 'bridge' is not known (known: franka, widowx)"),
            ({"examples": flat["examples"]}, "unnorm_key: name one of franka, widowx"),
            ({**flat, "examples": []}, "examples: expected a list"),
            ({**flat, "example": 1}, "unknown 'example' (did you mean 'examples'?)"),
            ({**flat, "examples": [{**example(1), "image": []}]}, "0 images, expected camera_1, camera_0"),
            ({**flat, "examples": [{**example(1), "lang": 3}]}, "examples[0]: the instruction is a int"),
            ({**flat, "examples": [{**example(1), "lang": ""}]}, "observation.instruction: empty"),
            ({"type": "fly"}, "type: 'fly' is not known"),
            ([1], "the request is a list"),
        ):
            reply = await ask(request)  # in band, and the connection stays
            assert (reply["status"], reply["ok"]) == ("error", False)
            assert words in reply["error"]["message"]
        serving.sessions._sessions.clear()  # expired meanwhile, which this protocol has no word for
        assert (await ask(flat))["ok"]

    asyncio.run(talk(bridge["starvla"], client))


SAMPLING = {"do_sample": False, "use_ddim": True, "num_ddim_steps": 10}
"""What StarVLA's clients always send."""


def test_starvla_sampling_is_honoured_or_refused(bridge, serving):
    asked = serving.engine.policy.policy.steps
    images = [array(picture(1)), array(picture(2))]
    example = {"image": images, "lang": "go", "state": array(np.arange(7.0))}
    request = {"examples": [example], "unnorm_key": "franka"}

    async def client(socket):
        async def ask(more):
            await socket.send_bytes(msgpack.packb(request | more))
            return msgpack.unpackb(await socket.receive_bytes())

        await socket.receive_bytes()
        for more, steps in (
            (SAMPLING, 10),
            ({"num_ddim_steps": 3}, 3),
            ({**SAMPLING, "use_ddim": False}, None),
            (dict.fromkeys(SAMPLING), None),
            ({}, None),
        ):
            assert (await ask(more))["ok"]
            assert asked[-1] == steps
        before = len(asked)
        for more, words in (
            ({**SAMPLING, "do_sample": True}, "do_sample: true is for policies that sample tokens"),
            ({**SAMPLING, "use_ddim": "yes"}, "use_ddim: 'yes', expected true or false"),
            ({"num_ddim_steps": 0}, "num_ddim_steps: 0, expected a whole number of at least 1"),
            ({"num_ddim_steps": 2.5}, "num_ddim_steps: 2.5, expected a whole number"),
            ({"num_ddim_steps": True}, "num_ddim_steps: True, expected a whole number"),
            ({"num_ddim_steps": 1000}, "num_ddim_steps: 1000 is outside 1 to 100"),
            ({"num_ddim_steps": 2**40}, "num_ddim_steps: 1099511627776 is no whole number in 0 to 1000"),
        ):
            reply = await ask(more)
            assert not reply["ok"]
            assert words in reply["error"]["message"]
        assert len(asked) == before
        assert (await ask(SAMPLING))["ok"]

    asyncio.run(talk(bridge["starvla"], client))


def test_connections_are_bounded(bridge):
    async def when_there_is_room(http):
        for _ in range(100):  # the bridge sees the end of a connection a moment later, other tests' too
            try:
                return await http.ws_connect(bridge["starvla"])
            except aiohttp.WSServerHandshakeError:
                await asyncio.sleep(0.1)
        raise AssertionError("closed connections make no room")

    async def crowd():
        async with aiohttp.ClientSession() as http:
            sockets = [await when_there_is_room(http) for _ in range(3)]
            with pytest.raises(aiohttp.WSServerHandshakeError) as caught:
                await http.ws_connect(bridge["starvla"])
            assert caught.value.status == 503
            for socket in sockets:
                await socket.close()
            await (await when_there_is_room(http)).close()

    asyncio.run(crowd())


def test_vla_eval(bridge):
    def png(value):
        file = io.BytesIO()
        Image.fromarray(picture(value)).save(file, "PNG")
        return {"__image__": True, "format": "png", "data": file.getvalue(), "shape": [32, 32, 3]}

    def text_array(values):
        return {
            "__ndarray__": True,
            "data": values.tobytes(),
            "dtype": values.dtype.str,
            "shape": list(values.shape),
        }

    def observation(value, key="states"):
        images = {"agentview": png(value), "wrist": png(1), "other": png(2)}
        return {"images": images, "task_description": "go", key: text_array(np.arange(7.0))}

    async def client(socket):
        count = 0

        async def send(kind, payload):
            nonlocal count
            count += 1
            message = {"type": kind, "payload": payload, "seq": count, "timestamp": time.time()}
            await socket.send_bytes(msgpack.packb(message))

        async def ask(kind, payload):
            await send(kind, payload)
            reply = msgpack.unpackb(await socket.receive_bytes())
            assert reply["seq"] == count
            assert reply["timestamp"] <= time.time()
            return reply["type"], reply["payload"]

        async def act(value, key="states"):
            kind, payload = await ask("observation", observation(value, key))
            assert kind == "action"
            packed = payload["actions"]
            assert packed["shape"] == [7]
            return np.frombuffer(packed["data"], packed["dtype"])[[0, 6]].tolist()

        kind, hello = await ask("hello", {"harness_version": "0.8.0", "protocol_version": 1})
        assert (kind, hello["protocol_version"], hello["model_server"]) == ("hello", 1, "vla-serve")
        assert hello["action_spec"]["rotation"] == {"name": "rotation", "dims": 3, "format": "axis_angle"}
        assert set(hello["observation_spec"]) == {"agentview", "wrist", "language", "state"}
        assert hello["observation_params"] == {"send_state": True}
        await send("episode_start", {"task": {"name": "t"}})
        assert [await act(value) for value in (10, 20, 30, 40)] == [[10, 0], [10, 1], [10, 2], [40, 0]]
        await send("episode_end", {"success": True})
        await send("episode_start", {})  # the chunk is dropped
        assert await act(50, "state") == [50, 0]
        await send("episode_start", {})
        kind, payload = await ask("observation", {"images": {}, "task_description": "go", "states": [0] * 7})
        assert (kind, payload["error"]) == ("error", "'agentview' is missing (known: none)")
        assert (await ask("fly", {}))[0] == "error"
        assert await act(60) == [60, 0]

    asyncio.run(talk(bridge["vla_eval"], client))
