"""Where a server listens: names, addresses and ports that are taken."""

from __future__ import annotations

import pytest
from vla_core.errors import UserError
from vla_core.testing import make_observation, make_spec
from vla_serve import PolicyClient, PolicyServer
from vla_serve.server_cli import main
from vla_serve.testing import TimedPolicy

SPEC = make_spec(1)


def test_a_taken_port_is_found_before_anything_is_loaded(capsys):
    with PolicyServer(TimedPolicy(SPEC)) as server:
        assert main(["--ckpt_path", "no/such/checkpoint", "--port", str(server.port)]) == 2
    text = capsys.readouterr().err
    assert f"port: {server.port or ''}" in text or "is taken" in text
    assert "checkpoint" not in text


def test_localhost_is_all_its_addresses():
    with PolicyServer(TimedPolicy(SPEC), host="localhost") as server:
        for target in server._addresses:
            with PolicyClient(target) as client:
                client.predict(make_observation(SPEC))
        assert "127.0.0.1" in server._addresses[0] or "::1" in server._addresses[0]


@pytest.mark.parametrize(
    ("host", "words"),
    [("no.such.host.invalid", "is no name or address"), ("203.0.113.7", "is no address of this machine")],
)
def test_a_bad_host_is_not_a_taken_port(host, words):
    with pytest.raises(UserError, match=words):
        PolicyServer(TimedPolicy(SPEC), host=host).start()
