"""Parts by name, through entry points. Only the named part is imported.

Groups: ``vla.vlms``, ``vla.geometry``, ``vla.fusions``, ``vla.heads``, ``vla.sources``, ``vla.envs``.
Every part is a class with a ``Config`` dataclass; its YAML node is ``{name: <entry point>, **Config}``.
"""

from __future__ import annotations

from importlib.metadata import EntryPoint, entry_points
from typing import Any

from vla_core.errors import ConfigError, suggest

GROUPS = ("vla.vlms", "vla.geometry", "vla.fusions", "vla.heads", "vla.sources", "vla.envs")


def _found(group: str) -> dict[str, list[EntryPoint]]:
    if group not in GROUPS:
        raise ValueError(f"unknown entry point group '{group}'{suggest(group, GROUPS)}")
    found: dict[str, list[EntryPoint]] = {}
    for point in entry_points(group=group):
        same = found.setdefault(point.name, [])
        # The same distribution can be seen twice (an editable install beside its build metadata).
        if all(point.value != other.value for other in same):
            same.append(point)
    return found


def names(group: str) -> list[str]:
    """Names available in ``group``, sorted."""
    return sorted(_found(group))


def load(group: str, name: str) -> Any:
    """The class registered as ``name``.

    Raises:
        ConfigError: unknown name (with the nearest one), two packages that claim the name, or a
            package whose own dependency is not installed.
    """
    found = _found(group)
    if name not in found:
        raise ConfigError(f"no '{name}' in {group}{suggest(name, found)}")
    points = found[name]
    if len(points) > 1:
        raise ConfigError(
            f"'{name}' in {group} is claimed by {', '.join(p.value for p in points)}; uninstall one"
        )
    try:
        return points[0].load()
    except ModuleNotFoundError as error:
        raise ConfigError(
            f"'{name}' in {group} ({points[0].value}) needs the package '{error.name}'; install it "
            "(it may be an extra of the package that provides the part)"
        ) from error
