"""The YAML node of ``llava3d``."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar, Literal

from vla_core.errors import ConfigError
from vla_core.ranges import BelowOne, Count, NonNegative

from vla_vlm.common.config import BackboneConfig
from vla_vlm.common.prompt import Template, Whitespace

IMAGE_TOKEN = "<image>"
PROMPT = f"{IMAGE_TOKEN} {{instruction}}"
"""The prompt of the MapAnythingLlava3D policies."""


@dataclass(frozen=True)
class Llava3DTinyConfig:
    """Sizes of ``base_vlm: tiny``, trained from scratch. Head dims are size / heads.

    Args:
        hidden_size, n_layers, n_heads, n_kv_heads, intermediate_size: the language model.
        vision_hidden, vision_depth, vision_heads, vision_intermediate: the vision tower; its last block
            is not built with ``vision_tower: clip``, as at full size.
        patch_size: pixels a patch; the tower is made for the images that come, which must be square and a
            multiple of it.
        init_std: standard deviation of the initial weights.
    """

    hidden_size: Count = 128
    n_layers: Count = 4
    n_heads: Count = 4
    n_kv_heads: Count = 2
    intermediate_size: Count = 256
    vision_hidden: Count = 96
    vision_depth: Count = 3
    vision_heads: Count = 3
    vision_intermediate: Count = 192
    patch_size: Count = 14
    init_std: NonNegative = 0.02

    def __post_init__(self) -> None:
        for size, heads, step in (("hidden_size", "n_heads", 2), ("vision_hidden", "vision_heads", 1)):
            if getattr(self, size) % (step * getattr(self, heads)):
                raise ConfigError(
                    f"tiny.{size} / tiny.{heads} must be a multiple of {step}, "
                    f"got {getattr(self, size)} / {getattr(self, heads)}"
                )
        if self.n_heads % self.n_kv_heads:
            raise ConfigError(
                f"tiny.n_heads {self.n_heads} must be a multiple of n_kv_heads {self.n_kv_heads}"
            )


@dataclass(frozen=True)
class Llava3DConfig(BackboneConfig):
    """What to build and how to write the prompt; the published size is ``7b``.

    Args:
        base_vlm: ``tiny`` (sizes below, from scratch, the shipped tokenizer), ``7b`` (the published
            shapes with random weights, for measurements), else a hub id or local directory of LLaVA-3D
            or of a Llama or Mistral language model.
        init: ``pretrained`` takes the weights of ``base_vlm`` and ``vision_weights``, ``random`` only their
            shapes; ``auto`` is random for the named sizes, pretrained for everything else.
        decoder: ``llama`` or ``mistral``; null is what ``base_vlm`` is, and ``llama`` for a named size.
        vision_tower: ``siglip`` reads 256 tokens from a view of 224 x 224, ``clip`` 576 from one of
            336 x 336 (the tower LLaVA-3D was trained on).
        vision_weights: hub id or local directory of the tower's weights; null is
            google/siglip-so400m-patch14-224 or openai/clip-vit-large-patch14-336. Named sizes have none.
        projector: from the tower to the language model. ``auto`` is the checkpoint's own, with its
            weights, where the tower is the one it was trained on, else a new ``linear``.
        prefix_image_dropout_prob: in training, the share of image tokens set to zero; the others are
            scaled up as dropout does.
        prefix_lang_dropout_prob: the same for the embeddings of text tokens.
        instruction_whitespace: ``strip`` removes it at the ends of an instruction, ``collapse`` makes each
            run of it one space as well; set by ``vla-train import-starvla``, whose runs were trained so.
        prompt: ``<image>`` stands for ``{prefix}{images}``, and ``{suffix}{queries}`` follow the
            instruction unless they are written out; a ``{state}`` anywhere is the normalised state as text.
        tiny: sizes for ``base_vlm: tiny``.
    """

    SIZES: ClassVar[tuple[str, ...]] = ("tiny", "7b")

    decoder: Literal["llama", "mistral"] | None = None
    vision_tower: Literal["siglip", "clip"] = "siglip"
    vision_weights: str | None = None
    projector: Literal["auto", "linear", "mlp2x_gelu"] = "auto"
    prefix_image_dropout_prob: BelowOne = 0.0
    prefix_lang_dropout_prob: BelowOne = 0.0
    instruction_whitespace: Whitespace = "keep"
    prompt: str = PROMPT
    tiny: Llava3DTinyConfig = field(default_factory=Llava3DTinyConfig)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.vision_weights is not None and self.named_size:
            raise ConfigError(
                f"vision_weights: base_vlm '{self.base_vlm}' is built without weights; "
                "name a hub id or a directory there, or set vision_weights: null"
            )

    def template(self) -> Template:
        """The prompt in pieces, the short form written out."""
        prompt = self.prompt
        if "{images}" not in prompt:
            if prompt.count(IMAGE_TOKEN) != 1:
                raise ConfigError(
                    f"prompt must have {IMAGE_TOKEN} once (it stands for all views), got {prompt!r}"
                )
            prompt = prompt.replace(IMAGE_TOKEN, "{images}")
        if IMAGE_TOKEN in prompt:
            raise ConfigError(f"prompt must have {{images}} or {IMAGE_TOKEN}, not both, got {self.prompt!r}")
        if "{prefix}" not in prompt:
            prompt = prompt.replace("{images}", "{prefix}{images}")
        for name, before in (("{suffix}", "{instruction}"), ("{queries}", "{suffix}")):
            if name not in prompt:
                prompt = prompt.replace(before, before + name)
        return Template.parse(prompt, self.cot_prompt)
