"""Conversations about images in LLaVA's format: one JSON list or JSON lines, images beside them.

An entry is ``{"image": FILE or [FILES], "conversations": [{"from": "human", "value": "<image> ..."}, ...]}``;
``human`` (or ``user``) is the user, ``system`` the system, anybody else the assistant. Text is kept as it is,
boxes with it. An entry that is a list holds several, each of which counts.

A registry names data sets in YAML: ``NAME: {annotation_path: FILE, data_path: DIR}``, both relative to it.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
from PIL import Image as PILImage
from PIL import ImageOps, UnidentifiedImageError
from vla_core.conversations import Conversation, Turn, check_turns
from vla_core.errors import ConfigError, UserError
from vla_core.ranges import Seed
from vla_core.types import Image

from vla_data.conversation_registry import Named, read_registry
from vla_data.errors import BadDataError, one_line

Role = Literal["system", "user", "assistant"]
ROLES: Mapping[str, Role] = {"human": "user", "user": "user", "system": "system"}


@dataclass(frozen=True)
class VLMConversationsConfig:
    """Which conversations.

    Args:
        annotation_path: a ``.json`` or ``.jsonl`` file.
        data_path: folder that images are relative to; null: that of the file.
        registry: YAML file that names data sets, instead of ``annotation_path``.
        use: of the registry: names with commas between, or ``all``; ``NAME%50`` is a random half of it.
        seed: of what such a share is.
    """

    annotation_path: str | None = None
    data_path: str | None = None
    registry: str | None = None
    use: str = "all"
    seed: Seed = 0

    def __post_init__(self) -> None:
        if (self.annotation_path is None) == (self.registry is None):
            raise ConfigError(
                "set one of annotation_path (a .json or .jsonl file) and registry (a YAML file)"
            )
        if self.data_path is not None and self.registry is not None:
            raise ConfigError("data_path goes with annotation_path; a registry has it for each of its names")


@dataclass(frozen=True)
class _Entry:
    """A checked entry: what is said, and the files of its images."""

    turns: tuple[Turn, ...]
    images: tuple[str, ...]
    folder: Path
    where: str


class VLMConversations:
    """The conversations of one or several files; images are read when asked for.

    Every entry is checked when the files are opened.

    Raises:
        UserError: an entry that is not whole, naming file and entry.
        ConfigError: no such file, or no such name in a registry.
    """

    Config: ClassVar[type] = VLMConversationsConfig

    def __init__(self, config: VLMConversationsConfig) -> None:
        self.config = config
        named = [Named(Path(config.annotation_path or ""), config.data_path, None)]
        if config.registry is not None:
            named = read_registry(Path(config.registry), config.use)
        self._entries: list[_Entry] = []
        for i, one in enumerate(named):
            folder = one.annotation_path.parent if one.data_path is None else Path(one.data_path)
            entries = [_entry(raw, folder, where) for raw, where in _read(one.annotation_path)]
            if not entries:
                raise UserError(f"{one.annotation_path}: holds no conversation")
            if one.percent is not None:
                count = max(1, round(len(entries) * one.percent / 100))
                chosen = np.random.default_rng((config.seed, i)).permutation(len(entries))[:count]
                entries = [entries[k] for k in np.sort(chosen)]
            self._entries += entries

    def __len__(self) -> int:
        return len(self._entries)

    def __getitem__(self, index: int) -> Conversation:
        """A conversation with its images.

        Raises:
            BadDataError: an image that is not there or cannot be read.
        """
        entry = self._entries[index]
        images = tuple(_image(entry, name) for name in entry.images)
        return Conversation(entry.turns, images, entry.where)


def _read(path: Path) -> Iterator[tuple[Any, str]]:
    """Raw entries, and where each stands."""
    try:
        text = path.read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: cannot be read ({one_line(error)}); check annotation_path") from error
    if path.suffix == ".jsonl":
        found = [(line, f"{path}: line {n}") for n, line in enumerate(text.split("\n"), 1) if line.strip()]
        items = [(_parse(line, where), where) for line, where in found]
    elif path.suffix == ".json":
        whole = _parse(text, str(path))
        if not isinstance(whole, list):
            raise UserError(f"{path}: must be a list of conversations, not {_kind(whole)}")
        items = [(item, f"{path}: entry {n}") for n, item in enumerate(whole)]
    else:
        raise ConfigError(f"{path}: annotation_path must end in .json or .jsonl")
    for item, where in items:
        if isinstance(item, list):
            yield from ((part, f"{where}, part {n}") for n, part in enumerate(item))
        else:
            yield item, where


def _parse(text: str, where: str) -> Any:
    try:
        return json.loads(text)
    except ValueError as error:
        raise UserError(f"{where}: not valid JSON ({one_line(error)})") from error


def _kind(value: Any) -> str:
    return {dict: "a mapping", list: "a list", str: "text", type(None): "null"}.get(type(value), "a number")


def _entry(raw: Any, folder: Path, where: str) -> _Entry:
    if not isinstance(raw, dict):
        raise UserError(f"{where}: must be a mapping with 'conversations', not {_kind(raw)}")
    if any(raw.get(key) for key in ("video", "videos")):
        raise UserError(f"{where}: videos in conversations are not read here; take the entry out")
    turns = raw.get("conversations")
    if not isinstance(turns, list):
        raise UserError(f"{where}: 'conversations' must be a list of turns, not {_kind(turns)}")
    entry = _Entry(tuple(_turn(turn, where) for turn in turns), _names(raw, where), folder, where)
    wrong = check_turns(entry.turns, len(entry.images))
    if wrong is not None:
        raise UserError(f"{where}: {wrong}")
    return entry


def _turn(raw: Any, where: str) -> Turn:
    if not isinstance(raw, dict) or not all(isinstance(raw.get(key), str) for key in ("from", "value")):
        raise UserError(f"{where}: a turn must be {{'from': who, 'value': text}}")
    return Turn(ROLES.get(raw["from"], "assistant"), raw["value"])


def _names(raw: Mapping[str, Any], where: str) -> tuple[str, ...]:
    given = [raw[key] for key in ("image", "images") if raw.get(key) is not None]
    if len(given) > 1:
        raise UserError(f"{where}: has both 'image' and 'images'; keep one")
    names = given[0] if given else []
    names = [names] if isinstance(names, str) else names
    if not isinstance(names, list) or not all(isinstance(name, str) and name for name in names):
        raise UserError(f"{where}: 'image' must be a file's name or a list of them")
    return tuple(names)


def _image(entry: _Entry, name: str) -> Image:
    path = entry.folder / name
    try:
        with PILImage.open(path) as picture:
            upright = ImageOps.exif_transpose(picture).convert("RGB")
    except FileNotFoundError as error:
        raise BadDataError(f"{entry.where}: there is no image {path}; check data_path") from error
    except UnidentifiedImageError as error:
        raise BadDataError(f"{entry.where}: {path} is not an image") from error
    except (OSError, SyntaxError, ValueError, PILImage.DecompressionBombError) as error:
        raise BadDataError(f"{entry.where}: image {path} is damaged ({one_line(error)})") from error
    return np.asarray(upright)
