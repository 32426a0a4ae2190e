"""A rollout and a server that goes away: it waits for a successor, and says so where none comes."""

from __future__ import annotations

import subprocess
import sys
import threading
import time

import pytest
from vla_serve import PolicyServer, RolloutSettings, rollout
from vla_serve.rollouts import rollout as _rollout
from vla_serve.testing import ToyPolicy

# Its answers take long enough for an episode to be interrupted; says its port, and when it was asked.
SERVE = """
import sys, time
from vla_serve import PolicyServer
from vla_serve.testing import ToyPolicy
class Slow(ToyPolicy):
    def predict(self, prepared, steps=None):
        time.sleep(0.1)
        return super().predict(prepared, steps)
with PolicyServer(Slow(), port=int(sys.argv[1])) as server:
    print(server.port, flush=True)
    while not server.engine.pending:
        time.sleep(0.01)
    print("asked", flush=True)
    sys.stdin.read()
"""


def start(port: int) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", SERVE, str(port)]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def test_results_say_what_answered_and_where(toy, tmp_path):
    """The server is on a machine of its own, with packages that the client may lack."""
    with PolicyServer(ToyPolicy()) as served:
        run = RolloutSettings(
            address=served.address, env="toy", tasks=("left",), episodes=1, workers=1, videos="none"
        )
        results = rollout(run, tmp_path)
    server, own = results["policy"]["server"], results["provenance"]
    for key in ("git_commit", "cpu", "gpus", "python"):
        assert server[key] == own[key]
    assert {"vla-serve", "torch"} <= server["packages"].keys()
    assert server["packages"]["vla-serve"] == results["settings"]["vla_serve"]


def test_results_of_several_servers_say_which_answered_what(toy, tmp_path, monkeypatch):
    def run(cpu: str, episodes: int, seed: int = 0) -> dict:
        monkeypatch.setattr(_rollout, "_made_with", lambda said: {"cpu": cpu})
        run = RolloutSettings(
            address=served.address, env="toy", tasks=("left",), episodes=episodes, seed=seed, workers=1,
            videos="none",
        )  # fmt: skip
        return rollout(run, tmp_path)

    with PolicyServer(ToyPolicy()) as served:
        assert "servers" not in run("a", 1)["policy"]
        second = run("b", 2)
        # Nothing is run: what answers now is said, and the others are not forgotten.
        third = run("c", 2)
        last = run("a", 2, seed=1)
    assert second["policy"]["server"] == {"cpu": "b"}
    assert second["policy"]["servers"] == [{"episodes": 1, "cpu": "a"}, {"episodes": 1, "cpu": "b"}]
    assert [e["server"] for e in second["episodes"]] == [0, 1]
    counts = [(s["cpu"], s["episodes"]) for s in third["policy"]["servers"]]
    assert counts == [("a", 1), ("b", 1), ("c", 0)]
    assert [(s["cpu"], s["episodes"]) for s in last["policy"]["servers"]] == [("b", 1), ("a", 1)]
    assert "<i>cpu</i> b" in (tmp_path / "report.html").read_text()


def test_a_server_that_is_restarted_costs_no_episode(toy, tmp_path):
    servers = [PolicyServer(ToyPolicy())]
    servers[0].start()
    port = servers[0].port

    def restart(*_) -> None:
        if len(servers) == 1:
            servers[0].stop(0.0)
            servers.append(PolicyServer(ToyPolicy(), port=port))
            servers[1].start()

    run = RolloutSettings(
        address=servers[0].address, env="toy", tasks=("left",), episodes=6, workers=1, videos="none"
    )
    results = rollout(run, tmp_path, on_episode=restart)
    servers[-1].stop()
    assert len(servers) == 2
    assert results["complete"]
    assert results["total"]["success_rate"] == 1.0


@pytest.mark.slow
def test_a_server_that_is_killed_in_the_middle_of_an_episode_costs_none(toy, tmp_path):
    """SIGKILL: no goodbye. The next server has the port a second later and knows no session."""
    servers = [start(0)]
    port = int(servers[0].stdout.readline())

    def kill() -> None:
        assert servers[0].stdout.readline() == "asked\n"
        servers[0].kill()
        servers[0].wait()
        time.sleep(1.0)
        servers.append(start(port))

    killer = threading.Thread(target=kill)
    killer.start()
    run = RolloutSettings(
        address=f"127.0.0.1:{port}", env="toy", tasks=("left",), episodes=2, workers=1, videos="none"
    )
    results = rollout(run, tmp_path)
    killer.join()
    output, _ = servers[1].communicate(timeout=20)
    assert output.splitlines() == [str(port), "asked"]
    assert results["complete"]
    assert [episode["error"] for episode in results["episodes"]] == [None, None]
    assert results["total"]["success_rate"] == 1.0


def test_a_server_that_stays_away_is_an_error_of_the_episodes(toy, tmp_path):
    server = PolicyServer(ToyPolicy())
    server.start()
    run = RolloutSettings(
        address=server.address,
        env="toy",
        tasks=("left",),
        episodes=2,
        workers=1,
        videos="none",
        restart_s=0.5,
    )
    results = rollout(run, tmp_path, on_episode=lambda *_: server.stop(0.0))
    assert not results["complete"]
    assert [e["error"] is None for e in results["episodes"]] == [True, False]
