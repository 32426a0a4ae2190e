"""Strict loading of published weight files: safetensors or torch's, whole or in shards.

For checkpoints whose architecture transformers does not know; the others load through transformers.
"""

from __future__ import annotations

import json
import pickle
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor
from vla_core.errors import ConfigError

KEY_FAULTS = ("missing_keys", "mismatched_keys", "unexpected_keys")
_FILES = ("model.safetensors", "pytorch_model.bin")


def check_loaded(base_vlm: str, info: Mapping[str, Any], ignore: str | None = None) -> None:
    """What transformers' ``output_loading_info`` tells must be nothing, but for names that hold ``ignore``.

    Raises:
        ConfigError: how many keys are at fault, and the first.
    """
    for kind in KEY_FAULTS:
        names = sorted(str(key) for key in info[kind] if ignore is None or ignore not in str(key))
        if names:
            raise ConfigError(
                f"base_vlm '{base_vlm}': {len(names)} {kind.replace('_', ' ')} in its weights, "
                f"first '{names[0]}'; the files don't belong to this architecture"
            )


def check_place(name: str) -> None:
    """Raise FileNotFoundError for what is meant as a path and leads nowhere: a hub would be asked for long.

    A path begins with ``.``, ``/`` or ``~``, or has several slashes. Not what begins with a directory that is
    here: who keeps one model in ``Qwen/`` may want another of the hub's.
    """
    if (name.startswith((".", "/", "~")) or name.count("/") > 1) and not Path(name).exists():
        raise FileNotFoundError(f"no such directory: {Path(name).absolute()}")


def hub_file(name: str, file: str) -> Path | None:
    """The local path of ``file`` of a hub id or directory; None when it has no such file.

    Raises:
        OSError: neither a directory nor a hub id that can be had.
    """
    from transformers.utils.hub import cached_file

    if Path(name).is_dir():
        path = Path(name) / file
        return path if path.is_file() else None
    check_place(name)
    found = cached_file(name, file, _raise_exceptions_for_missing_entries=False)
    return None if found is None else Path(found)


def read_json(name: str, file: str, where: str) -> dict[str, Any]:
    """A JSON object beside the weights; ``where`` names the config key in the error.

    Raises:
        ConfigError: it can't be had, or isn't JSON.
    """
    try:
        path = hub_file(name, file)
        if path is None:
            raise ConfigError(f"{where} '{name}' has no {file}; give a directory or hub id of a model")
        return dict(json.loads(path.read_text("utf-8")))
    except (OSError, ValueError) as error:
        reason = str(error).splitlines()[0].rstrip(".")
        raise ConfigError(
            f"{where} '{name}' can't be loaded ({reason}); give a local directory with {file} and weights, "
            "or a hub id while online"
        ) from error


class WeightFiles:
    """The tensors of a hub id or directory by key, read one at a time.

    Args:
        name: hub id or directory.
        where: the config key that names it, for errors.

    Raises:
        ConfigError: no weights there, or a file that can't be read.
    """

    def __init__(self, name: str, where: str) -> None:
        self.name, self.where = name, where
        self._files: dict[str, Any] = {}
        for path in self._paths():
            self._open(path)

    def _paths(self) -> list[Path]:
        try:
            for file in _FILES:
                index = hub_file(self.name, f"{file}.index.json")
                names = [file]
                if index is not None:
                    names = sorted(set(json.loads(index.read_text("utf-8"))["weight_map"].values()))
                paths = [hub_file(self.name, name) for name in names]
                if all(paths):
                    return [path for path in paths if path is not None]
                if index is not None:
                    lost = [name for name, path in zip(names, paths, strict=True) if path is None]
                    raise ConfigError(f"{self.where} '{self.name}' lacks {', '.join(lost)}; copy all shards")
        except (OSError, ValueError, KeyError) as error:
            reason = str(error).splitlines()[0].rstrip(".")
            raise ConfigError(f"{self.where} '{self.name}': no weights can be had ({reason})") from error
        raise ConfigError(f"{self.where} '{self.name}' has neither {' nor '.join(_FILES)}")

    def _open(self, path: Path) -> None:
        try:
            if path.suffix == ".safetensors":
                file = safe_open(path, framework="pt")
                self._files.update(dict.fromkeys(file.keys(), file))
            else:
                tensors = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
                self._files.update(dict.fromkeys(tensors, tensors))
        except (OSError, SafetensorError, RuntimeError, pickle.UnpicklingError) as error:
            reason = str(error).splitlines()[0]
            raise ConfigError(f"{self.where}: cannot read '{path}': {reason}") from error

    @property
    def keys(self) -> list[str]:
        """Of all tensors, in the files' order."""
        return list(self._files)

    def shape(self, key: str) -> list[int]:
        """Without reading data."""
        file = self._files[key]
        return list(file[key].shape if isinstance(file, dict) else file.get_slice(key).get_shape())

    def read(self, key: str) -> Tensor:
        """The tensor, on the CPU."""
        file = self._files[key]
        value: Tensor = file[key] if isinstance(file, dict) else file.get_tensor(key)
        return value


def fill(targets: Mapping[str, Tensor], files: WeightFiles, place: Callable[[str], str | None]) -> None:
    """Copy each tensor of ``files`` into the target that ``place`` names; None leaves a key out.

    Raises:
        ConfigError: a key without target, a target without key, or another shape: they are listed.
    """
    found = {target: key for key in files.keys if (target := place(key)) is not None}
    problems = {
        "missing": sorted(targets.keys() - found.keys()),
        "unexpected": sorted(found[name] for name in found.keys() - targets.keys()),
        "of another shape": [
            f"{found[name]} {files.shape(found[name])} instead of {list(targets[name].shape)}"
            for name in sorted(targets.keys() & found.keys())
            if files.shape(found[name]) != list(targets[name].shape)
        ],
    }
    if any(problems.values()):
        listed = "; ".join(f"{len(keys)} {kind}: {_some(keys)}" for kind, keys in problems.items() if keys)
        raise ConfigError(
            f"{files.where} '{files.name}': its weights don't fit its config.json ({listed}); "
            "the files don't belong to this architecture"
        )
    with torch.no_grad():
        for name, tensor in targets.items():
            if not tensor.is_meta:  # a network of shapes alone: the names are checked, nothing is read
                tensor.copy_(files.read(found[name]))


def _some(keys: Sequence[str], most: int = 20) -> str:
    rest = f" and {len(keys) - most} more" if len(keys) > most else ""
    return ", ".join(keys[:most]) + rest
