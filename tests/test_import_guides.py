"""docs/starvla.md and docs/lerobot.md: what they tell to type exists."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from vla_train.importers.lerobot.cli import make_parser as lerobot_parser
from vla_train.importers.starvla.cli import make_parser as starvla_parser

ROOT = Path(__file__).resolve().parent.parent
MAKEFILE = (ROOT / "Makefile").read_text()
DOCUMENTS = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), *ROOT.glob("packages/*/README.md")])


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_make_commands_exist(document: Path) -> None:
    targets = set(re.findall(r"^([a-z]+):", MAKEFILE, re.MULTILINE))
    assert set(re.findall(r"`make ([a-z]+)", document.read_text())) <= targets


@pytest.mark.parametrize("name", ["starvla", "lerobot"])
def test_import_commands_are_valid(name: str) -> None:
    text = (ROOT / "docs" / f"{name}.md").read_text()
    parser = {"starvla": starvla_parser, "lerobot": lerobot_parser}[name]()
    typed = re.findall(rf"vla-train import-{name} ((?:RUN|DIR)[^`#|>\n]*)", text)
    assert len(typed) >= 2
    for words in typed:
        parser.parse_args(words.split())
    options = {option for action in parser._actions for option in action.option_strings}
    importing = text.partition("## Training YAMLs")[0]
    explained = set(re.findall(r"`(--[a-z_]+)[ `=]", importing.partition("## Checkpoints")[2] or importing))
    assert explained
    assert explained <= options
