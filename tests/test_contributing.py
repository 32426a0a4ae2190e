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


PAGES = sorted(
    str(path.relative_to(ROOT))
    for part in (".", "docs", "packages", "examples", "benchmarks", "proto")
    for path in ROOT.joinpath(part).glob("*.md" if part == "." else "**/*.md")
    if not {".venv", "runs"} & set(path.parts)
)


def prose(page: Path) -> str:
    """A page without its blocks of code."""
    return re.sub(r"^```.*?^```", "", page.read_text(), flags=re.MULTILINE | re.DOTALL)


def headings(page: Path) -> set[str]:
    """The anchors of a page, made as GitHub makes them."""
    text = prose(page)
    names = [
        re.sub(r"\[([^]]*)\]\([^)]*\)", r"\1", line) for line in re.findall(r"^#+ (.*)$", text, re.MULTILINE)
    ]
    return {re.sub(r"[^\w\- ]", "", name.lower()).replace(" ", "-") for name in names}


@pytest.mark.parametrize("document", PAGES)
def test_links_lead_somewhere(document: str) -> None:
    path = ROOT / document
    found = re.findall(r"\]\(([^)\s]+)[^)]*\)|(?:src|srcset)=\"([^\"]+)\"", prose(path))
    wrong = []
    for target in (a or b for a, b in found if "://" not in (a or b)):
        name, _, anchor = target.partition("#")
        to = path.parent / name if name else path
        if not to.exists() or (anchor and to.suffix == ".md" and anchor not in headings(to)):
            wrong.append(target)
    assert not wrong


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
