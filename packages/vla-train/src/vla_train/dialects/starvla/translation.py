"""StarVLA's training YAML and command line, key by key, in ours."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from vla_core.config import Tree, load_tree
from vla_core.errors import ConfigError, suggest

from vla_train.dialects.own_keys import OwnKeys
from vla_train.dialects.starvla.data_rules import V, pipeline
from vla_train.dialects.starvla.detect import file_is_theirs, flat, word_is_theirs
from vla_train.dialects.starvla.rules import Given
from vla_train.dialects.starvla.table import TABLE, find


@dataclass(frozen=True)
class Translation:
    """What was StarVLA's, in our keys.

    Args:
        data: nested config, to go below our own files.
        origins: our dotted key -> where StarVLA's stood.
        lines: one for each key, to show.
        files: those that were ours from the start.
        overrides: what stood on the command line, translated where it was StarVLA's.
    """

    data: dict[str, Any]
    origins: dict[str, str]
    lines: list[str]
    files: list[Path]
    overrides: list[str]


@dataclass
class _Builder:
    data: dict[str, Any] = field(default_factory=dict)
    origins: dict[str, str] = field(default_factory=dict)
    lines: list[str] = field(default_factory=list)
    words: list[str] = field(default_factory=list)

    def put(self, key: str, value: Any, origin: str) -> None:
        if origin == "command line":  # wins over files, whoever's they are
            self.words.append(f"{key}={json.dumps(value)}")
            return
        *path, last = key.split(".")
        node = self.data
        for part in path:
            node = node.setdefault(part, {})
        node[last] = value
        self.origins[key] = origin


def _unknown(key: str, tree: Tree) -> ConfigError:
    known = {rule.theirs for rule in TABLE if not rule.theirs.endswith("*")}
    near = [name for name in known if name.count(".") == key.count(".")] or sorted(known)
    return ConfigError(
        f"{tree.where(key)}unknown key '{key}'{_short(suggest(key, near))}; it is neither StarVLA's, as far "
        "as docs/starvla.md lists them, nor this project's (docs/config.md): remove it or use one of those"
    )


def _short(text: str) -> str:
    """A suggestion; a list of all known names helps nobody here."""
    return text if text.startswith(" (did you mean") else ""


def translate(files: Sequence[Path], overrides: Sequence[str], own: OwnKeys) -> Translation:
    """Translate StarVLA's files and overrides, and leave ours as they are.

    Raises:
        ConfigError: a key or value that cannot be translated, with file, line and advice.
    """
    theirs = [path for path in files if file_is_theirs(path, own)]
    words = [word for word in overrides if word_is_theirs(word, own)]
    ours = [path for path in files if path not in theirs]
    own_words = [word for word in overrides if word not in words]
    tree = load_tree(theirs, words)
    whole = flat(tree.data)
    beside = flat(load_tree(ours, own_words).data)
    framework = str(beside.get("framework.name") or whole.get("framework.name", ""))
    framework = {"QwenFM": "QwenPI"}.get(framework, framework)
    context = {**whole, **{key: value for key, value in beside.items() if key not in whole}}
    built = _Builder()
    # The framework first: what else stands there depends on it.
    for key, value in sorted(whole.items(), key=lambda item: item[0] != "framework.name"):
        _one(Given(key, value, context, framework, tree.where(key), bool(theirs)), tree, built, own)
    if theirs:
        _whole_run(context, framework, tree, built)
    return Translation(built.data, built.origins, built.lines, ours, [*built.words, *own_words])


def _one(given: Given, tree: Tree, built: _Builder, own: OwnKeys) -> None:
    rule = find(given.key)
    origin = tree.where(given.key).removesuffix(": ")
    if rule is None:
        if not own.has(given.key):
            raise _unknown(given.key, tree)
        built.put(given.key, given.value, origin)
        return
    outcome = rule.apply(given)
    for key, value in outcome.values.items():
        built.put(key, value, origin)
    became = ", ".join(f"{key}={value}" for key, value in outcome.values.items())
    same = outcome.values == {given.key: given.value}
    if not same:
        text = f"{given.key}={given.value} -> {became or 'no effect'}"
        built.lines.append(text + (f" ({outcome.note})" if outcome.note else ""))


def _whole_run(context: Mapping[str, Any], framework: str, tree: Tree, built: _Builder) -> None:
    """What StarVLA does without a key: its pipeline, and bf16."""
    origin = tree.where(V).removesuffix(": ")
    if "framework.transforms" not in context:
        steps, note = pipeline(context, framework, tree.where(f"{V}.include_state"))
        built.put("framework.transforms", steps, origin)
        built.lines.append(f"{V} -> framework.transforms={steps} ({note})")
    built.put("trainer.precision", "bf16", origin)
    built.lines.append("StarVLA's autocast -> trainer.precision=bf16")
