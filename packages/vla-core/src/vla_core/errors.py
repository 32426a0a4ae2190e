"""Errors a user can act on: one line that says what is wrong, where, and how to fix it."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class UserError(ValueError):
    """A mistake in a user's input; programs print its message alone and exit with code 2."""


class ConfigError(UserError):
    """A config value that is unknown, of the wrong type or inconsistent."""


class SpecMismatch(UserError):
    """Two specs that must agree (dataset, checkpoint, client) differ in the named field."""


def suggest(name: str, known: Iterable[str]) -> str:
    """``" (did you mean 'x'?)"`` for the nearest known name, else the list of known names."""
    names = sorted(known)
    near = difflib.get_close_matches(name, names, n=1, cutoff=0.5)
    if near:
        return f" (did you mean '{near[0]}'?)"
    return f" (known: {', '.join(names) or 'none'})"
