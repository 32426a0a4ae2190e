"""What ``vla-serve bridge`` refuses before it listens, and whose steps StarVLA's requests take."""

from __future__ import annotations

import asyncio

import numpy as np
import pytest
from vla_core.testing import make_spec
from vla_core.types import ActionChunk
from vla_serve import PolicyServer
from vla_serve.server_cli import main

pytest.importorskip("aiohttp", reason="needs the extra vla-serve[bridge]")
pytest.importorskip("msgpack", reason="needs the extra vla-serve[bridge]")

import aiohttp
import msgpack

SPECS = {"left": make_spec(embodiment="left"), "right": make_spec(embodiment="right")}
REPACK = """
openpi:
  images: {camera_0: observation/image, camera_1: observation/wrist_image}
  state: {observation/gripper: [gripper], observation/pose: [position, rotation]}
"""


class TwoRobots:
    """Its contract is all that a bridge reads as it starts."""

    framework, specs = "TwoRobots", SPECS

    def act(self, observations, seeds, steps=None):
        actions = [self.specs[o.embodiment].action for o in observations]
        return [ActionChunk(np.zeros((a.horizon, a.dim), np.float32), a) for a in actions]


def packed(values):
    return {
        b"__ndarray__": True,
        b"data": values.tobytes(),
        b"dtype": values.dtype.str,
        b"shape": values.shape,
    }


def test_a_bridge_is_checked_before_it_listens(tmp_path, capsys):
    file = tmp_path / "repack.yaml"

    def run(text, *words):
        file.write_text(text)
        code = main(["bridge", "--address", server.address, "--repack", str(file), *words])
        return code, capsys.readouterr().err

    left = ("--embodiment", "left", "--openpi_port", "0")
    with PolicyServer(TwoRobots()) as server:
        for text, words, expected in (
            (
                "openpi: {images: {camera_0: a, camra_1: b}}",
                left,
                "'camra_1' is not in the contract (did you",
            ),
            (
                "openpi: {images: {camera_0: a}}",
                left,
                "repack.openpi.images: 'camera_1' of the contract is",
            ),
            ("openpi: {image: {}}", left, "image"),
            (REPACK, ("--openpi_port", "0"), "--embodiment: name one of left, right"),
            ("starvla: {}", left, "no section 'openpi', which says whose keys are what"),
            (
                "starvla: {unnorm_keys: {franka: lift}}",
                ("--starvla_port", "0"),
                "has no 'lift' (did",
            ),
            (REPACK, (), "give --openpi_port, --starvla_port or --vla_eval_port"),
            (REPACK, (*left, "--host", "0.0.0.0"), "give --listen_cert and --listen_key with --listen_token"),
            (REPACK, (*left[:2], "--openpi_port", "99999"), "openpi_port: 99999 is outside 0 to 65535"),
            (
                REPACK,
                (*left, "--listen_cert", str(file), "--listen_key", str(file)),
                "are no certificate and its key",
            ),
            (REPACK, (*left, "--max_message_mb", "0"), "max_message_mb: 0 is outside 1 to 1024"),
            (REPACK, (*left, "--max_connections", "0"), "max_connections: 0 is outside 1 to"),
            (REPACK, (*left, "--denoise_steps", "0"), "denoise_steps: 0 is outside 1 to 1000"),
            (REPACK, (*left, "--denoise_steps", "1001"), "denoise_steps: 1001 is outside 1 to 1000"),
            (REPACK, (*left, "--wait_s", "-1"), "wait_s: must be positive and finite"),
            (REPACK, (*left, "--listen_token_file", "nowhere"), "listen_token_file: nowhere cannot be read"),
            ("[1", left, "is no YAML"),
        ):
            code, said = run(text, *words)
            assert (code, expected in said) == (2, True), said
        address = server.address
    assert main(["bridge", "--address", address, "--starvla_port", "0", "--wait_s", "0.1"]) == 1


def test_as_many_connections_as_the_system_allows(monkeypatch):
    from vla_serve import bridge_cli

    allowed = []
    monkeypatch.setattr(bridge_cli, "allow_connections", lambda: allowed.append(True))
    assert main(["bridge", "--address", "127.0.0.1:1"]) == 2
    assert allowed


def test_the_policy_is_named_where_there_are_several(capsys):
    with PolicyServer({"one": TwoRobots(), "two": TwoRobots()}) as server:
        words = ["bridge", "--address", server.address, "--starvla_port", "0"]
        assert main(words) == 2
        assert "--policy: name one of one, two" in capsys.readouterr().err
        assert main([*words, "--policy", "tow"]) == 2
        assert "--policy: 'tow' is not served (did you mean 'two'?)" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("setting", "always", "steps"), [("request", None, 10), ("policy", None, None), ("request", 4, 4)]
)
def test_whose_steps_a_starvla_bridge_takes(setting, always, steps):
    from vla_serve.bridges.listener import Asker
    from vla_serve.bridges.repack import StarvlaConfig
    from vla_serve.bridges.starvla import Starvla

    asked = []

    class Client:
        async def __aenter__(self):
            return self

        async def __aexit__(self, *error):
            pass

        async def predict(self, observation, denoise_steps):
            asked.append(denoise_steps)
            action = SPECS["left"].action
            return ActionChunk(np.zeros((action.horizon, action.dim), np.float32), action)

    class Socket:
        """Gives one request, and keeps the answer."""

        def __init__(self, data):
            self.messages, self.sent = [aiohttp.WSMessage(aiohttp.WSMsgType.BINARY, data, None)], []

        async def __aiter__(self):
            for message in self.messages:
                yield message

        async def send_bytes(self, data):
            self.sent.append(msgpack.unpackb(data))

    example = {
        "image": [packed(np.ones((32, 32, 3), np.uint8))] * 2,
        "lang": "go",
        "state": packed(np.arange(7.0)),
    }
    always_sent = {"do_sample": False, "use_ddim": True, "num_ddim_steps": 10}
    socket = Socket(msgpack.packb({"examples": [example], **always_sent}))
    asker = Asker(lambda embodiment: Client(), 1.0, always)
    speaker = Starvla(asker, StarvlaConfig(num_ddim_steps=setting), {"left": SPECS["left"]})
    asyncio.run(speaker.serve(socket))
    assert socket.sent[-1]["ok"]
    assert asked == [steps]
