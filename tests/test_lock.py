"""A fresh clone gets the committed versions from the README's command alone."""

from __future__ import annotations

import re
import runpy
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import tomllib
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parent.parent
TOOL: dict[str, Any] = runpy.run_path(str(ROOT / "tools" / "check_lock.py"))
COMMITTED: dict[str, list[str]] = TOOL["parse"]((ROOT / "requirements.lock").read_text(), "requirements.lock")


def constraints() -> list[str]:
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["uv"]
    return list(settings["constraint-dependencies"])


def test_every_requirement_is_pinned() -> None:
    by_hand, pinned = constraints()[:3], constraints()[3:]
    assert by_hand == ["transformers==5.17.*", "torch==2.11.*", "mujoco==3.3.0"]
    assert pinned == sorted(re.sub(r"\[.*?\]", "", pin) for pin in COMMITTED)
    names = {pin.partition("==")[0] for pin in pinned}
    for path in ROOT.glob("packages/*/pyproject.toml"):
        for extra, lines in (
            tomllib.loads(path.read_text())["project"].get("optional-dependencies", {}).items()
        ):
            needed = {canonicalize_name(Requirement(line).name) for line in lines}
            lacking = {name for name in needed if not name.startswith("vla-")} - names
            assert not lacking, f"{path.parent.name}[{extra}]"


def test_pins_that_were_edited_by_hand_are_noticed() -> None:
    project = (ROOT / "pyproject.toml").read_text()
    replace = TOOL["replace_pins"]
    assert replace(project, TOOL["pins"](COMMITTED)) == project
    assert replace(project.replace('  "absl-py==2.5.1",\n', ""), TOOL["pins"](COMMITTED)) == project
    with pytest.raises(ValueError, match="no lines '# begin: pins"):
        replace("[tool.uv]\n", "")


def test_a_file_uploaded_later_is_no_difference() -> None:
    pin, hashes = next(iter(COMMITTED.items()))
    difference = TOOL["difference"]
    assert difference({pin: hashes}, {pin: [*hashes, "sha256:0"]}) == ""
    assert difference({pin: hashes}, {pin: hashes[:-1]}) == f"hashes differ for {pin}"
    assert difference({pin: hashes}, {"absl-py==9": hashes}).startswith("requirements.lock lacks absl-py==9")


def uv(clone: Path, *words: str) -> str:
    program = shutil.which("uv")
    if program is None:
        pytest.skip("uv is not installed")
    done = subprocess.run([program, *words], cwd=clone, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.slow  # it asks the package index
@pytest.mark.parametrize("later", [False, True], ids=["today", "releases that appear later"])
def test_a_fresh_clone_resolves_to_the_committed_versions(tmp_path: Path, later: bool) -> None:
    """Without ``exclude-newer`` the index shows every release made since: the pins alone decide."""
    clone = tmp_path / "clone"
    subprocess.run(["git", "clone", "--quiet", str(ROOT), str(clone)], check=True)
    shutil.copy(ROOT / "requirements.lock", clone)
    project = (ROOT / "pyproject.toml").read_text()
    if later:
        project = re.sub(r"^exclude-newer = .*\n", "", project, flags=re.MULTILINE)
    (clone / "pyproject.toml").write_text(project)
    uv(clone, "lock", "--python", sys.executable)
    exported = TOOL["parse"](uv(clone, *TOOL["EXPORT"][1:], "--python", sys.executable), "uv.lock")
    assert sorted(exported) == sorted(COMMITTED)
    assert TOOL["difference"](COMMITTED, exported) == ""
