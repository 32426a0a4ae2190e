"""The base VLM of a run: architecture, tokenizer and image processor, from a directory or hub id."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vla_core.errors import UserError

from vla_train.importers.common.places import find_model
from vla_train.importers.starvla.run_files import StarVLARun

if TYPE_CHECKING:
    from tokenizers import Tokenizer

KINDS = {"qwen2_5_vl": "qwen2_5_vl", "qwen3_vl": "qwen3_vl"}
"""transformers' ``model_type`` -> our part."""
ADVICE = (
    "pass --base_vlm DIR, a directory with the config.json, tokenizer.json and preprocessor_config.json of "
    "the model the run was trained from"
)
RECORDED = "transformers4"
"""Whose hidden states the heads of a run on Qwen3-VL read: StarVLA pins transformers 4.57.0."""


@dataclass(frozen=True)
class Backbone:
    """The part's name, its directory (or hub id), and what its processor does to image sizes.

    Args:
        part, source: see above.
        factor, min_pixels, max_pixels: of Qwen's processor.
        side: pixels a side that the processor gives any image instead; None: it is Qwen's.
        hidden_size, n_layers: of the language model, where the weights are to be checked against them.
        options: further keys of the part's node.
    """

    part: str
    source: str
    factor: int
    min_pixels: int
    max_pixels: int
    side: int | None = None
    hidden_size: int = 0
    n_layers: int = 0
    options: dict[str, Any] = field(default_factory=dict)

    def tokenizer(self) -> Tokenizer:
        """The published tokenizer, without tokens that a model adds."""
        from vla_vlm.common.tokenizer import published

        return published(self.source)

    def token_id(self, text: str) -> int:
        """The id of a text that must be one token.

        Raises:
            UserError: the tokenizer needs several.
        """
        ids = self.tokenizer().encode(text, add_special_tokens=False).ids
        if len(ids) != 1:
            raise UserError(
                f"--base_vlm {self.source}: its tokenizer writes '{text}', which StarVLA's prompt needs, as "
                f"{len(ids)} tokens; give the base VLM that the run was trained from"
            )
        return int(ids[0])


def find_backbone(run: StarVLARun, base_vlm: str | None, hidden_states: str | None = None) -> Backbone:
    """Read the base VLM that ``base_vlm`` or else the run's config names.

    Args:
        run: the run.
        base_vlm: directory or hub id; None: the config's.
        hidden_states: of Qwen3-VL, see its config; None: StarVLA's pin.

    Raises:
        UserError: it cannot be found, or is no model of this project.
    """
    from transformers import AutoConfig
    from transformers.utils.hub import cached_file

    source = base_vlm or str(run.get("framework.qwenvl.base_vlm", ""))
    where = "--base_vlm" if base_vlm else f"{run.config_file}: framework.qwenvl.base_vlm"
    if not source:
        raise UserError(f"{where}: missing; pass --base_vlm DIR, the model the run was trained from")
    source = find_model(source, where, ADVICE, None if base_vlm else run.directory)
    try:
        config = AutoConfig.from_pretrained(source)
    except (OSError, ValueError) as error:
        reason = (str(error).splitlines() or [""])[0].rstrip(".")
        raise UserError(f"{where} '{source}': cannot be read ({reason}); {ADVICE}") from error
    if config.model_type not in KINDS:
        raise UserError(
            f"{where} '{source}': a '{config.model_type}'; only {', '.join(KINDS)} can be imported; {ADVICE}"
        )
    part, vision = KINDS[config.model_type], config.vision_config
    if part != "qwen3_vl" and hidden_states is not None:
        raise UserError(
            f"--hidden_states: only Qwen3-VL has others under other versions of transformers, and the run's "
            f"base VLM '{source}' is a '{config.model_type}'; leave it out"
        )
    path = cached_file(source, "preprocessor_config.json", _raise_exceptions_for_missing_entries=False)
    data = json.loads(Path(path).read_text("utf-8")) if path else {}
    size = data.get("size") or {}
    low, high = ("min_pixels", "shortest_edge"), ("max_pixels", "longest_edge")
    limits = [data.get(old) or size.get(new) for old, new in (low, high)]
    return Backbone(
        part,
        source,
        vision.patch_size * vision.spatial_merge_size,
        int(limits[0] or 0),
        int(limits[1] or 2**62),
        hidden_size=config.text_config.hidden_size,
        n_layers=config.text_config.num_hidden_layers,
        options={"hidden_states": hidden_states or RECORDED} if part == "qwen3_vl" else {},
    )


def processed_size(backbone: Backbone, height: int, width: int) -> tuple[int, int]:
    """The size that the processor gives an image; Qwen's: multiples of a token, within its pixel limits."""
    if backbone.side is not None:
        return backbone.side, backbone.side
    f = backbone.factor
    h, w = (max(f, round(x / f) * f) for x in (height, width))
    if h * w > backbone.max_pixels:
        shrink = math.sqrt(height * width / backbone.max_pixels)
        h, w = (max(f, math.floor(x / shrink / f) * f) for x in (height, width))
    elif h * w < backbone.min_pixels:
        grow = math.sqrt(backbone.min_pixels / (height * width))
        h, w = (math.ceil(x * grow / f) * f for x in (height, width))
    return h, w
