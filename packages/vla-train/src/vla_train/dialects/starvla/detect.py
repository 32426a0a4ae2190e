"""Whether a config file or a word of the command line is StarVLA's."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from vla_core.config import load_tree

from vla_train.dialects.own_keys import OwnKeys
from vla_train.dialects.starvla.modules import is_theirs
from vla_train.dialects.starvla.table import find

LISTS = ("trainer.freeze_modules", "trainer.reload_modules")
"""Keys of both projects whose values are module paths."""


def flat(node: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Dotted key -> value of every leaf; lists are leaves."""
    out: dict[str, Any] = {}
    for key, value in node.items():
        name = f"{prefix}.{key}" if prefix else str(key)
        if isinstance(value, Mapping) and value:
            out.update(flat(value, name))
        else:
            out[name] = value
    return out


def is_spoken(files: Sequence[Path], words: Sequence[str], own: OwnKeys) -> bool:
    """Whether any of the files and ``key=value`` words is StarVLA's."""
    return any(word_is_theirs(word, own) for word in words) or any(file_is_theirs(f, own) for f in files)


def file_is_theirs(path: Path, own: OwnKeys) -> bool:
    """A file is StarVLA's if it has a key that only StarVLA has; then all of its keys are read so."""
    return any(find(key) is not None and not own.has(key) for key in flat(load_tree([path]).data))


def word_is_theirs(word: str, own: OwnKeys) -> bool:
    """``key=value`` is StarVLA's if its key is, or if it names StarVLA's modules or framework."""
    key, _, value = word.partition("=")
    if find(key) is None:
        return False
    if key in LISTS:
        names = yaml.safe_load(value) if value.startswith("[") else value.split(",")
        return any(is_theirs(str(name).strip()) for name in names)
    if key.startswith("trainer.learning_rate."):
        return is_theirs(key.removeprefix("trainer.learning_rate."))
    return not own.has(key) or (key == "framework.name" and value == "QwenFM")
