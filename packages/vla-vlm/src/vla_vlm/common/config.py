"""Options that all backbones share."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from vla_core.errors import ConfigError
from vla_core.ranges import Count, check_ranges

from vla_vlm.common.kernels import check_available
from vla_vlm.common.prompt import Template


@dataclass(frozen=True)
class BackboneConfig:
    """What to build and how to write the prompt.

    Args:
        base_vlm: ``tiny`` (sizes below, trained from scratch, the shipped tokenizer), a published
            size (its shapes with random weights and the shipped tokenizer, for measurements), else
            a hub id or a local directory to load.
        init: ``pretrained`` takes the weights of ``base_vlm``, ``random`` only its shapes;
            ``auto`` is random for the named sizes, pretrained for everything else.
        attn_implementation: kernel family; never replaced silently. ``flash_attention_2`` needs the extra
            ``flash-attn``, a GPU and half precision.
        dtype: of the weights.
        gradient_checkpointing: recompute each block in the backward pass to save memory.
        prompt: the text with the placeholders ``{prefix} {images} {instruction} {suffix} {queries}``; a
            ``{state}`` anywhere is the normalised state as text, a number from 0 to 255 a dim.
        cot_prompt: text around the instruction, with ``{instruction}`` and, if you like, ``{state}``.
        max_text_tokens: room for text, that is everything but image, prefix and query tokens.
            Every batch is padded to it, so shapes are static; a longer prompt is an error.
        padding: side on which rows are padded.
    """

    SIZES: ClassVar[tuple[str, ...]] = ("tiny",)

    base_vlm: str = "tiny"
    init: Literal["auto", "pretrained", "random"] = "auto"
    attn_implementation: Literal["sdpa", "flash_attention_2", "eager"] = "sdpa"
    dtype: Literal["float32", "bfloat16"] = "float32"
    gradient_checkpointing: bool = False
    prompt: str = "{prefix}{images}{instruction}{suffix}{queries}"
    cot_prompt: str = "{instruction}"
    max_text_tokens: Count = 64
    padding: Literal["right", "left"] = "right"

    def __post_init__(self) -> None:
        check_ranges(self)
        self.template()
        check_available(self.attn_implementation)
        if self.init == "pretrained" and self.named_size:
            raise ConfigError(
                f"base_vlm '{self.base_vlm}' has no weights to load; "
                "name a hub id or a directory, or set init: random"
            )

    def template(self) -> Template:
        """The prompt in pieces.

        Raises:
            ConfigError: see :meth:`Template.parse`.
        """
        return Template.parse(self.prompt, self.cot_prompt)

    @property
    def named_size(self) -> bool:
        """Whether ``base_vlm`` is a size of this package rather than something to load."""
        return self.base_vlm in self.SIZES

    @property
    def pretrained(self) -> bool:
        """Whether weights are loaded."""
        return self.init == "pretrained" or (self.init == "auto" and not self.named_size)
