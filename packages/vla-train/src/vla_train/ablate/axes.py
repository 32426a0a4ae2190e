"""What ``--axis`` says: names, values, and the config keys each value sets."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import yaml
from vla_core.errors import UserError, suggest
from vla_core.framework import FrameworkConfig

from vla_train.config import DatasetsConfig, EvaluationConfig, RunConfig, TrainerConfig

FUSION = "fusion"
OURS = ("seed", "run_id", "run_root_dir", "trainer.resume")
"""Keys the ablation sets itself."""


@dataclass(frozen=True)
class Value:
    """One value of an axis: a YAML file to merge, or ``key=value`` overrides.

    ``keys`` are the dotted config keys that it sets.
    """

    label: str
    keys: tuple[str, ...]
    overrides: tuple[str, ...] = ()
    file: Path | None = None


@dataclass(frozen=True)
class Axis:
    """A named list of values. ``name`` is a config key, ``fusion``, or any label of an axis of files."""

    name: str
    values: tuple[Value, ...]

    @property
    def keys(self) -> tuple[str, ...]:
        """Every key that some value sets."""
        return tuple(dict.fromkeys(key for value in self.values for key in value.keys))


def split_values(text: str) -> list[str]:
    """Split at commas outside brackets, braces and quotes: ``[1,2],[3]`` is two values."""
    parts, depth, quote = [""], 0, ""
    for char in text:
        if quote:
            quote = "" if char == quote else quote
        elif char in "\"'":
            quote = char
        elif char in "[{":
            depth += 1
        elif char in "]}":
            depth -= 1
        if char == "," and depth == 0 and not quote:
            parts.append("")
        else:
            parts[-1] += char
    return [part.strip() for part in parts]


def overlaps(a: str, b: str) -> bool:
    """Whether two dotted keys set the same thing: equal, or one above the other."""
    return a == b or a.startswith(b + ".") or b.startswith(a + ".")


def _known_keys() -> list[str]:
    """Keys that can be named without knowing the parts."""
    sections = {
        "": RunConfig,
        "framework.": FrameworkConfig,
        "datasets.": DatasetsConfig,
        "trainer.": TrainerConfig,
        "trainer.evaluation.": EvaluationConfig,
    }
    return [FUSION, *(prefix + f.name for prefix, cls in sections.items() for f in fields(cls))]


def _leaves(node: Any, prefix: str) -> list[str]:
    if not isinstance(node, Mapping) or not node:
        return [prefix]
    return [leaf for key, value in node.items() for leaf in _leaves(value, f"{prefix}.{key}".lstrip("."))]


def _file_value(name: str, where: str) -> Value:
    path = Path(name)
    if not path.is_file():
        raise UserError(f"{where}: {path}: no such config file")
    try:
        node = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"{where}: {path}: not valid YAML ({str(error).splitlines()[0]})") from error
    if not isinstance(node, dict) or not node:
        raise UserError(f"{where}: {path}: an overlay must be a mapping of keys to values")
    return Value(path.stem, tuple(_leaves(node, "")), file=path)


def _fusion_value(name: str) -> Value:
    keys = ("framework.fusion", "framework.use_geometric_branch")
    if name == "none":
        return Value(name, keys, ("framework.use_geometric_branch=false",))
    return Value(name, keys, (f"framework.fusion.name={name}", "framework.use_geometric_branch=true"))


def parse_axis(text: str) -> Axis:
    """``KEY=a,b``, ``fusion=none,gated`` or ``[NAME=]@file.yaml,@other.yaml`` (mixed values too).

    Raises:
        UserError: one line; an unknown key with the nearest known one.
    """
    where = f"--axis {text}"
    if text.startswith("@"):
        name, listed = "config", text
    else:
        name, equals, listed = text.partition("=")
        if not equals or not name:
            raise UserError(f"{where}: must read KEY=a,b,... or @overlay.yaml,...")
    words = split_values(listed)
    if text.startswith("@"):
        words = [word if word.startswith("@") else f"@{word}" for word in words]
    if any(word in ("", "@") for word in words):
        raise UserError(f"{where}: an empty value; write KEY=a,b,... (null for nothing)")
    values = []
    for word in words:
        if word.startswith("@"):
            values.append(_file_value(word[1:], where))
        elif name == FUSION:
            values.append(_fusion_value(word))
        else:
            _check_key(name, where)
            values.append(Value(word, (name,), (f"{name}={word}",)))
    labels = [value.label for value in values]
    twice = next((label for label in labels if labels.count(label) > 1), None)
    if twice is not None:
        raise UserError(f"{where}: the value '{twice}' stands there twice")
    return Axis(name, tuple(values))


SHORT = {
    "trainer.lr": "trainer.learning_rate.base",
    "trainer.base_lr": "trainer.learning_rate.base",
    "trainer.steps": "trainer.max_steps",
    "trainer.bs": "trainer.batch_size",
}
"""Names that are no neighbours of the key in spelling."""


def _check_key(key: str, where: str) -> None:
    """The parts of a key that do not depend on a part's Config; the rest is checked when composing."""
    if key in OURS:
        hint = "use --seeds" if key == "seed" else "the ablation sets it itself"
        raise UserError(f"{where}: '{key}' cannot be an axis; {hint}")
    top = {f.name for f in fields(RunConfig)}
    if key.partition(".")[0] not in top:
        raise UserError(f"{where}: unknown key '{key}'{suggest(key, _known_keys())}")
    if key in SHORT:
        raise UserError(f"{where}: unknown key '{key}'; did you mean '{SHORT[key]}'?")


def check_apart(axes: Sequence[Axis], overrides: Sequence[str]) -> None:
    """No key is set by two axes, or by an axis and an override: one of them would be without effect.

    Raises:
        UserError: naming both.
    """
    for i, axis in enumerate(axes):
        for other in axes[:i]:
            if axis.name == other.name:
                raise UserError(f"--axis {axis.name} stands there twice; list all its values in one")
            for a in axis.keys:
                for b in other.keys:
                    if overlaps(a, b):
                        raise UserError(f"--axis {axis.name} and --axis {other.name} both set '{a}'")
        for word in overrides:
            key = word.partition("=")[0]
            if any(overlaps(key, mine) for mine in axis.keys):
                raise UserError(f"command line: '{word}' sets what --axis {axis.name} varies; leave one out")
    for word in overrides:
        key = word.partition("=")[0]
        if key in OURS:
            hint = "use --seeds" if key == "seed" else "the ablation sets it itself"
            raise UserError(f"command line: '{word}': '{key}' cannot be set here; {hint}")
