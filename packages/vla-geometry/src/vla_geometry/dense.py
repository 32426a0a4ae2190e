"""Per-pixel outputs, computed only when a fusion or its loss asks for them.

Shape legend: B rows, V views, h, w patch grid, p patch size, H = h p, W = w p, C channels.
"""

from __future__ import annotations

from torch import Tensor, nn


class DenseHeads(nn.Module):
    """Linear per-patch decoders; one metric scale per row comes from the scale token.

    Depth is ``exp(.) * scale``, hence positive; points are ``. * scale`` in the first camera's frame.
    """

    def __init__(self, dim: int, patch_size: int) -> None:
        super().__init__()
        self.patch_size = patch_size
        self.depth = nn.Linear(dim, patch_size**2)
        self.points = nn.Linear(dim, 3 * patch_size**2)
        self.scale = nn.Linear(dim, 1)

    def predict_depth(self, tokens: Tensor, scale_token: Tensor) -> Tensor:
        """``[B, V, h, w, C]`` and ``[B, C]`` -> metres fp32 ``[B, V, H, W]``."""
        return self._unpatch(self.depth(tokens), 1)[..., 0].exp() * self._scale(scale_token)

    def predict_points(self, tokens: Tensor, scale_token: Tensor) -> Tensor:
        """``[B, V, h, w, C]`` and ``[B, C]`` -> metres fp32 ``[B, V, H, W, 3]``."""
        return self._unpatch(self.points(tokens), 3) * self._scale(scale_token)[..., None]

    def _scale(self, scale_token: Tensor) -> Tensor:
        return self.scale(scale_token).float().exp()[:, :, None, None]

    def _unpatch(self, x: Tensor, channels: int) -> Tensor:
        b, v, h, w, _ = x.shape
        p = self.patch_size
        x = x.float().view(b, v, h, w, p, p, channels).permute(0, 1, 2, 4, 3, 5, 6)
        return x.reshape(b, v, h * p, w * p, channels)
