"""Batches of loader workers come back in shared memory that is used again.

PyTorch sends every tensor of a batch in a new file of shared memory, whose pages the kernel must find, clear
and map in both processes: about 1 ms a MB, more than copying costs. Here a worker keeps a few places, each of
which holds one batch; a place is written anew once nothing on the training side refers to the batch that
lies in it.
"""

from __future__ import annotations

import io
import itertools
import os
import pickle
import weakref
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import get_worker_info

PLACES = 8
"""Most places of a worker; it makes as many as are in use at once."""
_ALIGN = 64
_ROOM = 1.25
"""A place is larger than the first batch in it: prompts differ in length."""
_OPEN: weakref.WeakValueDictionary[int, Recycled] = weakref.WeakValueDictionary()
_KEYS = itertools.count()


@dataclass
class _Shared:
    """What a worker and the training side both see.

    Args:
        taken: ``[PLACES]`` bytes; the worker writes 1, the training side 0.
        places: bytes of each, by number.
    """

    taken: Tensor
    places: dict[int, Tensor] = field(default_factory=dict)


class Recycled:
    """A ``collate_fn`` whose batches travel in recycled shared memory; any structure, bit by bit the same.

    A batch stays what it is for as long as any tensor of it, or a view of one, is alive: its place is used
    again only then. Where all places are taken, because batches are kept, the next travel in PyTorch's way.
    Without workers it is ``collate`` alone.

    Args:
        collate: samples to a batch; it should not make shared tensors itself, as
            ``torch.utils.data.default_collate`` does in a worker.
    """

    def __init__(self, collate: Callable[[Any], Any]) -> None:
        self.collate, self.key = collate, next(_KEYS)
        self._sender: _Sender | None = None
        self._workers: dict[int, tuple[int, _Shared]] = {}
        _OPEN[self.key] = self

    def __reduce__(self) -> tuple[Any, ...]:
        # To a worker that is started afresh; one that is forked has the object itself.
        return _copy, (self.collate, self.key)

    def __call__(self, samples: Any) -> Any:
        batch, worker = self.collate(samples), get_worker_info()
        if worker is None:
            return batch
        if self._sender is None or self._sender.pid != os.getpid():
            self._sender = _Sender(self.key, worker.id)
        return self._sender.send(batch)

    def receive(self, worker: int, pid: int, place: int, new: _Shared | None, data: bytes) -> Any:
        """The batch that ``worker`` wrote; ``new``: shared memory that comes for the first time."""
        known, shared = self._workers.get(worker, (-1, None))
        if known != pid or shared is None:
            assert new is not None
            shared = _Shared(new.taken)
            self._workers[worker] = (pid, shared)
        if new is not None:
            shared.places.update(new.places)
        # The array is what all tensors of the batch hold on to, and nothing else does.
        array = shared.places[place].numpy()[:]
        freed = weakref.finalize(array, _free, shared.taken, place, os.getpid())
        freed.atexit = False
        return _Unpickler(io.BytesIO(data), torch.from_numpy(array)).load()


def _copy(collate: Callable[[Any], Any], key: int) -> Recycled:
    made = Recycled.__new__(Recycled)
    made.collate, made.key, made._sender, made._workers = collate, key, None, {}
    return made


def _free(taken: Tensor, place: int, owner: int) -> None:
    # A forked child has copies of the batches of its parent; that it drops them says nothing.
    if os.getpid() == owner:
        taken[place] = 0


def _receive(key: int, *sent: Any) -> Any:
    return _OPEN[key].receive(*sent)


class _Sender:
    """A worker's side."""

    def __init__(self, key: int, worker: int) -> None:
        self.key, self.worker, self.pid = key, worker, os.getpid()
        self.shared = _Shared(torch.zeros(PLACES, dtype=torch.uint8).share_memory_())
        self._told = False

    def send(self, batch: Any) -> Any:
        """Something that is pickled into the batch, or the batch itself where no place is free."""
        free = [number for number, taken in enumerate(self.shared.taken.tolist()) if not taken]
        if not free:
            return batch
        number, file = free[0], io.BytesIO()
        pickler = _Pickler(file)
        pickler.dump(batch)
        place, new = self.shared.places.get(number), None
        if place is None or len(place) < pickler.size:
            place = torch.empty(int(pickler.size * _ROOM) + 1, dtype=torch.uint8).share_memory_()
            self.shared.places[number] = place
            new = _Shared(self.shared.taken, {number: place})
        self.shared.taken[number] = 1
        for start, tensor in pickler.tensors:
            place[start : start + tensor.nbytes].view(tensor.dtype).view(tensor.shape).copy_(tensor)
        return _Sent((self.key, self.worker, self.pid, number, new, file.getvalue()))


class _Sent:
    """A batch on its way: what the queue unpickles is the batch."""

    def __init__(self, what: tuple[Any, ...]) -> None:
        self.what = what

    def __reduce__(self) -> tuple[Any, ...]:
        return _receive, self.what


class _Pickler(pickle.Pickler):
    """Puts tensors aside, and notes where they will lie."""

    def __init__(self, file: io.BytesIO) -> None:
        super().__init__(file, pickle.HIGHEST_PROTOCOL)
        self.size, self.tensors = 0, list[tuple[int, Tensor]]()

    def persistent_id(self, obj: Any) -> Any:
        if type(obj) is not Tensor or obj.device.type != "cpu" or obj.layout != torch.strided:
            return None
        if obj.requires_grad or not obj.numel():
            return None
        start = self.size
        self.tensors.append((start, obj))
        self.size += -(-obj.nbytes // _ALIGN) * _ALIGN
        return start, obj.nbytes, obj.dtype, tuple(obj.shape)


class _Unpickler(pickle.Unpickler):
    """Tensors are views of ``place``."""

    def __init__(self, file: io.BytesIO, place: Tensor) -> None:
        super().__init__(file)
        self.place = place

    def persistent_load(self, pid: Any) -> Tensor:
        start, size, dtype, shape = pid
        return self.place[start : start + size].view(dtype).view(shape)
