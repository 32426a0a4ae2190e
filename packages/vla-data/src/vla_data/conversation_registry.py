"""Data sets of conversations by name: a YAML file, and words such as ``ocr,boxes%50``."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

import yaml
from vla_core.errors import ConfigError, suggest

from vla_data.errors import one_line

KEYS = ("annotation_path", "data_path")


@dataclass(frozen=True)
class Named:
    """A file of conversations; ``percent`` of it, or all (None)."""

    annotation_path: Path
    data_path: str | None
    percent: float | None


def read_registry(path: Path, use: str) -> list[Named]:
    """The data sets that ``use`` names, in its order.

    Raises:
        ConfigError: no such file or name, a key that no entry has, or a share that is none.
    """
    try:
        known = yaml.safe_load(path.read_text("utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ConfigError(f"registry {path}: cannot be read ({one_line(error)})") from error
    if not isinstance(known, dict) or not known:
        raise ConfigError(f"registry {path}: must map names to {{annotation_path: FILE, data_path: DIR}}")
    words = list(known) if use == "all" else [word.strip() for word in use.split(",") if word.strip()]
    if not words:
        raise ConfigError(f"use: names no data set of {path} (known: {', '.join(map(str, known))})")
    out = []
    for word in words:
        name, percent = _share(str(word), path)
        if name not in known:
            raise ConfigError(f"use: no '{name}' in {path}{suggest(name, map(str, known))}")
        entry = known[name]
        if not isinstance(entry, dict) or "annotation_path" not in entry or set(entry) - set(KEYS):
            raise ConfigError(f"registry {path}: '{name}' must be {{annotation_path: FILE, data_path: DIR}}")
        data = entry.get("data_path")
        data = None if data is None else str(path.parent / data)
        out.append(Named(path.parent / entry["annotation_path"], data, percent))
    return out


def _share(word: str, path: Path) -> tuple[str, float | None]:
    name, sign, share = word.partition("%")
    if not sign:
        return name, None
    if not re.fullmatch(r"\d+(\.\d+)?", share) or not 0 < float(share) <= 100:
        raise ConfigError(
            f"use: '{word}' (of {path}) must end in a share above 0 and up to 100, as {name}%50"
        )
    return name, float(share)
