"""Keep requirements.lock and the pins in pyproject.toml (committed) equal to uv.lock (not committed).

uv.lock hard-codes the address of the package index, which breaks every lab behind a mirror.
requirements.lock holds the same versions and hashes and no addresses. It serves as a constraint
file (``uv pip install -c requirements.lock``) and shows what a change of dependencies brings in.

    uv run tools/check_lock.py                       fails when the three disagree
    uv run --no-project tools/check_lock.py --write  resolves afresh, writes both files (``make lock``)

An index may show a release days after the date it carries, so a fresh resolution is not the same everywhere
in spite of ``exclude-newer``. The pins, a generated block of ``[tool.uv] constraint-dependencies``, leave it
no choice: every ``uv run`` in a fresh clone gets the committed versions.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
COMMITTED = ROOT / "requirements.lock"
PROJECT = ROOT / "pyproject.toml"
BEGIN = "  # begin: pins of requirements.lock, written by `make lock`\n"
END = "  # end: pins\n"
EXPORT = [
    "uv",
    "export",
    "--locked",
    "--quiet",
    "--format",
    "requirements.txt",
    "--all-packages",
    "--all-extras",
    "--all-groups",
    "--no-emit-workspace",
    "--no-header",
    "--no-annotate",
]
REQUIREMENT = re.compile(
    r"(?P<pin>[A-Za-z0-9._-]+(\[[a-z0-9,_-]+\])?==[^\s;\\]+)(\s*;\s*(?P<marker>[^\\]*?))?\s*$"
)

Lock = dict[str, list[str]]
"""Requirement line (name==version ; marker) -> sorted hashes."""


def parse(text: str, where: str) -> Lock:
    """Requirements and their hashes; ValueError on any other line (a path, an address, an option)."""
    lock: Lock = {}
    joined = text.replace("\\\n", " ")
    for line in joined.splitlines():
        if not line.strip() or line.startswith("#"):
            continue
        head, *hashes = line.split("--hash=")
        match = REQUIREMENT.match(head)
        if match is None or not hashes:
            raise ValueError(f"{where}: neither a pinned version nor a hash in '{head.strip()}'")
        marker = f" ; {match['marker']}" if match["marker"] else ""
        lock[match["pin"] + marker] = sorted(h.strip() for h in hashes)
    return lock


def render(lock: Lock) -> str:
    """The text of requirements.lock."""
    blocks = [" \\\n    ".join([pin, *(f"--hash={h}" for h in lock[pin])]) for pin in sorted(lock)]
    header = "# Versions and hashes of everything uv.lock names; written by `make lock`.\n"
    return header + "\n".join(blocks) + "\n"


def difference(committed: Lock, exported: Lock) -> str:
    """What disagrees, shortly; empty when nothing does."""
    parts = []
    if missing := sorted(exported.keys() - committed.keys()):
        parts.append("requirements.lock lacks " + ", ".join(missing[:3]) + (" ..." if missing[3:] else ""))
    if extra := sorted(committed.keys() - exported.keys()):
        parts.append("uv.lock lacks " + ", ".join(extra[:3]) + (" ..." if extra[3:] else ""))
    # An index may gain files of a version later (a wheel for another machine); none may vanish or change.
    if not parts and (changed := sorted(p for p in exported if not set(committed[p]) <= set(exported[p]))):
        parts.append("hashes differ for " + ", ".join(changed[:3]) + (" ..." if changed[3:] else ""))
    return "; ".join(parts)


def pins(lock: Lock) -> str:
    """The generated lines of ``constraint-dependencies``: one requirement of ``lock`` a line.

    An extra says what to install, not which version, and a constraint may not have one.
    """
    lines = sorted({re.sub(r"\[[^]]*\](?===)", "", pin, count=1) for pin in lock})
    return "".join(f'  "{line}",\n' for line in lines)


def replace_pins(project: str, generated: str) -> str:
    """The text of pyproject.toml with ``generated`` between the markers; ValueError when they are missing."""
    before, begin, rest = project.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not (begin and end):
        raise ValueError(f"pyproject.toml: no lines '{BEGIN.strip()}' and '{END.strip()}'")
    return before + begin + generated + end + after


def export() -> Lock:
    """What uv.lock pins; ValueError with uv's reason when it does not fit the pyprojects."""
    done = subprocess.run(EXPORT, cwd=ROOT, capture_output=True, text=True)
    if done.returncode != 0:
        reason = (done.stderr.strip().splitlines() or ["uv export failed"])[-1]
        raise ValueError(f"{reason} (run `make lock`)")
    return parse(done.stdout, "uv.lock")


def write() -> int:
    """Resolve without the old pins, then write requirements.lock and the new pins; returns how many.

    The old ones go first: they may be newer than an ``exclude-newer`` that was moved back, or stand against
    a changed dependency. When uv finds no solution, pyproject.toml stays as it was.
    """
    before = PROJECT.read_text()
    try:
        PROJECT.write_text(replace_pins(before, ""))
        subprocess.run(["uv", "lock", "--upgrade"], cwd=ROOT, check=True)
        lock = export()
        PROJECT.write_text(replace_pins(before, pins(lock)))
        subprocess.run(["uv", "lock"], cwd=ROOT, check=True)
        if problem := difference(lock, export()):
            raise ValueError(f"the pins change the resolution: {problem}")
    except BaseException:
        PROJECT.write_text(before)
        raise
    COMMITTED.write_text(render(lock))
    return len(lock)


def check() -> int:
    """Compare the three; returns how many requirements agree, ValueError with the first difference."""
    if not COMMITTED.exists():
        raise ValueError("requirements.lock is missing; run `make lock`")
    committed, project = parse(COMMITTED.read_text(), "requirements.lock"), PROJECT.read_text()
    if replace_pins(project, pins(committed)) != project:
        raise ValueError("the pins in pyproject.toml are not those of requirements.lock; run `make lock`")
    if problem := difference(committed, export()):
        raise ValueError(f"{problem}; run `make lock` and commit requirements.lock and pyproject.toml")
    return len(committed)


def main() -> int:
    """Compare, or write with ``--write``; returns the exit code."""
    parser = argparse.ArgumentParser(description="requirements.lock and the pins agree with uv.lock")
    parser.add_argument("--write", action="store_true", help="resolve afresh and write both files")
    args = parser.parse_args()
    try:
        if args.write:
            print(f"check_lock: wrote {write()} requirements")
        else:
            print(f"check_lock: {check()} requirements agree")
    except ValueError as error:
        print(f"check_lock: {error}", file=sys.stderr)
        return 1
    except subprocess.CalledProcessError as error:
        print(f"check_lock: '{' '.join(error.cmd)}' failed", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
