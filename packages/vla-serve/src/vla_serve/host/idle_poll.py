"""Cores that do not halt while a server waits.

A thread that is woken on a halted core comes late: by some microseconds, and in a virtual machine, whose core
the host has to start again, by up to a tenth of a millisecond. An answer takes about ten such turns.
"""

from __future__ import annotations

import logging
import math
import os
import struct
import subprocess
import sys
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path

from vla_core.errors import UserError

log = logging.getLogger("vla_serve.server")

LATENCY = Path("/dev/cpu_dma_latency")
"""Held open with a number in it, no core sleeps so deeply that it takes longer (microseconds) to wake up."""
IDLE_STATES = Path("/sys/devices/system/cpu/cpu0/cpuidle")
CGROUPS = Path("/sys/fs/cgroup")
END_S = 5.0


@contextmanager
def idle_poll() -> Iterator[None]:
    """A block in which the cores that this process may run on poll for work instead of halting.

    By the kernel where it can and lets us (:func:`polled_by_kernel`: root, all cores), else by threads of
    lowest priority (:func:`spinning`). The log says which.

    Raises:
        UserError: neither can be had here.
    """
    cores = os.sched_getaffinity(0) if sys.platform == "linux" else set()
    if not cores:
        raise UserError(f"idle_poll: needs Linux, this is {sys.platform}")
    by_kernel = len(cores) == os.cpu_count() and kernel_can()
    with polled_by_kernel() if by_kernel else spinning(cores):
        how = f"by the kernel ({LATENCY})" if by_kernel else "by threads of lowest priority (SCHED_IDLE)"
        log.info("idle cores poll: %d, %s", len(cores), how)
        yield


def kernel_can() -> bool:
    """Whether the kernel's idle cores would poll if it were asked to, and we may ask."""
    try:
        shallowest = (IDLE_STATES / "state0" / "name").read_text("utf-8").strip()
        os.close(os.open(LATENCY, os.O_WRONLY))  # root may be refused too, in a container
    except OSError:
        return False
    return shallowest == "POLL"  # without that kind of idleness it halts


@contextmanager
def polled_by_kernel() -> Iterator[None]:
    """A block in which idle cores poll, of this machine, by the kernel's PM QoS: ends with the process."""
    try:
        file = os.open(LATENCY, os.O_WRONLY)
    except OSError as error:
        raise UserError(f"idle_poll: {LATENCY} cannot be opened ({error.strerror})") from None
    try:
        os.write(file, struct.pack("=i", 0))
        yield
    finally:
        os.close(file)


@contextmanager
def spinning(cores: Collection[int]) -> Iterator[None]:
    """A block in which a thread of lowest priority spins on each of ``cores``.

    In a process of its own: its memory is not this one's, whose every unmapping would have to tell those
    cores. However this process ends, the other one reads the end of its input, and ends.

    Raises:
        UserError: the time on the cores is limited, or the priority is refused.
    """
    if (limit := time_limit()) < len(cores):
        raise UserError(
            f"idle_poll: the control group allows the time of {limit:g} cores (cpu.max), which spinning on "
            f"{len(cores)} would use up; give the server as many cores (cpuset, taskset)"
        )
    command = [sys.executable, "-I", "-S", str(Path(__file__).with_name("_idle_spin.py"))]
    with subprocess.Popen(
        [*command, *map(str, sorted(cores))], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        said = ""
        try:
            said = process.stdout.readline().strip()
            if said != "ready":
                raise UserError(f"idle_poll: {said or 'the process that spins has ended'}")
            yield
        finally:
            if said == "ready" and process.poll() is not None:
                log.warning(
                    "idle cores have halted again: the process that spins was ended by something else"
                )
            process.stdin.close()
            try:
                process.wait(END_S)
            except subprocess.TimeoutExpired:
                process.kill()


def time_limit(groups: Path = Path("/proc/self/cgroup"), root: Path = CGROUPS) -> float:
    """Cores' worth of time that control groups allow this process; within a container, as far as it sees."""
    try:
        lines = groups.read_text("utf-8").splitlines()
    except OSError:
        return math.inf
    least = math.inf
    for line in lines:
        _, names, path = line.split(":", 2)
        if names and "cpu" not in names.split(","):
            continue
        base = root / names if names else root
        folder = base / path.lstrip("/")
        while folder.is_relative_to(base):
            if names:  # the first version's: a file for each number
                words = [*_words(folder / "cpu.cfs_quota_us"), *_words(folder / "cpu.cfs_period_us")]
            else:
                words = _words(folder / "cpu.max")
            if len(words) == 2 and words[0] not in ("-1", "max"):
                least = min(least, int(words[0]) / int(words[1]))
            folder = folder.parent
    return least


def _words(file: Path) -> list[str]:
    try:
        return file.read_text("utf-8").split()
    except OSError:
        return []
