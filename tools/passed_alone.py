"""A pytest plugin: what passed in its package's own environment need not pass in the workspace's as well.

    pytest --write-passed FILE            writes the ids of the tests that passed
    pytest --leave-out-passed DIRECTORY   runs all others: the ids are in DIRECTORY/<package>.txt

CI's step `alone` runs each package's tests on its wheel, with no more than its declared dependencies, and
writes; its step `test` leaves out. A test that was skipped alone, or is not there, runs in the workspace.
So does one that looks at what is installed, whatever it said alone: more is installed in the workspace.
"""

from __future__ import annotations

import functools
import re
from pathlib import Path

import pytest

LOOKS_AROUND = re.compile(r"entry_points|find_spec|importlib\.metadata|sys\.modules|distributions")
"""Words of test modules that look at what is installed, or at what is imported along."""


def pytest_addoption(parser: pytest.Parser) -> None:
    """Two options, one for each side."""
    parser.addoption("--write-passed", type=Path, help="write the ids of the tests that passed to this file")
    parser.addoption("--leave-out-passed", type=Path, help="leave out tests whose ids are in this directory")


def pytest_configure(config: pytest.Config) -> None:
    """Reports reach the main process, those of its workers too."""
    if (path := config.getoption("--write-passed")) and not hasattr(config, "workerinput"):
        config.pluginmanager.register(Passed(path))


class Passed:
    """Gathers the tests that passed, and writes them at the end of a session in which none failed."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.ids: set[str] = set()

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Of set-up, call and end of a test the call decides: where another part fails, the session does."""
        if report.when == "call" and report.passed:
            self.ids.add(report.nodeid)

    def pytest_sessionfinish(self, exitstatus: int) -> None:
        """One id a line."""
        if exitstatus == pytest.ExitCode.OK:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self.path.write_text("".join(f"{name}\n" for name in sorted(self.ids)))


def read_passed(directory: Path) -> set[str]:
    """Ids as the workspace has them."""
    files = sorted(directory.glob("*.txt"))
    return {f"packages/{path.stem}/{name}" for path in files for name in path.read_text().splitlines()}


@functools.cache
def looks_around(path: Path) -> bool:
    """Whether a module's tests may come out differently where more is installed."""
    return bool(LOOKS_AROUND.search(path.read_text()))


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Deselect what passed, the same in every worker."""
    if directory := config.getoption("--leave-out-passed"):
        passed = read_passed(directory)
        left_out = {item for item in items if item.nodeid in passed and not looks_around(item.path)}
        config.hook.pytest_deselected(items=list(left_out))
        items[:] = [item for item in items if item not in left_out]


def pytest_report_header(config: pytest.Config) -> str | None:
    """How many there are: where workers collect, nobody says."""
    if directory := config.getoption("--leave-out-passed"):
        count = len(read_passed(directory))
        return f"{count} tests passed alone and are left out, but for those that look at what is installed"
    return None
