"""From a StarVLA run to a checkpoint of this project."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from vla_core.errors import UserError, suggest
from vla_core.weights import load_weights

from vla_train.importers.common.checkpoint import Imported, check_free, write
from vla_train.importers.common.ledger import Ledger
from vla_train.importers.common.robot_file import robot_spec
from vla_train.importers.starvla.backbone import Backbone, find_backbone, processed_size
from vla_train.importers.starvla.fast_head import import_fast
from vla_train.importers.starvla.flow_heads import import_groot, import_layerwise
from vla_train.importers.starvla.fork import FORK, check_weights, import_fork, is_fork
from vla_train.importers.starvla.fork_backbone import find_fork_backbone
from vla_train.importers.starvla.plan import Choices, Importer, Plan
from vla_train.importers.starvla.prompt import vlm_node
from vla_train.importers.starvla.regression_heads import import_adapter, import_oft
from vla_train.importers.starvla.robot_file import RobotFile, choose_key
from vla_train.importers.starvla.run_files import StarVLARun
from vla_train.importers.starvla.shared import check_backbone, move_vlm, reads_state
from vla_train.importers.starvla.statistics import convert, normalize_node

FRAMEWORKS: dict[str, Importer] = {
    "QwenGR00T": import_groot,
    "QwenPI": import_layerwise,
    "QwenFM": import_layerwise,
    "QwenPI_v3": import_layerwise,
    "QwenOFT": import_oft,
    "QwenAdapter": import_adapter,
    "QwenFast": import_fast,
    FORK: import_fork,
}
"""StarVLA's ``framework.name`` -> what imports it (QwenFM is its second name for QwenPI)."""

LOADER_SIZE = 224
"""Pixels a side of StarVLA's training images, whatever the camera's."""


@dataclass(frozen=True)
class Request:
    """What the user says beside the run itself; see the command's options."""

    robot: RobotFile
    base_vlm: str | None = None
    vision_weights: str | None = None
    unnorm_key: str | None = None
    image_size: tuple[int, int] | None = None
    hidden_states: str | None = None
    choices: Choices = field(default_factory=Choices)


def framework_of(run: StarVLARun) -> str:
    """The run's framework.

    Raises:
        UserError: it is not one that can be imported.
    """
    name = FORK if is_fork(run) else str(run.get("framework.name", ""))
    if name not in FRAMEWORKS:
        raise UserError(
            f"{run.config_file}: framework.name '{name}' cannot be imported{suggest(name, FRAMEWORKS)}; "
            f"those that can: {', '.join(FRAMEWORKS)}"
        )
    return name


def _image_steps(
    run: StarVLARun, plan: Plan, backbone: Backbone, asked: tuple[int, int] | None, notes: list[str]
) -> list[dict[str, Any]]:
    given = None if plan.own_size else run.get(f"datasets.vla_data.{plan.size_key}")
    if asked is not None:
        height, width = asked
    elif given:
        width, height = int(given[0]), int(given[1])
    else:
        height = width = LOADER_SIZE
        notes.append(
            f"images: {LOADER_SIZE} x {LOADER_SIZE}, to which StarVLA's loader resizes all "
            "(this run resizes no further; --image_size HxW overrides)"
        )
    steps = [{"name": "resize", "height": height, "width": width, "interpolation": "bicubic"}]
    seen = processed_size(backbone, height, width)
    if seen != (height, width):
        steps.append({"name": "resize", "height": seen[0], "width": seen[1], "interpolation": "bicubic"})
        notes.append(f"images: then {seen[0]} x {seen[1]}, as the base VLM's image processor makes them")
    return steps


def _check(run: StarVLARun, key: str, plan: Plan, robot: RobotFile, ledger: Ledger) -> None:
    dims = {"action": plan.action_dim, "state": plan.state_dim if plan.state == "vector" else None}
    for vector, dim in dims.items():
        node = run.statistics[key].get(vector)
        have = len(node["mean"]) if isinstance(node, dict) and "mean" in node else None
        if None not in (dim, have) and have != dim:
            raise UserError(
                f"{run.statistics_file}: the statistics of '{key}' have {have} {vector} dims, the head of "
                f"{ledger.file} has {dim}; they are not this run's, or --unnorm_key names another data set"
            )
    if robot.dim("action") != plan.action_dim:
        raise UserError(
            f"{ledger.file}: the head has {plan.action_dim} action dims, the robot file has "
            f"{robot.dim('action')}; its action groups must cover the statistics in order"
        )
    if plan.state == "vector" and robot.dim("state") != plan.state_dim:
        raise UserError(
            f"{ledger.file}: the head reads {plan.state_dim} state dims, the robot file has "
            f"{robot.dim('state')}"
        )
    if plan.state == "text" and not robot.state:
        raise UserError(
            f"{run.config_file}: the run writes the state into the instruction (include_state: true), "
            "and the robot file has no state groups"
        )


def import_run(run: StarVLARun, out: Path, request: Request) -> Imported:
    """Write the checkpoint directory ``out``, whole or not at all.

    Raises:
        UserError: one line on whatever cannot be explained.
    """
    check_free(out)
    framework = framework_of(run)
    if framework == FORK:
        backbone = find_fork_backbone(run, request.base_vlm, request.vision_weights)
    elif request.vision_weights is not None:
        raise UserError(f"--vision_weights: only a run of {FORK} has a vision tower of its own; leave it out")
    else:
        backbone = find_backbone(run, request.base_vlm, request.hidden_states)
    key = choose_key(run.statistics, request.unnorm_key, run.statistics_file)
    ledger = Ledger(load_weights(run.weights), run.weights, "StarVLA")
    check_weights(run, ledger.state)
    check_backbone(ledger, backbone)
    plan = FRAMEWORKS[framework](run, ledger, request.choices, backbone)
    move_vlm(ledger, plan.speaks)
    robot, reads = request.robot, plan.state != "none"
    _check(run, key, plan, robot, ledger)
    statistics = convert(run.statistics, key, robot, reads, run.statistics_file)
    notes = list(plan.notes)
    if request.base_vlm is None and backbone.source != run.get("framework.qwenvl.base_vlm", backbone.source):
        notes.append(f"base VLM: {backbone.source}")
    if "hidden_states" in backbone.options and not plan.speaks:
        notes.append(
            f"hidden states: as {backbone.options['hidden_states']} records those of Qwen3-VL "
            "(StarVLA pins transformers 4.57; --hidden_states says otherwise)"
        )
    transforms = [
        *_image_steps(run, plan, backbone, request.image_size, notes),
        normalize_node(robot, reads),
        *([{"name": "state_as_text"}] if plan.state == "text" else []),
    ]
    if reads_state(run) and plan.state == "none":
        notes.append("state: in the run's samples, but this framework did not read it")
    spec = replace(robot_spec(robot, plan.horizon, reads), statistics=statistics)
    section = {
        "name": plan.preset,
        "horizon": plan.horizon,
        "vlm": vlm_node(run, backbone, plan, robot.dim("state")),
        "geometry": plan.geometry,
        "fusion": plan.fusion,
        "head": plan.head,
        "transforms": transforms,
    }
    return write(
        section,
        spec,
        statistics,
        ledger,
        out,
        step=run.step,
        origin=f"imported from {run.weights} ({framework}, statistics of '{key}')",
        notes=notes,
        late=plan.late,
    )
