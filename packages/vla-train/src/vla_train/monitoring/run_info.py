"""What a run is, for ``run.json`` and the report."""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import torch
from torch import nn
from vla_core.checkpoint import weights_file
from vla_core.files import sha256_of
from vla_core.provenance import describe

from vla_train.checkpointing.resume import samples_a_step
from vla_train.checkpointing.small_files import write_json
from vla_train.checkpointing.states import Choice
from vla_train.composition import Composed
from vla_train.dataloading.data_sets import Data
from vla_train.engine import Engine
from vla_train.optimizer.stages import Stages

PACKAGES = (
    "vla-core", "vla-vlm", "vla-geometry", "vla-heads", "vla-data", "vla-train", "vla-serve", "torch",
    "transformers", "accelerate", "deepspeed", "peft", "lerobot", "av",
)  # fmt: skip


def _count(module: nn.Module | None, engine: Engine) -> int:
    # Under ZeRO-3 a parameter that is not in use has no numbers.
    return 0 if module is None else sum(engine.numel(p) for p in module.parameters())


def _tasks(data: Data) -> set[str]:
    """Instructions of every episode, of the sources that tell them without decoding."""
    found: set[str] = set()
    for source in (*data.train, *data.val):
        instruction = getattr(source, "instruction", None)
        if instruction is not None:
            found.update(instruction(e) for e in {source.episode(i) for i in range(len(source))})
    return found


def _from_scratch(composed: Composed) -> bool:
    """Neither a backbone with pretrained weights (its config tells) nor a checkpoint to start from."""
    pretrained = bool(getattr(getattr(composed.model.vlm, "config", None), "pretrained", False))
    return not pretrained and composed.config.trainer.pretrained_checkpoint is None


def write_run(
    composed: Composed, run_dir: Path, engine: Engine, command: str, stages: Stages, choice: Choice
) -> dict[str, Any]:
    """:func:`describe_run` to ``run.json``; a run that goes on (from ``choice``) began when it began.

    ``stretches`` says after which step, when, and with how many processes each start of it trained.
    """
    run_dir.mkdir(parents=True, exist_ok=True)
    info = describe_run(composed, run_dir.name, engine, command, stages)
    path = run_dir / "run.json"
    if composed.config.trainer.resume and path.exists():
        old = json.loads(path.read_text("utf-8"))
        before = old.get("stretches") or [_stretch(old, 0)]
        info["stretches"] = [s for s in before if s["after_step"] < choice.step] + [
            _stretch(info, choice.step)
        ]
        info |= {key: old[key] for key in ("started", "started_from") if key in old}
    else:
        info["stretches"] = [_stretch(info, 0)]
    write_json(path, info)
    return info


def _stretch(info: Mapping[str, Any], after: int) -> dict[str, Any]:
    return {"after_step": after, **{key: info.get(key) for key in ("started", "engine", "processes")}}


def describe_run(
    composed: Composed, run_id: str, engine: Engine, command: str, stages: Stages
) -> dict[str, Any]:
    """Plain data: framework, parameters, data, processes, machine, versions."""
    model, settings = composed.model, composed.config.trainer
    parts = {n: _count(getattr(model, n), engine) for n in ("vlm", "geometry", "fusion", "head", "auxiliary")}
    made_with = describe(packages=PACKAGES)
    if engine.device.type == "cuda":
        made_with["gpus"] = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    talks = composed.conversations
    # A run that goes on may have outlived it.
    start = None if settings.resume else settings.pretrained_checkpoint
    return {
        "framework": composed.trained.framework,
        "job": composed.config.job,
        "run_id": run_id,
        "started": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "finished": None,
        "device": str(engine.device),
        "engine": engine.name,
        "processes": engine.world,
        "samples_a_step": samples_a_step(settings, engine.world),
        "parameters": {
            "total": _count(model, engine),
            "trainable": sum(engine.numel(p) for n, p in model.named_parameters() if stages.trains(n, p)),
            "parts": {name: n for name, n in parts.items() if n},
        },
        **made_with,
        **({} if start is None else {"started_from": checkpoint_of(Path(start))}),
        "from_scratch": _from_scratch(composed),
        **({} if composed.robots is None else _robots(composed.robots)),
        **({} if talks is None else {"conversations": len(talks)}),
        "command": command,
    }


def checkpoint_of(path: Path, run_dir: Path | None = None) -> dict[str, str]:
    """``path`` (relative to ``run_dir`` where given) and SHA-256 of the weights of a checkpoint."""
    weights = weights_file(path)
    shown = path if run_dir is None else path.relative_to(run_dir)
    return {"path": shown.as_posix(), "weights_digest": sha256_of(weights)}


def _robots(data: Data) -> dict[str, Any]:
    # What the report draws is of the first robot.
    spec = next(iter(data.specs.values()))
    episodes = [sorted({s.episode(i) for i in range(len(s))}) for s in (*data.train, *data.val)]
    n_train = sum(len(e) for e in episodes[: len(data.train)])
    return {
        "data": {
            "episodes_train": n_train,
            "episodes_val": sum(len(e) for e in episodes) - n_train,
            "digest": data.digest,
            "samples_train": sum(len(s) for s in data.train),
            "samples_val": sum(len(s) for s in data.val),
            "tasks": sorted(_tasks(data)),
            "cameras": [c.name for c in spec.observation.cameras],
            "sets": [
                {
                    "label": one.label,
                    "robot": one.embodiment,
                    "weight": one.weight,
                    "samples_train": len(one.train),
                    "samples_val": 0 if one.val is None else len(one.val),
                }
                for one in data.sets
            ],
        },
        "control_hz": spec.action.control_hz,
        "action_groups": [
            {"name": g.name, "dim": g.dim, "unit": g.unit, "rotation": g.rotation} for g in spec.action.groups
        ],
    }
