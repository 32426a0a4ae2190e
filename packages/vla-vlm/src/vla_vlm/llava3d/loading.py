"""Published checkpoints: what LLaVA-3D's ``config.json`` and weights mean for the parts built here.

Strict: a key is loaded, named below as unused, or an error that lists it.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

import torch
from tokenizers import Tokenizer
from torch import Tensor, nn
from vla_core.errors import ConfigError

from vla_vlm.common import tokenizer
from vla_vlm.common.towers import TOWERS, TowerKind
from vla_vlm.common.weights import WeightFiles, check_place, fill, hub_file, read_json
from vla_vlm.llava3d.config import Llava3DConfig
from vla_vlm.llava3d.projector import choose_projector
from vla_vlm.llava3d.shapes import CONFIG_FILE, Shapes, text_config

FAMILIES = {"llava_llama": "llama", "llama": "llama", "llava_mistral": "mistral", "mistral": "mistral"}
"""``model_type`` of a checkpoint -> decoder."""
UNUSED = (
    # Vocabulary logits: nobody reads them.
    "lm_head.",
    # The tower comes from weights of its own: LLaVA-3D trains with it frozen.
    "model.vision_tower.",
    # LLaVA-3D's own 3D branch (positions of patches and of clicks); a fusion takes its place.
    "model.video_tower.",
    "model.image_newline",
)
"""Prefixes of published keys that are left out; the tables of old rotary embeddings are, too."""
_PROJECTOR = "model.mm_projector."


@dataclass(frozen=True)
class Checkpoint:
    """A published model, before its weights are read.

    Args:
        shapes: of what is built, without rows for tokens that are added.
        new_projector: why the projector starts from scratch; None: it comes from the checkpoint.
        tower: hub id or directory of the tower's weights.
    """

    shapes: Shapes
    new_projector: str | None
    tower: str


def read_checkpoint(config: Llava3DConfig) -> Checkpoint:
    """Look at ``base_vlm`` and ``vision_weights``.

    Raises:
        ConfigError: either can't be had, is of another architecture, or contradicts the config.
    """
    name = config.base_vlm
    published = read_json(name, CONFIG_FILE, "base_vlm")
    model_type = published.get("model_type")
    if model_type not in FAMILIES:
        raise ConfigError(
            f"base_vlm '{name}' is a '{model_type}', none of {', '.join(FAMILIES)}; "
            "name a LLaVA-3D model or another vlm"
        )
    decoder = FAMILIES[model_type]
    if config.decoder not in (None, decoder):
        raise ConfigError(
            f"decoder: '{config.decoder}' was asked for, and base_vlm '{name}' is a '{model_type}'; "
            f"set decoder: {decoder} or null"
        )
    tower = config.vision_weights or TOWERS[config.vision_tower].published
    vision = _vision_config(config, tower)
    kind, reason = choose_projector(config, published, vision)
    text = text_config(decoder, published)
    return Checkpoint(Shapes(decoder, text, config.vision_tower, vision, kind), reason, tower)


def _vision_config(config: Llava3DConfig, tower: str) -> Any:
    from transformers import AutoConfig

    where = f"vision_weights '{tower}'"
    try:
        check_place(tower)
        found = AutoConfig.from_pretrained(tower)
    except (OSError, ValueError) as error:
        reason = str(error).splitlines()[0].rstrip(".")
        raise ConfigError(
            f"{where} can't be loaded ({reason}); give a local directory with config.json and weights, or a "
            "hub id while online"
        ) from error
    found = getattr(found, "vision_config", found)
    if not isinstance(found, TOWERS[config.vision_tower].config_class):
        raise ConfigError(
            f"{where} is a '{found.model_type}', not what vision_tower: {config.vision_tower} needs; "
            "change one of the two"
        )
    return found


def read_tokenizer(config: Llava3DConfig, rows: int) -> Tokenizer:
    """The checkpoint's tokenizer, as published; tokens added to it may lie beyond the embedding's ``rows``.

    Raises:
        ConfigError: none there, or one with more entries of its own than ``rows``.
    """
    name = config.base_vlm
    try:
        path = hub_file(name, tokenizer.TOKENIZER_FILE)
    except OSError:
        path = None  # the message of from_pretrained says what to do
    tokens = tokenizer.from_pretrained(name) if path is None else Tokenizer.from_file(str(path))
    entries = tokens.get_vocab_size(with_added_tokens=False)
    if entries > rows:
        raise ConfigError(
            f"base_vlm '{name}': the tokenizer has {entries} entries, "
            f"the model only {rows}; they don't belong together"
        )
    return tokens


def load_decoder(
    language_model: Any, projector: nn.Module, checkpoint: Checkpoint, config: Llava3DConfig
) -> None:
    """Fill the language model, and the projector where it is the checkpoint's.

    Rows of the embedding for tokens that were added get the mean of the others, as LLaVA gives them.

    Raises:
        ConfigError: keys or shapes that differ; they are listed.
    """
    targets: dict[str, Tensor] = {f"model.{k}": v for k, v in language_model.state_dict().items()}
    embedding = targets["model.embed_tokens.weight"]
    rows = checkpoint.shapes.text.vocab_size
    targets["model.embed_tokens.weight"] = embedding[:rows]
    if checkpoint.new_projector is None:
        targets |= {f"{_PROJECTOR}{k}": v for k, v in projector.state_dict().items()}
    unused = UNUSED if checkpoint.new_projector is None else (*UNUSED, _PROJECTOR)

    def place(key: str) -> str | None:
        return None if key.startswith(unused) or key.endswith(".rotary_emb.inv_freq") else key

    fill(targets, WeightFiles(config.base_vlm, "base_vlm"), place)
    if len(embedding) > rows:
        with torch.no_grad():
            embedding[rows:] = embedding[:rows].float().mean(dim=0).to(embedding.dtype)


def load_tower(tower: Any, checkpoint: Checkpoint) -> None:
    """Fill the vision tower from its own weights, alone or with the text model they were published with.

    Raises:
        ConfigError: keys or shapes that differ; they are listed.
    """
    kind = TOWERS[checkpoint.shapes.tower]
    built = checkpoint.shapes.vision.num_hidden_layers - kind.skipped
    files = WeightFiles(checkpoint.tower, "vision_weights")
    fill(tower.state_dict(), files, lambda key: _tower_name(key, kind, built))


def _tower_name(key: str, kind: TowerKind, built: int) -> str | None:
    name = key.removeprefix("vision_model.")
    block = re.match(r"encoder\.layers\.(\d+)\.", name)
    skipped = block is not None and built <= int(block[1]) < built + kind.skipped
    if skipped or name.startswith(tuple(kind.unused)) or name.endswith("position_ids"):
        return None
    return name
