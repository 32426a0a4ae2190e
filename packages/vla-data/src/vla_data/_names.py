"""Names in the files of a data set are unique: a policy would see one picture twice and not the other."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from vla_core.errors import UserError


def read_json(file: Path, what: str) -> Any:
    """The content of a JSON file whose objects name each key once.

    Raises:
        UserError: unreadable, no JSON, or a key given twice.
    """

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) < len(pairs):
            keys = [key for key, _ in pairs]
            twice = next(key for key in keys if keys.count(key) > 1)
            raise UserError(f"{file}: '{twice}' is given twice; keep one")
        return found

    try:
        return json.loads(file.read_text(encoding="utf-8"), object_pairs_hook=unique)
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"{file}: not {what} ({error})") from error


def check_unique(named: Iterable[tuple[str, str]], file: Path, what: str) -> None:
    """Raise UserError where one name stands at two places: ``named`` gives (name, place)."""
    seen: dict[str, str] = {}
    for name, place in named:
        if name in seen:
            raise UserError(
                f"{file}: two {what} are named '{name}': {seen[name]} and {place}; rename or remove one"
            )
        seen[name] = place


def check_spec_names(node: Mapping[str, Any], file: Path) -> None:
    """The cameras, state groups and action groups of a written spec each have a name of their own.

    Raises:
        UserError: a name given twice.
        KeyError, TypeError: this is no spec.
    """
    for what, above, key in (
        ("cameras", "observation", "cameras"),
        ("state groups", "observation", "state"),
        ("action groups", "action", "groups"),
    ):
        entries = node[above][key]
        check_unique(((e["name"], f"{above}.{key}.{i}") for i, e in enumerate(entries)), file, what)
