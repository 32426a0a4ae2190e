"""Naming one head imports that head: counted in fresh processes."""

from __future__ import annotations

import json
import subprocess
import sys
from importlib.metadata import entry_points

import pytest
import vla_heads

PARTS = {
    point.name: point
    for group in ("vla.heads", "vla.auxiliaries")
    for point in entry_points(group=group)
    if point.value.startswith("vla_heads.")
}
MODULES = {name: point.value.partition(":")[0] for name, point in PARTS.items()}
PROGRAM = "import json, sys\n{}\nprint(json.dumps([m for m in sys.modules if m.startswith('vla_heads')]))"
LARGEST = {"alg1": 6, "mlp_regression": 6, "pi0": 9}


def imported_by(code: str) -> set[str]:
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM.format(code)], capture_output=True, text=True, check=True
    )
    return set(json.loads(done.stdout))


def heads_among(modules: set[str]) -> set[str]:
    return {name for name, module in MODULES.items() if module in modules}


def test_the_package_alone_imports_nothing():
    assert imported_by("import vla_heads") == {"vla_heads"}


@pytest.mark.parametrize("name", sorted(PARTS))
def test_a_head_by_its_name_imports_no_other(name):
    group = PARTS[name].group
    modules = imported_by(f"from vla_core import registry; registry.load({group!r}, {name!r})")
    assert heads_among(modules) == {name}
    assert not any(module.startswith("vla_heads.compat.") for module in modules)
    assert len(modules) <= LARGEST.get(name, 17)


def test_a_public_name_imports_its_head_alone():
    assert heads_among(imported_by("from vla_heads import MLPRegression")) == {"mlp_regression"}


def test_an_unknown_name_is_said():
    with pytest.raises(AttributeError, match="module 'vla_heads' has no attribute 'PI1Head'"):
        _ = vla_heads.PI1Head
