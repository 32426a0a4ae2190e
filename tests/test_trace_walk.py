"""The files that docs/architecture.md says a sample and a request pass are entered, in that order."""

from __future__ import annotations

import importlib.util
import re
import sys
from pathlib import Path
from types import ModuleType

import pytest

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[1]
DOCUMENT = ROOT / "docs" / "architecture.md"


@pytest.fixture(scope="module")
def tool() -> ModuleType:
    spec = importlib.util.spec_from_file_location("trace_walk", ROOT / "tools" / "trace_walk.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # its dataclasses look themselves up
    spec.loader.exec_module(module)
    return module


def told(start: str, end: str) -> list[str]:
    """The files and folders that the sentence between two words names."""
    text = DOCUMENT.read_text()
    begin = text.index(start)
    return re.findall(r"`(vla_[\w/]+(?:\.py|/))`", text[begin : text.index(end, begin)])


@pytest.mark.parametrize(
    ("walk", "start", "end", "most"),
    [
        ("sample", "A training sample passes,", "A request passes", 61),
        ("request", "A request passes", "| ", 75),
    ],
)
def test_what_is_told_is_what_happens(
    tool: ModuleType, tmp_path: Path, walk: str, start: str, end: str, most: int
) -> None:
    named = told(start, end)
    passed = tool.WALKS[walk](tmp_path)
    assert len(named) >= 10
    first = [next((i for i, file in enumerate(passed) if file.startswith(name)), None) for name in named]
    missing = [name for name, place in zip(named, first, strict=True) if place is None]
    assert not missing, f"never entered: {missing}; entered: {passed}"
    assert first == sorted(first), [passed[place] for place in first if place is not None]
    assert len(passed) <= most, "the way has become longer; see docs/architecture.md"


def test_a_key_reaches_its_use(tool: ModuleType, tmp_path: Path) -> None:
    passed = tool.WALKS["key"](tmp_path)
    assert passed[0] == "vla_train/spellings.py"
    assert "vla_heads/flow.py" in passed  # draws the times
    assert not [name for name in passed if name.startswith(("vla_vlm/", "vla_serve/", "vla_data/"))]


def test_changes_of_package(tool: ModuleType) -> None:
    assert tool.changes(["vla_a/x.py", "vla_a/y.py", "vla_b/x.py", "vla_a/z.py"]) == 2
