"""lerobot's policy_preprocessor.json and policy_postprocessor.json: what stands around the network."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from vla_core.errors import UserError
from vla_core.weights import load_weights

from vla_train.importers.lerobot.published import Fields, mapping, number, read_json, strings, vectors_in

PRE, POST = "policy_preprocessor.json", "policy_postprocessor.json"
KEYS = {"state": "observation.state", "action": "action"}
MODES = {
    "MEAN_STD": ("mean_std", "q01", "q99"),
    "QUANTILES": ("q99", "q01", "q99"),
    "QUANTILE10": ("q99", "q10", "q90"),
    "MIN_MAX": ("min_max", "min", "max"),
    "IDENTITY": ("none", "q01", "q99"),
}
"""lerobot's normalisation -> ours, and the statistics that it maps to -1 and 1."""

HARMLESS = {
    "to_batch_processor",
    "device_processor",
    "pi0_new_line_processor",
    "pi05_prepare_state_tokenizer_processor_step",
}
"""Steps that are done here as well, or need no doing."""


@dataclass
class Processors:
    """What the processors say, over the policy's config.

    Args:
        modes: lerobot's normalisation of ``STATE`` and ``ACTION``.
        fields: statistics of ``state`` and ``action``, where there are any.
        renamed: key in the data -> key in the policy.
        relative, excluded, action_names: of relative actions.
        tokenizer, max_length: of the prompt; None: not said.
        notes: what the user should know.
    """

    modes: dict[str, str]
    fields: dict[str, Fields] = field(default_factory=dict)
    renamed: dict[str, str] = field(default_factory=dict)
    relative: bool = False
    excluded: tuple[str, ...] = ()
    action_names: tuple[str, ...] = ()
    tokenizer: str | None = None
    max_length: int | None = None
    notes: list[str] = field(default_factory=list)

    def vector(self, name: str) -> dict[str, Any]:
        """Fields of :class:`~.source.Vector` for ``state`` or ``action``."""
        mode, low, high = MODES[self.modes[name.upper()]]
        return {"mode": mode, "fields": self.fields.get(name), "low": low, "high": high}


def read_processors(directory: Path, modes: Mapping[str, str]) -> Processors:
    """Both files, if they are there.

    Args:
        directory: of the policy.
        modes: normalisation by kind of feature, from the config.

    Raises:
        UserError: a step that this command does not know, or a file that cannot be read.
    """
    out = Processors(dict(modes))
    sides: list[tuple[Path, dict[str, Fields]]] = []
    for name in (PRE, POST):
        file = directory / name
        if file.is_file():
            sides.append((file, _read(file, out)))
        else:
            out.notes.append(f"{name}: not there, so nothing is known but {directory / 'config.json'}")
    for vector, mode in (("state", out.modes["STATE"]), ("action", out.modes["ACTION"])):
        if not isinstance(mode, str) or mode not in MODES:
            raise UserError(
                f"{directory}: normalises the {vector} by '{mode}', which is unknown "
                f"(known: {', '.join(MODES)})"
            )
    for file, fields in sides:
        for vector, values in fields.items():
            known = out.fields.setdefault(vector, values)
            if known.keys() != values.keys() or any(not np.array_equal(known[k], values[k]) for k in known):
                raise UserError(
                    f"{file}: its statistics of the {vector} are not those of {PRE}; make the files agree"
                )
    return out


def _read(file: Path, out: Processors) -> dict[str, Fields]:
    steps = read_json(file).get("steps")
    if not isinstance(steps, list) or not all(isinstance(step, Mapping) for step in steps):
        raise UserError(f"{file}: 'steps' must be a list of mappings")
    fields: dict[str, Fields] = {}
    for step in steps:
        name = step.get("registry_name") or step.get("class")
        config = mapping(step, "config", file)
        if name in ("normalizer_processor", "unnormalizer_processor"):
            out.modes.update(mapping(config, "norm_map", file))
            if config.get("normalize_observation_keys") is not None:
                raise UserError(f"{file}: {name} has normalize_observation_keys, which is unknown here")
            fields = _statistics(file, step.get("state_file"))
        elif name == "rename_observations_processor":
            out.renamed = mapping(config, "rename_map", file)
        elif name == "tokenizer_processor":
            out.tokenizer = config.get("tokenizer_name")
            out.max_length = int(number(config, "max_length", file))
        elif name == "relative_actions_processor":
            out.relative = bool(config.get("enabled"))
            out.excluded = strings(config, "exclude_joints", file)
            out.action_names = strings(config, "action_names", file)
        elif name == "absolute_actions_processor":
            if bool(config.get("enabled")) != out.relative:
                raise UserError(f"{file}: {name} must be enabled as relative_actions_processor is in {PRE}")
        elif name not in HARMLESS:
            raise UserError(
                f"{file}: step '{name}' is unknown, so what the policy saw is unknown; remove it if it "
                "changes neither observations nor actions"
            )
    return fields


def _statistics(file: Path, name: Any) -> dict[str, Fields]:
    if name is None:
        return {}
    state_file = file.parent / str(name)
    if Path(str(name)).name != name or state_file.suffix != ".safetensors":
        raise UserError(f"{file}: state_file '{name}' must be a safetensors file beside it")
    if not state_file.is_file():
        raise UserError(f"{file}: state_file '{name}' is not there")
    data: dict[str, dict[str, Any]] = {}
    for key, tensor in load_weights(state_file).items():
        vector, _, statistic = key.rpartition(".")
        data.setdefault(vector, {})[statistic] = tensor.double().numpy()
    return vectors_in(data, state_file, KEYS)
