"""From a config tree to everything a run needs: validated config, data and policy."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from vla_core.assemble import build_policy
from vla_core.checkpoint import HEAD_ASSETS, weights_file
from vla_core.config import Tree, build_config
from vla_core.errors import ConfigError
from vla_core.framework import FrameworkConfig
from vla_core.policy import VLAPolicy
from vla_core.weights import load_weights

from vla_train.config import RunConfig, TrainerConfig
from vla_train.data import Data, open_data


@dataclass(frozen=True)
class Composed:
    """A validated run: its config, the opened data and the policy, not yet on a device."""

    config: RunConfig
    data: Data
    policy: VLAPolicy


def _start_from(policy: VLAPolicy, trainer: TrainerConfig) -> None:
    """Copy weights of ``trainer.pretrained_checkpoint``; a module named must match as a whole."""
    file = weights_file(Path(trainer.pretrained_checkpoint or ""))
    state = load_weights(file)
    wanted = trainer.reload_modules
    own = policy.model.state_dict()
    for prefix in wanted:
        if not any(_under(key, prefix) for key in own):
            raise ConfigError(f"trainer.reload_modules: the policy has no module '{prefix}'")
    if not any(_under(key, "auxiliary") for key in state):
        # What only trains may be new in this run.
        own = {k: v for k, v in own.items() if not _under(k, "auxiliary")}
    own = {k: v for k, v in own.items() if not wanted or any(_under(k, p) for p in wanted)}
    for key, value in own.items():
        if key not in state:
            raise ConfigError(
                f"trainer.pretrained_checkpoint: {file} has no '{key}'; "
                "name the modules to take in trainer.reload_modules"
            )
        if state[key].shape != value.shape:
            raise ConfigError(
                f"trainer.pretrained_checkpoint: '{key}' has shape {tuple(state[key].shape)} in {file}, "
                f"the policy has {tuple(value.shape)}"
            )
    policy.model.load_state_dict({k: state[k] for k in own}, strict=False)


def _head_assets(config: RunConfig) -> Path | None:
    """Where a head's assets are that belong to the weights this run goes on from, if there are any.

    A tokenizer fitted anew would give the same ids another meaning. One that the config names is kept.
    """
    trainer = config.trainer
    if trainer.resume and config.run_id is not None:
        found = Path(config.run_root_dir) / config.run_id / "checkpoints"
        newest = sorted(found.glob(f"steps_*/assets/{HEAD_ASSETS}"))
        return newest[0] if newest else None
    if trainer.pretrained_checkpoint is None or config.framework["head"].get("tokenizer") is not None:
        return None
    if trainer.reload_modules and not {"head", "vlm"} & set(trainer.reload_modules):
        return None
    assets = weights_file(Path(trainer.pretrained_checkpoint)).parent / "assets" / HEAD_ASSETS
    return assets if assets.is_dir() else None


def _under(key: str, prefix: str) -> bool:
    return key == prefix or key.startswith(prefix + ".")


def compose(tree: Tree) -> Composed:
    """Validate everything, open the data, build the policy.

    Raises:
        ConfigError: one line that names file, key and fix.
    """
    config = build_config(RunConfig, tree.data, "", tree)
    framework = build_config(FrameworkConfig, config.framework, "framework", tree)
    data = open_data(config.datasets, framework.horizon, tree)
    torch.manual_seed(config.seed)
    name = data.spec.embodiment
    policy = build_policy(
        framework, {name: data.spec}, rows={name: data.rows}, head_assets=_head_assets(config), tree=tree
    )
    if config.trainer.pretrained_checkpoint is not None:
        _start_from(policy, config.trainer)
    return Composed(config, data, policy)
