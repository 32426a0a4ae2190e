"""The page for a browser: what it is told, that it ends with its server, and that it dies alone."""

from __future__ import annotations

import http.cookiejar
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

import numpy as np
import pytest
from vla_core.errors import UserError
from vla_core.testing import make_observation, make_spec
from vla_core.testing.processes import running
from vla_serve import PolicyClient, PolicyServer
from vla_serve.dashboard.history import History
from vla_serve.dashboard.recorder import SESSIONS, THUMBNAIL, thumbnail
from vla_serve.testing import TimedPolicy

pytest.importorskip("nicegui", reason="needs the extra vla-serve[dashboard]")

SPEC = make_spec(2)


def until(condition, seconds=30.0):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.02)


def visitor() -> urllib.request.OpenerDirector:
    """A browser of somebody: it keeps cookies."""
    jar = http.cookiejar.CookieJar()
    opener = urllib.request.build_opener(urllib.request.HTTPCookieProcessor(jar))
    opener.jar = jar
    return opener


def upgraded(port: int, *headers: str) -> int:
    """Status of a WebSocket's handshake."""
    lines = (
        "GET /_nicegui_ws/socket.io/?EIO=4&transport=websocket HTTP/1.1",
        *(
            f"Host: 127.0.0.1:{port}",
            "Connection: Upgrade",
            "Upgrade: websocket",
            "Sec-WebSocket-Version: 13",
        ),
        *("Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==", *headers, "", ""),
    )
    with socket.create_connection(("127.0.0.1", port), 30) as sock:
        sock.sendall("\r\n".join(lines).encode())
        return int(sock.recv(4096).split()[1])


def get(url: str | int, opener: urllib.request.OpenerDirector, **headers: str) -> int:
    where = url if isinstance(url, str) else f"http://127.0.0.1:{url}/"
    request = urllib.request.Request(where, headers=headers)
    try:
        with opener.open(request, timeout=60) as reply:
            return reply.status
    except urllib.error.HTTPError as error:
        return error.code


def test_only_who_has_the_token_is_answered_and_only_on_this_machine(caplog):
    caplog.set_level("DEBUG")
    with PolicyServer(TimedPolicy(SPEC), dashboard=0) as server:
        url, port = server.dashboard_url, server.dashboard_port
        base, _, token = url.partition("?token=")
        assert base == f"http://127.0.0.1:{port}/"
        assert len(token) >= 32
        browser = visitor()
        assert get(url, browser) == 200
        assert get(port, browser) == 200  # by its cookie
        (cookie,) = browser.jar
        assert cookie.has_nonstandard_attr("HttpOnly")
        shown = f"{cookie.name}={cookie.value}"
        # Others of this machine see nothing: not the page, not what it is made of, not its WebSocket.
        for path in ("", "?token=", f"?token={token[:-1]}", "?token=%C3%A9", "_nicegui_ws/socket.io/?EIO=4"):
            assert get(base + path, visitor()) == 403, path
        assert get(port, visitor(), Cookie=f"{cookie.name}=x") == 403
        assert upgraded(port) == 403
        assert upgraded(port, f"Cookie: {shown}") == 101
        assert get(port, visitor(), Cookie=shown, Host="localhost") == 200
        assert get(port, visitor(), Cookie=shown, Host="evil.example") == 400
        arguments = Path(f"/proc/{server._lookouts._dashboard._process.pid}/cmdline").read_bytes()
        assert token.encode() not in arguments
    assert token not in caplog.text
    with pytest.raises(urllib.error.URLError, match="refused"):
        get(port, visitor())
    with PolicyServer(TimedPolicy(SPEC), dashboard=0) as other:
        assert other.dashboard_url.partition("?token=")[2] != token


def test_a_page_that_dies_or_hangs_stops_nobody(caplog):
    with (
        PolicyServer(TimedPolicy(SPEC), dashboard=0) as server,
        PolicyClient(server.address) as client,
    ):
        dashboard = server._lookouts._dashboard
        client.predict(make_observation(SPEC))
        os.kill(dashboard._process.pid, signal.SIGSTOP)
        for _ in range(20):
            client.predict(make_observation(SPEC))
        os.kill(dashboard._process.pid, signal.SIGKILL)
        until(lambda: "the dashboard ended" in caplog.text)
        client.predict(make_observation(SPEC))
        assert not dashboard.recorder._seen
        assert not dashboard.recorder._numbers


SERVE = """
import sys
from vla_core.testing import make_spec
from vla_serve import PolicyServer
from vla_serve.testing import TimedPolicy
server = PolicyServer(TimedPolicy(make_spec(2)), dashboard=0)
server.start()
print(server.dashboard_url, server._lookouts._dashboard._process.pid, flush=True)
server.wait()
"""


def test_the_page_ends_with_a_server_that_was_killed(tmp_path):
    process = subprocess.Popen([sys.executable, "-c", SERVE], stdout=subprocess.PIPE, text=True, cwd=tmp_path)
    try:
        url, page = process.stdout.readline().split()
        assert get(url, visitor()) == 200
    finally:
        process.kill()
        process.wait()
    until(lambda: not running(int(page)))
    assert not list(tmp_path.iterdir())


def test_what_cannot_be_is_one_line(monkeypatch):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(UserError, match=f"dashboard: {port} of 127.0.0.1 is taken; choose"):
            PolicyServer(TimedPolicy(SPEC), dashboard=port).start()
    with pytest.raises(UserError, match="dashboard: 70000 is outside"):
        PolicyServer(TimedPolicy(SPEC), dashboard=70000)
    monkeypatch.setitem(sys.modules, "nicegui", None)
    with pytest.raises(UserError, match=r"dashboard: 'nicegui' is not installed: .*vla-serve\[dashboard\]"):
        PolicyServer(TimedPolicy(SPEC), dashboard=0)


def test_what_is_kept_has_a_bound():
    large = np.zeros((1080, 1920, 3), np.uint8)
    small = thumbnail(large)
    assert max(small.shape) <= THUMBNAIL
    assert small.base is None  # nothing holds the large one
    with PolicyServer(TimedPolicy(SPEC), dashboard=0, max_sessions=2 * SESSIONS) as server:
        recorder = server._lookouts._dashboard.recorder
        clients = [PolicyClient(server.address) for _ in range(SESSIONS + 3)]
        for client in clients:
            client.open()
            client.predict(make_observation(SPEC))
        assert len(recorder._seen) == SESSIONS
        last = clients[-1]._session
        report, pictures = recorder.report([""], contracts=True)
        assert list(report["shown"]) == [last[:8]]
        assert len(pictures) == len(SPEC.observation.cameras)
        axes = [group["axes"] for group in report["shown"][last[:8]]["actions"]]
        assert axes == [["x", "y", "z"], ["x", "y", "z"], ["0"]]
        assert len(report["sessions"]) == len(clients)
        assert last not in str(report)
        for client in clients:
            client.close()
        report, pictures = recorder.report([""], contracts=False)
        assert not recorder._seen
        assert not pictures
        assert report["sessions"] == []


def test_numbers_of_the_last_minute():
    history = History()
    report = {
        "answers": [(0.5, 10.0 + i, 1.0, 0.5, 0.5, 8.0 + i, 0.1, 1 + i % 2, 0) for i in range(101)],
        "policies": [{"name": "a", "revision": "1", "state": "current", "queue": 3}],
        "in_flight": 5,
        "contracts": {"a": ["one"]},
    }
    assert history.percentile(50) is None
    assert history.latencies() == []
    history.add(report)
    assert not history.wants_contracts
    history.add({**report, "answers": [(61.0, 1e6, 0, 0, 0, 0, 0, 1, 0)], "in_flight": 0})
    assert history.percentile(50) == 60.0
    assert history.parts()["model"] == 58.0
    assert history.batches() == [(1, 51), (2, 50)]
    assert sum(count for _, count in history.latencies()) == 101
    assert [row[1:] for row in history.queue()] == [(3, 5), (3, 0)]
    policies = [{"name": "a", "revision": "2", "state": "current", "queue": 0}]
    history.add({**report, "answers": [], "policies": policies, "contracts": {"a": ["two"]}})
    history.report = {**history.report, "policies": report["policies"]}
    assert history.wants_contracts
