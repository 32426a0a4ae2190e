"""Shapes of operations on the meta device, found once: a model's blocks do the same again and again.

torch finds most of them in Python, a sum or a product of two tensors in a tenth of a millisecond and more.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
from torch import Tensor, nn

Described = tuple[tuple[int, ...], tuple[int, ...], torch.dtype]
PLAIN = (int, float, bool, str, type(None), torch.dtype, torch.device, torch.layout, torch.memory_format)


class SameOp:
    """Calls an operation, or makes tensors as it made of tensors like these."""

    def __init__(self) -> None:
        self._known: dict[Any, tuple[bool, list[Described | None]]] = {}

    def __call__(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """What ``func`` returns, without numbers."""
        key = _key(func, args, kwargs) if _makes_anew(func) else None
        if key is None:
            return func(*args, **kwargs)
        if key in self._known:
            several, made = self._known[key]
            outs = [
                each and torch.empty_strided(each[0], each[1], dtype=each[2], device="meta") for each in made
            ]
            return tuple(outs) if several else outs[0]
        out = func(*args, **kwargs)
        described = [_described(each) for each in (out if isinstance(out, tuple) else (out,))]
        if False not in described:
            self._known[key] = isinstance(out, tuple), described
        return out


@cache
def _makes_anew(func: Any) -> bool:
    """Whether an operation reads its arguments and returns tensors in memory of their own."""
    schema = func._schema
    return not any(each.alias_info for each in (*schema.arguments, *schema.returns))


def _described(out: Any) -> Any:
    """Shape, strides and type of a tensor with memory of its own; None as it is; False: anything else."""
    if out is None:
        return None
    if type(out) is not Tensor or out.device.type != "meta":
        return False
    described = tuple(out.shape), out.stride(), out.dtype
    again = torch.empty_strided(*described[:2], dtype=out.dtype, device="meta")
    same = again.untyped_storage().nbytes() == out.untyped_storage().nbytes()
    return described if same else False


def _key(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """What the result's shape depends on; None: what is not known here."""
    key: list[Any] = [func]
    for value in (*args, *kwargs.items()) if kwargs else args:
        if not _add(key, value):
            return None
    return tuple(key)


def _add(key: list[Any], value: Any) -> bool:
    kind = type(value)
    if kind is Tensor or kind is nn.Parameter:
        key += (value.shape, value.stride(), value.dtype, value.device)
        return not value.is_complex()
    if kind is list or kind is tuple:
        key += (kind, len(value))
        return all(_add(key, each) for each in value)
    key += (kind, value)  # 1, 1.0 and True are equal, and promote differently
    return isinstance(value, PLAIN)
