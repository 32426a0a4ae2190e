"""Naming one part imports that part: counted in fresh processes."""

from __future__ import annotations

import json
import subprocess
import sys
from importlib.metadata import entry_points

import pytest
import vla_geometry

GROUPS = ("vla.geometry", "vla.fusions")
PARTS = {
    point.name: point
    for group in GROUPS
    for point in entry_points(group=group)
    if point.value.startswith("vla_geometry.")
}
MODULES = {name: point.value.partition(":")[0] for name, point in PARTS.items()}
MADE_OF = {"hierarchical": {"aligned_concat", "prefix"}}
PROGRAM = "import json, sys\n{}\nprint(json.dumps([m for m in sys.modules if m.startswith('vla_geometry')]))"


def imported_by(code: str) -> set[str]:
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM.format(code)], capture_output=True, text=True, check=True
    )
    return set(json.loads(done.stdout))


def test_the_package_alone_imports_nothing():
    assert imported_by("import vla_geometry") == {"vla_geometry"}


@pytest.mark.parametrize("name", sorted(PARTS))
def test_a_part_by_its_name_imports_no_other(name):
    if name == "dinov2":
        pytest.importorskip("transformers")
    group = PARTS[name].group
    modules = imported_by(f"from vla_core import registry; registry.load({group!r}, {name!r})")
    expected = {name, *MADE_OF.get(name, ())}
    assert {other for other, module in MODULES.items() if module in modules} == expected
    # With what it shares with others: far from the 38 of the whole package.
    assert len(modules) <= (16 if name == "mapanything" else 11)


def test_a_public_name_imports_its_part_alone():
    modules = imported_by("from vla_geometry import MeanPool")
    assert {other for other, module in MODULES.items() if module in modules} == {"mean_pool"}


def test_an_unknown_name_is_said():
    with pytest.raises(AttributeError, match="module 'vla_geometry' has no attribute 'MeanPol'"):
        _ = vla_geometry.MeanPol
