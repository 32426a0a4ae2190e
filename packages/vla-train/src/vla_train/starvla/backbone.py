"""The base VLM of a run: architecture, tokenizer and image processor, from a directory or hub id."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vla_core import registry
from vla_core.errors import UserError

from vla_train.starvla.plan import Plan
from vla_train.starvla.run_files import StarVLARun

KINDS = {"qwen2_5_vl": "qwen2_5_vl", "qwen3_vl": "qwen3_vl"}
"""transformers' ``model_type`` -> our part."""

ROOM = 96
"""Text tokens left for the instruction."""

_SLOTS = "{instruction}{suffix}{queries}"


@dataclass(frozen=True)
class Backbone:
    """The part's name, its directory (or hub id), and what its processor does to image sizes."""

    part: str
    source: str
    factor: int
    min_pixels: int
    max_pixels: int


def find_backbone(run: StarVLARun, base_vlm: str | None) -> Backbone:
    """Read the base VLM that ``base_vlm`` or else the run's config names.

    Raises:
        UserError: it cannot be found, or is no model of this project.
    """
    from transformers import AutoConfig
    from transformers.utils.hub import cached_file

    source = base_vlm or str(run.get("framework.qwenvl.base_vlm", ""))
    where = "--base_vlm" if base_vlm else f"{run.config_file}: framework.qwenvl.base_vlm"
    if not source:
        raise UserError(f"{where}: missing; pass --base_vlm DIR, the model the run was trained from")
    try:
        config = AutoConfig.from_pretrained(source)
    except (OSError, ValueError) as error:
        reason = (str(error).splitlines() or [""])[0].rstrip(".")
        raise UserError(
            f"{where}: '{source}' cannot be read ({reason}); pass --base_vlm DIR, a directory with the "
            "config.json, tokenizer.json and preprocessor_config.json of the model the run was trained from"
        ) from error
    if config.model_type not in KINDS:
        raise UserError(
            f"{where}: '{source}' is a '{config.model_type}'; only {', '.join(KINDS)} can be imported"
        )
    vision = config.vision_config
    path = cached_file(source, "preprocessor_config.json", _raise_exceptions_for_missing_entries=False)
    data = json.loads(Path(path).read_text("utf-8")) if path else {}
    size = data.get("size") or {}
    low, high = ("min_pixels", "shortest_edge"), ("max_pixels", "longest_edge")
    limits = [data.get(old) or size.get(new) for old, new in (low, high)]
    return Backbone(
        KINDS[config.model_type],
        source,
        vision.patch_size * vision.spatial_merge_size,
        int(limits[0] or 0),
        int(limits[1] or 2**62),
    )


def processed_size(backbone: Backbone, height: int, width: int) -> tuple[int, int]:
    """The size that Qwen's image processor gives an image: multiples of a token, within its pixel limits."""
    f = backbone.factor
    h, w = (max(f, round(x / f) * f) for x in (height, width))
    if h * w > backbone.max_pixels:
        shrink = math.sqrt(height * width / backbone.max_pixels)
        h, w = (max(f, math.floor(x / shrink / f) * f) for x in (height, width))
    elif h * w < backbone.min_pixels:
        grow = math.sqrt(backbone.min_pixels / (height * width))
        h, w = (math.ceil(x * grow / f) * f for x in (height, width))
    return h, w


def vlm_node(run: StarVLARun, backbone: Backbone, plan: Plan, state_dim: int) -> dict[str, Any]:
    """The ``framework.vlm`` section: prompt as the run wrote it, with room for the instruction."""
    from vla_vlm.common.tokenizer import from_pretrained

    prompt: str = registry.load("vla.vlms", backbone.part).Config().prompt
    asked = run.get("datasets.vla_data.CoT_prompt") or "{instruction}"
    if str(asked).count("{instruction}") != 1:
        raise UserError(
            f"{run.config_file}: datasets.vla_data.CoT_prompt must have {{instruction}} once, is {asked!r}"
        )
    node: dict[str, Any] = {"name": backbone.part, "base_vlm": backbone.source, "init": "random"}
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
    used = len(from_pretrained(backbone.source).encode(text, add_special_tokens=False).ids)
    # Two tokens around each image, and up to six digits and spaces for each dim of a written state.
    used += 2 * 8 + (6 * state_dim + 16 if plan.state == "text" else 0)
    node["max_text_tokens"] = -(-(used + ROOM) // 16) * 16
    return node
