"""Parts by name, through entry points. Only the named part is imported.

Groups: ``vla.vlms``, ``vla.geometry``, ``vla.fusions``, ``vla.heads``, ``vla.auxiliaries``,
``vla.transforms``, ``vla.sources``, ``vla.conversations``, ``vla.envs``.
Every part is a class with a ``Config`` dataclass; its YAML node is ``{name: <entry point>, **Config}``.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from importlib.metadata import EntryPoint
from typing import Any

from vla_core import installed
from vla_core.complete import check_complete
from vla_core.errors import ConfigError, suggest

# Parts made known without an installed distribution, see `override`.
_LOCAL: dict[tuple[str, str], Any] = {}

GROUPS = (
    "vla.vlms",
    "vla.geometry",
    "vla.fusions",
    "vla.heads",
    "vla.auxiliaries",
    "vla.transforms",
    "vla.sources",
    "vla.conversations",
    "vla.envs",
)


def _found(group: str) -> dict[str, list[EntryPoint]]:
    if group not in GROUPS:
        raise ValueError(f"unknown entry point group '{group}'{suggest(group, GROUPS)}")
    found: dict[str, list[EntryPoint]] = {}
    for point in installed.points(group):
        same = found.setdefault(point.name, [])
        # The same distribution can be seen twice (an editable install beside its build metadata).
        if all(point.value != other.value for other in same):
            same.append(point)
    return found


def names(group: str) -> list[str]:
    """Names available in ``group``, sorted."""
    return sorted({*_found(group), *(name for g, name in _LOCAL if g == group)})


def load(group: str, name: str) -> Any:
    """The class registered as ``name``.

    Raises:
        ConfigError: unknown name (with the nearest one), two packages that claim the name, a package
            whose own dependency is not installed, or a class that is not there or not complete.
    """
    if (group, name) in _LOCAL:
        return _LOCAL[group, name]
    found = _found(group)
    if name not in found:
        installed.forget()  # it may have been installed since, from a notebook for example
        found = _found(group)
    if name not in found:
        raise ConfigError(f"no '{name}' in {group}{suggest(name, names(group))}")
    points = found[name]
    if len(points) > 1:
        raise ConfigError(
            f"'{name}' in {group} is claimed by {', '.join(p.value for p in points)}; uninstall one"
        )
    what = f"'{name}' in {group} ({points[0].value})"
    try:
        part = points[0].load()
    except ModuleNotFoundError as error:
        raise ConfigError(
            f"{what} needs the package '{error.name}'; install it "
            "(it may be an extra of the package that provides the part)"
        ) from error
    except AttributeError as error:
        if error.obj is not sys.modules.get(points[0].module):
            raise  # of the module's own code
        raise ConfigError(f"{what}: there is no '{error.name}' in {points[0].module}") from error
    check_complete(group, part, what)
    return part


def override(group: str, name: str, part: Any) -> Callable[[], None]:
    """Make ``part`` known as ``name`` in this process (notebooks, tests); returns what undoes it."""
    if group not in GROUPS:
        raise ValueError(f"unknown entry point group '{group}'{suggest(group, GROUPS)}")
    before = _LOCAL.get((group, name))
    _LOCAL[group, name] = part

    def undo() -> None:
        if before is None:
            _LOCAL.pop((group, name), None)
        else:
            _LOCAL[group, name] = before

    return undo
