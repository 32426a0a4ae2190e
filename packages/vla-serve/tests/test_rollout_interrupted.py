"""A rollout that is interrupted at the keyboard."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
from vla_serve import PolicyServer
from vla_serve.rollout_cli import main
from vla_serve.testing import ToyPolicy


@pytest.fixture
def address():
    with PolicyServer(ToyPolicy()) as server:
        yield server.address


def test_it_says_so_and_the_same_command_goes_on(toy, address, tmp_path, capsys, monkeypatch):
    words = f"--address {address} --env toy --task left --episodes 3 --workers 1".split()
    words += ["--videos", "none", "--out", str(tmp_path / "out")]

    def interrupt(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr("vla_serve.rollout_cli._progress", interrupt)
        assert main(words) == 130
    assert capsys.readouterr().err.strip() == "vla-rollout: interrupted; the same command goes on"
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    assert [e["seed"] for e in results["episodes"]] == [10_000]
    assert main(words) == 0
    assert "[2/3]" in capsys.readouterr().out


ROLLOUT = """
import signal, sys
from vla_core import registry
from vla_serve.rollout_cli import main
from vla_serve.testing import ToyEnv

class Interrupted(ToyEnv):
    def step(self, action):
        signal.raise_signal(signal.SIGINT)
        return super().step(action)

if __name__ == "__main__":
    registry.override("vla.envs", "toy", Interrupted)
    sys.exit(main(sys.argv[1:]))
"""


def test_a_simulator_does_not_end_by_what_a_terminal_sends_to_all(address, tmp_path):
    """The program ends it; by itself it would leave a traceback."""
    (tmp_path / "run.py").write_text(ROLLOUT)
    words = f"--address {address} --env toy --task left --episodes 2 --workers 1 --videos none".split()
    command = [sys.executable, str(tmp_path / "run.py"), *words, "--out", str(tmp_path / "out")]
    done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stderr) == (0, "")
