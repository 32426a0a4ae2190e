from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest
import vla_core

ROOT = Path(vla_core.__file__).parent
TORCH = {
    "answers",
    "assemble",
    "backbone",
    "batch",
    "build",
    "checkpoint",
    "collate",
    "conversing",
    "features",
    "fitting",
    "flat",
    "graphs",
    "initialisation",
    "interfaces",
    "model",
    "overlap",
    "packing",
    "policy",
    "auxiliary",
    "prompts",
    "realtime",
    "rows",
    "testing/models",
    "threads",
    "weights",
}
TORCH_NAMES = ("Batch", "Row", "VLAModel", "VLAPolicy", "build_policy")
NUMPY = sorted(
    str(path.relative_to(ROOT).with_suffix(""))
    for path in ROOT.rglob("*.py")
    if str(path.relative_to(ROOT).with_suffix("")) not in TORCH
)

BLOCKED = """
import sys
class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {"torch", "transformers", "safetensors"}:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
sys.meta_path.insert(0, Blocker())
"""


def _run(code: str) -> str:
    run = subprocess.run([sys.executable, "-c", BLOCKED + code], capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    return run.stdout


def test_the_numpy_half_works_without_torch():
    modules = ["vla_core." + n.replace("/__init__", "").replace("/", ".") for n in NUMPY if n != "__init__"]
    modules = [m for m in modules if ".envs." not in m]  # simulators are extras of their own
    code = f"""
from importlib import import_module
for name in {modules!r}:
    import_module(name)
import vla_core
from vla_core import *_NAMES_
from vla_core.testing import make_observation, make_sample, make_spec
spec = make_spec()
pipeline = vla_core.Pipeline([dict(name="resize", height=8, width=8), dict(name="normalize")], spec)
print(pipeline(make_sample(spec)).observation.images["camera_0"].shape)
for name in {TORCH_NAMES!r}:
    try:
        getattr(vla_core, name)
    except ModuleNotFoundError as error:
        print(name, error.name)
print(any(m.split(".")[0] == "torch" for m in sys.modules))
"""
    numpy_names = [n for n in vla_core.__all__ if n not in TORCH_NAMES]
    out = _run(code.replace("*_NAMES_", ", ".join(numpy_names))).splitlines()
    assert out == [
        "(8, 8, 3)",
        *[f"{name} torch" for name in TORCH_NAMES],
        "False",
    ]


def test_the_environment_protocol_needs_no_simulator():
    assert (
        _run("import vla_core.envs\nprint('metaworld' in sys.modules, 'mujoco' in sys.modules)")
        == "False False\n"
    )


def test_importing_the_package_does_not_import_torch():
    code = "import vla_core, sys; print('torch' in sys.modules)"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout == "False\n"


# Names of the standard library younger than Python 3.10, and syntax that its parser refuses.
YOUNG = {
    ("enum", "StrEnum"),
    ("datetime", "UTC"),
    *(
        ("typing", n)
        for n in ("Self", "Unpack", "Never", "override", "LiteralString", "assert_never", "reveal_type")
    ),
    *(
        ("typing", n)
        for n in ("NotRequired", "Required", "TypeVarTuple", "dataclass_transform", "assert_type")
    ),
    *(("itertools", n) for n in ("batched",)),
    *(("contextlib", n) for n in ("chdir",)),
    *(("hashlib", n) for n in ("file_digest",)),
    *(("asyncio", n) for n in ("TaskGroup", "timeout", "Runner")),
}


@pytest.mark.parametrize("name", NUMPY)
def test_the_numpy_half_is_python_3_10(name):
    tree = ast.parse((ROOT / f"{name}.py").read_text(), feature_version=(3, 10))
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom):
            assert node.module != "tomllib"
            assert not {(node.module, alias.name) for alias in node.names} & YOUNG
        elif isinstance(node, ast.Import):
            assert "tomllib" not in {alias.name for alias in node.names}
        elif isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            assert (node.value.id, node.attr) not in YOUNG


def test_public_names_exist():
    for name in vla_core.__all__:
        assert getattr(vla_core, name) is not None
    assert sorted(vla_core.__all__) == vla_core.__all__ or len(set(vla_core.__all__)) == len(vla_core.__all__)
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = vla_core.nothing
    assert (ROOT / "py.typed").exists()
