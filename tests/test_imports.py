"""What must import without torch does, in a process where importing torch fails."""

from __future__ import annotations

import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import tomllib

ROOT = Path(__file__).resolve().parent.parent

# The torch half of vla-core; every other module of it is numpy's.
TORCH_HALF = {
    "answers",
    "batch",
    "build",
    "assemble",
    "auxiliary",
    "backbone",
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
    "prompts",
    "realtime",
    "rows",
    "shard",
    "threads",
    "weights",
    "testing",
}

BLOCKED = """
    import importlib, sys

    class Blocker:
        def find_spec(self, name, path=None, target=None):
            if name.partition(".")[0] in ("torch", "transformers", "safetensors", "accelerate"):
                raise ModuleNotFoundError(f"{name} is blocked", name=name)

    sys.meta_path.insert(0, Blocker())
    for name in sys.argv[1:]:
        importlib.import_module(name)
"""


def import_without_torch(*modules: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(BLOCKED), *modules], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr


def modules_of(package: str) -> list[str]:
    """All modules below a package's root, dotted."""
    root = ROOT / "packages" / package / "src"
    found = []
    for path in sorted(root.rglob("*.py")):
        parts = path.relative_to(root).with_suffix("").parts
        found.append(".".join(parts[:-1] if parts[-1] == "__init__" else parts))
    return found


def numpy_half() -> list[str]:
    return [name for name in modules_of("vla-core") if not {*name.split(".")[1:2]} & TORCH_HALF]


@pytest.mark.parametrize("module", ["vla_core", "vla_data", "vla_serve"])
def test_root_imports_without_torch(module: str) -> None:
    import_without_torch(module)


def test_numpy_half_imports_without_torch() -> None:
    import_without_torch(*numpy_half())


def test_serving_imports_without_torch() -> None:
    alone = {
        "vla_serve.loading",  # by the server's program
        "vla_serve.fp8",  # by the one above
        "vla_serve.robot.lerobot_record",  # by vla-robot, of lerobot's own robots: lerobot needs torch
        "vla_serve.robot.lerobot_robot",
    }
    import_without_torch(*(name for name in modules_of("vla-serve") if name not in alone))


def test_import_contract_lists_the_numpy_half() -> None:
    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"]
    (listed,) = (c["source_modules"] for c in contracts if c["name"].startswith("the numpy half"))
    top = {".".join(name.split(".")[:2]) for name in numpy_half()} - {"vla_core"}
    assert sorted(listed) == sorted(top)
