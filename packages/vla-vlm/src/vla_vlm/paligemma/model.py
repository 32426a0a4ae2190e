"""PaliGemma behind the ``VisionLanguageModel`` protocol.

Shape legend: B rows, V views, M = B V images, N tokens of an image, S tokens, H hidden size.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer
from torch import Tensor, nn
from transformers import PaliGemmaConfig
from vla_core.dims import KVDims
from vla_core.errors import ConfigError
from vla_core.interfaces import VLMDims, VLMRequest

from vla_vlm.common import tokenizer
from vla_vlm.common.model import DecoderVLM
from vla_vlm.common.pixels import ImageStats, image_stats, save_image_stats
from vla_vlm.common.reach import above
from vla_vlm.common.rope import TextRope
from vla_vlm.common.towers import TOWERS
from vla_vlm.paligemma import shapes as loading
from vla_vlm.paligemma.config import PaliGemmaVLMConfig
from vla_vlm.paligemma.prefix import run_prefix

_SIGLIP = TOWERS["siglip"]


def positions_from_one(is_image: NDArray[np.bool_], grid: tuple[int, int]) -> NDArray[np.int64]:
    """Positions ``[1, S]``: 1, 2, 3, ..., as the published models count. ``grid`` doesn't matter."""
    return np.arange(1, len(is_image) + 1, dtype=np.int64)[None]


class PaliGemma(DecoderVLM):
    """SigLIP, a linear projector and Gemma (arXiv 2407.07726); ``model`` is transformers' ``PaliGemmaModel``.

    Made by :meth:`build`.

    The prompt is a prefix: all its tokens attend to each other. ``VLMRequest.kv`` is served, for heads whose
    tokens join the attention of the layers (pi0, arXiv 2410.24164). Nothing can be spoken: a head that
    speaks is refused. Embeddings of text are scaled by sqrt(H), image tokens are not.
    """

    Config: ClassVar[type] = PaliGemmaVLMConfig

    def __init__(
        self,
        config: PaliGemmaVLMConfig,
        shapes: Any,
        model: Any,
        tokens: Tokenizer,
        n_views: int,
        image_size: tuple[int, int],
        stats: ImageStats,
    ) -> None:
        super().__init__()
        self.config, self.shapes, self.tokenizer, self.stats = config, shapes, tokens, stats
        self.n_views, self.image_size = n_views, image_size
        self.vision_runner = _SIGLIP.runner(shapes.vision_config, image_size, stats)
        text = shapes.text_config
        self.special = loading.special_ids(tokens, config.base_vlm)
        if tokens.get_vocab_size() > text.vocab_size:
            raise ConfigError(
                f"base_vlm '{config.base_vlm}': the tokenizer has {tokens.get_vocab_size()} entries, "
                f"the model only {text.vocab_size}; they don't belong together"
            )
        self.positions = positions_from_one
        self.rope = TextRope(text)
        self.model = model
        attention = KVDims(
            text.num_attention_heads,
            text.num_key_value_heads,
            text.head_dim,
            float(text.rope_parameters["rope_theta"]),
        )
        self.dims = VLMDims(text.hidden_size, text.num_hidden_layers, self.vision_runner.grid, kv=attention)

    @property
    def language_model(self) -> Any:
        """``model.language_model``."""
        return self.model.language_model

    def encode(self, images: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
        """Through ``vision_tower`` and ``multi_modal_projector``; no deepstack."""
        return self.model.multi_modal_projector(self.vision_runner(self.model.vision_tower, images)), ()

    def unreached(self, request: VLMRequest) -> list[nn.Module]:
        """See the base; of a layer whose keys and values alone are wanted, all that these do not need."""
        read, kv = max(request.layers, default=0), max(request.kv, default=0)
        top, layers = max(read, kv - 1, 0), self.language_model.layers
        idle = above(self.language_model, max(top, kv), read == self.dims.n_layers)
        if kv > top:
            last = layers[kv - 1]
            attention = last.self_attn
            idle += [attention.q_proj, attention.o_proj, last.post_attention_layernorm, last.mlp]
        return idle

    def number(self, position_ids: Tensor, mask_BS: Tensor) -> Tensor:
        """1, 2, 3, ... over the tokens that are there, as pi0 counts: a missing view takes no numbers."""
        return (mask_BS.cumsum(dim=1) * mask_BS)[None]

    def run(
        self,
        embeds_BSH: Tensor,
        valid_BS: Tensor,
        position_ids: Tensor,
        layers: Sequence[int],
        kv_layers: Sequence[int] = (),
        **kwargs: Any,
    ) -> tuple[dict[int, Tensor], dict[int, tuple[Tensor, Tensor]]]:
        """Hidden states, keys and values: :func:`~.prefix.run_prefix`."""
        return run_prefix(
            self.language_model, self.rope, embeds_BSH, valid_BS, position_ids, layers, kv_layers
        )

    @classmethod
    def build(
        cls, config: Any, n_views: int, image_size: tuple[int, int], assets: Path | None = None
    ) -> PaliGemma:
        """Make the module (see the protocol for ``assets``).

        Raises:
            ConfigError: the model can't be found or loaded, or the images are not of the tower's size.
        """
        name, own = config.base_vlm, _SIGLIP.stats
        if assets is not None:
            if not (assets / "config.json").is_file():
                raise ConfigError(f"{assets / 'config.json'}: no such file; save the checkpoint again")
            shapes, tokens = loading.hub_shapes(str(assets)), tokenizer.from_directory(assets)
            stats = image_stats(own, str(assets))
            model = loading.random_model(shapes, config, initialise=False)
        elif config.named_size:
            tokens, stats = loading.shipped_tokenizer(), own
            shapes = loading.named_shapes(config, tokens, image_size)
            check_image_size(shapes, image_size, stats)
            model = loading.random_model(shapes, config)
        else:
            shapes = loading.hub_shapes(name)
            tokens, stats = tokenizer.from_pretrained(name), image_stats(own, name)
            check_image_size(shapes, image_size, stats)
            make = loading.pretrained_model if config.pretrained else loading.random_model
            model = make(shapes, config)
        return cls(config, shapes, model, tokens, n_views, image_size, stats)

    def save_assets(self, directory: Path) -> None:
        """Write architecture, tokenizer and image statistics: with the weights all that is needed offline."""
        directory.mkdir(parents=True, exist_ok=True)
        PaliGemmaConfig.from_dict(self.shapes.to_dict()).save_pretrained(directory)
        self.tokenizer.save(str(directory / tokenizer.TOKENIZER_FILE))
        save_image_stats(directory, self.stats, "SiglipImageProcessor")


def check_image_size(shapes: Any, image_size: tuple[int, int], stats: ImageStats) -> None:
    """Refuse images of another size than the tower's before three billion weights are read.

    Raises:
        ConfigError: both sizes, and the transform that is needed.
    """
    _SIGLIP.runner(shapes.vision_config, image_size, stats)
