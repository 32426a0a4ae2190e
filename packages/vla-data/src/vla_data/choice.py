"""Which episodes and cameras of a data set are used, as a config writes it."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from vla_core.errors import ConfigError, suggest

Episodes = str | tuple[int, ...] | None
_RANGE = re.compile(r"\s*(\d*)\s*:\s*(\d*)\s*")


def chosen_episodes(known: Sequence[int], episodes: Episodes, exclude: Episodes, root: Path) -> list[int]:
    """Of the ``known`` indices those named by ``episodes`` (None: all) and not by ``exclude``, ascending.

    Raises:
        ConfigError: not a list or range, an index that is unknown, or nothing left.
    """
    kept = set(known) if episodes is None else _named(known, episodes, "episodes", root)
    left = kept - (set() if exclude is None else _named(known, exclude, "exclude_episodes", root))
    if not left:
        raise ConfigError(f"episodes: none of the {len(known)} episodes of {root} is left")
    return sorted(left)


def _named(known: Sequence[int], value: str | tuple[int, ...], key: str, root: Path) -> set[int]:
    if isinstance(value, str):
        named: set[int] = set()
        for part in value.split(","):
            match = _RANGE.fullmatch(part)
            if match is None:
                # YAML reads 10:50 without quotes as the number 650.
                raise ConfigError(
                    f"{key}: '{value}' is no range; write '0:40' or '0:40,50:' (in quotes), or a list [0, 5]"
                )
            low = int(match[1] or 0)
            high = int(match[2]) if match[2] else max(known) + 1
            inside = {i for i in known if low <= i < high}
            if not inside:
                raise ConfigError(
                    f"{key}: {root} has no episode in {part.strip()} (it has {min(known)} to {max(known)})"
                )
            named |= inside
        return named
    for index in value:
        if index not in known:
            raise ConfigError(f"{key}: {root} has no episode {index} (it has {len(known)})")
    return set(value)


def chosen_cameras(found: Mapping[str, str], wanted: Sequence[str] | None, root: Path) -> dict[str, str]:
    """Camera name -> feature of those that are wanted, in that order; None: all.

    Raises:
        ConfigError: an unknown name, one named twice, or none.
    """
    names = list(found) if wanted is None else list(wanted)
    for name in names:
        if name not in found:
            raise ConfigError(f"cameras: {root} has no camera '{name}'{suggest(name, found)}")
    if not names or len(set(names)) < len(names):
        raise ConfigError(f"cameras: name each camera once and at least one, got {names}")
    return {name: found[name] for name in names}
