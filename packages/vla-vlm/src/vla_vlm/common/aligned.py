"""Linear layers of odd sizes as matrix products that a GPU's tensor cores take at full speed.

cuBLAS has its fast kernels only for rows of a multiple of 16 bytes. The MLPs of Qwen2.5-VL's vision tower are
3420 wide: in bf16 their products fell to kernels of an older generation, 3.3 of the 12.1 ms of a chunk of
QwenGR00T 3B on an H100.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vla_vlm.common.kernels import autocasts
from vla_vlm.common.owned import retype

MULTIPLE = 8
"""Numbers of two bytes in 16 bytes."""


class AlignedLinear(nn.Linear):
    """A linear layer that computes with zeros behind its odd dims; sizes, weights and names stay.

    In float32, where a multiple of 4 is enough, it is a plain one.
    """

    def forward(self, x: Tensor) -> Tensor:
        """``[..., in]`` -> ``[..., out]``, the same numbers up to the order of a sum."""
        packed = self.weight.shape != (self.out_features, self.in_features)
        if not (packed or x.element_size() == 2 or autocasts(x)):
            return super().forward(x)
        x = _widen(x, -self.in_features % MULTIPLE)
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
        rows, columns = (-size % MULTIPLE for size in self.weight.shape)
        if not rows and not columns:
            return self.weight, self.bias
        return F.pad(self.weight, (0, columns, 0, rows)), None if self.bias is None else _widen(
            self.bias, rows
        )


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
