"""Each package as its users get it: built, installed from its wheel, tested away from the repository.

    uv run tools/check_wheels.py build      a wheel of every package
    uv run tools/check_wheels.py together   all wheels in one clean environment; `uv pip check`
    uv run tools/check_wheels.py alone      each package with its own dependencies only, and its tests

uv ignores version bounds between workspace members, so only this shows whether they hold.
Environments are pinned by requirements.lock, hence quick where uv's cache is warm.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tomllib

ROOT = Path(__file__).resolve().parent.parent
BUILD = ROOT / "build" / "ci"
WHEELS = BUILD / "wheels"
PASSED = BUILD / "passed"
"""Which tests passed alone, for the step `test`: see tools/passed_alone.py."""
TEST_REQUIREMENTS = ["pytest", "pytest-timeout", "pytest-xdist", "hypothesis"]
TORCH_FREE = ("vla-core", "vla-data", "vla-serve")
"""Packages that without extras must neither need nor bring torch."""
COMPILED_EXTRAS = {"flash-attn"}
"""Extras without wheels, which would be compiled here; the others are installed and tested."""


@dataclass(frozen=True)
class Package:
    """One member of the workspace, from its pyproject.toml."""

    directory: Path
    project: dict[str, Any]

    @property
    def name(self) -> str:
        return str(self.project["name"])

    @property
    def module(self) -> str:
        return self.name.replace("-", "_")

    @property
    def extras(self) -> list[str]:
        return sorted(self.project.get("optional-dependencies", {}).keys() - COMPILED_EXTRAS)

    @property
    def wheel(self) -> Path:
        return WHEELS / f"{self.module}-{self.project['version']}-py3-none-any.whl"

    def requirement(self, extras: list[str]) -> str:
        """The wheel as a requirement: never a package of the same name from an index."""
        suffix = f"[{','.join(extras)}]" if extras else ""
        return f"{self.name}{suffix} @ {self.wheel.as_uri()}"

    def siblings(self, names: set[str], with_extras: bool) -> set[str]:
        """Names of the workspace packages it declares."""
        lines = list(self.project.get("dependencies", []))
        if with_extras:
            for extra in self.project.get("optional-dependencies", {}).values():
                lines += extra
        found = {re.split(r"[^A-Za-z0-9-]", line, maxsplit=1)[0] for line in lines}
        return (found & names) - {self.name}


def read_packages() -> dict[str, Package]:
    """All members by name."""
    found = {}
    for path in sorted(ROOT.glob("packages/*/pyproject.toml")):
        package = Package(path.parent, tomllib.loads(path.read_text())["project"])
        found[package.name] = package
    return found


def closure(package: Package, packages: dict[str, Package], with_extras: bool) -> list[Package]:
    """The workspace packages it needs, itself excluded."""
    seen: set[str] = set()
    todo = package.siblings(set(packages), with_extras)
    while todo:
        name = todo.pop()
        seen.add(name)
        todo |= packages[name].siblings(set(packages), with_extras) - seen
    return [packages[name] for name in sorted(seen - {package.name})]


def call(*command: str | Path, cwd: Path = ROOT, quiet: bool = False) -> None:
    """Run and stop the program on failure; nothing of this environment or tree leaks in."""
    env = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "VIRTUAL_ENV")}
    output = subprocess.DEVNULL if quiet else None
    done = subprocess.run([str(part) for part in command], cwd=cwd, env=env, stdout=output)
    if done.returncode != 0:
        shown = " ".join(str(part) for part in command if "\n" not in str(part))
        sys.exit(f"check_wheels: '{shown}' failed with exit code {done.returncode}")


def make_environment(name: str) -> Path:
    """A fresh environment; returns its interpreter."""
    environment = BUILD / name
    call("uv", "venv", "--quiet", "--clear", "--no-project", "--python", sys.executable, environment)
    return environment / "bin" / "python"


def install(python: Path, requirements: list[str]) -> None:
    """Make the environment hold exactly the requirements and what they need."""
    pins = ROOT / "requirements.lock"
    call("uv", "pip", "install", "--quiet", "--exact", "--python", python, "-c", pins, *requirements)
    call("uv", "pip", "check", "--quiet", "--python", python)


def build(packages: dict[str, Package]) -> None:
    """Wheels of all packages, each from its source distribution (so that this is complete too)."""
    shutil.rmtree(WHEELS, ignore_errors=True)
    call("uv", "build", "--quiet", "--all-packages", "--out-dir", WHEELS)
    for package in packages.values():
        if not package.wheel.exists():
            sys.exit(f"check_wheels: {package.wheel.name} was not built")
        print(f"  {package.wheel.name}  {package.wheel.stat().st_size / 1024:.0f} KiB")


def together(packages: dict[str, Package]) -> None:
    """All wheels with all extras in one environment; every module and command is there."""
    python = make_environment("together")
    install(python, [package.requirement(package.extras) for package in packages.values()])
    with tempfile.TemporaryDirectory() as elsewhere:
        for package in packages.values():
            call(python, "-I", "-c", f"import {package.module}", cwd=Path(elsewhere))
            for script in package.project.get("scripts", {}):
                call(python.parent / script, "--help", cwd=Path(elsewhere), quiet=True)
    print(f"  {len(packages)} wheels installed together; uv pip check passes")


def probe_bare(package: Package, python: Path, allowed: set[str], cwd: Path) -> None:
    """Without extras: the root imports, and only declared siblings (and torch) are installed."""
    script = (
        "import importlib, importlib.metadata as m, json, sys\n"
        f"importlib.import_module({package.module!r})\n"
        "print(json.dumps([sorted({d.name for d in m.distributions()}), 'torch' in sys.modules]))\n"
    )
    done = subprocess.run([python, "-I", "-c", script], cwd=cwd, capture_output=True, text=True)
    if done.returncode != 0:
        sys.exit(f"check_wheels: {package.name} does not import on its own:\n{done.stderr}")
    installed, torch_imported = json.loads(done.stdout)
    ours = {name for name in installed if name.startswith("vla-")}
    if ours != allowed:
        sys.exit(f"check_wheels: {package.name} alone brings {sorted(ours)}, expected {sorted(allowed)}")
    if package.name in TORCH_FREE and ("torch" in installed or torch_imported):
        sys.exit(f"check_wheels: {package.name} without extras brings torch")


def run_tests(package: Package, python: Path, elsewhere: Path) -> None:
    """The package's unmarked tests on the installed wheel, from a copy without the sources."""
    copy = elsewhere / package.name
    not_sources = shutil.ignore_patterns("src", "dist", "__pycache__", ".*")
    shutil.copytree(package.directory, copy, ignore=not_sources)
    options = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["pytest"]["ini_options"]
    lines = ["[pytest]", f"addopts = {options['addopts']}", f"timeout = {options['timeout']}", "markers ="]
    shutil.copy(ROOT / "tools" / "passed_alone.py", copy / "conftest.py")
    (copy / "pytest.ini").write_text("\n".join([*lines, *(f"    {m}" for m in options["markers"])]) + "\n")
    os.environ["OMP_NUM_THREADS"] = "1"  # tiny tensors gain nothing from a second thread
    two = ["-n", "2", "--dist", "worksteal"]
    passed = ["--write-passed", PASSED / f"{package.name}.txt"]
    call(python, "-I", "-m", "pytest", "-p", "no:cacheprovider", *two, *passed, "tests", cwd=copy)


def alone(packages: dict[str, Package], only: list[str]) -> None:
    """Each package by itself: bare (no extras) to import, with its extras to test."""
    python = make_environment("alone")
    for name in only or list(packages):
        package = packages[name]
        start = time.monotonic()
        with tempfile.TemporaryDirectory() as directory:
            needed = closure(package, packages, with_extras=False)
            install(python, [package.requirement([]), *(p.requirement([]) for p in needed)])
            probe_bare(package, python, {package.name, *(p.name for p in needed)}, Path(directory))
            needed = closure(package, packages, with_extras=True)
            wheels = [package.requirement(package.extras), *(p.requirement([]) for p in needed)]
            install(python, [*wheels, *TEST_REQUIREMENTS])
            installed = time.monotonic()
            run_tests(package, python, Path(directory))
        spent = f"install {installed - start:.0f} s, tests {time.monotonic() - installed:.0f} s"
        print(f"  {name} alone: {spent}", flush=True)


def main() -> None:
    """Run the named check."""
    parser = argparse.ArgumentParser(description="build, install and test the wheels")
    parser.add_argument("check", choices=["build", "together", "alone"])
    parser.add_argument("packages", nargs="*", help="with 'alone': only these, e.g. vla-heads")
    args = parser.parse_args()
    packages = read_packages()
    if unknown := sorted(set(args.packages) - set(packages)):
        parser.error(f"no package {unknown[0]} (packages: {', '.join(packages)})")
    if args.check == "build":
        build(packages)
    elif args.check == "together":
        together(packages)
    else:
        alone(packages, args.packages)


if __name__ == "__main__":
    main()
