"""Options of a part on a program's command line: ``--env.key value`` and ``--env.key=value``."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import yaml

from vla_core.errors import ConfigError


def dotted(words: Sequence[str], part: str, program: str) -> dict[str, Any]:
    """The options that ``words`` give to ``part``, values as in YAML.

    A value that is no YAML is taken as it stands, as sentences may be.

    Args:
        words: what the program's own parser left over.
        part: the name before the dot, such as ``env``.
        program: its name, for the error.

    Raises:
        ConfigError: a word of another kind, or an option without a name or a value.
    """
    options: dict[str, Any] = {}
    rest, prefix = list(words), f"--{part}."
    while rest:
        word = rest.pop(0)
        if not word.startswith(prefix):
            raise ConfigError(f"unknown argument '{word}'; see {program} --help")
        key, equals, value = word[len(prefix) :].partition("=")
        if not key:
            raise ConfigError(f"{word}: the option has no name; write {prefix}KEY VALUE")
        if not equals:
            if not rest or rest[0].startswith("--"):
                raise ConfigError(f"{prefix}{key}: a value is missing")
            value = rest.pop(0)
        try:
            options[key] = yaml.safe_load(value)
        except yaml.YAMLError:
            options[key] = value
    return options
