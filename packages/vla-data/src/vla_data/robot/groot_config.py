"""The modality configs of GR00T N1.6, read without running them: Python files of literals, or JSON.

Source of the format: Isaac-GR00T N1.6, ``ModalityConfig(delta_indices, modality_keys, ...)`` for each of
video, state, action and language, and an ``ActionConfig(rep, type, format, state_key)`` for each action key.
"""

from __future__ import annotations

import ast
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from vla_core.errors import UserError, suggest

from vla_data._names import read_json

PARTS = ("video", "state", "action", "language")
_FIELDS = {
    "ModalityConfig": (
        "delta_indices", "modality_keys", "sin_cos_embedding_keys", "mean_std_embedding_keys",
        "action_configs",
    ),
    "ActionConfig": ("rep", "type", "format", "state_key"),
}  # fmt: skip


def read_groot_config(file: Path, name: str | None = None) -> dict[str, Mapping[str, Any]]:
    """The parts of one modality config of ``file``.

    Args:
        file: ``.py`` or ``.json``.
        name: the variable or embodiment, where there are several.

    Raises:
        UserError: not such a file, none or several configs in it, or a value that is no literal.
    """
    found = _python(file) if file.suffix == ".py" else _json(file)
    if not found:
        raise UserError(f"{file}: no modality config: a mapping of {', '.join(PARTS)} is needed")
    if name is None and len(found) > 1:
        raise UserError(f"{file}: holds {len(found)} configs; choose with --name: {', '.join(found)}")
    chosen = name or next(iter(found))
    if chosen not in found:
        raise UserError(f"{file}: no config '{chosen}'{suggest(chosen, found)}")
    parts = found[chosen]
    for part in ("video", "action"):
        if part not in parts:
            raise UserError(f"{file}: the config '{chosen}' has no '{part}'")
    for part, config in parts.items():
        _check(file, part, config)
    return parts


def _check(file: Path, part: str, config: Any) -> None:
    if not isinstance(config, Mapping):
        raise UserError(f"{file}: {part} must be a ModalityConfig")
    for key in config:
        if key not in _FIELDS["ModalityConfig"]:
            raise UserError(f"{file}: {part}.{key} is unknown{suggest(key, _FIELDS['ModalityConfig'])}")
    indices, keys = config.get("delta_indices"), config.get("modality_keys")
    if not isinstance(indices, list) or not indices or not all(isinstance(i, int) for i in indices):
        raise UserError(f"{file}: {part}.delta_indices must list whole numbers, is {indices!r}")
    if not isinstance(keys, list) or not keys or not all(isinstance(k, str) for k in keys):
        raise UserError(f"{file}: {part}.modality_keys must list names, is {keys!r}")
    actions = config.get("action_configs")
    if actions is not None and len(actions) != len(keys):
        raise UserError(f"{file}: {part} has {len(keys)} keys and {len(actions)} action_configs")


def _is_config(value: Any) -> bool:
    return isinstance(value, Mapping) and "action" in value and set(value) <= set(PARTS)


def _json(file: Path) -> dict[str, dict[str, Any]]:
    """Configs anywhere in the file, by the key they stand under."""
    found: dict[str, dict[str, Any]] = {}

    def look(name: str, value: Any) -> None:
        if _is_config(value):
            found[name] = {part: config for part, config in value.items() if config is not None}
        elif isinstance(value, Mapping):
            for key, inside in value.items():
                look(str(key), inside)

    look(file.stem, read_json(file, "a modality config"))
    return found


def _python(file: Path) -> dict[str, dict[str, Any]]:
    try:
        tree = ast.parse(file.read_text(encoding="utf-8"), str(file))
    except (UnicodeDecodeError, SyntaxError) as error:
        raise UserError(f"{file}: not readable as Python ({error})") from error
    values: dict[str, ast.expr] = {}
    for statement in ast.walk(tree):
        if isinstance(statement, ast.Assign) and isinstance(statement.targets[0], ast.Name):
            values[statement.targets[0].id] = statement.value
        if (
            isinstance(statement, ast.AnnAssign)
            and isinstance(statement.target, ast.Name)
            and statement.value
        ):
            values[statement.target.id] = statement.value
    reader, found = _Literals(file, values), {}
    for name, value in values.items():
        if not isinstance(value, ast.Dict):
            continue
        keys = [key.value for key in value.keys if isinstance(key, ast.Constant)]
        if "action" in keys and set(keys) <= set(PARTS):
            found[name] = reader.read(value)
    return found


class _Literals:
    """Values of expressions that need nothing to be run."""

    def __init__(self, file: Path, names: Mapping[str, ast.expr]) -> None:
        self.file, self.names = file, names
        self._within: list[str] = []

    def read(self, node: ast.expr) -> Any:
        """UserError naming the line where something would have to be run."""
        if isinstance(node, ast.Constant):
            return node.value
        if isinstance(node, (ast.List, ast.Tuple)):
            return [self.read(item) for item in node.elts]
        if isinstance(node, ast.Dict) and None not in node.keys:
            pairs = zip(node.keys, node.values, strict=True)
            return {self.read(key): self.read(value) for key, value in pairs if key is not None}
        if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
            return -self.read(node.operand)
        if isinstance(node, ast.Attribute):  # a member of an enumeration
            return node.attr
        if isinstance(node, ast.Name) and node.id in self.names and node.id not in self._within:
            self._within.append(node.id)
            value = self.read(self.names[node.id])
            self._within.pop()
            return value
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
            called = self._call(node, node.func.id)
            if called is not None:
                return called
        raise UserError(
            f"{self.file}:{node.lineno}: '{ast.unparse(node)[:60]}' is no literal, and nothing is run here; "
            "write the value"
        )

    def _call(self, node: ast.Call, name: str) -> Any:
        given = [self.read(argument) for argument in node.args]
        if name == "range" and all(isinstance(n, int) for n in given) and 1 <= len(given) <= 3:
            return list(range(*given))
        if name == "list" and len(given) == 1:
            return given[0]
        if name not in _FIELDS:
            return None
        named = {k.arg: self.read(k.value) for k in node.keywords if k.arg is not None}
        return {**dict(zip(_FIELDS[name], given, strict=False)), **named}
