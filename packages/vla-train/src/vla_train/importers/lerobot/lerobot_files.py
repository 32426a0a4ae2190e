"""Directories that lerobot (0.4 and later) writes: config.json and its two processors."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from vla_core.errors import UserError, suggest
from vla_core.specs import CameraSpec

from vla_train.importers.lerobot.processors import Processors, read_processors
from vla_train.importers.lerobot.published import (
    CONFIG,
    TOKENIZER,
    Published,
    Vector,
    mapping,
    number,
    strings,
    whole_numbers,
)

TYPES = ("pi0", "pi05")
IMAGES, STATE, ACTION = "observation.image", "observation.state", "action"
EMPTY = "empty_camera_"
DEFAULTS = {"pi0": ("MEAN_STD", 48), "pi05": ("QUANTILES", 200)}
"""Normalisation and room for text, where a config is silent."""


def is_lerobot(config: Mapping[str, Any]) -> bool:
    """Whether a config.json is that of a policy of lerobot."""
    return isinstance(config.get("type"), str) and "input_features" in config


def read(directory: Path, config: dict[str, Any]) -> Published:
    """The directory as a source; its config.json holds ``config``.

    Raises:
        UserError: a policy of another type, or a setting that cannot be taken over.
    """
    file, kind = directory / CONFIG, config["type"]
    if kind not in TYPES:
        raise UserError(f"{file}: type '{kind}' cannot be imported{suggest(kind, TYPES)}; pi0 and pi05 can")
    _refuse(config, file)
    default, room = DEFAULTS[kind]
    modes = {"STATE": default, "ACTION": default, **mapping(config, "normalization_mapping", file)}
    found = read_processors(directory, modes)
    cameras, notes = _cameras(config, found, file)
    size = whole_numbers(config.get("image_resolution") or [224, 224], 2, "image_resolution", file)
    names = strings(config, "action_feature_names", file) or found.action_names
    action = Vector(ACTION, _dim(config, "output_features", ACTION, file), **found.vector("action"))
    offset = float(number(config, "time_sampling_offset", file, 0.001))
    source = Published(
        directory=directory,
        origin="lerobot",
        variant=kind,
        horizon=int(number(config, "chunk_size", file)),
        cameras=cameras,
        state=Vector(STATE, _dim(config, "input_features", STATE, file), **found.vector("state")),
        action=action,
        head={
            "max_action_dim": int(number(config, "max_action_dim", file, 32)),
            "max_state_dim": int(number(config, "max_state_dim", file, 32)),
            "steps": int(number(config, "num_inference_steps", file, 10)),
            "time_alpha": float(number(config, "time_sampling_beta_alpha", file, 1.5)),
            "time_offset": offset,
            "min_period": float(number(config, "min_period", file, 4e-3)),
            "max_period": float(number(config, "max_period", file, 4.0)),
        },
        image_size=(size[0], size[1]),
        antialias=False,
        clean=kind == "pi05",
        max_text_tokens=int(found.max_length or number(config, "tokenizer_max_length", file, room)),
        tokenizer=found.tokenizer or TOKENIZER,
        names=names,
        step=_step(directory),
        notes=[*notes, *found.notes],
    )
    if found.relative or config.get("use_relative_actions"):
        source = replace(source, relative=_relative(source, found.excluded, file))
    return source


def _refuse(config: Mapping[str, Any], file: Path) -> None:
    """What would change the numbers and has no counterpart here."""
    if config.get("use_peft"):
        raise UserError(f"{file}: use_peft is true, so the weights are an adapter; merge it first (peft)")
    if number(config, "n_obs_steps", file, 1) != 1:
        raise UserError(f"{file}: n_obs_steps is {config['n_obs_steps']}; pi0 reads one observation here")
    beta = number(config, "time_sampling_beta_beta", file, 1.0)
    if beta != 1.0:
        raise UserError(
            f"{file}: time_sampling_beta_beta is {beta}; times are drawn from Beta(alpha, 1) here"
        )
    scale = number(config, "time_sampling_scale", file, 0.999)
    offset = number(config, "time_sampling_offset", file, 0.001)
    if abs(scale + offset - 1.0) > 1e-9:
        raise UserError(
            f"{file}: time_sampling_scale {scale} and time_sampling_offset {offset} must add up to 1 here"
        )


def _features(config: Mapping[str, Any], key: str, file: Path) -> Mapping[str, Any]:
    features = config.get(key)
    if not isinstance(features, Mapping) or not all(isinstance(f, Mapping) for f in features.values()):
        raise UserError(f"{file}: '{key}' must be a mapping of names to type and shape")
    return features


def _dim(config: Mapping[str, Any], key: str, name: str, file: Path) -> int | None:
    """Dims of a vector; None where only the network's width is known."""
    feature = _features(config, key, file).get(name)
    if feature is None:
        return None
    (dim,) = whole_numbers(feature.get("shape"), 1, f"{key}.{name}.shape", file)
    limit = config.get("max_action_dim" if name == ACTION else "max_state_dim", 32)
    return None if dim == limit else dim


def _cameras(
    config: Mapping[str, Any], found: Processors, file: Path
) -> tuple[tuple[CameraSpec, ...], list[str]]:
    """Cameras as a data set calls them, and notes."""
    raw = {new: old for old, new in found.renamed.items()}
    cameras, empty = [], []
    for key, feature in _features(config, "input_features", file).items():
        if not key.startswith(IMAGES):
            continue
        name = raw.get(key, key).removeprefix(f"{IMAGES}s.").removeprefix("observation.")
        if key.removeprefix(f"{IMAGES}s.").startswith(EMPTY):
            empty.append(name)
            continue
        shape = whole_numbers(feature.get("shape"), 3, f"input_features.{key}.shape", file)
        if 3 not in (shape[0], shape[2]):
            raise UserError(
                f"{file}: input_features.{key} is no picture of three channels, its shape is {list(shape)}"
            )
        height, width = shape[1:] if shape[0] == 3 else shape[:2]
        cameras.append(CameraSpec(name, height, width))
    if not cameras:
        raise UserError(f"{file}: input_features has no camera (observation.images.NAME)")
    notes = [f"{name}: left out, nobody reads an empty camera" for name in empty]
    return tuple(cameras), notes


def _relative(source: Published, excluded: tuple[str, ...], file: Path) -> tuple[int, ...]:
    """Numbers of the action dims that lerobot makes relative: all, but those with an excluded name."""
    if excluded and not source.names:
        raise UserError(
            f"{file}: use_relative_actions leaves {', '.join(excluded)} out, and action_feature_names does "
            "not say which dims these are; add it there, or remove the exclusions"
        )
    dim = source.action.dim or len(source.names)
    if not dim:
        raise UserError(f"{file}: use_relative_actions is true, and output_features.action has no shape")
    words = [word.lower() for word in excluded if word]
    kept = [any(word in name.lower() for word in words) for name in source.names[:dim]]
    kept += [False] * (dim - len(kept))
    return tuple(i for i, leave in enumerate(kept) if not leave)


def _step(directory: Path) -> int:
    """Of ``checkpoints/020000/pretrained_model``; 0 elsewhere."""
    parent = directory.resolve().parent.name
    inside = directory.name == "pretrained_model" and re.fullmatch(r"\d+", parent) is not None
    return int(parent) if inside else 0
