"""Per-view features of cameras that stand still, kept under keys that the caller gives.

Shape legend: B rows, V views, M = B V images, H, W pixels.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from threading import Lock
from typing import Any, cast

import torch
from torch import Tensor, nn
from vla_core.batch import Cameras
from vla_core.errors import ConfigError, UserError

Parts = tuple[Tensor, ...]
Slot = tuple[str, torch.dtype | None]


@dataclass
class Entry:
    """Features of one image; ``ready`` tells other streams when they are written (None off a GPU)."""

    parts: Parts
    ready: torch.cuda.Event | None


class ViewCache(nn.Module):
    """Least recently used features of single images, at most ``mib`` MiB of them.

    What is kept is the output of an encoder's per-view stage, which depends on the image and the frozen
    weights alone. Intrinsics, missing views and the other views enter after it and are computed afresh
    every time, so nothing else can be out of date. A key stands for one picture: whoever reuses it
    vouches that the camera has not moved and that what it sees has not changed; the image that comes
    with a known key is not looked at. Images without a key are never kept.

    Moving the encoder, changing its dtype or loading weights empties the cache; a copy starts empty.
    It holds no parameters, so checkpoints do not know of it.
    """

    def __init__(self, mib: int) -> None:
        super().__init__()
        self.max_bytes = mib * 2**20
        self.hits = self.misses = 0
        self._entries: OrderedDict[Slot, Entry] = OrderedDict()
        self._bytes, self._lock = 0, Lock()

    def __len__(self) -> int:
        return len(self._entries)

    @property
    def bytes(self) -> int:
        """Bytes of the features kept."""
        return self._bytes

    def clear(self) -> None:
        """Forget everything."""
        with self._lock:
            self._entries.clear()
            self._bytes = 0

    def forward(
        self, images_M3HW: Tensor, keys: Sequence[str | None], encode: Callable[[Tensor], Parts]
    ) -> Parts:
        """What ``encode(images)`` gives (tensors ``[M, ...]``), of known keys without computing it.

        When no key is known this is ``encode(images)`` bit for bit, and a known key gives bit for bit what
        was kept; images that are encoded in a smaller group may round differently, as in any smaller batch.

        Raises:
            UserError: features of one image are larger than the whole cache.
            ValueError: within the capture of a CUDA graph, whose replays would look nothing up.
        """
        if images_M3HW.is_cuda and torch.cuda.is_current_stream_capturing():
            raise ValueError("cameras.view_keys cannot be given while a CUDA graph is captured")
        device = images_M3HW.device.type
        # Autocast changes the features, so those of one mode are not those of another.
        mode = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else None
        slots = [None if key is None else (key, mode) for key in keys]
        rows: list[Parts | None] = [None if slot is None else self._get(slot) for slot in slots]
        first: dict[Slot, int] = {}
        todo = [
            i
            for i, slot in enumerate(slots)
            if rows[i] is None and (slot is None or first.setdefault(slot, i) == i)
        ]
        if len(todo) == len(rows):
            made = encode(images_M3HW)
        elif todo:
            made = encode(torch.stack([images_M3HW[i] for i in todo]))
        for place, i in enumerate(todo):
            rows[i] = tuple(part[place] for part in made)
        for slot, i in first.items():
            self._put(slot, rows[i])
        if len(todo) == len(rows):
            return made
        filled = [rows[i if slot is None else first.get(slot, i)] for i, slot in enumerate(slots)]
        return tuple(torch.stack(parts) for parts in zip(*cast("list[Parts]", filled), strict=True))

    def _get(self, slot: Slot) -> Parts | None:
        with self._lock:
            entry = self._entries.get(slot)
            self.hits, self.misses = self.hits + (entry is not None), self.misses + (entry is None)
            if entry is None:
                return None
            self._entries.move_to_end(slot)
        if entry.ready is not None:
            stream = torch.cuda.current_stream(entry.parts[0].device)
            stream.wait_event(entry.ready)
            for part in entry.parts:
                part.record_stream(stream)
        return entry.parts

    def _put(self, slot: Slot, row: Parts | None) -> None:
        assert row is not None
        size = sum(part.numel() * part.element_size() for part in row)
        if size > self.max_bytes:
            raise UserError(
                f"geometry.cache_mib: {self.max_bytes // 2**20} MiB hold less than the features of one image "
                f"({size / 2**20:.1f} MiB); raise it, or set it to 0 and give no view keys"
            )
        # A copy, or the entry would hold the features of the whole batch.
        parts, ready = tuple(part.detach().clone() for part in row), None
        if parts[0].is_cuda:
            ready = torch.cuda.Event()
            ready.record(torch.cuda.current_stream(parts[0].device))
        with self._lock:
            old = self._entries.pop(slot, None)
            if old is not None:  # another thread was faster
                self._bytes -= size
            while self._bytes + size > self.max_bytes:
                _, oldest = self._entries.popitem(last=False)
                self._bytes -= sum(part.numel() * part.element_size() for part in oldest.parts)
            self._entries[slot] = Entry(parts, ready)
            self._bytes += size

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> ViewCache:
        self.clear()
        return super()._apply(fn, recurse)

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        self.clear()
        super()._load_from_state_dict(*args, **kwargs)

    def __deepcopy__(self, memo: dict[int, Any]) -> ViewCache:
        return ViewCache(self.max_bytes // 2**20)

    def __reduce__(self) -> tuple[type, tuple[int]]:
        return ViewCache, (self.max_bytes // 2**20,)


def check_cache(cache_mib: int, trainable: bool) -> None:
    """Raise :class:`ConfigError` unless the cache can be kept up to date.

    Raises:
        ConfigError: for an encoder whose weights change.
    """
    if cache_mib and trainable:
        raise ConfigError(
            f"geometry.cache_mib: {cache_mib} is for a frozen encoder, whose features stay what they are; "
            "set geometry.trainable to false, or geometry.cache_mib to 0"
        )


def encode_views(
    cache: ViewCache | None, images: Tensor, cameras: Cameras | None, see: Callable[[Tensor], Parts]
) -> Parts:
    """The per-view stage ``see`` on ``[B, V, 3, H, W]``, through the cache where keys are given.

    Returns:
        What ``see`` gives for ``[M, 3, H, W]``, with ``[B, V]`` in place of M.

    Raises:
        UserError: another number of keys than images, a key that is no text, or no cache to use them.
    """
    b, v = images.shape[:2]
    flat, keys = images.flatten(0, 1), None if cameras is None else cameras.view_keys
    if keys is None:
        parts = see(flat)
    elif cache is None:
        raise UserError("cameras.view_keys: given, but geometry.cache_mib is 0; set it to the MiB to spend")
    else:
        parts = cache(flat, _checked(keys, b, v), see)
    return tuple(part.unflatten(0, (b, v)) for part in parts)


def _checked(keys: Sequence[Sequence[str | None]], rows: int, views: int) -> list[str | None]:
    if len(keys) != rows or any(len(row) != views for row in keys):
        raise UserError(
            f"cameras.view_keys: rows of {[len(row) for row in keys]} keys must be {rows} rows of {views}, "
            "as the images (None for an image without a key)"
        )
    flat = [key for row in keys for key in row]
    for key in flat:
        if key is not None and (not isinstance(key, str) or not key):
            raise UserError(f"cameras.view_keys: {key!r} must be a text that is not empty, or None")
    return flat
