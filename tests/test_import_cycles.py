"""No module needs, directly or through others, one that needs it: deferred imports count too."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent

Graph = dict[str, set[str]]
"""Module -> modules of the same set that it imports."""


def modules(sources: list[Path]) -> dict[str, Path]:
    """Dotted name -> file, for every module below the directories ``sources``."""
    found = {}
    for source in sources:
        for path in sorted(source.rglob("*.py")):
            parts = path.relative_to(source).with_suffix("").parts
            found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def only_for_types(node: ast.AST) -> bool:
    """True for ``if TYPE_CHECKING:``."""
    test = node.test if isinstance(node, ast.If) else None
    name = test.attr if isinstance(test, ast.Attribute) else getattr(test, "id", None)
    return name == "TYPE_CHECKING"


def imports(node: ast.AST) -> Iterator[ast.Import | ast.ImportFrom]:
    """The imports that run, those inside functions included."""
    for child in ast.iter_child_nodes(node):
        if only_for_types(child):
            assert isinstance(child, ast.If)
            for other in child.orelse:
                yield from imports(ast.Module([other], []))
        elif isinstance(child, ast.Import | ast.ImportFrom):
            yield child
        else:
            yield from imports(child)


def targets(node: ast.Import | ast.ImportFrom, module: str, is_package: bool, known: set[str]) -> set[str]:
    """The known modules that a statement in ``module`` names; ``from p import m`` may name ``p.m``."""
    if isinstance(node, ast.Import):
        return {name.name for name in node.names} & known
    base = node.module or ""
    if node.level:
        parts = module.split(".")
        parts = parts[: len(parts) - node.level + is_package]
        base = ".".join([*parts, base] if base else parts)
    named = {f"{base}.{name.name}" for name in node.names}
    found = named & known
    return found | ({base} & known if found != named else set())


def graph(sources: list[Path]) -> Graph:
    """Who imports whom. That a module's own packages are initialised first is not an import of theirs."""
    found = modules(sources)
    known = set(found)
    return {
        module: {
            name
            for node in imports(ast.parse(path.read_text()))
            for name in targets(node, module, path.name == "__init__.py", known)
        }
        - {module}
        for module, path in found.items()
    }


def cycle_from(start: str, edges: Graph) -> list[str]:
    """The shortest way from ``start`` back to itself; empty when there is none."""
    ways = [[start]]
    seen: set[str] = set()
    for way in ways:
        for name in sorted(edges[way[-1]]):
            if name == start:
                return [*way, start]
            if name not in seen:
                seen.add(name)
                ways.append([*way, name])
    return []


def cycles(edges: Graph) -> list[str]:
    """One line for each cycle that shares no module with an earlier line."""
    lines, named = [], set[str]()
    for start in sorted(edges):
        way = cycle_from(start, edges)
        if way and not named & set(way):
            named |= set(way)
            lines.append(" -> ".join(way))
    return lines


def test_no_import_cycles() -> None:
    edges = graph(sorted(ROOT.glob("packages/*/src")))
    assert len(edges) > 100
    found = cycles(edges)
    assert not found, "modules import each other in a circle:\n  " + "\n  ".join(found)


def test_a_cycle_is_named(tmp_path: Path) -> None:
    package = tmp_path / "p"
    package.mkdir()
    (package / "__init__.py").write_text("")
    (package / "a.py").write_text("def f():\n    from p import b\n")
    (package / "b.py").write_text("from .c import x\n")
    (package / "c.py").write_text("import p.a\nx = 1\n")
    (package / "d.py").write_text(
        "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from p import e\n"
    )
    (package / "e.py").write_text("from p.d import TYPE_CHECKING\n")
    assert cycles(graph([tmp_path])) == ["p.a -> p.b -> p.c -> p.a"]
