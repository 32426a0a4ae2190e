"""DINOv2 (arXiv 2304.07193) as a geometry encoder: the patch features of each view, through transformers.

Self-supervised features tell parts and their places apart better than those of a language-aligned
tower; no view knows of another, and cameras are not read.

Shape legend: B rows, V views, M = B V images, H, W pixels, h, w patch grid, C width.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from transformers import Dinov2Config, Dinov2Model
from vla_core.batch import Cameras
from vla_core.errors import ConfigError, UserError, suggest
from vla_core.interfaces import GeometryFeatures
from vla_core.ranges import Natural, check_ranges
from vla_core.shard import mark
from vla_core.traits import GeometryTraits

from vla_geometry.cache import ViewCache, check_cache, encode_views
from vla_geometry.images import check_image_size, check_images, normalise

logger = logging.getLogger(__name__)

PATCH = 14
SIZES: dict[str, dict[str, Any]] = {
    "small": {"hidden_size": 384, "num_hidden_layers": 12, "num_attention_heads": 6},
    "base": {"hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12},
    "large": {"hidden_size": 1024, "num_hidden_layers": 24, "num_attention_heads": 16},
    "giant": {
        "hidden_size": 1536,
        "num_hidden_layers": 40,
        "num_attention_heads": 24,
        "use_swiglu_ffn": True,
    },
    "tiny": {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2, "image_size": 56},
}
"""What ``facebook/dinov2-small`` and so on are, and a size for tests and small machines."""


@dataclass(frozen=True)
class DINOv2GeometryConfig:
    """YAML node of ``dinov2``.

    Args:
        size: ``small`` (``facebook/dinov2-small``), ``base``, ``large``, ``giant``, or ``tiny``, for which no
            weights are published.
        weights: what to start from: a hub id or a local directory with ``config.json`` and weights; null
            starts at random (nothing can be learnt from a frozen random encoder).
        revision: commit, tag or branch of the hub id.
        trainable: false freezes the encoder and runs it without gradients.
        cache_mib: MiB for features of pictures with a key (``cameras.view_keys``); 0: no cache.
    """

    size: str = "small"
    weights: str | None = None
    revision: str | None = None
    trainable: bool = False
    cache_mib: Natural = 0

    def __post_init__(self) -> None:
        if self.size not in SIZES:
            raise ConfigError(f"geometry.size: no size '{self.size}'{suggest(self.size, SIZES)}")
        check_ranges(self, "geometry.")
        check_cache(self.cache_mib, self.trainable)


class DINOv2Encoder(nn.Module):
    """``model`` is transformers' ``Dinov2Model``, without the mask token that only its own training needs."""

    Config: ClassVar[type] = DINOv2GeometryConfig

    def __init__(
        self, config: DINOv2GeometryConfig, n_views: int, image_size: tuple[int, int], model: Any
    ) -> None:
        super().__init__()
        self.config, self.n_views, self.image_size = config, n_views, image_size
        self.grid = check_image_size(image_size, PATCH)
        self.model = model
        mark(model.encoder.layer)
        self.dim: int = model.config.hidden_size
        self.cache = ViewCache(config.cache_mib) if config.cache_mib else None
        self.traits = GeometryTraits(caches_views=self.cache is not None)
        self.requires_grad_(config.trainable)

    @classmethod
    def build(
        cls, config: DINOv2GeometryConfig, n_views: int, image_size: tuple[int, int], weights: bool = True
    ) -> DINOv2Encoder:
        """Build for ``n_views`` images of ``(H, W)`` pixels; ``weights=False`` leaves them to a checkpoint.

        Raises:
            ConfigError: an image side that is not a multiple of 14, or weights that do not fit.
        """
        if weights and config.weights is not None:
            return cls(config, n_views, image_size, _pretrained(config))
        if weights and not config.trainable:
            logger.warning("geometry.weights is null: the frozen encoder gives random features")
        model = Dinov2Model._from_config(architecture(config.size), attn_implementation="sdpa")
        return cls(config, n_views, image_size, model)

    def forward(
        self, images: Tensor, cameras: Cameras | None = None, needs: frozenset[str] = frozenset()
    ) -> GeometryFeatures:
        """Features of a batch of views.

        Args:
            images: ``[B, V, 3, H, W]``, uint8 or float in [0, 1]; ImageNet's mean and std are applied here.
            cameras: ``view_keys`` are read (they need ``cache_mib``), and nothing else.
            needs: must be empty.

        Returns:
            ``tokens [B, V, h, w, C]`` after the final norm, and as ``registers [B, V, C]`` the class token of
            each view.

        Raises:
            UserError: images of another shape, or a need.
        """
        check_images(images, self.n_views, self.image_size)
        if needs:
            raise UserError(f"needs: {sorted(needs)} asked for, but geometry 'dinov2' gives tokens only")
        with torch.set_grad_enabled(torch.is_grad_enabled() and self.config.trainable):
            (x,) = encode_views(self.cache, images, cameras, self._see)
        return GeometryFeatures(tokens=x[:, :, 1:].unflatten(2, self.grid), registers=x[:, :, 0])

    def _see(self, images: Tensor) -> tuple[Tensor]:
        """``[M, 3, H, W]`` -> class token, then patches ``[M, 1 + h * w, C]``."""
        pixels = normalise(images, self.model.embeddings.cls_token.dtype)
        return (self.model(pixel_values=pixels).last_hidden_state,)


def architecture(size: str) -> Any:
    """transformers' config of a size; positions were learnt on images of 518 pixels a side."""
    return Dinov2Config(**{"image_size": 518, "use_mask_token": False, **SIZES[size]})


def _pretrained(config: DINOv2GeometryConfig) -> Any:
    try:
        loaded: Any = Dinov2Model.from_pretrained(
            config.weights,
            revision=config.revision or "main",
            use_mask_token=False,
            attn_implementation="sdpa",
            dtype=torch.float32,
            output_loading_info=True,
        )
    except (OSError, ValueError, RuntimeError) as error:
        reason = str(error).splitlines()[0].rstrip(".")
        raise ConfigError(
            f"geometry.weights: '{config.weights}' cannot be loaded ({reason}); give a local directory with "
            "config.json and weights of a DINOv2 model, or a hub id while online"
        ) from error
    model, info = loaded
    own = architecture(config.size)
    for key in ("model_type", "patch_size", "image_size", *SIZES["giant"]):
        if getattr(model.config, key) != getattr(own, key):
            raise ConfigError(
                f"geometry.weights: '{config.weights}' has {key} {getattr(model.config, key)}, geometry.size "
                f"'{config.size}' has {getattr(own, key)}; set the size it was saved with"
            )
    for kind in ("missing_keys", "mismatched_keys", "unexpected_keys"):
        names = sorted(str(key) for key in info[kind] if str(key) != "embeddings.mask_token")
        if names:
            raise ConfigError(
                f"geometry.weights: '{config.weights}' has {len(names)} {kind.replace('_', ' ')}, "
                f"first '{names[0]}'; the files don't belong to this architecture"
            )
    return model
