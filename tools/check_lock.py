"""Keep requirements.lock (committed) and uv.lock (written by uv, not committed) in agreement.

uv.lock hard-codes the address of the package index, which breaks every lab behind a mirror.
requirements.lock holds the same versions and hashes and no addresses. It serves as a constraint
file (``uv pip install -c requirements.lock``) and shows what a change of dependencies brings in.

    uv run tools/check_lock.py            fails when the two disagree
    uv run tools/check_lock.py --write    refreshes requirements.lock (``make lock``)
    python tools/check_lock.py --restore  writes uv.lock with the versions of requirements.lock

An index may show a release days after the date it carries, so a fresh resolution is not the same everywhere
in spite of ``exclude-newer``; that is why CI restores. What no longer fits the pyprojects still fails.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
COMMITTED = ROOT / "requirements.lock"
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
    if not parts and (changed := sorted(pin for pin in exported if exported[pin] != committed[pin])):
        parts.append("hashes differ for " + ", ".join(changed[:3]) + (" ..." if changed[3:] else ""))
    return "; ".join(parts)


def restore() -> int:
    """Resolve with every committed version as a constraint; returns uv's exit code."""
    pins = [pin.partition(" ;")[0] for pin in parse(COMMITTED.read_text(), "requirements.lock")]
    words = [word for pin in pins for word in ("--upgrade-package", re.sub(r"\[.*\]", "", pin))]
    return subprocess.run(["uv", "lock", *words], cwd=ROOT).returncode


def main() -> int:
    """Compare, or write with ``--write`` or ``--restore``; returns the exit code."""
    parser = argparse.ArgumentParser(description="requirements.lock agrees with uv.lock")
    parser.add_argument("--write", action="store_true", help="refresh requirements.lock from uv.lock")
    parser.add_argument("--restore", action="store_true", help="write uv.lock from requirements.lock")
    args = parser.parse_args()
    write = args.write
    if args.restore:
        return restore()
    export = subprocess.run(EXPORT, cwd=ROOT, capture_output=True, text=True)
    if export.returncode != 0:
        reason = (export.stderr.strip().splitlines() or ["uv export failed"])[-1]
        print(f"check_lock: {reason} (run `make lock`)", file=sys.stderr)
        return 1
    try:
        exported = parse(export.stdout, "uv.lock")
        if write:
            COMMITTED.write_text(render(exported))
            print(f"check_lock: wrote {len(exported)} requirements")
            return 0
        if not COMMITTED.exists():
            print("check_lock: requirements.lock is missing; run `make lock`", file=sys.stderr)
            return 1
        problem = difference(parse(COMMITTED.read_text(), "requirements.lock"), exported)
    except ValueError as error:
        print(f"check_lock: {error}", file=sys.stderr)
        return 1
    if problem:
        print(f"check_lock: {problem}; run `make lock` and commit requirements.lock", file=sys.stderr)
        return 1
    print(f"check_lock: {len(exported)} requirements agree")
    return 0


if __name__ == "__main__":
    sys.exit(main())
