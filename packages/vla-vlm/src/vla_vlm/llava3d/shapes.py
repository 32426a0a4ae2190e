"""The architecture of all parts: from the tiny sizes, the published ones, or a checkpoint's assets."""

from __future__ import annotations

import copy
import json
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any, cast

from transformers import LlamaConfig, LlamaModel, MistralConfig, MistralModel
from vla_core.errors import ConfigError

from vla_vlm.common.towers import TOWERS, TowerName
from vla_vlm.llava3d.config import Llava3DConfig

DECODERS: dict[str, tuple[Any, Any]] = {
    "llama": (LlamaConfig, LlamaModel),
    "mistral": (MistralConfig, MistralModel),
}
CONFIG_FILE = "config.json"
MODEL_TYPE = "vla_llava3d"


@dataclass(frozen=True)
class Shapes:
    """What is built.

    Args:
        decoder: a key of :data:`DECODERS`.
        text: config of the language model.
        tower: a key of :data:`~vla_vlm.common.towers.TOWERS`.
        vision: config of the whole tower.
        projector: ``linear`` or ``mlp<n>x_gelu``.
    """

    decoder: str
    text: Any
    tower: TowerName
    vision: Any
    projector: str

    def save(self, directory: Path) -> None:
        """Write ``config.json``."""
        data = {
            "model_type": MODEL_TYPE,
            "decoder": self.decoder,
            "text_config": self.text.to_dict(),
            "vision_tower": self.tower,
            "vision_config": self.vision.to_dict(),
            "projector": self.projector,
        }
        (directory / CONFIG_FILE).write_text(json.dumps(data, indent=2) + "\n")

    @classmethod
    def load(cls, directory: Path) -> Shapes:
        """What :meth:`save` wrote.

        Raises:
            ConfigError: no such file, or one of another model.
        """
        path = directory / CONFIG_FILE
        if not path.is_file():
            raise ConfigError(f"{path}: no such file; save the checkpoint again")
        data = json.loads(path.read_text("utf-8"))
        if data.get("model_type") != MODEL_TYPE:
            raise ConfigError(
                f"{path} is of a '{data.get('model_type')}', not of vlm 'llava3d'; "
                "name the checkpoint's own vlm"
            )
        tower = cast(TowerName, data["vision_tower"])
        return cls(
            decoder=data["decoder"],
            text=DECODERS[data["decoder"]][0].from_dict(data["text_config"]),
            tower=tower,
            vision=TOWERS[tower].config_class.from_dict(data["vision_config"]),
            projector=data["projector"],
        )

    def with_vocabulary(self, entries: int) -> Shapes:
        """The same with at least as many rows in the embedding as the tokenizer has entries."""
        text = copy.deepcopy(self.text)
        text.vocab_size = max(text.vocab_size, entries)
        return Shapes(self.decoder, text, self.tower, self.vision, self.projector)


def tiny_shapes(config: Llava3DConfig, vocab_size: int, image_size: tuple[int, int]) -> Shapes:
    """The sizes under ``tiny``, for images of one size.

    Raises:
        ConfigError: images that are not square, or no multiple of the patch.
    """
    tiny, decoder = config.tiny, config.decoder or "llama"
    height, width = image_size
    if height != width or height % tiny.patch_size:
        side = max(1, round(min(image_size) / tiny.patch_size)) * tiny.patch_size
        raise ConfigError(
            f"image size {height}x{width} must be square and a multiple of tiny.patch_size "
            f"{tiny.patch_size}; resize to {side}x{side}"
        )
    text = DECODERS[decoder][0](
        vocab_size=vocab_size,
        hidden_size=tiny.hidden_size,
        intermediate_size=tiny.intermediate_size,
        num_hidden_layers=tiny.n_layers,
        num_attention_heads=tiny.n_heads,
        num_key_value_heads=tiny.n_kv_heads,
        head_dim=tiny.hidden_size // tiny.n_heads,
        max_position_embeddings=4096,
        initializer_range=tiny.init_std,
        **_NO_IDS,
    )
    vision = TOWERS[config.vision_tower].config_class(
        hidden_size=tiny.vision_hidden,
        intermediate_size=tiny.vision_intermediate,
        num_hidden_layers=tiny.vision_depth,
        num_attention_heads=tiny.vision_heads,
        image_size=height,
        patch_size=tiny.patch_size,
        # Of CLIP's weights; SigLIP's follow from the widths.
        initializer_range=tiny.init_std,
    )
    return Shapes(decoder, text, config.vision_tower, vision, new_projector(config))


def named_shapes(config: Llava3DConfig) -> Shapes:
    """The published sizes of ``base_vlm: 7b``."""
    sizes = json.loads(files("vla_vlm").joinpath("assets", "sizes.json").read_text("utf-8"))["llava3d"]
    decoder = config.decoder or "llama"
    text = DECODERS[decoder][0](**sizes[decoder][config.base_vlm], **_NO_IDS)
    vision = TOWERS[config.vision_tower].config_class(**sizes[config.vision_tower])
    return Shapes(decoder, text, config.vision_tower, vision, new_projector(config))


def new_projector(config: Llava3DConfig) -> str:
    """The projector's type where no checkpoint has a say."""
    return "linear" if config.projector == "auto" else config.projector


# A padding id would freeze a row of the embedding; which tokens are special, the tokenizer knows.
_NO_IDS = {"pad_token_id": None, "bos_token_id": None, "eos_token_id": None}
_TEXT_KEYS = (
    "vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads",
    "num_key_value_heads", "head_dim", "hidden_act", "max_position_embeddings", "initializer_range",
    "rms_norm_eps", "rope_theta", "rope_scaling", "rope_parameters", "attention_bias", "mlp_bias",
    "sliding_window",
)  # fmt: skip


def text_config(decoder: str, published: dict[str, Any]) -> Any:
    """The language model's part of a LLaVA-3D ``config.json``."""
    chosen = {key: published[key] for key in _TEXT_KEYS if published.get(key) is not None}
    if "sliding_window" in published:
        chosen["sliding_window"] = published["sliding_window"]  # null is "none", not the default
    if decoder == "llama":
        chosen.pop("sliding_window", None)
    return DECODERS[decoder][0](**chosen, **_NO_IDS)
