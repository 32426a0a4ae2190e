"""What a published pi0 or pi0.5 directory says about itself, whoever wrote it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from vla_core.errors import UserError
from vla_core.specs import CameraSpec

WEIGHTS = "model.safetensors"
CONFIG = "config.json"
TOKENIZER = "google/paligemma-3b-pt-224"

Mode = Literal["q99", "min_max", "mean_std", "none"]
Fields = dict[str, NDArray[np.float64]]
"""Statistic's name -> ``[D]``."""


@dataclass(frozen=True)
class Vector:
    """The state or the actions.

    Args:
        key: its name in the source.
        dim: dims that the source says it has; None: any number up to the network's.
        mode: how it was normalised.
        fields: its statistics; None: the source has none.
        low, high: the statistics that ``q99`` and ``min_max`` map to -1 and 1.
        eps: what the source added to ranges and deviations.
    """

    key: str
    dim: int | None
    mode: Mode
    fields: Fields | None
    low: str = "q01"
    high: str = "q99"
    eps: float = 0.0


@dataclass(frozen=True)
class Published:
    """A published directory.

    Args:
        directory, origin: where it is, and who writes such (``lerobot``, ``openpi``).
        variant: ``pi0`` or ``pi05``.
        horizon: T.
        cameras: those the policy knows, in its order, with the raw sizes that the source says.
        state, action: the vectors.
        head: the head's node, but for widths, which the tensors tell.
        image_size: (height, width) that the network reads.
        antialias: whether pictures were resized with it.
        clean: whether instructions were cleaned.
        max_text_tokens: room for text.
        tokenizer: hub id of the tokenizer.
        relative: action dims that are offsets from the state, by number.
        names: of the action's dims, if known.
        step: optimisation steps, if the path tells.
        notes: what the user should know.
    """

    directory: Path
    origin: str
    variant: Literal["pi0", "pi05"]
    horizon: int
    cameras: tuple[CameraSpec, ...]
    state: Vector
    action: Vector
    head: dict[str, Any]
    image_size: tuple[int, int]
    antialias: bool
    clean: bool
    max_text_tokens: int
    tokenizer: str = TOKENIZER
    relative: tuple[int, ...] = ()
    names: tuple[str, ...] = ()
    step: int = 0
    notes: list[str] = field(default_factory=list)

    @property
    def weights(self) -> Path:
        """The file of tensors."""
        return self.directory / WEIGHTS

    @property
    def preset(self) -> str:
        """Our framework's name."""
        return self.variant.upper()

    def limit(self, vector: str) -> int:
        """Dims of the network's ``state`` or ``action``."""
        return int(self.head[f"max_{vector}_dim"])


def find(path: Path) -> Path:
    """The directory with config.json and weights: ``path``, or what lerobot's training left below it.

    Raises:
        UserError: there is none, or its weights are a pickle.
    """
    if path.is_file():
        path = path.parent
    elif not path.is_dir():
        raise UserError(f"{path}: no such directory")
    inner = (path, path / "pretrained_model", path / "checkpoints" / "last" / "pretrained_model")
    found = next((d for d in inner if (d / CONFIG).is_file()), None)
    if found is None:
        raise UserError(
            f"{path}: has no {CONFIG}; give the directory of a policy that lerobot or openpi's PyTorch "
            "conversion wrote"
        )
    if not (found / WEIGHTS).is_file():
        pickles = [f.name for f in sorted(found.iterdir()) if f.suffix in (".bin", ".pt", ".pth", ".pkl")]
        also = f"; {pickles[0]} is a pickle, which is not read: save it as safetensors" if pickles else ""
        raise UserError(f"{found}: has no {WEIGHTS}{also}")
    return found


def read_json(file: Path) -> dict[str, Any]:
    """The mapping in a JSON file.

    Raises:
        UserError: not there, not JSON, or no mapping.
    """
    try:
        data = json.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"{file}: cannot be read ({error.strerror})") from error
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"{file}: not valid JSON") from error
    if not isinstance(data, dict):
        raise UserError(f"{file}: must hold a mapping, not a {type(data).__name__}")
    return data


def tensor_names(file: Path) -> list[str]:
    """Names in a safetensors file, without reading its tensors.

    Raises:
        UserError: it is none, or truncated.
    """
    try:
        with safe_open(file, "pt") as opened:
            return list(opened.keys())
    except (SafetensorError, OSError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0][:200]
        raise UserError(f"{file}: cannot be read as safetensors, it may be truncated ({reason})") from error


def number(data: Mapping[str, Any], key: str, file: Path, default: float | None = None) -> Any:
    """The number at ``key``.

    Raises:
        UserError: it is missing without a default, or no number.
    """
    value = data.get(key, default)
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise UserError(f"{file}: '{key}' must be a number, got {value!r}")
    return value


def mapping(data: Mapping[str, Any], key: str, file: Path) -> dict[str, Any]:
    """The mapping at ``key``; empty if there is none.

    Raises:
        UserError: something else is there.
    """
    value = data.get(key) or {}
    if not isinstance(value, Mapping):
        raise UserError(f"{file}: '{key}' must be a mapping, got {value!r}")
    return dict(value)


def strings(data: Mapping[str, Any], key: str, file: Path) -> tuple[str, ...]:
    """The list of words at ``key``; empty if there is none.

    Raises:
        UserError: something else is there.
    """
    value = data.get(key) or []
    if not isinstance(value, list) or not all(isinstance(word, str) for word in value):
        raise UserError(f"{file}: '{key}' must be a list of words, got {value!r}")
    return tuple(value)


def whole_numbers(value: Any, count: int, what: str, file: Path) -> tuple[int, ...]:
    """``value``, which must be a list of so many positive whole numbers.

    Raises:
        UserError: it is not.
    """
    fits = isinstance(value, list) and len(value) == count
    if not fits or not all(type(n) is int and n > 0 for n in value):
        raise UserError(f"{file}: {what} must be {count} whole number(s) above 0, got {value!r}")
    return tuple(value)


def vectors_in(data: Mapping[str, Any], file: Path, keys: Mapping[str, str]) -> dict[str, Fields]:
    """Statistics ``{"state": {...}, "action": {...}}`` out of ``{key: {"mean": [...], ...}}``.

    Args:
        data: the file's content.
        file: for errors.
        keys: our name of a vector -> its key in ``data``.

    Raises:
        UserError: a statistic that is no list of finite numbers, or of another length than the others.
    """
    out: dict[str, Fields] = {}
    for ours, key in keys.items():
        node = data.get(key)
        if not isinstance(node, Mapping):
            continue
        out[ours] = {}
        for name, value in node.items():
            if name == "count" or value is None:
                continue
            try:
                array = np.asarray(value, np.float64)
            except (ValueError, TypeError) as error:
                raise UserError(f"{file}: '{key}.{name}' is no list of numbers") from error
            first = next(iter(out[ours].values()), array)
            if array.ndim != 1 or array.shape != first.shape or not np.isfinite(array).all():
                raise UserError(
                    f"{file}: '{key}.{name}' must be a list of finite numbers, as long as the others; its "
                    f"shape is {array.shape}"
                )
            out[ours][name] = array
    return out
