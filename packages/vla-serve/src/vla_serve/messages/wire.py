"""Requests with raw images, serialised in one copy.

Serialised messages concatenate: parsing ``a + b`` merges ``b`` into ``a``, map entries and
submessages included. So protobuf writes all that is small, and the pixels go straight from the arrays
into the request instead of through two messages: 0.2 ms less for 2 x 224 x 224.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vla_serve.v1 import policy_pb2 as pb
from vla_serve.v1 import types_pb2 as types_pb

_OBSERVATION: int = pb.PredictRequest.DESCRIPTOR.fields_by_name["observation"].number
_ITEMS: int = pb.PredictBatchRequest.DESCRIPTOR.fields_by_name["items"].number
_IMAGES: int = types_pb.Observation.DESCRIPTOR.fields_by_name["images"].number
_DATA: int = types_pb.Image.DESCRIPTOR.fields_by_name["data"].number
_KEY, _VALUE = 1, 2  # of every map entry


def _varint(value: int) -> bytes:
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def _head(number: int, size: int) -> bytes:
    """Of a field of ``size`` bytes."""
    return _varint(number << 3 | 2) + _varint(size)


@lru_cache(maxsize=64)
def _before_pixels(name: str, height: int, width: int) -> bytes:
    """All of a camera's entry but the pixels at its end: the same in each request."""
    pixels = height * width * 3
    image = types_pb.Image(encoding=types_pb.IMAGE_ENCODING_RAW, height=height, width=width)
    value = image.SerializeToString() + _head(_DATA, pixels)
    text = name.encode()
    entry = _head(_KEY, len(text)) + text + _head(_VALUE, len(value) + pixels) + value
    return _head(_IMAGES, len(entry) + pixels) + entry


def serialise_batch(session_id: str, items: Sequence[bytes]) -> bytes:
    """The bytes of a PredictBatchRequest of serialised PredictRequests."""
    pieces = [pb.PredictBatchRequest(session_id=session_id).SerializeToString()]
    for item in items:
        pieces += _head(_ITEMS, len(item)), item
    return b"".join(pieces)


def serialise(request: pb.PredictRequest, raw_images: Mapping[str, NDArray[np.uint8]]) -> bytes:
    """The bytes of ``request`` with uint8 ``[H, W, 3]`` images added to its observation as RAW."""
    pieces: list[Any] = []
    total = 0
    for name, image_HWC in raw_images.items():
        before = _before_pixels(name, *image_HWC.shape[:2])
        pieces += before, np.ascontiguousarray(image_HWC)
        total += len(before) + image_HWC.nbytes
    if pieces:
        pieces.insert(0, _head(_OBSERVATION, total))
    return b"".join([request.SerializeToString(), *pieces])
