"""Naming one part imports that part: counted in fresh processes."""

from __future__ import annotations

from importlib.metadata import entry_points
from importlib.util import find_spec

import pytest
import vla_geometry
from vla_core.testing.imports import imported_by

GROUPS = ("vla.geometry", "vla.fusions")
PARTS = {
    point.name: point
    for group in GROUPS
    for point in entry_points(group=group)
    if point.value.startswith("vla_geometry.")
}
MODULES = {name: point.value.partition(":")[0] for name, point in PARTS.items()}
MADE_OF = {"hierarchical": {"aligned_concat", "prefix"}}


def load(name: str) -> str:
    return f"from vla_core import registry; registry.load({PARTS[name].group!r}, {name!r})"


@pytest.fixture(scope="module")
def imported():
    statements = {name: load(name) for name in PARTS if name != "dinov2" or find_spec("transformers")}
    package = {"package": "import vla_geometry", "public name": "from vla_geometry import MeanPool"}
    return imported_by({**statements, **package}, "vla_geometry")


def test_the_package_alone_imports_nothing(imported):
    assert imported["package"] == {"vla_geometry"}


@pytest.mark.parametrize("name", sorted(PARTS))
def test_a_part_by_its_name_imports_no_other(imported, name):
    if name not in imported:
        pytest.skip("needs transformers")
    modules = imported[name]
    expected = {name, *MADE_OF.get(name, ())}
    assert {other for other, module in MODULES.items() if module in modules} == expected
    # With what it shares with others: far from the 38 of the whole package.
    assert len(modules) <= (16 if name == "mapanything" else 11)


def test_a_public_name_imports_its_part_alone(imported):
    modules = imported["public name"]
    assert {other for other, module in MODULES.items() if module in modules} == {"mean_pool"}


def test_an_unknown_name_is_said():
    with pytest.raises(AttributeError, match="module 'vla_geometry' has no attribute 'MeanPol'"):
        _ = vla_geometry.MeanPol
