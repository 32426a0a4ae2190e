"""CONTRIBUTING.md and the generated pages are true: trees, links, commands and steps exist."""

from __future__ import annotations

import re
import runpy
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
TEXT = (ROOT / "CONTRIBUTING.md").read_text()
MAKEFILE = (ROOT / "Makefile").read_text()


@pytest.mark.parametrize("tool", ["file_tree.py", "config_reference.py", "starvla_table.py"])
def test_generated_pages_are_current(
    tool: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", [tool])
    # In this process, for torch and transformers take long to import.
    assert runpy.run_path(str(ROOT / "tools" / tool))["main"]() == 0, capsys.readouterr().err


@pytest.mark.parametrize("document", sorted(p.name for p in [*ROOT.glob("*.md"), *ROOT.glob("docs/*.md")]))
def test_links_lead_somewhere(document: str) -> None:
    path = ROOT / document if (ROOT / document).exists() else ROOT / "docs" / document
    targets = re.findall(r"\]\(([^)#\s]+)[^)]*\)|(?:src|srcset)=\"([^\"]+)\"", path.read_text())
    local = [a or b for a, b in targets if "://" not in (a or b)]
    assert not [target for target in local if not (path.parent / target).exists()]


def test_make_commands_are_those_listed() -> None:
    targets = set(re.findall(r"^([a-z]+):.*## ", MAKEFILE, re.MULTILINE))
    assert set(re.findall(r"`make ([a-z]+)`", TEXT)) == targets - {"help"}


def test_ci_steps_exist() -> None:
    script = ["bash", ".ci/run", "--list"]
    listed = subprocess.run(script, cwd=ROOT, capture_output=True, text=True, check=True)
    commands = re.findall(r"bash \.ci/run ([a-z ]+)(?:`|$)", TEXT + MAKEFILE, re.MULTILINE)
    assert {step for command in commands for step in command.split()} <= set(listed.stdout.split())


def test_examples_are_the_ones_tested() -> None:
    page = (ROOT / "docs" / "extending.md").read_text()
    shown = set(re.findall(r"\(\.\./examples/extending/(\w+\.py)\)", page))
    assert shown == {p.name for p in (ROOT / "examples" / "extending").glob("*.py")}


def described() -> list[tuple[str, str]]:
    """Pages, and sources with docstrings, that name commands."""
    paths = [*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), *ROOT.glob("packages/*/README.md")]
    paths += [*ROOT.glob("packages/*/src/**/*.py"), *ROOT.glob("examples/**/*.py")]
    return [(str(path.relative_to(ROOT)), path.read_text()) for path in paths]


def test_make_targets_named_anywhere_exist() -> None:
    targets = set(re.findall(r"^([a-z-]+):.*## ", MAKEFILE, re.MULTILINE))
    # StarVLA's own commands stand in the left column of its table.
    texts = [(name, re.sub(r"^\| [^|]* \|", "|", text, flags=re.MULTILINE)) for name, text in described()]
    wrong = [(name, word) for name, text in texts for word in re.findall(r"`make ([a-z-]+)`", text)]
    assert not [(name, word) for name, word in wrong if word not in targets]


def test_env_options_are_spelled_as_the_programs_read_them() -> None:
    assert not [name for name, text in described() if re.search(r"--env [a-z_]+=", text)]
