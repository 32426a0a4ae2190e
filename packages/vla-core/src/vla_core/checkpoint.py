"""The checkpoint: all that is needed to run a policy offline, in one directory.

``config.yaml`` (resolved), ``norm_stats.json``, ``meta.json`` (versions, specs), ``assets/``
(tokenizer, architecture) and the weights. Written to a temporary name, fsynced, then renamed, so
that a directory with the final name is always whole. Files alone: what is built of them is others' affair.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import re
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Literal

import yaml
from torch import Tensor

from vla_core.config import build_config
from vla_core.errors import UserError
from vla_core.files import fsync_tree, replace_directory
from vla_core.foreign import foreign_error
from vla_core.framework import FrameworkConfig
from vla_core.specs import RobotSpec
from vla_core.stats import NormStats
from vla_core.weights import read_stamps, save_weights

log = logging.getLogger("vla_core.checkpoint")
FORMAT = 1
HEAD_ASSETS = "head"
"""The folder below a checkpoint's assets for what a :class:`~vla_core.answers.FittedHead` learned."""
PACKAGES = (
    "vla-core",
    "vla-vlm",
    "vla-geometry",
    "vla-heads",
    "vla-data",
    "vla-train",
    "torch",
    "transformers",
)


@dataclass(frozen=True)
class Robot:
    """What a checkpoint keeps of an embodiment: its raw spec, and the statistics that its pipeline uses."""

    spec: RobotSpec
    statistics: NormStats


@dataclass(frozen=True)
class Stored:
    """A checkpoint that was found and read, but for its weights.

    ``data_digest``: SHA-256 of the numbers it was trained on, in hex; empty where it does not say.
    """

    directory: Path
    weights: Path
    framework: FrameworkConfig
    robots: Mapping[str, Robot]
    data_digest: str = ""

    @property
    def assets(self) -> Path:
        """Tokenizer, architecture, and what else the parts wrote."""
        return self.directory / "assets"


def _versions() -> dict[str, str]:
    out = {}
    for name in PACKAGES:
        try:
            out[name] = version(name)
        except PackageNotFoundError:
            continue
    return out


def write_checkpoint(
    directory: Path,
    *,
    state: Mapping[str, Tensor],
    config: Mapping[str, Any],
    robots: Mapping[str, Robot],
    save_assets: Callable[[Path], None],
    step: int,
    weights: Literal["safetensors", "pt"] = "safetensors",
    data_digest: str = "",
) -> Path:
    """Write ``directory`` atomically.

    Args:
        directory: final name, e.g. ``<run>/checkpoints/steps_1000``; replaced if it exists.
        state: the weights.
        config: all sections; ``framework`` resolved, the others for reference and for resuming.
        robots: by embodiment, in the order of the model's embodiment ids.
        save_assets: writes what the parts need besides into the folder it is given.
        step: optimisation step, recorded in ``meta.json``.
        weights: file format.
        data_digest: SHA-256 of the numbers it was trained on, in hex; empty: unknown.
    """
    directory.parent.mkdir(parents=True, exist_ok=True)
    temporary = directory.parent / f".{directory.name}.tmp-{os.getpid()}"
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir()
    try:
        (temporary / "config.yaml").write_text(yaml.safe_dump(dict(config), sort_keys=False))
        stats = {
            name: {"raw": robot.spec.statistics.to_dict(), "model": robot.statistics.to_dict()}
            for name, robot in robots.items()
        }
        (temporary / "norm_stats.json").write_text(json.dumps(stats, indent=1))
        meta = {
            "format": FORMAT,
            "step": step,
            "packages": _versions(),
            "data_digest": data_digest,
            "embodiments": [robot.spec.to_dict() for robot in robots.values()],
        }
        (temporary / "meta.json").write_text(json.dumps(meta, indent=1))
        name = "model.safetensors" if weights == "safetensors" else f"steps_{step}_pytorch_model.pt"
        save_weights(state, temporary / name, stamps_of(temporary))
        (temporary / "assets").mkdir()
        save_assets(temporary / "assets")
        fsync_tree(temporary)
        replace_directory(temporary, directory)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return directory


STAMPED = {
    "framework": "config.yaml has another framework",
    "robots": "meta.json has other robots",
    "statistics": "norm_stats.json has other statistics",
}
"""What the weights are good for with, and what to say where it has changed since they were written."""


def stamps_of(directory: Path) -> dict[str, str]:
    """Digests of what stands beside a checkpoint's weights, whatever its layout in the files."""
    content = {
        "framework": yaml.safe_load((directory / "config.yaml").read_text("utf-8"))["framework"],
        "robots": json.loads((directory / "meta.json").read_text("utf-8"))["embodiments"],
        "statistics": json.loads((directory / "norm_stats.json").read_text("utf-8")),
    }
    texts = {key: json.dumps(value, sort_keys=True, default=str) for key, value in content.items()}
    return {key: hashlib.sha256(text.encode()).hexdigest() for key, text in texts.items()}


def changes(path: Path) -> list[str]:
    """A line for each file of a checkpoint that is not the one its weights were written with.

    Copied or edited files may be meant; who loads them should know. Weights of before they were stamped, and
    those in a ``.pt`` file, are believed.
    """
    directory, file = _find(path)
    wrote = read_stamps(file)
    if not set(STAMPED) <= set(wrote):
        return []
    now = stamps_of(directory)
    return [
        f"{directory}: {said} than {file.name} was written with; copied together, or edited?"
        for key, said in STAMPED.items()
        if wrote[key] != now[key]
    ]


def _find(path: Path) -> tuple[Path, Path]:
    """(directory, weights file) of a checkpoint path, or a UserError that says what is wrong."""
    if path.is_file():
        directory, files = path.parent, [path]
    elif path.is_dir():
        directory = path
        files = sorted([*path.glob("model.safetensors"), *path.glob("steps_*_pytorch_model.pt")])
    else:
        raise UserError(f"{path}: no such checkpoint")
    newest = newest_checkpoint(path)
    if not files and newest is not None:
        raise UserError(f"{path} is a run, not a checkpoint; its newest checkpoint is {newest}")
    for name in ("config.yaml", "norm_stats.json", "meta.json", "assets"):
        if not (directory / name).exists():
            foreign = foreign_error(path, directory)
            if foreign is not None:
                raise foreign
            raise UserError(f"{directory}: not a checkpoint of this project, it has no {name}")
    if not files:
        raise UserError(f"{directory}: has no weights (model.safetensors or steps_N_pytorch_model.pt)")
    if len(files) > 1:
        raise UserError(
            f"{directory}: has several weights files ({', '.join(file.name for file in files)}); name the one"
        )
    return directory, files[0]


def newest_checkpoint(path: Path) -> Path | None:
    """The checkpoint of most steps below a run, or below its folder of checkpoints."""
    found = {
        int(match[1]): child
        for child in (*path.glob("checkpoints/*"), *path.glob("*"))
        if (match := re.fullmatch(r"steps_(\d+)", child.name)) and child.is_dir()
    }
    return found[max(found)] if found else None


def weights_file(path: Path) -> Path:
    """The weights file of a checkpoint directory, or ``path`` itself if it is that file."""
    return _find(path)[1]


def read_checkpoint(path: Path, warn: bool = False) -> Stored:
    """Find and read a checkpoint directory (``.../checkpoints/steps_N``) or the weights file inside it.

    ``warn``: log what :func:`changes` finds.

    Raises:
        UserError: not a checkpoint, of a newer format, or damaged.
    """
    directory, file = _find(path)
    try:
        stored = _read(directory, file)
        for line in changes(path) if warn else ():
            log.warning("%s", line)
        return stored
    except (ValueError, LookupError, TypeError, yaml.YAMLError) as error:
        if isinstance(error, UserError):
            raise
        reason = (str(error).splitlines() or [""])[0]
        raise UserError(f"{directory}: damaged checkpoint ({type(error).__name__}: {reason})") from error


def _read(directory: Path, file: Path) -> Stored:
    meta = json.loads((directory / "meta.json").read_text("utf-8"))
    if meta["format"] != FORMAT:
        raise UserError(
            f"{directory}: checkpoint format {meta['format']}, this vla-core reads {FORMAT}; "
            f"it was written with vla-core {meta['packages'].get('vla-core')}"
        )
    stats = json.loads((directory / "norm_stats.json").read_text("utf-8"))
    robots = {}
    for data in meta["embodiments"]:
        name = data["embodiment"]
        spec = RobotSpec.from_dict(data, NormStats.from_dict(stats[name]["raw"]))
        robots[name] = Robot(spec, NormStats.from_dict(stats[name]["model"]))
    raw = yaml.safe_load((directory / "config.yaml").read_text("utf-8"))["framework"]
    framework = build_config(FrameworkConfig, raw, "framework")
    digest = str(meta.get("data_digest") or "")
    return Stored(directory, file, _addressed(framework, robots), robots, digest)


def _addressed(framework: FrameworkConfig, robots: Mapping[str, Robot]) -> FrameworkConfig:
    """Before groups of state and action were told apart, a name that both have meant both."""
    specs = [robot.spec for robot in robots.values()]
    state = {group.name for spec in specs for group in spec.observation.state}
    both = state & {group.name for spec in specs for group in spec.action.groups}
    steps = []
    for step in framework.transforms:
        if step.get("name") == "normalize" and both & set(step.get("groups") or {}):
            groups: dict[str, str] = {}
            for name, mode in step["groups"].items():
                names = (f"state.{name}", f"action.{name}") if name in both else (name,)
                groups.update(dict.fromkeys(names, mode))
            step = {**step, "groups": groups}
        steps.append(step)
    return replace(framework, transforms=steps)
