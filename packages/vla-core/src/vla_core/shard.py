"""What an engine that spreads parameters over processes gathers and frees as one.

Most of a model's parameters lie in layers that are run one after another. Each such layer inherits
:class:`ShardUnit` (or is made one by :func:`mark`), and is used through its ``forward`` alone: what is called
apart from a layer, such as a projection of something that many steps share, is a unit of its own inside it.
What is in no unit belongs to the whole model. ``fully_shard`` wants inner units first::

    for module in shard_units(model):
        fully_shard(module)
    fully_shard(model)
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import nn


class ShardUnit:
    """Mixed into an ``nn.Module`` whose parameters are gathered and freed together, around its forward."""


def mark(modules: Iterable[nn.Module]) -> None:
    """Make units of modules whose class is somebody else's, in place; names, weights and hooks stay."""
    for module in modules:
        if not isinstance(module, ShardUnit):
            module.__class__ = _unit_of(module.__class__)


def shard_units(model: nn.Module) -> list[nn.Module]:
    """The units of a model that have parameters, inner ones before those that hold them."""
    found: list[nn.Module] = [m for m in model.modules() if isinstance(m, ShardUnit)]
    return [m for m in found[::-1] if any(True for _ in m.parameters())]


_SOMEWHERE: ContextVar[Callable[[bool], bool]] = ContextVar("somewhere", default=bool)


@contextmanager
def in_step(somewhere: Callable[[bool], bool]) -> Iterator[None]:
    """A block in which each use of a unit is the work of all processes, so that all use it equally often.

    Args:
        somewhere: whether what is given holds on some process; all ask, and wait for each other.
    """
    token = _SOMEWHERE.set(somewhere)
    try:
        yield
    finally:
        _SOMEWHERE.reset(token)


def goes_on(here: bool) -> bool:
    """Whether a loop over units goes on whose length depends on the data: here, or where others wait."""
    return _SOMEWHERE.get()(here)


_UNITS: dict[Any, Any] = {}


def _unit_of(cls: type[nn.Module]) -> Any:
    if cls not in _UNITS:

        def reduce(self: Any, protocol: Any) -> tuple[Any, tuple[type], dict[str, Any]]:
            return _again, (cls,), self.__dict__

        # The name stays: others find layers by it. Copies and pickles find the class by what it was made of.
        body = {"__module__": cls.__module__, "__reduce_ex__": reduce}
        _UNITS[cls] = type(cls.__name__, (ShardUnit, cls), body)
    return _UNITS[cls]


def _again(cls: type[nn.Module]) -> Any:
    unit = _unit_of(cls)
    return unit.__new__(unit)
