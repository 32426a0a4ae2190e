"""Strict loading of the published weights.

A published file holds the whole model. What this encoder has no use for is named in ``NOT_BUILT`` (and
``DENSE`` and ``CAMERAS``, when it is built without); every other key must be there, and no further one.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import nn
from vla_core.errors import ConfigError

from vla_geometry.mapanything.sizes import SIZES

FILE = "model.safetensors"
NOT_BUILT = (
    # Geometric inputs other than rays: depth and camera poses are not read.
    "depth_encoder.",
    "depth_scale_encoder.",
    "cam_rot_encoder.",
    "cam_trans_encoder.",
    "cam_trans_scale_encoder.",
)
"""Prefixes of published keys that are left out."""
DENSE = ("dense_head.", "scale_head.", "pose_head.")
"""Prefixes, after :func:`canonical`, of what depth and points need."""
CAMERAS = ("ray_dirs_encoder.", "fusion_norm_layer.", "scale_token")
"""Prefixes of the geometric input and the scale token, which ``compat: starvla_llava3d`` is built without."""


def published_name(name: str) -> str:
    """Key of a published file for a parameter or buffer of the encoder."""
    return name.replace("encoder.", "encoder.model.", 1) if name.startswith("encoder.") else name


def canonical(key: str) -> str:
    """One name for each tensor that the published model holds under several; a file may have any of them."""
    key = re.sub(r"^dpt_feature_head\.", "dense_head.0.", key)
    key = re.sub(r"^dpt_regressor_head\.", "dense_head.1.", key)
    key = re.sub(r"\.scratch\.layer_rn\.(\d)\.", r".input_process.\1.1.", key)
    return re.sub(r"\.scratch\.layer(\d)_rn\.", lambda m: f".input_process.{int(m[1]) - 1}.1.", key)


def load_published(module: nn.Module, source: str, revision: str | None = None) -> None:
    """Fill ``module`` from a hub id, a directory or a file; keys and shapes are checked before reading data.

    Raises:
        ConfigError: nothing there, not a safetensors file, or keys or shapes that differ (they are listed).
    """
    path = find(source, revision)
    try:
        with safe_open(path, framework="pt") as file:
            left_out = NOT_BUILT + left_out_of(module)
            names = {canonical(key): key for key in file.keys()}  # noqa: SIM118
            found = {
                key: tuple(file.get_slice(name).get_shape())
                for key, name in names.items()
                if not key.startswith(left_out)
            }
            targets = {published_name(name): tensor for name, tensor in module.state_dict().items()}
            _check(found, {key: tuple(tensor.shape) for key, tensor in targets.items()}, source)
            with torch.no_grad():
                for key, tensor in targets.items():
                    tensor.copy_(file.get_tensor(names[key]))
    except (OSError, SafetensorError) as error:
        raise ConfigError(f"geometry.weights: cannot read '{path}': {error}") from error


def left_out_of(module: nn.Module) -> tuple[str, ...]:
    """Prefixes of published keys of optional parts that this encoder is built without."""
    return tuple(key for key in DENSE + CAMERAS if not hasattr(module, key.rstrip(".")))


def find(source: str, revision: str | None = None) -> Path:
    """The local file of ``source``, downloaded to the hub's cache if need be.

    Raises:
        ConfigError: neither a local file or directory nor a hub id that can be had.
    """
    path = Path(source)
    if path.is_dir():
        path = path / FILE
    if path.is_file():
        return path
    is_id = source.count("/") == 1 and all(source.split("/")) and source[0] not in "./~"
    if path.suffix == ".safetensors" or not is_id:
        raise ConfigError(
            f"geometry.weights: no file '{path}'; give a .safetensors file, a directory with {FILE}, "
            "or a hub id"
        )
    return _download(source, revision)


def _download(repo: str, revision: str | None) -> Path:
    try:
        from huggingface_hub import hf_hub_download
        from huggingface_hub.errors import HfHubHTTPError, HFValidationError
    except ModuleNotFoundError as error:
        raise ConfigError(
            f"geometry.weights: '{repo}' is a hub id, which needs the package huggingface_hub; "
            "install it or give a local file"
        ) from error
    try:
        return Path(hf_hub_download(repo, FILE, revision=revision))
    except (HfHubHTTPError, HFValidationError, OSError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise ConfigError(
            f"geometry.weights: '{repo}' is no local path, and {FILE} of that hub id cannot be had "
            f"({reason}); check the name, the access and the network, or give a local file"
        ) from error


def _check(found: Mapping[str, tuple[int, ...]], wanted: Mapping[str, tuple[int, ...]], source: str) -> None:
    problems = {
        "missing": sorted(wanted.keys() - found.keys()),
        "unexpected": sorted(found.keys() - wanted.keys()),
        "of another shape": [
            f"{key} {list(found[key])} instead of {list(wanted[key])}"
            for key in sorted(found.keys() & wanted.keys())
            if found[key] != wanted[key]
        ],
    }
    if any(problems.values()):
        listed = "; ".join(f"{kind}: {_some(keys)}" for kind, keys in problems.items() if keys)
        raise ConfigError(
            f"geometry.weights: '{source}' does not fit the configured geometry.size{_hint(found)} ({listed})"
        )


def _some(keys: Sequence[str], most: int = 20) -> str:
    rest = f" and {len(keys) - most} more" if len(keys) > most else ""
    return ", ".join(keys[:most]) + rest


def _hint(found: Mapping[str, tuple[int, ...]]) -> str:
    shape = (found.get("encoder.model.pos_embed"), found.get("info_sharing.norm.weight"))
    for name, size in SIZES.items():
        if shape == ((1, 1 + size.grid**2, size.encoder_dim), (size.dim,)):
            return f"; its widths are those of size '{name}'"
    return ""
