"""msgpack with numpy arrays, as openpi, StarVLA and vla-eval write them. No pickle, no trust.

An array is a map: openpi and StarVLA use byte strings as its keys, vla-eval texts. Shapes: H, W image size.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import Any

import msgpack
import numpy as np
from numpy.typing import NDArray
from vla_core.errors import UserError

from vla_serve.messages.codec import decode_image
from vla_serve.v1 import types_pb2 as pb

_DTYPE = re.compile(r"[<>|=]?(b1|[iu][1248]|f[248])")
_FORMATS = {"png": pb.IMAGE_ENCODING_PNG, "jpeg": pb.IMAGE_ENCODING_JPEG}


@dataclass(frozen=True)
class EncodedImage:
    """A picture that is still a file: it is unpacked once somebody knows how large it may be."""

    data: bytes
    encoding: Any

    def decode(self, height: int, width: int, field: str) -> NDArray[np.uint8]:
        """uint8 ``[height, width, 3]``; FieldError when it is anything else."""
        message = pb.Image(encoding=self.encoding, height=height, width=width, data=self.data)
        return decode_image(message, height, width, field)


def unpack(data: bytes) -> Any:
    """The content of a message.

    Raises:
        UserError: it is no msgpack, or holds what is no array of numbers.
    """
    try:
        return msgpack.unpackb(data, object_hook=_decoded, raw=False, strict_map_key=True)
    except UserError:
        raise
    except (ValueError, msgpack.UnpackException) as error:
        raise UserError(f"the message is no readable msgpack ({type(error).__name__}: {error})") from None


def pack(content: Any, text_keys: bool = False) -> bytes:
    """A message; arrays with byte strings as keys, or with texts."""
    packed: bytes = msgpack.packb(content, default=_as_text if text_keys else _as_bytes, use_bin_type=True)
    return packed


def _decoded(value: dict[Any, Any]) -> Any:
    if b"__ndarray__" in value:
        return _array(value.get(b"data"), value.get(b"dtype"), value.get(b"shape"))
    if b"__npgeneric__" in value:
        kind = _dtype(value.get(b"dtype"))
        number = value.get(b"data")
        if not isinstance(number, (bool, int, float)):
            raise UserError("a numpy scalar holds no number")
        if kind.kind in "iu" and not np.iinfo(kind).min <= number <= np.iinfo(kind).max:  # NaN neither
            raise UserError(f"a numpy scalar of {kind.name} holds {number}")
        return np.asarray(number).astype(kind)[()]
    if "__ndarray__" in value:
        return _array(value.get("data"), value.get("dtype"), value.get("shape"))
    if "__image__" in value:
        if value.get("format") == "raw":
            return _array(value.get("data"), value.get("dtype"), value.get("shape"))
        encoding = _FORMATS.get(str(value.get("format")))
        if encoding is None or not isinstance(value.get("data"), bytes):
            raise UserError(f"an image has the format {value.get('format')!r}, known: raw, png, jpeg")
        return EncodedImage(value["data"], encoding)
    return value


def _dtype(name: Any) -> np.dtype[Any]:
    if isinstance(name, bytes):
        name = name.decode("ascii", "replace")
    if not isinstance(name, str) or _DTYPE.fullmatch(name) is None:
        raise UserError(f"an array has the dtype {name!r}, expected bool, integers or floats")
    return np.dtype(name)


def _array(data: Any, name: Any, shape: Any) -> NDArray[Any]:
    kind = _dtype(name)
    if not isinstance(data, bytes) or not isinstance(shape, (list, tuple)) or len(shape) > 8:
        raise UserError("an array has no bytes or no shape")
    if not all(isinstance(size, int) and 0 <= size < 2**31 for size in shape):
        raise UserError(f"an array has the shape {list(shape)}")
    if math.prod(shape) * kind.itemsize != len(data):
        raise UserError(f"an array of {kind.name} {list(shape)} has {len(data)} bytes")
    return np.frombuffer(data, kind).reshape(tuple(shape))


def _as_bytes(value: Any) -> Any:
    if isinstance(value, np.ndarray):
        return {
            b"__ndarray__": True,
            b"data": value.tobytes(),
            b"dtype": value.dtype.str,
            b"shape": value.shape,
        }
    raise TypeError(f"{type(value).__name__} cannot be sent")


def _as_text(value: Any) -> Any:
    if isinstance(value, np.ndarray):
        return {
            "__ndarray__": True,
            "data": value.tobytes(),
            "dtype": value.dtype.str,
            "shape": list(value.shape),
        }
    raise TypeError(f"{type(value).__name__} cannot be sent")
