"""A geometry encoder in one file: patch features of each view, with the viewing direction of every patch.

Shape legend: B rows, V views, H, W pixels, h, w patch grid, C channels.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from vla_core.batch import Cameras
from vla_core.errors import ConfigError
from vla_core.interfaces import GeometryFeatures
from vla_core.traits import GeometryTraits


class MyEncoder(nn.Module):
    """Entry point ``my_encoder`` in ``vla.geometry``."""

    @dataclass(frozen=True)
    class Config:
        """The YAML node ``framework.geometry``."""

        patch: int = 16
        dim: int = 64
        trainable: bool = True  # there are no published weights to freeze

    traits = GeometryTraits()  # predicts neither depth nor points, keeps nothing of a view

    def __init__(self, config: Config, image_size: tuple[int, int]) -> None:
        super().__init__()
        height, width = image_size
        if height % config.patch or width % config.patch:
            raise ConfigError(f"patch: images of {height} x {width} are not whole patches of {config.patch}")
        self.dim, self.patch = config.dim, config.patch
        self.embed = nn.Conv2d(3, config.dim, config.patch, stride=config.patch)
        self.rays = nn.Linear(3, config.dim)
        self.requires_grad_(config.trainable)

    @classmethod
    def build(cls, config: Any, n_views: int, image_size: tuple[int, int], weights: bool = True) -> MyEncoder:
        """``weights=False``: a checkpoint brings them. This encoder has none of its own to load."""
        return cls(config, image_size)

    def forward(
        self, images: Tensor, cameras: Cameras | None, needs: frozenset[str] = frozenset()
    ) -> GeometryFeatures:
        """uint8 images ``[B, V, 3, H, W]`` to tokens ``[B, V, h, w, C]``; the scaling is its own."""
        rows = images.shape[0]
        pixels = images.flatten(0, 1).to(self.embed.weight.dtype) / 127.5 - 1
        tokens_BVhwC = self.embed(pixels).unflatten(0, (rows, -1)).movedim(2, -1)
        if cameras is not None and cameras.intrinsics is not None:
            rays_BVhw3 = self._directions(cameras.intrinsics, *tokens_BVhwC.shape[2:4])
            given_BVhwC = self.rays(rays_BVhw3.to(tokens_BVhwC.dtype))
            known = cameras.known.intrinsics  # bool [B, V]; None: every view has them
            if known is not None:
                given_BVhwC = torch.where(known[..., None, None, None], given_BVhwC, 0.0)
            tokens_BVhwC = tokens_BVhwC + given_BVhwC
        return GeometryFeatures(tokens_BVhwC)

    def _directions(self, intrinsics_BV33: Tensor, h: int, w: int) -> Tensor:
        """Unit viewing directions of the patch centres ``[B, V, h, w, 3]``, in the camera's frame."""
        matrix = intrinsics_BV33.float()
        focal = matrix[..., [0, 1], [0, 1]].clamp(min=1e-6)  # an unknown view has zeros, which mean nothing
        rows = (torch.arange(h, device=matrix.device) + 0.5) * self.patch
        columns = (torch.arange(w, device=matrix.device) + 0.5) * self.patch
        pixels_hw2 = torch.stack(torch.meshgrid(columns, rows, indexing="xy"), dim=-1)
        x_y = (pixels_hw2 - matrix[..., None, None, :2, 2]) / focal[..., None, None, :]
        return nn.functional.normalize(nn.functional.pad(x_y, (0, 1), value=1.0), dim=-1)
