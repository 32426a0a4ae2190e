"""tools/passed_alone.py: no test is lost between a package's own environment and the workspace's."""

from __future__ import annotations

from pathlib import Path

import pytest

pytest_plugins = ["pytester"]
TOOLS = Path(__file__).resolve().parent.parent / "tools"

MODULES = {
    "test_plain": """
        import pytest
        def test_passes(): pass
        @pytest.mark.parametrize("word", ["a/b", "c d"])
        def test_of_many(word): pass
        def test_is_skipped(): pytest.skip("there is a sibling missing")
        def test_is_known_to_fail(): pytest.xfail("not yet")
    """,
    "test_looks": """
        from importlib.util import find_spec
        def test_looks_around(): assert find_spec("pytest")
    """,
}
SELECTED = ["test_looks_around", "test_is_known_to_fail", "test_is_skipped", "test_only_here", "test_root"]


def make_workspace(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("PYTHONPATH", str(TOOLS))
    tests = pytester.path / "packages" / "vla-x" / "tests"
    for directory in (tests, pytester.path / "tests"):
        directory.mkdir(parents=True)
    for name, text in MODULES.items():
        (tests / f"{name}.py").write_text("\n".join(line[8:] for line in text.splitlines()))
    return tests


@pytest.mark.parametrize("workers", [[], ["-n", "2"]], ids=["one process", "workers"])
def test_what_passed_is_left_out_and_nothing_else(
    workers: list[str], pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch
) -> None:
    tests = make_workspace(pytester, monkeypatch)
    options = ["-p", "passed_alone", "--import-mode=importlib", *workers]
    record = pytester.path / "passed" / "vla-x.txt"
    done = pytester.runpytest_subprocess(*options, "--write-passed", record, "--rootdir", tests.parent, tests)
    done.assert_outcomes(passed=4, skipped=1, xfailed=1)
    (tests / "test_more.py").write_text("def test_only_here(): pass\n")
    (pytester.path / "tests" / "test_root.py").write_text("def test_root(): pass\n")
    done = pytester.runpytest_subprocess(*options, "--leave-out-passed", record.parent, "-v")
    done.assert_outcomes(passed=3, skipped=1, xfailed=1, deselected=0 if workers else 3)
    text = done.stdout.str()
    assert all(name in text for name in SELECTED)
    assert "test_passes" not in text
    assert "test_of_many" not in text


def test_without_a_record_everything_runs(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> None:
    tests = make_workspace(pytester, monkeypatch)
    (tests / "test_fails.py").write_text("def test_fails(): assert False\n")
    options = ["-p", "passed_alone", "--import-mode=importlib"]
    record = pytester.path / "passed" / "vla-x.txt"
    done = pytester.runpytest_subprocess(*options, "--write-passed", record, "--rootdir", tests.parent, tests)
    done.assert_outcomes(passed=4, skipped=1, xfailed=1, failed=1)
    assert not record.exists()
    done = pytester.runpytest_subprocess(*options, "--leave-out-passed", record.parent)
    done.assert_outcomes(passed=4, skipped=1, xfailed=1, failed=1)
