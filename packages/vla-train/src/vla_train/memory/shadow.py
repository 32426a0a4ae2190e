"""One training step without numbers: what it allocates, op by op, of tensors on the meta device."""

from __future__ import annotations

import sys
import weakref
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd import Variable
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map
from vla_core.graphs import repeated_blocks

from vla_train.memory.held import Block
from vla_train.memory.same_op import SameOp

aten = torch.ops.aten
PRODUCTS = frozenset({aten.mm, aten.addmm, aten.bmm, aten.baddbmm, aten.convolution})
_LOW = frozenset(
    {F.linear, F.conv1d, F.conv2d, F.conv3d, torch.conv1d, torch.conv2d, torch.conv3d, torch.matmul}
    | {torch.bmm, torch.mm, torch.addmm, torch.baddbmm, torch.einsum, Tensor.matmul, Tensor.__matmul__}
    | {F.scaled_dot_product_attention}
)


class Ledger(TorchDispatchMode):
    """Bytes of the storages that live within the block.

    Args:
        known: tensors that are counted elsewhere.
        share: of finished gradients, what this process keeps.
    """

    def __init__(self, known: Mapping[str, Tensor], share: float) -> None:
        super().__init__()
        self.live = self.peak = self.bare = 0
        self.gradients = self.then = 0
        """Finished ones: all, and at the peak those that this process keeps."""
        self.late = self.late_then = 0
        """The most since :meth:`begin`, and of it finished gradients; 0 without."""
        self._began = False
        self.share = share
        self._same = SameOp()
        self.casts: set[int] = set()
        """Storages of weights in a lower precision, which are as large whatever the batch."""
        self.products: dict[int, int] = {}
        """Storages that matrix products, convolutions and attention made or read: 2 made, 1 read."""
        self.made = self.last = 0
        """Bytes that products made since :meth:`mark`, and the last of them."""
        self._sizes = {_key(tensor): 0 for tensor in known.values()}
        self._known = list(known.values())

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        out = self._same(func, args, kwargs or {})
        for tensor in tree_leaves(out):
            if isinstance(tensor, Tensor):
                self._hold(tensor)
        if func.overloadpacket in PRODUCTS:
            self.multiplied(out, args)
        return out

    def multiplied(self, out: Tensor, args: tuple[Any, ...]) -> None:
        """``out`` is a product of ``args``."""
        for tensor in args:
            if isinstance(tensor, Tensor):
                self.products.setdefault(_key(tensor), 1)
        self.products[_key(out)] = 2
        self.last = out.untyped_storage().nbytes()
        self.made += self.last

    def mark(self) -> None:
        """Count products anew."""
        self.made = self.last = 0

    def finished(self, parameter: Tensor) -> None:
        """A gradient is complete: of a sharded one only the share stays."""
        if parameter.grad is None:
            return
        size = self._sizes.get(_key(parameter.grad), 0)
        self._sizes[_key(parameter.grad)] = 0
        self.live -= size
        self.gradients += size
        self._high()

    def _hold(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        if storage._cdata in self._sizes:
            return
        self._sizes[storage._cdata] = storage.nbytes()
        self.live += storage.nbytes()
        self._high()
        weakref.finalize(storage, self._free, storage._cdata)

    def _free(self, key: int) -> None:
        self.live -= self._sizes.pop(key, 0)
        self.products.pop(key, None)
        self.casts.discard(key)

    def _high(self) -> None:
        self.bare = max(self.bare, self.live)
        gradients = int(self.share * self.gradients)
        if self.live + gradients > self.peak:
            self.peak, self.then = self.live + gradients, gradients
        if self._began and self.live + gradients > self.late:
            self.late, self.late_then = self.live + gradients, gradients

    def begin(self) -> None:
        """Look for the most anew."""
        self._began = True
        self.late = self.late_then = 0


def _key(tensor: Tensor) -> int:
    return tensor.untyped_storage()._cdata


class _Fused(torch.autograd.Function):
    """What a fused attention kernel keeps: its inputs, its output and a number for each query."""

    @staticmethod
    def forward(ctx: Any, ledger: Ledger, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
        """Shapes alone."""
        # Kernels lay the heads of a query side by side, so that merging them copies nothing.
        out = q.new_empty((*q.shape[:-3], q.shape[-2], q.shape[-3], v.shape[-1])).transpose(-3, -2)
        log_sums = torch.empty(q.shape[:-1], dtype=torch.float32, device=q.device)
        ctx.save_for_backward(q, k, v, out, log_sums, mask)
        ledger.multiplied(out, ())
        return out

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        """Shapes alone."""
        q, k, v, *_ = ctx.saved_tensors
        return None, torch.empty_like(q), torch.empty_like(k), torch.empty_like(v), None


class Stand(TorchFunctionMode):
    """What the meta device lacks: autocast, and attention by a kernel that keeps no scores.

    Args:
        ledger: told of attention's outputs.
        device: type of the device that the step is of.
    """

    def __init__(self, ledger: Ledger, device: str) -> None:
        super().__init__()
        self.ledger, self.device = ledger, device
        self._casts: dict[int, Tensor] | None = {}

    def leave(self) -> None:
        """Autocast is left and forgets its casts; blocks that run again make their own."""
        self._casts = None

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func in _LOW and torch.is_autocast_enabled(self.device):
            low = torch.get_autocast_dtype(self.device)
            args, kwargs = tree_map(lambda value: self._cast(value, low), (args, kwargs))
        if func is F.scaled_dot_product_attention:
            return self._attention(*args, **kwargs)
        return func(*args, **kwargs)

    def _cast(self, value: Any, low: torch.dtype) -> Any:
        if not isinstance(value, Tensor) or value.dtype != torch.float32:
            return value
        if self._casts is None or not (value.is_leaf and value.requires_grad):
            return value.to(low)
        # A weight is cast once.
        if id(value) not in self._casts:
            self._casts[id(value)] = value.to(low)
            self.ledger.casts.add(_key(self._casts[id(value)]))
        return self._casts[id(value)]

    def _attention(
        self, query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None = None, *_: Any, **__: Any
    ) -> Tensor:
        return _Fused.apply(self.ledger, query, key, value, attn_mask)


def backward(loss: Tensor) -> None:
    """``loss.backward()``, which itself would leave :class:`Stand` while blocks are computed again."""
    ones = (torch.ones_like(loss),)
    engine: Any = Variable._execution_engine
    engine.run_backward((loss,), ones, False, False, (), allow_unreachable=True, accumulate_grad=True)


class Kept:
    """The bytes that autograd keeps for a backward pass, by block; a hook of saved tensors.

    Args:
        ledger: of the same step.
        known: tensors that are counted elsewhere.
        model: whose blocks are told apart, the outermost: those it repeats, and those that may run again.
    """

    def __init__(self, ledger: Ledger, known: Mapping[str, Tensor], model: nn.Module) -> None:
        self.ledger = ledger
        repeated = repeated_blocks(model)
        self._within = {id(part) for block in repeated for part in block.modules()}
        blocks = [*repeated, *(m for m in model.modules() if id(m) not in self._within and _may_run_again(m))]
        self._of: dict[int, Block] = {}
        """Parameters -> the block whose last call reads them."""
        self._went: set[int] = set()
        self.seen = {_key(tensor) for tensor in known.values()}
        self.outside = Block()
        self.blocks: list[Block] = []
        self._block: Block | None = None
        self._depth = 0
        self.removes: list[Callable[[], None]] = []
        for block in blocks:
            self.removes.append(block.register_forward_pre_hook(self._enter).remove)
            self.removes.append(block.register_forward_hook(self._leave).remove)
        self._inside: list[tuple[int, int]] = []

    def pack(self, tensor: Tensor) -> Tensor:
        """Count."""
        if _key(tensor) not in self.seen:
            self.seen.add(_key(tensor))
            size = tensor.untyped_storage().nbytes()
            holder = self._block or self.outside
            holder.kept += size
            if _key(tensor) in self.ledger.casts:
                holder.fixed += size
            if self._block is not None:
                # What reads it is noted only after this.
                self._inside.append((_key(tensor), size))
        return tensor.detach()

    def finished(self, parameter: Tensor) -> None:
        """A gradient is complete; the first of a block tells how many were before it."""
        block = self._of.get(id(parameter))
        if block is not None and id(block) not in self._went:
            self._went.add(id(block))
            block.then = int(self.ledger.share * self.ledger.gradients)
            self.ledger.begin()
        self.ledger.finished(parameter)

    def _enter(self, module: nn.Module, args: Any) -> None:
        self._depth += 1
        if self._depth == 1 and torch.is_grad_enabled():
            given = [a for a in tree_leaves(args) if isinstance(a, Tensor) and a.requires_grad]
            size = sum(a.untyped_storage().nbytes() for a in given)
            self._block = Block(
                given=size,
                before=self.outside.kept,
                may_run_again=_may_run_again(module),
                alone=id(module) not in self._within,
            )
            self._of.update((id(p), self._block) for p in module.parameters())
            self.ledger.mark()

    def _leave(self, module: nn.Module, args: Any, out: Any) -> None:
        self._depth -= 1
        if self._depth == 0 and self._block is not None:
            self._block.made = self.ledger.made - self.ledger.last
            products = self.ledger.products
            self._block.read = sum(size for key, size in self._inside if products.get(key) == 1)
            self._inside = []
            self.blocks.append(self._block)
            self._block = None


def _may_run_again(module: nn.Module) -> bool:
    """Whether gradient checkpointing is left to switch on."""
    # Where transformers is not imported, which takes seconds, no module is its.
    layers = sys.modules.get("transformers.modeling_layers")
    return layers is not None and (
        isinstance(module, layers.GradientCheckpointingLayer) and not module.gradient_checkpointing
    )
