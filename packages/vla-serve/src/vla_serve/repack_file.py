"""Reading a repack file: YAML that says what somebody else calls a contract's cameras and numbers."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

import yaml
from vla_core.config import build_config
from vla_core.errors import ConfigError

C = TypeVar("C")


def read_config(config: type[C], path: Path | None, holds: str) -> C:
    """The file's content as ``config``; None: its defaults.

    Args:
        config: a dataclass.
        path: of the file.
        holds: what a file has at its top, for who gave another kind of file.

    Raises:
        ConfigError: no such file, or a mistake in it.
    """
    if path is None:
        return config()
    try:
        node: Any = yaml.safe_load(path.read_text("utf-8"))
    except OSError as error:
        raise ConfigError(f"repack: {path} cannot be read ({error.strerror})") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"repack: {path} is no YAML: {' '.join(str(error).split())}") from None
    if not isinstance(node, Mapping):
        raise ConfigError(f"repack: {path} must hold {holds}")
    return build_config(config, node, "repack")
