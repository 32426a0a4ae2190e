"""Requests with raw images, serialised in one copy.

Serialised messages concatenate: parsing ``a + b`` merges ``b`` into ``a``, map entries and
submessages included. So protobuf writes all that is small, and the pixels go straight from the arrays
into the request instead of through two messages: 0.2 ms less for 2 x 224 x 224.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
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


def _field(number: int, parts: list[Any], size: int) -> tuple[list[Any], int]:
    """The parts of a length-delimited field and their size in bytes."""
    head = _varint(number << 3 | 2) + _varint(size)
    return [head, *parts], len(head) + size


def serialise_batch(session_id: str, items: Sequence[bytes]) -> bytes:
    """The bytes of a PredictBatchRequest of serialised PredictRequests."""
    pieces: list[Any] = [pb.PredictBatchRequest(session_id=session_id).SerializeToString()]
    for item in items:
        field, _ = _field(_ITEMS, [item], len(item))
        pieces += field
    return b"".join(pieces)


def serialise(request: pb.PredictRequest, raw_images: Mapping[str, NDArray[np.uint8]]) -> bytes:
    """The bytes of ``request`` with uint8 ``[H, W, 3]`` images added to its observation as RAW."""
    pieces: list[Any] = []
    total = 0
    for name, image_HWC in raw_images.items():
        height, width = image_HWC.shape[:2]
        small = types_pb.Image(
            encoding=types_pb.IMAGE_ENCODING_RAW, height=height, width=width
        ).SerializeToString()
        data, size = _field(_DATA, [np.ascontiguousarray(image_HWC)], image_HWC.nbytes)
        value, value_size = _field(_VALUE, [small, *data], len(small) + size)
        text = name.encode()
        key, key_size = _field(_KEY, [text], len(text))
        entry, entry_size = _field(_IMAGES, [*key, *value], key_size + value_size)
        pieces += entry
        total += entry_size
    if pieces:
        pieces, _ = _field(_OBSERVATION, pieces, total)
    return b"".join([request.SerializeToString(), *pieces])
