"""What all frameworks of StarVLA have in common."""

from __future__ import annotations

import torch
from vla_core.errors import UserError

from vla_train.importers.common.ledger import Ledger
from vla_train.importers.starvla.plan import Choices
from vla_train.importers.starvla.run_files import StarVLARun

VLM = "qwen_vl_interface.model."
EMBEDDINGS = ("model.language_model.embed_tokens.weight", "model.embed_tokens.weight")
"""The token embeddings, in the namings of transformers."""


def horizon_of(run: StarVLARun, choices: Choices) -> int:
    """T, from the config's ``action_horizon`` or one of its older spellings.

    Raises:
        UserError: the config has none, and the command line neither.
    """
    action = "framework.action_model"
    if choices.horizon is not None:
        return choices.horizon
    for key in ("action_horizon", "num_actions_chunk"):
        value = run.get(f"{action}.{key}")
        if value is not None:
            return int(value)
    window = run.get(f"{action}.future_action_window_size")
    if window is not None:
        return int(window) + 1
    raise UserError(
        f"{run.config_file}: has no {action}.action_horizon (nor future_action_window_size); pass --horizon T"
    )


def reads_state(run: StarVLARun) -> bool:
    """Whether the run's samples carry the robot's state (``datasets.vla_data.include_state``)."""
    return run.get("datasets.vla_data.include_state", False) not in (False, "False", "false", None)


def move_vlm(ledger: Ledger, speaks: bool) -> None:
    """The backbone: the names of transformers, whatever its version; its language head if it ``speaks``."""
    for name in sorted(ledger.state):
        if not name.startswith(VLM):
            continue
        rest = name.removeprefix(VLM)
        if rest == "lm_head.weight":
            _move_language_head(ledger, name, speaks)
        elif rest.startswith(("model.language_model.", "model.visual.")):
            ledger.move(name, f"vlm.{rest}")
        elif rest.startswith("visual."):  # before transformers 4.52
            ledger.move(name, f"vlm.model.{rest}")
        elif rest.startswith("model."):
            ledger.move(name, f"vlm.model.language_model.{rest.removeprefix('model.')}")


def _move_language_head(ledger: Ledger, name: str, speaks: bool) -> None:
    if not speaks:
        ledger.drop(name, "language head: this framework reads no logits")
        return
    table = next((ledger.state[VLM + key] for key in EMBEDDINGS if VLM + key in ledger.state), None)
    if table is not None and torch.equal(table, ledger.state[name]):
        ledger.drop(name, "language head: the embedding's weight, to which it is tied")
    else:
        ledger.move(name, "vlm.lm_head.weight")
