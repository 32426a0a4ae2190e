"""Where each tensor of a published pi0 or pi0.5 goes.

openpi's names; lerobot puts ``model.`` before them.
"""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor
from torch.nn import functional as F
from vla_core.errors import UserError

from vla_train.importers.common.ledger import Ledger

PALIGEMMA = "paligemma_with_expert.paligemma."
EXPERT = "paligemma_with_expert.gemma_expert."
LAYERS = {
    "pi0": ("state_proj", "action_time_mlp_in", "action_time_mlp_out"),
    "pi05": ("time_mlp_in", "time_mlp_out"),
}
TABLE = "vlm.model.language_model.embed_tokens.weight"
OLD = ("normalize_inputs.", "normalize_targets.", "unnormalize_outputs.")


def prefix_of(ledger: Ledger) -> str:
    """``model.`` or nothing.

    Raises:
        UserError: neither is a pi0.
    """
    name = "action_in_proj.weight"
    for prefix in ("model.", ""):
        if f"{prefix}{name}" in ledger.state:
            break
    else:
        raise UserError(f"{ledger.file}: has no 'model.{name}', so it holds no pi0 or pi0.5")
    old = next((key for key in ledger.state if key.startswith(OLD)), None)
    if old is not None:
        raise UserError(
            f"{ledger.file}: '{old}' is of lerobot before 0.4, which kept statistics among the weights; "
            "convert it first: python -m lerobot.processor.migrate_policy_normalization --pretrained-path DIR"
        )
    return prefix


def move_all(ledger: Ledger, variant: str) -> dict[str, int]:
    """Move every tensor but the token table, and return the widths of the expert for its node."""
    prefix = prefix_of(ledger)
    for name in sorted(ledger.state):
        rest = name.removeprefix(prefix)
        if rest.startswith(PALIGEMMA):
            _move_paligemma(ledger, name, rest.removeprefix(PALIGEMMA))
        elif rest.startswith(EXPERT):
            _move_expert(ledger, name, rest.removeprefix(EXPERT))
    for layer in ("action_in_proj", "action_out_proj", *LAYERS[variant]):
        ledger.linear(f"{prefix}{layer}", f"head.{layer}")
    gate = f"{prefix}{EXPERT}model.layers.0.mlp.gate_proj.weight"
    return {
        "width": ledger.shape(f"{prefix}action_in_proj.weight")[0],
        "mlp_width": ledger.shape(gate)[0],
    }


def _move_paligemma(ledger: Ledger, name: str, rest: str) -> None:
    tower = "model.vision_tower."
    if rest.startswith(tower):
        inner = rest.removeprefix(tower).removeprefix("vision_model.")
        if inner.startswith("head."):
            ledger.drop(name, "dead: the tower's pooling head, which PaliGemma does not read")
        else:
            ledger.move(name, f"vlm.{tower}{inner}")
    elif (
        rest.startswith(("model.language_model.", "model.multi_modal_projector.")) and f"vlm.{rest}" != TABLE
    ):
        ledger.move(name, f"vlm.{rest}")


def _move_expert(ledger: Ledger, name: str, rest: str) -> None:
    if rest in ("lm_head.weight", "model.embed_tokens.weight"):
        ledger.drop(name, "dead: the action expert reads and speaks no words")
    elif rest.startswith("model."):
        ledger.move(name, f"head.expert.{rest.removeprefix('model.')}")


def move_table(ledger: Ledger, own: Mapping[str, Tensor], words: int) -> None:
    """Move the token table, which files have once or twice (the language head is tied to it).

    openpi's has a row for each of its tokenizer's words, PaliGemma's some more. ``<image>`` is one of these;
    what is looked up for it is overwritten by the picture.

    Args:
        ledger: of the checkpoint.
        own: the policy's state dict.
        words: tokens that a prompt can hold.

    Raises:
        UserError: fewer rows than words.
    """
    prefix = prefix_of(ledger)
    table = f"{prefix}{PALIGEMMA}model.language_model.embed_tokens.weight"
    head = f"{prefix}{PALIGEMMA}lm_head.weight"
    source = table if table in ledger.state or head not in ledger.state else head
    if source == table and head in ledger.state:
        ledger.drop(head, "dead: the language head, no word is spoken")
    if source not in ledger.state:
        ledger.move(source, TABLE)
        return
    have, wanted = ledger.shape(source)[0], own[TABLE].shape[0]
    if have < words:
        raise UserError(
            f"{ledger.file}: '{source}' has {have} rows, the tokenizer of --base_vlm {words} words; they do "
            "not belong together"
        )
    spare = wanted - have
    tied = "the language head is the tied table" if source == head else ""
    rows = f"with {spare} rows of zeros below, tokens that no prompt holds" if spare > 0 else ""
    pad = (lambda x: F.pad(x, (0, 0, 0, spare))) if spare > 0 else None
    ledger.move(source, TABLE, pad, "; ".join(part for part in (tied, rows) if part))
