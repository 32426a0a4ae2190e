"""A function of the user's, by file or module: what a robot's own client does to an observation."""

from __future__ import annotations

import importlib
import importlib.util
from pathlib import Path
from typing import Any

from vla_core.errors import UserError


def function(name: str) -> Any:
    """``FILE.py:NAME`` or ``MODULE:NAME``.

    Raises:
        UserError: no such file, module or function.
    """
    place, _, attribute = name.rpartition(":")
    if not place:
        raise UserError(f"--client: '{name}' is neither FILE.py:FUNCTION nor MODULE:FUNCTION")
    try:
        module = _from_file(Path(place)) if place.endswith(".py") else importlib.import_module(place)
    except (ModuleNotFoundError, FileNotFoundError) as error:
        raise UserError(f"--client: {place} cannot be imported ({error})") from None
    found = getattr(module, attribute, None)
    if not callable(found):
        raise UserError(f"--client: {place} has no function '{attribute}'")
    return found


def _from_file(path: Path) -> Any:
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
