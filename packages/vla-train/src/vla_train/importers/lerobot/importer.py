"""From a published pi0 or pi0.5 to a checkpoint of this project."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from vla_core.errors import UserError
from vla_core.specs import RobotSpec
from vla_core.stats import NormStats
from vla_core.weights import load_weights

from vla_train.importers.common.checkpoint import Imported, check_free, write
from vla_train.importers.common.ledger import Ledger
from vla_train.importers.common.places import find_model
from vla_train.importers.common.robot_file import robot_spec
from vla_train.importers.lerobot import lerobot_files, openpi_files
from vla_train.importers.lerobot.published import CONFIG, Published, find, read_json
from vla_train.importers.lerobot.robot_file import RobotFile, cameras_of
from vla_train.importers.lerobot.statistics import convert, read_statistics
from vla_train.importers.lerobot.tensors import move_all, move_table
from vla_train.presets import load_preset


@dataclass(frozen=True)
class Request:
    """What the user says beside the directory itself; see the command's options."""

    robot: RobotFile
    base_vlm: str | None = None
    stats: Path | None = None
    prompt_state_dims: int | None = None


def read_published(path: Path) -> Published:
    """What the directory says about itself.

    Raises:
        UserError: it is none of lerobot's or openpi's, or not a pi0.
    """
    directory = find(path)
    config = read_json(directory / CONFIG)
    if lerobot_files.is_lerobot(config):
        return lerobot_files.read(directory, config)
    if openpi_files.is_openpi(config):
        return openpi_files.read(directory, config)
    raise UserError(
        f"{directory / CONFIG}: is neither lerobot's (type, input_features) nor openpi's (action_horizon, "
        "paligemma_variant)"
    )


def import_policy(path: Path, out: Path, request: Request) -> Imported:
    """Write the checkpoint directory ``out``, whole or not at all.

    Raises:
        UserError: one line on whatever cannot be explained.
    """
    check_free(out)
    source, robot = read_published(path), request.robot
    dims = {name: robot.dim(name) for name in ("state", "action")}
    _check_dims(source, dims)
    cameras, notes = cameras_of(source, robot)
    given = None if request.stats is None else read_statistics(request.stats)
    statistics, more = convert(source, given, dims)
    notes = [*source.notes, *notes, *more]
    spec = robot_spec(robot, source.horizon, bool(dims["state"]), cameras)
    base, words = _base(request.base_vlm or source.tokenizer)
    ledger = Ledger(load_weights(source.weights), source.weights, source.origin)
    widths = move_all(ledger, source.variant)
    preset = load_preset(source.preset)
    asked = request.prompt_state_dims
    prompted = preset["vlm"] if asked is None else _padded(preset["vlm"], source, asked, dims["state"])
    section = {
        "name": source.preset,
        "horizon": source.horizon,
        "vlm": {
            **prompted,
            "base_vlm": base,
            "init": "random",
            "max_text_tokens": source.max_text_tokens,
        },
        "head": {**preset["head"], **source.head, **widths, "spare_dims": "noise"},
        "transforms": _transforms(source, spec),
    }
    return write(
        section,
        replace(spec, statistics=_raw(source, statistics)),
        statistics,
        ledger,
        out,
        step=source.step,
        origin=f"imported from {source.weights} ({source.origin}, {source.variant})",
        notes=notes,
        late=lambda own: move_table(ledger, own, words),
    )


def _padded(vlm: dict[str, Any], source: Published, numbers: int, dim: int) -> dict[str, Any]:
    """The preset's ``vlm`` node with ``numbers`` numbers of the state in its prompt: ``dim`` and zeros."""
    if source.variant != "pi05":
        raise UserError("--prompt_state_dims is for pi05; the prompt of pi0 has no state")
    if numbers < dim:
        raise UserError(f"--prompt_state_dims {numbers}: the state has {dim} dims already")
    from vla_vlm.common.prompt import state_text

    zeros = state_text(np.zeros(numbers - dim, np.float32))
    return {**vlm, "prompt": vlm["prompt"].replace("{state}", f"{{state}} {zeros}".rstrip())}


def _check_dims(source: Published, dims: dict[str, int]) -> None:
    for name, vector in (("state", source.state), ("action", source.action)):
        limit = source.limit(name)
        if dims[name] > limit:
            raise UserError(f"the robot file has {dims[name]} {name} dims, the network {limit}")
        if vector.dim is not None and dims[name] != vector.dim:
            raise UserError(
                f"{source.directory / CONFIG}: {vector.key} has {vector.dim} dims, the robot file's {name} "
                f"groups have {dims[name]}"
            )
    if not dims["state"]:
        raise UserError("the robot file has no state groups, and the policy reads the state")


def _base(name: str) -> tuple[str, int]:
    """``name``, checked to be a PaliGemma, and the words of its tokenizer without ``<image>``.

    Raises:
        UserError: it cannot be found or is another model.
    """
    from vla_vlm.common import tokenizer
    from vla_vlm.paligemma.shapes import IMAGE_TOKEN, hub_shapes

    advice = "give a directory with config.json and tokenizer.json of PaliGemma"
    name = find_model(name, "--base_vlm", advice)
    try:
        hub_shapes(name)
        tokens = tokenizer.from_pretrained(name)
    except UserError as error:
        raise UserError(
            f"{error}; --base_vlm DIR names a directory with config.json and tokenizer.json of PaliGemma"
        ) from error
    words = tokens.get_vocab_size()
    # Where it is the last entry, as in the published one, openpi's table ends before it.
    return name, words - (tokens.token_to_id(IMAGE_TOKEN) == words - 1)


def _transforms(source: Published, spec: RobotSpec) -> list[dict[str, Any]]:
    height, width = source.image_size
    size = {"height": height, "width": width, "fit": "pad", "antialias": source.antialias}
    return [
        *([{"name": "clean_instruction"}] if source.clean else []),
        *([{"name": "relative_actions", "groups": _relative(source, spec)}] if source.relative else []),
        {"name": "resize", **size},
        {"name": "normalize", "state": source.state.mode, "action": source.action.mode},
    ]


def _relative(source: Published, spec: RobotSpec) -> dict[str, str]:
    """Action group -> the state group of the same dims, for the dims that are offsets in the source."""
    states = {(s.start, s.stop): name for name, s in spec.observation.state_slices().items()}
    out = {}
    for name, dims in spec.action.slices().items():
        inside = [i in source.relative for i in range(dims.start, dims.stop)]
        if not any(inside):
            continue
        where = f"dims {dims.start} to {dims.stop - 1}"
        if not all(inside):
            raise UserError(
                f"robot file: action group '{name}' ({where}) has dims that the policy makes relative to the "
                "state and dims that it leaves; make two groups of it"
            )
        if (dims.start, dims.stop) not in states:
            raise UserError(
                f"robot file: action group '{name}' is relative to the state's {where}, and no state group "
                "has exactly these"
            )
        out[name] = states[dims.start, dims.stop]
    return out


def _raw(source: Published, statistics: NormStats) -> NormStats:
    """Statistics in the robot's units; those of relative actions are not."""
    if not source.relative:
        return statistics
    return NormStats({"state": statistics["state"]})
