"""Building a model of which every rank keeps its share alone; no rank ever holds the whole.

Within :class:`keeping_shares` a parameter is moved to the meta device as soon as a module has it, and its
rows are kept for :func:`complete`. What initialises it afterwards is done to the rows: a random fill draws
the whole parameter, so that the numbers are those of one process, and keeps its part. What reads its values
gathers them, which all ranks do together, for all build the same. The most that lives beside the shares is
one parameter while the model is built, and what its engine takes at once while it is spread: the layers of
one group, or one parameter.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed import all_gather_into_tensor
from torch.nn.modules.module import register_module_parameter_registration_hook
from torch.utils import swap_tensors
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_unflatten

_KEY = "_vla_share"
# In place, number by number, with plain numbers as arguments.
_EACH = frozenset(
    {
        "zero_",
        "fill_",
        "mul_",
        "add_",
        "sub_",
        "div_",
        "clamp_",
        "clamp_min_",
        "clamp_max_",
        "erfinv_",
        "neg_",
    }
)
_SAME = frozenset({"detach", "alias"})


class NotByShares(Exception):
    """A model does something while it is built that its shares cannot follow."""


@dataclass(frozen=True)
class Share:
    """Rows of a tensor that this rank keeps.

    Args:
        rows: in memory of their own, or a view of another share's.
        start: index of the first.
        length: how many there are on all ranks.
        world: number of ranks; 1: ``rows`` are all; 0: of a part of a parameter, which is not gathered.
    """

    rows: Tensor
    start: int
    length: int
    world: int

    @classmethod
    def of(cls, tensor: Tensor, rank: int, world: int) -> Share:
        """Of a whole tensor; one without dims is kept by all."""
        if not tensor.ndim:
            return cls(tensor.clone().unsqueeze(0), 0, 1, 1)
        length = tensor.shape[0]
        most = -(-length // world)
        start = min(rank * most, length)
        return cls(tensor[start : start + most].clone(), start, length, world)

    def cut(self, first: int, last: int) -> Share:
        """The rows from ``first`` to before ``last``, in the same memory."""
        end = self.start + len(self.rows)
        low, high = (min(max(i, self.start), end) for i in (first, last))
        return Share(self.rows[low - self.start : high - self.start], max(low - first, 0), last - first, 0)

    def take(self, whole: Tensor) -> None:
        """Overwrite the rows with those of ``whole``."""
        self.rows.copy_(whole[self.start : self.start + len(self.rows)])

    def empty(self) -> Tensor:
        """Room for all rows."""
        return self.rows.new_empty((self.length, *self.rows.shape[1:]))

    def gathered(self, device: torch.device) -> Tensor:
        """All rows, on ``device``; called by all ranks."""
        rows = self.rows.to(device)
        if self.world == 1:
            return rows.clone()
        if not self.world:
            raise NotByShares("something reads a part of a parameter")
        most = -(-self.length // self.world)
        padded = rows.new_zeros((most, *rows.shape[1:]))
        padded[: len(rows)] = rows
        out = rows.new_empty((most * self.world, *rows.shape[1:]))
        all_gather_into_tensor(out, padded)
        return out[: self.length]


def share_of(tensor: Any) -> Share | None:
    """The share behind a parameter without memory, in the type that the parameter has by now."""
    share: Share | None = getattr(tensor, _KEY, None) if isinstance(tensor, Tensor) else None
    if share is not None and share.rows.dtype != tensor.dtype:
        share = replace(share, rows=share.rows.to(tensor.dtype))
        setattr(tensor, _KEY, share)
    return share


class keeping_shares(TorchDispatchMode):
    """Within the block modules keep shares of their parameters.

    Args:
        rank, world: which share of how many.
        device: on which the ranks exchange tensors.

    Raises:
        NotByShares: from within the block, the same on all ranks.
    """

    def __init__(self, rank: int, world: int, device: torch.device | str = "cpu") -> None:
        super().__init__()
        self.rank, self.world, self.device = rank, world, torch.device(device)

    def __enter__(self) -> keeping_shares:
        self._hook = register_module_parameter_registration_hook(self._registered)
        super().__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)
        self._hook.remove()

    def _registered(self, module: nn.Module, name: str, parameter: Any) -> None:
        if parameter is None or parameter.is_meta:
            return
        with torch.no_grad():
            share = Share.of(parameter.detach(), self.rank, self.world)
            empty = torch.empty_like(parameter, device="meta")
        _exchange(parameter, nn.Parameter(empty, requires_grad=parameter.requires_grad), share)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        leaves, tree = tree_flatten((args, kwargs))
        if not any(isinstance(leaf, Tensor) and leaf.is_meta for leaf in leaves):
            return func(*args, **kwargs)
        name = func._schema.name.removeprefix("aten::")
        first = share_of(args[0]) if args else None
        if first is not None and func._schema.is_mutable and func._schema.arguments[0].is_out is False:
            alias = func._schema.arguments[0].alias_info
            if alias is not None and alias.is_write:
                return self._written(func, name, first, args, kwargs)
        if first is not None and (view := _view(name, first, args)) is not None:
            out = func(*args, **kwargs)
            for part, share in zip(out if isinstance(out, (list, tuple)) else [out], view, strict=True):
                setattr(part, _KEY, share)
            return out
        if first is not None and name == "_to_copy" and not (kwargs.keys() - {"dtype"}):
            out = func(*args, **kwargs)
            setattr(out, _KEY, replace(first, rows=first.rows.to(out.dtype, copy=True)))
            return out
        returned = func._schema.returns
        if any(r.alias_info is not None and not r.alias_info.is_write for r in returned):
            if first is None:
                return func(*args, **kwargs)
            raise NotByShares(f"something looks at a parameter through '{name}'")
        # What has no share was meant to have no memory, as where weights are streamed in later.
        args, kwargs = tree_unflatten([self._whole(leaf) for leaf in leaves], tree)
        return func(*args, **kwargs)

    def _whole(self, leaf: Any) -> Any:
        share = share_of(leaf)
        if share is None:
            return leaf
        return share.gathered(self.device).to(share.rows.device).reshape(leaf.shape)

    def _written(self, func: Any, name: str, share: Share, args: Any, kwargs: Any) -> Any:
        rest = args[1:]
        if name == "copy_":
            source: Any = rest[0]
            source = self._whole(source)
            if source.is_meta:
                raise NotByShares("something copies a tensor without memory")
            whole = source.expand(args[0].shape)
            share.take(whole.reshape((share.length, *share.rows.shape[1:])))
        elif torch.Tag.nondeterministic_seeded in func.tags:
            whole = share.empty()
            func(whole, *rest, **kwargs)
            share.take(whole)
        elif name in _EACH and not any(isinstance(value, Tensor) for value in rest):
            func(share.rows, *rest, **kwargs)
        else:
            raise NotByShares(f"something changes a parameter by '{name}'")
        return args[0]


def _view(name: str, share: Share, args: Any) -> list[Share] | None:
    """The shares behind what a view returns; None: a view that this does not know."""
    if name in _SAME:
        return [share]
    # A row alone has a dimension less than what is kept of it.
    if args[0].ndim != share.rows.ndim or name not in ("select", "slice", "unbind"):
        return None
    dim, *where = args[1:] if len(args) > 1 else (0,)
    if name == "slice" and dim > 0:
        return [replace(share, rows=torch.ops.aten.slice(share.rows, *args[1:]), world=0)]
    if dim != 0:
        return None
    if name == "unbind":
        return [share.cut(i, i + 1) for i in range(share.length)]
    if name == "select":
        i = where[0] % share.length
        return [share.cut(i, i + 1)]
    start, stop, step = [*where, None, None, None][:3]
    if step not in (None, 1):
        return None
    low, high, _ = slice(start, stop).indices(share.length)
    return [share.cut(low, max(low, high))]


def check_complete(model: nn.Module) -> None:
    """Once a model is built.

    Raises:
        NotByShares: it has a parameter or buffer without numbers.
    """
    lost = [name for name, tensor in model.named_parameters() if tensor.is_meta and share_of(tensor) is None]
    lost += [name for name, tensor in model.named_buffers() if tensor.is_meta]
    if lost:
        raise NotByShares(f"'{lost[0]}' is left without numbers")


def complete(modules: Iterable[nn.Module], device: torch.device) -> None:
    """Give the parameters of ``modules`` their memory back, whole, on ``device``; called by all ranks."""
    for module in modules:
        for parameter in module.parameters():
            fill(parameter, device)


def fill(parameter: nn.Parameter, device: torch.device) -> None:
    """Give one parameter its memory back, if it has a share; called by all ranks."""
    share = share_of(parameter)
    if share is not None:
        whole = share.gathered(device).reshape(parameter.shape)
        _exchange(parameter, nn.Parameter(whole, requires_grad=parameter.requires_grad), None)


def _exchange(parameter: nn.Parameter, other: nn.Parameter, share: Share | None) -> None:
    """Make ``parameter`` what ``other`` is; whoever holds it, under several names, goes on to do so."""
    notes = {key: value for key, value in parameter.__dict__.items() if key != _KEY}
    swap_tensors(parameter, other)
    parameter.__dict__.update(notes)
    if share is not None:
        setattr(parameter, _KEY, share)
