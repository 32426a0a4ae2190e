"""What all frameworks of StarVLA have in common."""

from __future__ import annotations

import torch
from vla_core.errors import UserError

from vla_train.importers.common.ledger import Ledger
from vla_train.importers.starvla.backbone import Backbone
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


def check_backbone(ledger: Ledger, backbone: Backbone) -> None:
    """Stop if the weights were not trained from ``backbone``.

    Raises:
        UserError: what differs, and that ``--base_vlm`` names another.
    """
    table = next((VLM + name for name in EMBEDDINGS if VLM + name in ledger.state), None)
    if table is None or not backbone.n_layers:
        return
    layers = ledger.count(r".*\.layers\.(\d+)\.self_attn\.q_proj\.weight", VLM)
    normed = any(key.startswith(VLM) and ".q_norm." in key for key in ledger.state)
    kind = "qwen3_vl" if normed else "qwen2_5_vl"
    theirs = (kind, ledger.shape(table)[1], layers)
    ours = (backbone.part, backbone.hidden_size, backbone.n_layers)
    if theirs != ours:
        text = ["{} of hidden size {} with {} layers".format(*x) for x in (theirs, ours)]
        raise UserError(
            f"{ledger.file}: trained from a {text[0]}, and --base_vlm '{backbone.source}' is a {text[1]}; "
            "pass --base_vlm DIR, the model the run was trained from"
        )


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
