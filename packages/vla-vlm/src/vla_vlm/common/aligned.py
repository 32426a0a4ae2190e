"""Linear layers of odd sizes as matrix products that a GPU's tensor cores take at full speed.

cuBLAS has its fast kernels only for rows of a multiple of 16 bytes. The MLPs of Qwen2.5-VL's vision tower are
3420 wide: in bf16 their products fell to kernels of an older generation, 3.3 of the 12.1 ms of a chunk of
QwenGR00T 3B on an H100.

Behind them torch.compile lays rows of a wide result out at multiples of 128 bytes. A product into such rows
does not add its bias itself: the bias is copied to the whole result first, which took 3.0 of 58 ms of sixteen
rows on an H200. So wide layers are widened to that.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vla_vlm.common.kernels import autocasts
from vla_vlm.common.owned import retype

MULTIPLE = 8
"""Numbers of two bytes in 16 bytes."""

WIDE, WIDE_MULTIPLE = 1024, 64
"""Numbers of two bytes in 128 bytes, for rows of more than ``WIDE``: narrower ones the compiler leaves."""


class AlignedLinear(nn.Linear):
    """A linear layer that computes with zeros behind its odd dims; sizes, weights and names stay.

    In float32, where a multiple of 4 is enough, it is a plain one.
    """

    def forward(self, x: Tensor) -> Tensor:
        """``[..., in]`` -> ``[..., out]``, the same numbers up to the order of a sum."""
        packed = self.weight.shape != (self.out_features, self.in_features)
        if not (packed or x.element_size() == 2 or autocasts(x)):
            return super().forward(x)
        x = _widen(x, missing(self.in_features))
        y = F.linear(x, *self._padded())
        return y[..., : self.out_features]

    def pack(self) -> None:
        """Keep the zeros in the weight from now on: inference need not write them each time.

        The shapes in the state dict are those of the padded weight then.
        """
        with torch.no_grad():
            weight, bias = self._padded()
            self.weight = nn.Parameter(weight.clone(), requires_grad=False)
            if bias is not None:
                self.bias = nn.Parameter(bias.clone(), requires_grad=False)

    def _padded(self) -> tuple[Tensor, Tensor | None]:
        rows, columns = (missing(size) for size in self.weight.shape)
        if not rows and not columns:
            return self.weight, self.bias
        return F.pad(self.weight, (0, columns, 0, rows)), None if self.bias is None else _widen(
            self.bias, rows
        )


def missing(size: int) -> int:
    """Zeros behind ``size`` numbers, so that kernels take them at full speed; none behind a multiple of 8."""
    if size % MULTIPLE == 0:
        return 0
    return -size % (WIDE_MULTIPLE if size > WIDE else MULTIPLE)


def _widen(x: Tensor, by: int) -> Tensor:
    return F.pad(x, (0, by)) if by else x


def align(module: nn.Module) -> int:
    """Make every linear layer of ``module`` whose sizes are no multiples of 8 an :class:`AlignedLinear`.

    Returns how many.
    """
    odd = [
        part
        for part in module.modules()
        if type(part) is nn.Linear and (part.in_features % MULTIPLE or part.out_features % MULTIPLE)
    ]
    for part in odd:
        retype(part, AlignedLinear)
    return len(odd)
