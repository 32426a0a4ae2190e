"""Naming one head imports that head: counted in fresh processes."""

from __future__ import annotations

from importlib.metadata import entry_points

import pytest
import vla_heads
from vla_core.testing.imports import imported_by

PARTS = {
    point.name: point
    for group in ("vla.heads", "vla.auxiliaries")
    for point in entry_points(group=group)
    if point.value.startswith("vla_heads.")
}
MODULES = {name: point.value.partition(":")[0] for name, point in PARTS.items()}
FEW_ROWS = 6
"""Modules of vla_heads.few_rows without its kernels, which blocks choose from."""
LARGEST = {"alg1": 6, "mlp_regression": 6, "pi0": 10 + FEW_ROWS}


def load(name: str) -> str:
    return f"from vla_core import registry; registry.load({PARTS[name].group!r}, {name!r})"


@pytest.fixture(scope="module")
def imported():
    public = {"package": "import vla_heads", "public name": "from vla_heads import MLPRegression"}
    return imported_by({**{name: load(name) for name in PARTS}, **public}, "vla_heads")


def heads_among(modules: set[str]) -> set[str]:
    return {name for name, module in MODULES.items() if module in modules}


def test_the_package_alone_imports_nothing(imported):
    assert imported["package"] == {"vla_heads"}


@pytest.mark.parametrize("name", sorted(PARTS))
def test_a_head_by_its_name_imports_no_other(imported, name):
    modules = imported[name]
    assert heads_among(modules) == {name}
    assert not any(module.startswith("vla_heads.compat.") for module in modules)
    assert len(modules) <= LARGEST.get(name, 17 + FEW_ROWS)
    assert not any(module.endswith("_kernel") for module in modules)


def test_a_public_name_imports_its_head_alone(imported):
    assert heads_among(imported["public name"]) == {"mlp_regression"}


def test_an_unknown_name_is_said():
    with pytest.raises(AttributeError, match="module 'vla_heads' has no attribute 'PI1Head'"):
        _ = vla_heads.PI1Head
