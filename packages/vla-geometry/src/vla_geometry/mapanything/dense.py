"""What MapAnything sees at each pixel: a DPT decoder (arXiv 2103.13413) over four stages.

Module names are those of the published weights.
Shape legend: B rows, V views, N = B V, h, w patch grid, C widths of the stages, F of the head, H, W pixels.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn
from torch.nn import functional as F

from vla_geometry.mapanything.sizes import Architecture

SCALE_WIDTH = 196
# Channels of the dense head: ray (3), log of the distance along it, confidence, mask.
CHANNELS = 6


class ResidualUnit(nn.Module):
    """Two 3 x 3 convolutions, each behind a ReLU, with a shortcut."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(width, width, 3, padding=1)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv2(F.relu(self.conv1(F.relu(x))))


class Refine(nn.Module):
    """Add a finer stage (the coarsest has none to add), refine, and double the resolution."""

    def __init__(self, width: int, coarsest: bool) -> None:
        super().__init__()
        self.out_conv = nn.Conv2d(width, width, 1)
        if not coarsest:
            self.resConfUnit1 = ResidualUnit(width)
        self.resConfUnit2 = ResidualUnit(width)

    def forward(self, x: Tensor, finer: Tensor | None = None) -> Tensor:
        if finer is not None:
            x = x + self.resConfUnit1(finer)
        x = F.interpolate(self.resConfUnit2(x), scale_factor=2, mode="bilinear", align_corners=True)
        return self.out_conv(x)


class Dpt(nn.Module):
    """Four stages ``[N, C_i, h, w]`` -> ``[N, F, 8 h, 8 w]``."""

    def __init__(self, widths: Sequence[int], dims: Sequence[int], width: int) -> None:
        super().__init__()
        resample: tuple[list[nn.Module], ...] = (
            [nn.ConvTranspose2d(dims[0], dims[0], 4, stride=4)],
            [nn.ConvTranspose2d(dims[1], dims[1], 2, stride=2)],
            [],
            [nn.Conv2d(dims[3], dims[3], 3, stride=2, padding=1)],
        )
        self.input_process = nn.ModuleList(
            nn.Sequential(
                nn.Sequential(nn.Conv2d(inside, dim, 1), *steps),
                nn.Conv2d(dim, width, 3, padding=1, bias=False),
            )
            for inside, dim, steps in zip(widths, dims, resample, strict=True)
        )
        self.scratch = nn.ModuleDict({f"refinenet{i}": Refine(width, coarsest=i == 4) for i in range(1, 5)})

    def forward(self, stages: Sequence[Tensor]) -> Tensor:
        first, second, third, fourth = (
            process(x) for process, x in zip(self.input_process, stages, strict=True)
        )
        x = self.scratch["refinenet4"](fourth)[..., : third.shape[-2], : third.shape[-1]]
        x = self.scratch["refinenet3"](x, third)
        x = self.scratch["refinenet2"](x, second)
        return self.scratch["refinenet1"](x, first)


class Regressor(nn.Module):
    """``[N, F, 8 h, 8 w]`` -> ``[N, 6, H, W]``."""

    def __init__(self, width: int) -> None:
        super().__init__()
        half = width // 2
        self.conv1 = nn.Conv2d(width, half, 3, padding=1)
        self.conv2 = nn.Sequential(
            nn.Conv2d(half, half, 3, padding=1), nn.ReLU(), nn.Conv2d(half, CHANNELS, 1)
        )

    def forward(self, x: Tensor, image_size: tuple[int, int]) -> Tensor:
        x = F.interpolate(self.conv1(x), size=image_size, mode="bilinear", align_corners=True)
        return self.conv2(x)


class ScaleHead(nn.Module):
    """Scale token ``[B, 1, C]`` -> metres per unit of the scene ``[B, 1, 1]``."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.proj = nn.Linear(dim, SCALE_WIDTH)
        self.mlp = nn.ModuleList(
            nn.Sequential(nn.Linear(SCALE_WIDTH, SCALE_WIDTH), nn.ReLU()) for _ in range(2)
        )
        self.output_proj = nn.Linear(SCALE_WIDTH, 1)

    def forward(self, scale_B1C: Tensor) -> Tensor:
        x = self.proj(scale_B1C)
        for layer in self.mlp:
            x = layer(x)
        return self.output_proj(x).float().exp().clamp(min=1e-8)


class DenseHead(nn.ModuleList):
    """Decoder and regressor: four stages ``[B, V, h, w, C_i]`` to a point for each pixel.

    The first stage is what enters the multi-view stage, the others are taken from it.
    """

    def __init__(self, size: Architecture) -> None:
        widths = (size.encoder_dim, size.dim, size.dim, size.dim)
        super().__init__([Dpt(widths, size.head_dims, size.head_dim), Regressor(size.head_dim)])

    def forward(self, stages: Sequence[Tensor], image_size: tuple[int, int]) -> Tensor:
        """Points fp32 ``[B, V, 3, H, W]`` in camera axes (x right, y down, z forward), units of the scene."""
        b, v = stages[0].shape[:2]
        decoder, regressor = self
        dtype = next(self.parameters()).dtype
        maps = [x.flatten(0, 1).permute(0, 3, 1, 2).to(dtype).contiguous() for x in stages]
        out = regressor(decoder(maps), image_size).float().unflatten(0, (b, v))
        return F.normalize(out[:, :, :3], dim=2, eps=1e-8) * out[:, :, 3:4].exp()
