"""Idle cores that poll: who sees to it, what is refused, and that nothing of it outlives the server."""

from __future__ import annotations

import math
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from vla_core.errors import UserError
from vla_serve.host import idle_poll as module
from vla_serve.host.idle_poll import idle_poll, polled_by_kernel, spinning, time_limit

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="of Linux")

HOLD = """
import sys
from vla_serve.host.idle_poll import spinning
with spinning({int(sys.argv[1])}):
    print("spins", flush=True)
    sys.stdin.read()
"""


def state_and_parent(pid: int) -> tuple[str, int]:
    try:
        words = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:  # it has ended
        return "Z", 0
    return words[0], int(words[1])


def children(pid: int) -> list[int]:
    found = [int(path.name) for path in Path("/proc").glob("[0-9]*")]
    return [other for other in found if state_and_parent(other)[1] == pid]


def alive(pid: int) -> bool:
    return state_and_parent(pid)[0] != "Z"


def core() -> int:
    return min(os.sched_getaffinity(0))


def unlimited(monkeypatch) -> None:
    monkeypatch.setattr(module, "time_limit", lambda: math.inf)


def test_a_thread_of_lowest_priority_spins_on_a_core_and_ends_with_the_block(monkeypatch):
    unlimited(monkeypatch)
    before = set(children(os.getpid()))
    with spinning({core()}):
        (child,) = set(children(os.getpid())) - before
        tasks = [int(task.name) for task in Path(f"/proc/{child}/task").iterdir()]
        idle = [tid for tid in tasks if os.sched_getscheduler(tid) == os.SCHED_IDLE]
        assert [os.sched_getaffinity(tid) for tid in idle] == [{core()}]
        assert os.sched_getscheduler(child) == os.SCHED_OTHER  # the one that has to end it gets its turn
    assert not alive(child)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_it_ends_however_the_server_ends(number):
    if time_limit() < 1:
        pytest.skip("the CPU time of this machine's tests is limited")
    command = [sys.executable, "-c", HOLD, str(core())]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "spins\n"
        (child,) = children(process.pid)
        process.send_signal(number)
        process.wait(30)
        deadline = time.monotonic() + 30
        while alive(child):
            assert time.monotonic() < deadline
            time.sleep(0.01)


def test_a_core_that_is_not_there_is_one_line_and_nothing_is_left(monkeypatch):
    unlimited(monkeypatch)
    before = children(os.getpid())
    line = r"^idle_poll: SCHED_IDLE on core 100000 is refused \(Invalid arg"
    with pytest.raises(UserError, match=line), spinning({100_000}):
        raise AssertionError("not reached")
    assert children(os.getpid()) == before


def test_one_that_something_else_ended_is_told(monkeypatch, caplog):
    unlimited(monkeypatch)
    before = set(children(os.getpid()))
    with spinning({core()}):
        (child,) = set(children(os.getpid())) - before
        os.kill(child, signal.SIGKILL)
        os.waitid(os.P_PID, child, os.WEXITED | os.WNOWAIT)
    assert "ended by something else" in caplog.text


def test_limited_time_is_not_spent_on_spinning(monkeypatch):
    monkeypatch.setattr(module, "time_limit", lambda: 0.5)
    with pytest.raises(UserError, match=r"the time of 0.5 cores \(cpu\.max\)"), spinning({core()}):
        raise AssertionError("not reached")


def test_other_systems_are_told(monkeypatch):
    monkeypatch.setattr(sys, "platform", "darwin")
    with pytest.raises(UserError, match="needs Linux, this is darwin"), idle_poll():
        raise AssertionError("not reached")


def test_the_kernel_is_asked_where_it_polls_and_lets_us(monkeypatch, tmp_path, caplog):
    caplog.set_level("INFO")
    latency, state = tmp_path / "latency", tmp_path / "cpuidle" / "state0" / "name"
    monkeypatch.setattr(module, "LATENCY", latency)
    monkeypatch.setattr(module, "IDLE_STATES", tmp_path / "cpuidle")
    assert not module.kernel_can()
    state.parent.mkdir(parents=True)
    state.write_text("POLL\n")
    assert not module.kernel_can()
    with pytest.raises(UserError, match="cannot be opened"), polled_by_kernel():
        raise AssertionError("not reached")
    latency.mkdir()  # there, and not to be opened
    assert not module.kernel_can()
    latency.rmdir()
    latency.touch()
    assert module.kernel_can()
    monkeypatch.setattr(os, "cpu_count", lambda: len(os.sched_getaffinity(0)))
    with idle_poll():
        assert latency.read_bytes() == bytes(4)
    assert "by the kernel" in caplog.text
    state.write_text("WFI\n")
    assert not module.kernel_can()


@pytest.mark.parametrize(
    ("group", "files", "cores"),
    [
        ("0::/a/b", {"a/b/cpu.max": "250000 100000"}, 2.5),
        ("0::/a/b", {"a/cpu.max": "250000 100000", "a/b/cpu.max": "max 100000"}, 2.5),
        ("0::/a/b", {"a/cpu.max": "400000 100000", "a/b/cpu.max": "50000 100000"}, 0.5),
        ("0::/a/b", {"a/b/cpu.max": "max 100000"}, math.inf),
        ("0::/", {"cpu.max": "50000 100000"}, 0.5),
        ("0::/", {"other/cpu.max": "50000 100000"}, math.inf),
        ("4:cpu,cpuacct:/a", {"cpu,cpuacct/a/cpu.cfs_quota_us": "50000"}, 0.5),
        ("4:cpu,cpuacct:/elsewhere", {"cpu,cpuacct/cpu.cfs_quota_us": "50000"}, 0.5),
        ("4:cpu:/a", {"cpu/a/cpu.cfs_quota_us": "-1"}, math.inf),
        ("4:cpuset:/a", {"cpuset/a/cpu.cfs_quota_us": "50000"}, math.inf),
    ],
)
def test_limits_of_control_groups(tmp_path, group, files, cores):
    groups, root = tmp_path / "groups", tmp_path / "root"
    groups.write_text(f"1:name=systemd:/\n{group}\n")
    for name, text in files.items():
        file = root / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(f"{text}\n")
        if "quota" in name:
            (file.parent / "cpu.cfs_period_us").write_text("100000\n")
    assert time_limit(groups, root) == cores


def test_no_control_groups_at_all(tmp_path):
    assert time_limit(tmp_path / "none", tmp_path) == math.inf
