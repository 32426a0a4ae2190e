"""A small encoder of MapAnything's shape (arXiv 2509.13414), for tests and small machines.

Shape legend: B rows, V views, H, W pixels, h, w patch grid, R registers of a view, E width of the
per-view encoder, C width of the multi-view stage (and of the features).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn
from vla_core.batch import Cameras
from vla_core.errors import ConfigError, UserError
from vla_core.interfaces import GeometryFeatures
from vla_core.ranges import Count, Natural, check_ranges
from vla_core.traits import GeometryTraits

from vla_geometry.cache import ViewCache, check_cache, encode_views
from vla_geometry.dense import DenseHeads
from vla_geometry.images import check_image_size, check_images, normalise
from vla_geometry.rays import RayEncoder, ray_directions
from vla_geometry.sharing import InfoSharing
from vla_geometry.transformer import Block
from vla_geometry.weights import load_strict


@dataclass(frozen=True)
class TinyGeometryConfig:
    """YAML node of ``tiny``.

    Args:
        patch_size: pixels of a patch's side; image sides must be multiples of it.
        encoder_dim, encoder_depth: width and blocks of the per-view encoder.
        dim, sharing_depth: width and blocks of the multi-view stage (within-view and across-view
            blocks alternate).
        head_dim: width of an attention head, in both stages.
        n_registers: register tokens of each view.
        dense_heads: build the depth and point heads. Set to false when training the encoder with a
            fusion that needs neither, or their parameters get no gradient.
        trainable: false freezes the encoder and runs it without gradients.
        weights: local safetensors file to start from; null starts at random.
        cache_mib: MiB for per-view features of pictures with a key (``cameras.view_keys``); 0: no cache.
    """

    patch_size: Count = 14
    encoder_dim: Count = 128
    encoder_depth: Natural = 3
    dim: Count = 128
    sharing_depth: Natural = 4
    head_dim: Count = 64
    n_registers: Natural = 4
    dense_heads: bool = True
    trainable: bool = False
    weights: str | None = None
    cache_mib: Natural = 0

    def __post_init__(self) -> None:
        check_ranges(self, "geometry.")
        check_cache(self.cache_mib, self.trainable)
        for key in ("encoder_dim", "dim"):
            if getattr(self, key) % self.head_dim:
                raise ConfigError(
                    f"{key}: {getattr(self, key)} must be a multiple of head_dim {self.head_dim}"
                )


class TinyGeometryEncoder(nn.Module):
    """Per-view ViT with registers (DINOv2's shape), geometric input, multi-view attention, scale token.

    Reads ``cameras.intrinsics`` when given, as viewing rays; without them (or for a view whose matrix
    is not known or not usable) the features come from the images alone. Extrinsics and depth are not
    read. Views that ``cameras.view_mask`` says are missing are left out of the attention across views.
    """

    Config: ClassVar[type] = TinyGeometryConfig

    def __init__(self, config: TinyGeometryConfig, n_views: int, image_size: tuple[int, int]) -> None:
        super().__init__()
        self.config, self.n_views, self.image_size = config, n_views, image_size
        self.grid = check_image_size(image_size, config.patch_size)
        self.dim = config.dim
        width, patch = config.encoder_dim, config.patch_size
        self.patch_embed = nn.Conv2d(3, width, patch, stride=patch)
        self.position = nn.Parameter(torch.empty(self.grid[0] * self.grid[1], width))
        self.registers = nn.Parameter(torch.empty(config.n_registers, width))
        self.encoder = nn.ModuleList(
            Block(width, width // config.head_dim) for _ in range(config.encoder_depth)
        )
        self.encoder_norm = nn.LayerNorm(width)
        self.rays = RayEncoder(width, patch)
        self.fusion_norm = nn.LayerNorm(width)
        self.project = nn.Linear(width, config.dim)
        self.info_sharing = InfoSharing(
            config.dim, config.sharing_depth, config.dim // config.head_dim, n_views
        )
        self.dense = DenseHeads(config.dim, patch) if config.dense_heads else None
        for parameter in (
            self.position,
            self.registers,
            self.info_sharing.view_embedding,
            self.info_sharing.scale_token,
        ):
            nn.init.normal_(parameter, std=0.02)
        self.cache = ViewCache(config.cache_mib) if config.cache_mib else None
        dense = frozenset({"depth", "points"} if config.dense_heads else ())
        self.traits = GeometryTraits(dense, caches_views=self.cache is not None)
        self.requires_grad_(config.trainable)

    @classmethod
    def build(
        cls, config: TinyGeometryConfig, n_views: int, image_size: tuple[int, int], weights: bool = True
    ) -> TinyGeometryEncoder:
        """Build for ``n_views`` images of ``(H, W)`` pixels; ``weights=False`` leaves them to a checkpoint.

        Raises:
            ConfigError: an image side that is not a multiple of the patch, or weights that do not fit.
        """
        encoder = cls(config, n_views, image_size)
        if weights and config.weights is not None:
            load_strict(encoder, config.weights)
        return encoder

    def forward(
        self, images: Tensor, cameras: Cameras | None = None, needs: frozenset[str] = frozenset()
    ) -> GeometryFeatures:
        """Features of a batch of views.

        Args:
            images: ``[B, V, 3, H, W]``, uint8 or float in [0, 1].
            cameras: ``intrinsics [B, V, 3, 3]`` (pixels of ``images``) and ``view_mask [B, V]`` are read;
                missing views do not influence the others. ``view_keys`` need ``cache_mib``.
            needs: subset of ``{"depth", "points"}``.

        Returns:
            ``tokens [B, V, h, w, C]``; ``registers [B, 1 + V * R, C]`` (scale token first); what ``needs``
            names, in fp32.

        Raises:
            UserError: images or intrinsics of another shape, or an unknown or unbuilt need.
        """
        check_images(images, self.n_views, self.image_size)
        self._check_needs(needs)
        with torch.set_grad_enabled(torch.is_grad_enabled() and self.config.trainable):
            return self._features(images, cameras, needs)

    def _features(self, images: Tensor, cameras: Cameras | None, needs: frozenset[str]) -> GeometryFeatures:
        b, v = images.shape[:2]
        h, w = self.grid
        (x,) = encode_views(self.cache, images, cameras, self._see)
        patches, registers = x[:, :, : h * w], x[:, :, h * w :]
        if cameras is not None and cameras.intrinsics is not None:
            patches = patches + self._ray_tokens(cameras.intrinsics, cameras.known.intrinsics, b, v)
        x = self.project(torch.cat([self.fusion_norm(patches), registers], dim=2))
        x, scale = self.info_sharing(x, None if cameras is None else cameras.view_mask)
        tokens = x[:, :, : h * w].unflatten(2, (h, w))
        features = GeometryFeatures(
            tokens=tokens, registers=torch.cat([scale[:, None], x[:, :, h * w :].flatten(1, 2)], dim=1)
        )
        if self.dense is not None and "depth" in needs:
            features.depth = self.dense.predict_depth(tokens, scale)
        if self.dense is not None and "points" in needs:
            features.points = self.dense.predict_points(tokens, scale)
        return features

    def _see(self, images: Tensor) -> tuple[Tensor]:
        """The per-view stage: ``[M, 3, H, W]`` -> patches, then registers ``[M, h * w + R, E]``."""
        pixels = normalise(images, self.patch_embed.weight.dtype)
        x = self.patch_embed(pixels).flatten(2).transpose(1, 2) + self.position
        x = torch.cat([x, self.registers.expand(len(images), -1, -1)], dim=1)
        for block in self.encoder:
            x = block(x)
        return (self.encoder_norm(x),)

    def _ray_tokens(self, intrinsics: Tensor, given: Tensor | None, b: int, v: int) -> Tensor:
        if tuple(intrinsics.shape) != (b, v, 3, 3):
            raise UserError(
                f"cameras.intrinsics: shape {list(intrinsics.shape)} must be [{b}, {v}, 3, 3], as the images"
            )
        rays, known = ray_directions(intrinsics, self.image_size, given)
        return torch.where(known[:, :, None, None], self.rays(rays), 0.0)

    def _check_needs(self, needs: frozenset[str]) -> None:
        unknown = needs - {"depth", "points"}
        if unknown:
            raise UserError(f"needs: unknown {sorted(unknown)}; this encoder gives 'depth' and 'points'")
        if needs and self.dense is None:
            raise UserError(
                f"needs: {sorted(needs)} asked for, but geometry.dense_heads is false; set it to true"
            )
