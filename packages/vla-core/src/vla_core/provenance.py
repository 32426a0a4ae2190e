"""What results were made with: code, machine and packages, as far as this process can tell."""

from __future__ import annotations

import platform
import subprocess
from collections.abc import Iterable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from vla_core import installed

_ALWAYS = ("vla-core", "numpy")


def describe(modules: Iterable[str] = (), packages: Iterable[str] = ()) -> dict[str, Any]:
    """Plain data: ``git_commit`` (None outside a checkout), ``cpu``, ``gpus``, ``python``, ``packages``.

    ``packages`` of the answer: distribution -> version, of those that are installed of these: whatever brings
    parts (entry points ``vla.*``, this project's or other people's), and what was asked for.

    Args:
        modules: whose distributions are named, those of a simulator for example.
        packages: distributions by name.
    """
    names = {*_ALWAYS, *packages, *(name for module in modules for name in installed.owners(module))}
    names |= installed.bringers()
    return {
        "git_commit": _git_commit(),
        "cpu": _cpu(),
        "gpus": _gpus(),
        "python": platform.python_version(),
        "packages": {name: found for name in sorted(names) if (found := _version(name)) is not None},
    }


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def _git_commit() -> str | None:
    """Commit of the working directory's checkout, with ``+changes`` where files differ from it."""

    def git(*words: str) -> str:
        return subprocess.run(
            ["git", *words], capture_output=True, text=True, check=True, timeout=10
        ).stdout.strip()

    try:
        commit = git("rev-parse", "HEAD")
        return commit + ("+changes" if git("status", "--porcelain", "--untracked-files=no") else "")
    except (OSError, subprocess.SubprocessError):
        return None


def _cpu() -> str:
    info = Path("/proc/cpuinfo")
    if info.is_file():
        for line in info.read_text("utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def _gpus() -> list[str]:
    """Models as NVIDIA's driver names them; no library is loaded for it."""
    found = []
    for file in sorted(Path("/proc/driver/nvidia/gpus").glob("*/information")):
        for line in file.read_text("utf-8").splitlines():
            if line.startswith("Model:"):
                found.append(line.partition(":")[2].strip())
    return found
