"""The checkpoint: all that is needed to run a policy offline, in one directory.

``config.yaml`` (resolved), ``norm_stats.json``, ``meta.json`` (versions, specs), ``assets/``
(tokenizer, architecture) and the weights. Written to a temporary name, fsynced, then renamed, so
that a directory with the final name is always whole.
"""

from __future__ import annotations

import json
import os
import pickle
import re
import shutil
from collections.abc import Mapping
from dataclasses import replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Literal

import safetensors.torch
import torch
import yaml
from safetensors import SafetensorError
from torch import Tensor

from vla_core.answers import FittedHead
from vla_core.build import HEAD_ASSETS, FrameworkConfig, build_policy
from vla_core.config import build_config
from vla_core.errors import UserError
from vla_core.foreign import foreign_error
from vla_core.policy import VLAPolicy
from vla_core.specs import RobotSpec
from vla_core.stats import NormStats

FORMAT = 1
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


def _versions() -> dict[str, str]:
    out = {}
    for name in PACKAGES:
        try:
            out[name] = version(name)
        except PackageNotFoundError:
            continue
    return out


def fsync_tree(directory: Path) -> None:
    """Flush every file below ``directory`` and the directories themselves to disk."""
    for path in [*directory.rglob("*"), directory]:
        _fsync(path)


def _fsync(path: Path) -> None:
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def _unshared(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Contiguous CPU copies; of tensors that share memory only the first name is kept."""
    return {name: state[name].detach().cpu().contiguous() for name in sorted(_first_names(state))}


def save_checkpoint(
    policy: VLAPolicy,
    directory: Path,
    *,
    step: int,
    config: Mapping[str, Any] | None = None,
    weights: Literal["safetensors", "pt"] = "safetensors",
    state: Mapping[str, Tensor] | None = None,
) -> Path:
    """Write ``directory`` atomically.

    Args:
        policy: one built by ``build_policy`` (it knows its config and pipelines).
        directory: final name, e.g. ``<run>/checkpoints/steps_1000``; replaced if it exists.
        step: optimisation step, recorded in ``meta.json``.
        config: the other sections of the run's config, kept for reference and for resuming.
        weights: file format.
        state: the weights, where the policy wears what a plain one has not (adapters); None: its own.
    """
    directory.parent.mkdir(parents=True, exist_ok=True)
    temporary = directory.parent / f".{directory.name}.tmp-{os.getpid()}"
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir()
    try:
        _write(
            policy, temporary, step, config or {}, weights, policy.state_dict() if state is None else state
        )
        fsync_tree(temporary)
        _replace(temporary, directory)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return directory


def _replace(temporary: Path, directory: Path) -> None:
    """Give ``temporary`` the final name; what had it goes away only once the new one is in place."""
    old = directory.parent / f".{directory.name}.old-{os.getpid()}"
    shutil.rmtree(old, ignore_errors=True)
    if directory.exists():
        directory.rename(old)
    try:
        temporary.rename(directory)
    except OSError:
        if old.exists():
            old.rename(directory)
        raise
    _fsync(directory.parent)
    shutil.rmtree(old, ignore_errors=True)


def _write(
    policy: VLAPolicy,
    temporary: Path,
    step: int,
    config: Mapping[str, Any],
    weights: str,
    state: Mapping[str, Tensor],
) -> None:
    state = _unshared(state)
    if weights == "safetensors":
        safetensors.torch.save_file(state, temporary / "model.safetensors")
    else:
        torch.save(state, temporary / f"steps_{step}_pytorch_model.pt")
    (temporary / "config.yaml").write_text(
        yaml.safe_dump({**config, "framework": policy.config}, sort_keys=False)
    )
    stats = {
        name: {"raw": p.input_spec.statistics.to_dict(), "model": p.statistics.to_dict()}
        for name, p in policy.pipelines.items()
    }
    (temporary / "norm_stats.json").write_text(json.dumps(stats, indent=1))
    meta = {
        "format": FORMAT,
        "step": step,
        "packages": _versions(),
        "embodiments": [spec.to_dict() for spec in policy.specs.values()],
    }
    (temporary / "meta.json").write_text(json.dumps(meta, indent=1))
    (temporary / "assets").mkdir()
    policy.vlm.save_assets(temporary / "assets")
    if isinstance(policy.head, FittedHead):
        head = temporary / "assets" / HEAD_ASSETS
        head.mkdir()
        policy.head.save_assets(head)


def _find(path: Path) -> tuple[Path, Path]:
    """(directory, weights file) of a checkpoint path, or a UserError that says what is wrong."""
    if path.is_file():
        directory, files = path.parent, [path]
    elif path.is_dir():
        directory = path
        files = sorted([*path.glob("model.safetensors"), *path.glob("steps_*_pytorch_model.pt")])
    else:
        raise UserError(f"{path}: no such checkpoint")
    newest = _newest(path)
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
    return directory, files[0]


def _newest(path: Path) -> Path | None:
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


def load_weights(file: Path) -> dict[str, Tensor]:
    """The state dict in a ``.safetensors`` or ``.pt`` file, on the CPU; nothing in it is executed."""
    try:
        if file.suffix == ".safetensors":
            return safetensors.torch.load_file(file)
        state = torch.load(file, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise UserError(
            f"{file}: not a state dict of tensors (anything else in a pickle is refused), or truncated"
        ) from error
    except (SafetensorError, OSError, RuntimeError, EOFError, ValueError, LookupError) as error:
        # What torch's reader raises on bytes cut or damaged at various places.
        reason = (str(error).splitlines() or [type(error).__name__])[0][:200]
        raise UserError(f"{file}: cannot be read as weights, it may be truncated ({reason})") from error
    if not isinstance(state, dict) or not all(isinstance(v, Tensor) for v in state.values()):
        raise UserError(f"{file}: not a state dict of tensors")
    return state


def assign_weights(policy: VLAPolicy, state: Mapping[str, Tensor], file: Path) -> None:
    """Load ``state`` strictly (names of shared tensors are counted once)."""
    own = policy.state_dict()
    missing = sorted(_first_names(own) - set(state))
    unexpected = sorted(set(state) - set(own))
    shapes = [k for k in state if k in own and own[k].shape != state[k].shape]
    if missing or unexpected:
        raise UserError(
            f"{file}: weights do not fit the model: missing {_some(missing)}, unexpected {_some(unexpected)}"
        )
    if shapes:
        key = shapes[0]
        raise UserError(
            f"{file}: '{key}' has shape {tuple(state[key].shape)}, the model has {tuple(own[key].shape)}"
        )
    policy.load_state_dict(dict(state), strict=False)


def _first_names(state: Mapping[str, Tensor]) -> set[str]:
    seen: dict[tuple[int, tuple[int, ...]], str] = {}
    for name, tensor in state.items():
        key = (tensor.data_ptr(), tuple(tensor.shape)) if tensor.numel() else (id(tensor), ())
        seen.setdefault(key, name)
    return set(seen.values())


def _some(names: list[str], limit: int = 5) -> str:
    more = f" and {len(names) - limit} more" if len(names) > limit else ""
    return f"[{', '.join(names[:limit])}]{more}"


def _read(directory: Path) -> tuple[FrameworkConfig, dict[str, RobotSpec], dict[str, NormStats]]:
    """Framework section, raw specs, and statistics at the normalisation step."""
    meta = json.loads((directory / "meta.json").read_text())
    if meta["format"] != FORMAT:
        raise UserError(
            f"{directory}: checkpoint format {meta['format']}, this vla-core reads {FORMAT}; "
            f"it was written with vla-core {meta['packages'].get('vla-core')}"
        )
    stats = json.loads((directory / "norm_stats.json").read_text())
    specs = {}
    for data in meta["embodiments"]:
        name = data["embodiment"]
        specs[name] = RobotSpec.from_dict(data, NormStats.from_dict(stats[name]["raw"]))
    raw = yaml.safe_load((directory / "config.yaml").read_text())["framework"]
    statistics = {name: NormStats.from_dict(s["model"]) for name, s in stats.items()}
    return build_config(FrameworkConfig, raw, "framework"), specs, statistics


def load_policy(path: Path, device: str, dtype: torch.dtype, cache_mib: int | None = None) -> VLAPolicy:
    """See :meth:`VLAPolicy.from_pretrained`.

    Raises:
        UserError: not a checkpoint, of a newer format, truncated, or weights that do not fit; a cache for
            a policy without geometry, or for an encoder that has none.
    """
    directory, file = _find(path)
    try:
        config, specs, statistics = _read(directory)
    except (ValueError, LookupError, TypeError, yaml.YAMLError) as error:
        if isinstance(error, UserError):
            raise
        reason = (str(error).splitlines() or [""])[0]
        raise UserError(f"{directory}: damaged checkpoint ({type(error).__name__}: {reason})") from error
    # An auxiliary only trains: its weights stay in the file, for runs that start from this one.
    config = replace(config, auxiliary=None)
    if cache_mib is not None:
        if not config.has_geometry or config.geometry is None:
            raise UserError("cache_mib: given, but this policy has no geometry encoder; leave it out")
        config = replace(config, geometry={**config.geometry, "cache_mib": cache_mib})
    policy = build_policy(config, specs, statistics=statistics, assets=directory / "assets")
    state = {name: value for name, value in load_weights(file).items() if not name.startswith("auxiliary.")}
    assign_weights(policy, state, file)
    return policy.to(device=device, dtype=dtype).eval()
