"""Where the model directory is that a foreign config or an option names."""

from __future__ import annotations

from pathlib import Path

from vla_core.errors import UserError


def _is_no_hub_id(name: str) -> bool:
    return name.startswith((".", "/", "~")) or name.count("/") != 1


def find_model(name: str, where: str, advice: str, run: Path | None = None) -> str:
    """``name`` if it is a directory here or may be a hub id; else the directory of that name near the run.

    Args:
        name: a directory or hub id.
        where: what named it, for the error.
        advice: how to name another, likewise.
        run: directory of the run whose config it stands in: relative to it, to a directory above it, or right
            beside it are looked at too. None: a user typed it.

    Raises:
        UserError: no directory, and no hub id either.
    """
    here = Path(name).expanduser()
    if here.is_dir():
        return str(here) if name.startswith("~") else name
    tried = f"tried {here.absolute()}"
    if run is not None and not here.is_absolute():
        run = run.resolve()
        near = [*(root / name for root in (run, *run.parents)), run / here.name, run.parent / here.name]
        for path in near:
            if path.is_dir():
                return str(path)
        tried += f", the same below {run} and each directory above it, and {run.parent / here.name}"
    if _is_no_hub_id(name):
        raise UserError(f"{where} '{name}': no such directory ({tried}); {advice}")
    return name
