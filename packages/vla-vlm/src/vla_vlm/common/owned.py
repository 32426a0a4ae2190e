"""Layers of transformers that our loops use in another way than it does, each with a forward for that.

A parameter is read only in the forward of the module that owns it: engines that spread parameters gather
them there and nowhere else. :func:`retype` gives a module such a forward.

M images, N patches, K numbers of a patch, C width, H hidden size.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F


def retype(module: Any, cls: type[nn.Module]) -> None:
    """``module`` with the forward of ``cls``; its weights, names and hooks stay."""
    module.__class__ = cls


class PatchRows(nn.Conv2d):
    """A convolution whose stride is its size, on patches that are cut out already."""

    def forward(self, patches: Tensor) -> Tensor:
        """``[M, N, K]`` -> ``[M, N, C]``."""
        return F.linear(patches.to(self.weight.dtype), self.weight.flatten(1), self.bias)


class StillPatchRows(nn.Conv3d):
    """The same over some frames, on patches of an image that stands still in them."""

    def forward(self, patches: Tensor) -> Tensor:
        """``[M, N, K]`` of one frame -> ``[M, N, C]``."""
        # All frames of a still image are equal, so their weights add up: half the multiplications for two.
        folded = self.weight.sum(dim=2, dtype=torch.float32).to(self.weight.dtype).flatten(1)
        return F.linear(patches.to(self.weight.dtype), folded, self.bias)


class TowerEmbeddings(nn.Module):
    """Of SigLIP or CLIP: patches (and CLIP's class token before them) with their positions."""

    patch_embedding: nn.Module
    position_embedding: nn.Module

    def forward(self, patches: Tensor) -> Tensor:
        """``[M, N, K]`` -> ``[M, N, C]``, or one token more."""
        x: Tensor = self.patch_embedding(patches)
        if isinstance(first := getattr(self, "class_embedding", None), nn.Parameter):
            x = torch.cat([first.to(x.dtype).expand(x.shape[0], 1, -1), x], dim=1)
        return x + self.position_embedding(torch.arange(x.shape[1], device=x.device))


class OffsetPositions(nn.Embedding):
    """Learned positions whose first rows are reserved (BART's ``offset``)."""

    offset: int

    def forward(self, positions: Tensor) -> Tensor:
        """Long ``[...]`` -> ``[..., H]``."""
        return F.embedding(positions + self.offset, self.weight)


class TiedEmbedding(nn.Embedding):
    """Word embeddings that are the language head too."""

    def forward(self, x: Tensor, rows: slice | None = None) -> Tensor:
        """Ids, long ``[...]`` -> ``[..., H]``; with ``rows`` hidden states ``[..., H]`` -> their logits."""
        return super().forward(x) if rows is None else F.linear(x, self.weight[rows])


class LanguageHead(nn.Linear):
    """A language head that gives the logits of some tokens."""

    def forward(self, x: Tensor, rows: slice = slice(None)) -> Tensor:
        """Hidden states ``[..., H]`` -> logits of ``rows``."""
        return F.linear(x, self.weight[rows])
