"""Linear layers for few rows, with what is done to their result.

cuBLAS runs such products at a third to two thirds of the memory's speed on an H200, and each leaves its
epilogue, or the zeros that fill its rows up to a multiple of 8, to kernels of their own.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vla_heads.few_rows import when
from vla_heads.few_rows.norms import StreamedNorm
from vla_heads.few_rows.plans import PLANS, Plan


class Streamed(nn.Linear):
    """A linear layer that :func:`linear` may compute by the kernels for few rows; by itself a plain one.

    ``counters`` live as long as its weight, and only its products count with them: two layers may be
    computed at a time, one layer not twice.
    """

    counters: Tensor | None

    def takes(self, x: Tensor) -> bool:
        """Whether it does for ``x [..., in]``."""
        # Its weight may have been rounded to another number type since.
        plain = type(self.weight) is nn.Parameter and self.weight.dtype is torch.bfloat16
        return plain and not self.training and when.few(x)


def mark(module: nn.Module, paired: bool = False) -> bool:
    """Let the kernels compute linear layers (with ``paired`` those of two halves) and norms in ``module``.

    Returns whether they do. All stays as it is on other devices, and where there are linear layers of which
    none has a size with a plan: norms and attention alone were slower so (of QwenGR00T's blocks 39.8 us
    instead of 36.5, on an H200).
    """
    layers = [layer for layer in module.modules() if type(layer) is nn.Linear]
    planned = [layer for layer in layers if _key(layer.weight, paired) in PLANS]
    if not when.capable(next(module.parameters()).device) or (layers and not planned):
        return False
    for layer in planned:
        layer.__class__ = Streamed
        counters = counters_of(
            _plan(layer.weight, paired), _key(layer.weight, paired)[0], layer.weight.device
        )
        layer.register_buffer("counters", counters, persistent=False)
    for norm in module.modules():
        if type(norm) is nn.LayerNorm and len(norm.normalized_shape) == 1:
            norm.__class__ = StreamedNorm
    return True


def linear(
    layer: nn.Module,
    x: Tensor,
    residual: Tensor | None = None,
    gate: Tensor | None = None,
    dropout: nn.Module | None = None,
    gelu: bool = False,
    paired: bool = False,
) -> Tensor:
    """``residual + dropout(act(layer(x))) * gate``.

    Args:
        layer: a linear layer.
        x: ``[..., in]``.
        residual: ``[..., out]`` (or a half of it with ``paired``) in any shape of the same size.
        gate: likewise, or broadcastable to ``residual``.
        dropout: skipped where the kernels compute, as they do in evaluation mode alone.
        gelu: ``act`` is GELU, approximated by tanh; else nothing.
        paired: ``act`` of the first half of the outputs times the second.

    Returns:
        In the shape of ``residual``; without one, of ``x``.
    """
    if isinstance(layer, Streamed) and layer.takes(x):
        outputs = layer.out_features // (2 if paired else 1)
        shape = (*x.shape[:-1], outputs) if residual is None else residual.shape
        if gate is not None:
            gate = gate.reshape(1, -1) if gate.numel() == outputs else gate.expand(shape).reshape(-1, outputs)
        rows = x.reshape(-1, layer.in_features)
        added = None if residual is None else residual.reshape(-1, outputs)
        product = _product(rows, layer.weight, layer.bias, added, gate, layer.counters, gelu, paired)
        return product.view(shape)
    y: Tensor = layer(x)
    if paired:
        y, other = y.chunk(2, dim=-1)
    if gelu:
        y = F.gelu(y, approximate="tanh")
    if paired:
        y = y * other
    if residual is None:
        return y
    y = y.view_as(residual)
    if dropout is not None:
        y = dropout(y)
    return residual + (y if gate is None else y * gate)


@torch.library.custom_op("vla_heads::few_rows", mutates_args=())
def _product(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    residual: Tensor | None,
    gate: Tensor | None,
    counters: Tensor | None,
    gelu: bool,
    paired: bool,
) -> Tensor:
    """See :func:`vla_heads.few_rows.product_kernel.product`."""
    from vla_heads.few_rows.product_kernel import product

    bias, residual, gate = (None if part is None else part.contiguous() for part in (bias, residual, gate))
    with torch.cuda.device_of(x):
        plan = _plan(weight, paired)
        return product(x.contiguous(), weight, bias, residual, gate, gelu, paired, plan, counters)


@_product.register_fake
def _(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    residual: Tensor | None,
    gate: Tensor | None,
    counters: Tensor | None,
    gelu: bool,
    paired: bool,
) -> Tensor:
    return x.new_empty(x.shape[0], weight.shape[0] // (2 if paired else 1))


def counters_of(plan: Plan, outputs: int, device: torch.device) -> Tensor | None:
    """What the programs of a product with so many outputs count with; None: they share no tile.

    Made when a layer is marked: zeros made within a CUDA graph are none before it is replayed.
    """
    if plan.split == 1:
        return None
    return torch.zeros(outputs // plan.columns, dtype=torch.int32, device=device)


def _key(weight: Tensor, paired: bool) -> tuple[int, int, bool]:
    return weight.shape[0] // (2 if paired else 1), weight.shape[1], paired


def _plan(weight: Tensor, paired: bool) -> Plan:
    return PLANS[_key(weight, paired)]
