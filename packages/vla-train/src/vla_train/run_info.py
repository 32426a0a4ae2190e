"""What a run is, for ``run.json`` and the report."""

from __future__ import annotations

from datetime import datetime, timezone
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from torch import nn

from vla_train.composition import Composed
from vla_train.data import Data

PACKAGES = (
    "vla-core", "vla-vlm", "vla-geometry", "vla-heads", "vla-data", "vla-train", "vla-serve", "torch",
    "transformers", "accelerate",
)  # fmt: skip


def _count(module: nn.Module | None) -> int:
    return 0 if module is None else sum(p.numel() for p in module.parameters())


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
    pretrained = bool(getattr(getattr(composed.policy.model.vlm, "config", None), "pretrained", False))
    return not pretrained and composed.config.trainer.pretrained_checkpoint is None


def describe_run(composed: Composed, run_id: str, device: str, command: str) -> dict[str, Any]:
    """Plain data: framework, parameters, data, versions."""
    policy, data = composed.policy, composed.data
    parts = {n: _count(getattr(policy.model, n)) for n in ("vlm", "geometry", "fusion", "head", "auxiliary")}
    packages = {}
    for name in PACKAGES:
        try:
            packages[name] = version(name)
        except PackageNotFoundError:
            continue
    episodes = [sorted({s.episode(i) for i in range(len(s))}) for s in (*data.train, *data.val)]
    n_train = sum(len(e) for e in episodes[: len(data.train)])
    return {
        "framework": policy.framework,
        "run_id": run_id,
        "started": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "finished": None,
        "device": device,
        "parameters": {
            "total": _count(policy.model),
            "trainable": sum(p.numel() for p in policy.model.parameters() if p.requires_grad),
            "parts": {name: n for name, n in parts.items() if n},
        },
        "packages": packages,
        "from_scratch": _from_scratch(composed),
        "data": {
            "episodes_train": n_train,
            "episodes_val": sum(len(e) for e in episodes) - n_train,
            "samples_train": sum(len(s) for s in data.train),
            "samples_val": sum(len(s) for s in data.val),
            "tasks": sorted(_tasks(data)),
            "cameras": [c.name for c in data.spec.observation.cameras],
        },
        "control_hz": data.spec.action.control_hz,
        "action_groups": [{"name": g.name, "dim": g.dim, "unit": g.unit} for g in data.spec.action.groups],
        "command": command,
    }
