"""MapAnything (arXiv 2509.13414) as a geometry encoder: images and viewing rays in, multi-view tokens out.

Shape legend: B rows, V views, H, W pixels, h, w patch grid, L tokens of a view, E width of the per-view
encoder, C width of the multi-view stage (and of the features).
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import ClassVar

import torch
from torch import Tensor, nn
from vla_core.batch import Cameras
from vla_core.errors import ConfigError, UserError
from vla_core.interfaces import GeometryFeatures
from vla_core.overlap import side_by_side
from vla_core.traits import GeometryTraits

from vla_geometry.cache import ViewCache, encode_views
from vla_geometry.images import check_image_size, check_images, normalise, unit_range
from vla_geometry.mapanything.blocks import EPS
from vla_geometry.mapanything.config import MapAnythingConfig
from vla_geometry.mapanything.dense import DenseHead, ScaleHead
from vla_geometry.mapanything.dinov2 import Dinov2
from vla_geometry.mapanything.loading import load_published
from vla_geometry.mapanything.pose import PoseHead, to_first_camera
from vla_geometry.mapanything.ray_encoder import RayEncoder
from vla_geometry.mapanything.sharing import AlternatingAttention
from vla_geometry.mapanything.sizes import PATCH, SIZES
from vla_geometry.rays import ray_directions

logger = logging.getLogger(__name__)


class MapAnythingEncoder(nn.Module):
    """DINOv2 per view, rays of known intrinsics added and normalised, then attention across views.

    Reads ``cameras.intrinsics`` when given; without them (or for a view whose matrix is not known or not
    usable) it is the model's images-only path. Extrinsics and depth are not read. With
    ``compat: starvla_llava3d`` intrinsics aren't either, and the config's docstring says what else is left
    out.
    """

    Config: ClassVar[type] = MapAnythingConfig

    def __init__(self, config: MapAnythingConfig, n_views: int, image_size: tuple[int, int]) -> None:
        super().__init__()
        size = SIZES[config.size]
        self.config, self.n_views, self.image_size = config, n_views, image_size
        self.grid = check_image_size(image_size, PATCH)
        self.dim = size.dim
        self.fork = config.compat == "starvla_llava3d"
        self.class_token, self.taps = size.class_token and not self.fork, size.taps
        self.encoder = Dinov2(size)
        if not self.fork:
            self.ray_dirs_encoder = RayEncoder(size.encoder_dim, size.ray_dims)
            self.fusion_norm_layer = nn.LayerNorm(size.encoder_dim, eps=EPS)
            self.scale_token = nn.Parameter(torch.empty(size.encoder_dim))
            nn.init.trunc_normal_(self.scale_token, std=0.02)
        self.info_sharing = AlternatingAttention(size)
        if config.dense_heads:
            self.dense_head = DenseHead(size)
            self.scale_head = ScaleHead(size.dim)
            self.pose_head = PoseHead(size.dim)
        self.cache = ViewCache(config.cache_mib) if config.cache_mib else None
        dense = frozenset({"depth", "points"} if config.dense_heads else ())
        self.traits = GeometryTraits(dense, caches_views=self.cache is not None)
        self.requires_grad_(config.trainable)
        self._keep_bf16()

    @classmethod
    def build(
        cls, config: MapAnythingConfig, n_views: int, image_size: tuple[int, int], weights: bool = True
    ) -> MapAnythingEncoder:
        """Build for ``n_views`` images of ``(H, W)`` pixels; ``weights=False`` leaves them to a checkpoint.

        Raises:
            ConfigError: an image side that is not a multiple of 14, or weights that do not fit.
        """
        if not weights or config.weights is None:
            # On the meta device somebody else brings the weights.
            if weights and not config.trainable and torch.get_default_device().type != "meta":
                logger.warning("geometry.weights is null: the frozen encoder gives random features")
            return cls(config, n_views, image_size)
        with torch.device("meta"):  # every tensor comes from the file: drawing random ones would be wasted
            encoder = cls(config, n_views, image_size)
        encoder.to_empty(device="cpu")
        load_published(encoder, config.weights, config.revision)
        return encoder

    def forward(
        self, images: Tensor, cameras: Cameras | None = None, needs: frozenset[str] = frozenset()
    ) -> GeometryFeatures:
        """Features of a batch of views.

        Args:
            images: ``[B, V, 3, H, W]``, uint8 or float in [0, 1]; ImageNet's mean and std are applied here
                (not with ``compat``).
            cameras: ``intrinsics [B, V, 3, 3]`` (pixels of ``images``, the centre of the top-left pixel at
                (0.5, 0.5)) and ``view_mask [B, V]`` are read; missing views do not influence the others.
                ``view_keys`` need ``cache_mib``.
            needs: subset of ``{"depth", "points"}``.

        Returns:
            ``tokens [B, V, h, w, C]``; ``registers [B, 1 + V, C]``: the scale token, then the class token
            of each view (``[B, 1, C]`` for the first release, which has no class tokens here; None with
            ``compat``). What ``needs`` names, in metres, fp32: ``depth [B, V, H, W]``, and
            ``points [B, V, H, W, 3]`` in the frame of the first camera, by rays, distances and poses that are
            all the model's own predictions.

        Raises:
            UserError: images or intrinsics of another shape.
            ConfigError: a need that this encoder cannot meet.
        """
        check_images(images, self.n_views, self.image_size)
        provides = self.traits.provides
        if needs - provides:
            given = "depth and points" if provides else "tokens only, as geometry.dense_heads is false"
            raise ConfigError(
                f"needs: {sorted(needs)} asked for, but geometry 'mapanything' gives {given}; "
                "choose another fusion or geometry encoder"
            )
        with torch.set_grad_enabled(torch.is_grad_enabled() and self.config.trainable):
            return self._features(images, cameras, needs)

    def _features(self, images: Tensor, cameras: Cameras | None, needs: frozenset[str]) -> GeometryFeatures:
        rays, (patches, class_token) = side_by_side(
            lambda: self._ray_tokens(images, cameras),
            lambda: encode_views(self.cache, images, cameras, self._see),
            images.device,
        )
        if not self.fork:
            patches = self._fuse(patches, rays)
        x = torch.cat([patches.to(class_token.dtype), class_token], dim=2) if self.class_token else patches
        inner = self.info_sharing.norm.weight.dtype
        if self.fork:
            scale = x.new_empty(len(images), 0, x.shape[-1], dtype=inner)
        else:
            scale = self.scale_token.to(inner).expand(len(images), 1, -1)
        view_mask = None if cameras is None else cameras.view_mask
        x, scale, tapped = self.info_sharing(x.to(inner), scale, view_mask, self.taps if needs else ())
        n = self.grid[0] * self.grid[1]
        features = GeometryFeatures(
            tokens=x[:, :, :n].unflatten(2, self.grid),
            registers=None if self.fork else torch.cat([scale, x[:, :, n:].flatten(1, 2)], dim=1),
        )
        if needs:
            stages = [y[:, :, :n].unflatten(2, self.grid) for y in (patches, *tapped, x)]
            with _without_autocast(images):
                self._add_dense(features, stages, scale, needs)
        return features

    def _add_dense(
        self, features: GeometryFeatures, stages: list[Tensor], scale: Tensor, needs: frozenset[str]
    ) -> None:
        metres = self.scale_head(scale.to(self.scale_head.proj.weight.dtype))[..., None]
        points = self.dense_head(stages, self.image_size)
        if "depth" in needs:
            features.depth = points[:, :, 2] * metres
        if "points" in needs:
            rotation, position = self.pose_head(stages[-1])
            features.points = to_first_camera(points, rotation, position) * metres[..., None]

    def _see(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Per-view stage: ``[M, 3, H, W]`` -> patches ``[M, h * w, E]`` and class tokens ``[M, 1, E]``."""
        dtype = self.encoder.cls_token.dtype
        pixels = unit_range(images).to(dtype) if self.fork else normalise(images, dtype)
        patches, class_token = self.encoder(pixels)
        return patches, class_token

    def _fuse(self, patches_BVLE: Tensor, rays_BVLE: Tensor | None) -> Tensor:
        """Add what is known of the cameras and normalise; not under autocast, as the model was trained."""
        with _without_autocast(patches_BVLE):
            x = patches_BVLE.to(self.fusion_norm_layer.weight.dtype)
            return self.fusion_norm_layer(x if rays_BVLE is None else x + rays_BVLE.to(x.dtype))

    def _ray_tokens(self, images: Tensor, cameras: Cameras | None) -> Tensor | None:
        """``[B, V, h * w, E]``, zero for a view without known, usable intrinsics; None when none has any."""
        if self.fork or cameras is None or cameras.intrinsics is None:
            return None
        intrinsics, (b, v) = cameras.intrinsics, images.shape[:2]
        if tuple(intrinsics.shape) != (b, v, 3, 3):
            raise UserError(
                f"cameras.intrinsics: shape {list(intrinsics.shape)} must be [{b}, {v}, 3, 3], as the images"
            )
        with _without_autocast(images):
            rays, known = ray_directions(intrinsics, self.image_size, cameras.known.intrinsics)
            rays = rays.flatten(0, 1).to(self.ray_dirs_encoder.conv_in.weight.dtype)
            tokens = self.ray_dirs_encoder(rays).unflatten(0, (b, v))
            return torch.where(known[:, :, None, None], tokens, 0.0)

    def _keep_bf16(self) -> None:
        if self.config.bf16:
            for part in (self.encoder, self.info_sharing):
                part.to(torch.bfloat16)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> MapAnythingEncoder:
        # A policy is moved to its dtype as a whole; config.bf16 holds for this part of it all the same.
        super()._apply(fn, recurse)
        self._keep_bf16()
        return self


def _without_autocast(x: Tensor) -> torch.autocast:
    """Where ``x`` is; shapes alone are computed on the meta device, which has no autocast to switch off."""
    return torch.autocast("cpu" if x.device.type == "meta" else x.device.type, enabled=False)
