"""The packages of this repository as if installed, for machines that have only a Python with torch.

Parts are found by entry points, which an installed distribution declares. Where there is none, the same
declarations are written from the pyproject files into a folder for ``PYTHONPATH``.
"""

from __future__ import annotations

import os
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import tomllib

ROOT = Path(__file__).resolve().parents[2]


def environment(folder: Path) -> dict[str, str]:
    """Environment variables with which ``python -m vla_train`` runs; ``folder``: for what must be written."""
    paths = [path for path in os.environ.get("PYTHONPATH", "").split(os.pathsep) if path]
    try:
        version("vla-train")
    except PackageNotFoundError:
        packages = sorted(ROOT.glob("packages/*/pyproject.toml"))
        for file in packages:
            _declare(tomllib.loads(file.read_text())["project"], folder)
        paths = [*(str(file.parent / "src") for file in packages), str(folder), *paths]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(paths), "PYTHONUNBUFFERED": "1"}


def _declare(project: dict[str, object], folder: Path) -> None:
    name, number = str(project["name"]), str(project["version"])
    info = folder / f"{name.replace('-', '_')}-{number}.dist-info"
    info.mkdir(parents=True, exist_ok=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {number}\n")
    groups = project.get("entry-points")
    lines = []
    for group, points in (groups if isinstance(groups, dict) else {}).items():
        lines += [f"[{group}]", *(f"{key} = {value}" for key, value in points.items())]
    (info / "entry_points.txt").write_text("\n".join([*lines, ""]))
