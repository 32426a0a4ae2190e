"""Habits no linter checks: small files, no index addresses, nothing of one machine, nothing unfinished."""

from __future__ import annotations

import ast
import re
import statistics
import subprocess
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
LONGEST = 400
LONGEST_IN_A_PACKAGE = 300
MACHINE_PATH = re.compile(r"(?<![A-Za-z0-9_.$}>-])/(root|work|home|Users|tmp)/")
REGISTRY = re.compile(r"pypi\.(org|python)|pythonhosted\.|anaconda\.(org|com)|\bregistry *= *.https?:")
FOREIGN = Path("packages/vla-core/src/vla_core/envs/boundary.py")
"""The one place that catches everything: what somebody's simulator raises cannot be listed."""
UNFINISHED = re.compile(r"\b(TODO|FIXME|XXX|NotImplementedError|mark\.xfail)\b")
GENERATED = re.compile(r"_pb2(_grpc)?\.pyi?$")


def tracked() -> list[Path]:
    listed = subprocess.run(
        ["git", "ls-files", "-z"], cwd=ROOT, check=True, capture_output=True, text=True
    ).stdout
    return [ROOT / name for name in listed.split("\0") if name and (ROOT / name).is_file()]


def texts() -> list[tuple[Path, str]]:
    """Tracked files that are text, as (path below the root, content)."""
    found = []
    for path in tracked():
        data = path.read_bytes()
        if b"\0" not in data[:8192]:
            found.append((path.relative_to(ROOT), data.decode("utf-8")))
    return found


def sources() -> list[tuple[Path, str]]:
    return [(p, t) for p, t in texts() if p.suffix == ".py" and not GENERATED.search(p.name)]


def library() -> list[tuple[Path, str]]:
    return [(p, t) for p, t in sources() if p.parts[0] == "packages" and "src" in p.parts]


def test_files_are_small() -> None:
    lengths = {path: text.count("\n") for path, text in sources()}
    assert not {str(path): n for path, n in lengths.items() if n > LONGEST}
    assert statistics.median(lengths.values()) < 200


def test_library_files_are_smaller() -> None:
    lengths = {str(path): text.count("\n") for path, text in library()}
    assert not {path: n for path, n in lengths.items() if n >= LONGEST_IN_A_PACKAGE}


def test_text_is_read_as_utf_8_whatever_the_locale() -> None:
    """An instruction, a camera or a folder of the user's may have any letters."""
    assert not {str(path) for path, text in library() if ".read_text()" in text}


def test_no_prints_in_library_code() -> None:
    bad = [
        f"{path}:{node.lineno}"
        for path, text in library()
        if path.name != "cli.py" and not path.name.endswith("_cli.py")
        for node in ast.walk(ast.parse(text))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "print"
    ]
    assert not bad


def test_no_broad_except() -> None:
    broad = ("Exception", "BaseException")
    bad = [
        f"{path}:{node.lineno}"
        for path, text in library()
        for node in ast.walk(ast.parse(text))
        if path != FOREIGN
        and isinstance(node, ast.ExceptHandler)
        and (node.type is None or (isinstance(node.type, ast.Name) and node.type.id in broad))
    ]
    assert not bad


def matches(pattern: re.Pattern[str], files: list[tuple[Path, str]]) -> list[str]:
    return [
        f"{path}:{i}: {line.strip()[:100]}"
        for path, text in files
        for i, line in enumerate(text.splitlines(), start=1)
        if pattern.search(line)
    ]


def test_nothing_of_one_machine() -> None:
    assert not matches(MACHINE_PATH, texts())


def test_no_address_of_a_package_index() -> None:
    assert not matches(REGISTRY, texts())
    assert ROOT / "uv.lock" not in tracked()


def test_nothing_unfinished() -> None:
    this_file = Path(__file__).relative_to(ROOT)
    assert not matches(UNFINISHED, [(p, t) for p, t in sources() if p != this_file])


def test_no_merge_is_half_done() -> None:
    assert not matches(re.compile(r"^(<{7}|>{7}) |^={7}$"), texts())


def test_no_large_files() -> None:
    # The pre-trained encoder is kept so that rows of one table, measured on different days, share it.
    kept = {"benchmarks/fusion/encoder.safetensors": 16 << 20}
    sizes = {str(p.relative_to(ROOT)): p.stat().st_size for p in tracked()}
    assert not {name: size for name, size in sizes.items() if size > kept.get(name, 5 << 20)}
