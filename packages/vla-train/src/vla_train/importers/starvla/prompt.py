"""The prompt of a run: our template and the room it needs."""

from __future__ import annotations

from typing import Any

from vla_core import registry
from vla_core.errors import UserError

from vla_train.importers.starvla.backbone import Backbone
from vla_train.importers.starvla.plan import Plan
from vla_train.importers.starvla.run_files import StarVLARun

ROOM = 96
"""Text tokens left for the instruction."""

_SLOTS = "{instruction}{suffix}{queries}"


def vlm_node(run: StarVLARun, backbone: Backbone, plan: Plan, state_dim: int) -> dict[str, Any]:
    """The ``framework.vlm`` section: prompt as the run wrote it, with room for the instruction."""
    prompt: str = registry.load("vla.vlms", backbone.part).Config().prompt
    asked = run.get("datasets.vla_data.CoT_prompt") or "{instruction}"
    if str(asked).count("{instruction}") != 1:
        raise UserError(
            f"{run.config_file}: datasets.vla_data.CoT_prompt must have {{instruction}} once, is {asked!r}"
        )
    node: dict[str, Any] = {"name": backbone.part, "base_vlm": backbone.source, "init": "random"}
    node |= backbone.options | plan.vlm
    if plan.queries_in_instruction:
        # StarVLA appends its suffix to the instruction before it puts both into CoT_prompt.
        before, after = str(asked).split("{instruction}")
        prompt = prompt.replace(_SLOTS, f"{before}{_SLOTS}{plan.after_queries}{after}")
        fixed = prompt
    else:
        node["cot_prompt"] = asked
        fixed = prompt.replace("{instruction}", str(asked))
    node["prompt"] = prompt
    for slot in ("{prefix}", "{images}", "{instruction}", "{suffix}", "{queries}"):
        fixed = fixed.replace(slot, "")
    text = fixed + str(plan.head.get("suffix", ""))
    used = len(backbone.tokenizer().encode(text, add_special_tokens=False).ids)
    # Two tokens around each image, and up to six digits and spaces for each dim of a written state.
    used += 2 * 8 + (6 * state_dim + 16 if plan.state == "text" else 0)
    node["max_text_tokens"] = -(-(used + ROOM) // 16) * 16
    return node
