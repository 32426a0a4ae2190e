"""Options that all Qwen models share, and the sizes of their from-scratch versions."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from vla_core.errors import ConfigError
from vla_core.ranges import Count, NonNegative

from vla_vlm.common.config import BackboneConfig

USER_PROMPT = (
    "<|im_start|>user\n{prefix}{images}{instruction}{suffix}{queries}<|im_end|>\n<|im_start|>assistant\n"
)
"""One turn of Qwen's chat format, written out."""


@dataclass(frozen=True)
class QwenSizes:
    """Sizes of ``base_vlm: tiny``, trained from scratch. Head dims are size / heads.

    Args:
        hidden_size, n_layers, n_heads, n_kv_heads, intermediate_size: the language model.
        vision_hidden, vision_depth, vision_heads, vision_intermediate: the vision transformer.
        patch_size: pixels a patch; with ``vision: conv_vit`` a power of two (one stride-2
            convolution for each factor of two).
        merge_size: patches merged a side into one token of the language model; an image gives
            ``(H / (patch_size * merge_size)) * (W / (patch_size * merge_size))`` tokens.
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
    patch_size: Count = 8
    merge_size: Count = 2
    init_std: NonNegative = 0.02

    def __post_init__(self) -> None:
        for size, heads in (("hidden_size", "n_heads"), ("vision_hidden", "vision_heads")):
            dim, rest = divmod(getattr(self, size), getattr(self, heads))
            if rest or dim % 8:
                raise ConfigError(
                    f"tiny.{size} / tiny.{heads} must be a multiple of 8, "
                    f"got {getattr(self, size)} / {getattr(self, heads)}"
                )
        if self.n_heads % self.n_kv_heads:
            raise ConfigError(
                f"tiny.n_heads {self.n_heads} must be a multiple of n_kv_heads {self.n_kv_heads}"
            )


@dataclass(frozen=True)
class QwenConfig(BackboneConfig):
    """What to build and how to write the prompt.

    Args:
        vision: ``vit`` is Qwen's patch embedding; ``conv_vit`` puts a convolutional stem in its
            place (only without pretrained weights).
        prompt: the chat text with the placeholders ``{prefix} {images} {instruction} {suffix}
            {queries}``; an image is written ``<|vision_start|>...<|vision_end|>``.
        language_head: have one even where no head of the policy speaks; training on conversations
            (``datasets.vlm``) switches it on.
    """

    SYSTEM: ClassVar[str] = ""

    vision: Literal["vit", "conv_vit"] = "vit"
    prompt: str = USER_PROMPT
    language_head: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.vision == "conv_vit" and self.pretrained:
            raise ConfigError(
                f"vision: conv_vit has no pretrained weights in '{self.base_vlm}'; "
                "use vision: vit, or base_vlm: tiny"
            )
