"""Tensors and images to and from their messages. Little-endian bytes, never a pickle.

Decoding trusts nothing: sizes are compared before anything is allocated, and every error is a
:class:`FieldError` that names the field. Decoded arrays are read-only views of the message where
possible. Shapes: H, W image size in pixels.
"""

from __future__ import annotations

import io
import math
import sys
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray
from PIL import Image as PILImage
from vla_core.errors import UserError, suggest

from vla_serve.engine.errors import FieldError
from vla_serve.v1 import types_pb2 as pb

__all__ = [
    "Encoding",
    "FieldError",
    "as_array",
    "check_encoding",
    "decode_image",
    "decode_tensor",
    "encode_image",
    "encode_tensor",
]

Encoding = Literal["raw", "png", "jpeg"]

JPEG_QUALITY = 95
MAX_AXES = 8
_ORIENTATION, _TURNED = 0x0112, range(2, 9)
"""Where EXIF says how to hold a picture, and what asks for a turn: cameras write 0 for none too."""

_DTYPES: dict[pb.Dtype, np.dtype[Any]] = {
    pb.DTYPE_BOOL: np.dtype("?"),
    pb.DTYPE_UINT8: np.dtype("u1"),
    pb.DTYPE_INT32: np.dtype("<i4"),
    pb.DTYPE_INT64: np.dtype("<i8"),
    pb.DTYPE_FLOAT16: np.dtype("<f2"),
    pb.DTYPE_FLOAT32: np.dtype("<f4"),
    pb.DTYPE_FLOAT64: np.dtype("<f8"),
}
_CODES = {dtype: code for code, dtype in _DTYPES.items()}
_ENCODINGS = {
    "raw": pb.IMAGE_ENCODING_RAW,
    "png": pb.IMAGE_ENCODING_PNG,
    "jpeg": pb.IMAGE_ENCODING_JPEG,
}
_FILE_FORMATS = {pb.IMAGE_ENCODING_PNG: "PNG", pb.IMAGE_ENCODING_JPEG: "JPEG"}


def as_array(value: Any, field: str) -> NDArray[Any]:
    """What a user gave for an array.

    Raises:
        FieldError: it is none: a ragged list, or a tensor that numpy cannot read where it is.
    """
    try:
        return np.asarray(value)
    except ValueError:
        raise FieldError(field, "a ragged list, expected an array") from None
    except (TypeError, RuntimeError) as error:  # of torch's tensors
        reason = " ".join(str(error).split())[:120]
        raise FieldError(field, f"a {type(value).__name__} that is no array ({reason})") from None


def encode_tensor(array: NDArray[Any], field: str = "tensor") -> pb.Tensor:
    """A message of any bool, uint8, int32/64 or float16/32/64 array, whatever its byte order and strides."""
    array = np.asarray(array)
    if array.ndim > MAX_AXES:
        raise FieldError(field, f"has {array.ndim} axes, at most {MAX_AXES} can be sent")
    code = _CODES.get(array.dtype)
    if code is None:
        dtype = array.dtype.newbyteorder("<")
        code = _CODES.get(dtype)
        if code is None:
            known = ", ".join(d.name for d in _CODES)
            raise FieldError(field, f"dtype {array.dtype} cannot be sent (known: {known})")
        array = array.astype(dtype)
    return pb.Tensor(dtype=code, shape=array.shape, data=array.tobytes())


def decode_tensor(message: pb.Tensor, field: str = "tensor") -> NDArray[Any]:
    """The array of a message: read-only, native byte order."""
    dtype = _DTYPES.get(message.dtype)
    if dtype is None:
        raise FieldError(field, f"unknown dtype {int(message.dtype)}")
    shape = tuple(message.shape)
    if len(shape) > MAX_AXES or any(size < 0 for size in shape):
        raise FieldError(field, f"shape {list(shape)[:MAX_AXES]} must have at most {MAX_AXES} axes, all >= 0")
    expected, data = math.prod(shape) * dtype.itemsize, message.data  # every access copies
    if len(data) != expected:
        raise FieldError(field, f"{dtype.name} {list(shape)} needs {expected} bytes, got {len(data)}")
    if any(size > sys.maxsize for size in shape) or _too_large(shape):
        raise FieldError(field, f"shape {list(shape)} is larger than any array")
    if dtype.kind == "b" and data.strip(b"\x00\x01"):
        raise FieldError(field, "bool bytes must be 0 or 1")
    array = np.frombuffer(data, dtype).reshape(shape)
    return array if sys.byteorder == "little" else array.astype(dtype.newbyteorder("="))


def _too_large(shape: tuple[int, ...]) -> bool:
    # numpy multiplies the non-zero sizes of an empty array too, and refuses an overflow.
    return math.prod(size for size in shape if size) > 2**40


def encode_image(
    image_HWC: NDArray[np.uint8],
    encoding: Encoding = "raw",
    field: str = "image",
    into: pb.Image | None = None,
) -> pb.Image:
    """A message of a uint8 RGB image ``[H, W, 3]``; jpeg is lossy (quality 95, no chroma subsampling).

    ``into`` is filled and returned instead of a new message: a submessage is assigned by copy, and
    an image is worth not copying.
    """
    image_HWC = np.asarray(image_HWC)
    if image_HWC.dtype != np.uint8 or image_HWC.ndim != 3 or image_HWC.shape[2] != 3 or 0 in image_HWC.shape:
        raise FieldError(field, f"expected uint8 [H, W, 3], got {image_HWC.dtype} {list(image_HWC.shape)}")
    height, width = image_HWC.shape[:2]
    check_encoding(encoding)
    if encoding == "raw":
        data = image_HWC.tobytes()
    else:
        buffer = io.BytesIO()
        picture = PILImage.fromarray(np.ascontiguousarray(image_HWC))
        if encoding == "png":
            picture.save(buffer, "PNG", compress_level=1)
        else:
            picture.save(buffer, "JPEG", quality=JPEG_QUALITY, subsampling=0)
        data = buffer.getvalue()
    message = pb.Image() if into is None else into
    message.encoding = _ENCODINGS[encoding]
    message.height, message.width, message.data = height, width, data
    return message


def check_encoding(encoding: str) -> None:
    """Raise :class:`UserError` unless ``encoding`` is a known one."""
    if encoding not in _ENCODINGS:
        raise UserError(f"encoding: unknown '{encoding}'{suggest(encoding, get_args(Encoding))}")


def decode_image(message: pb.Image, height: int, width: int, field: str = "image") -> NDArray[np.uint8]:
    """The uint8 RGB image ``[height, width, 3]`` of a message; any other size is an error."""
    if (message.height, message.width) != (height, width):
        raise FieldError(field, f"expected {height} x {width}, got {message.height} x {message.width}")
    if message.encoding == pb.IMAGE_ENCODING_RAW:
        expected, data = height * width * 3, message.data  # every access copies
        if len(data) != expected:
            raise FieldError(field, f"{height} x {width} RAW needs {expected} bytes, got {len(data)}")
        return np.frombuffer(data, np.uint8).reshape(height, width, 3)
    kind = _FILE_FORMATS.get(message.encoding)
    if kind is None:
        raise FieldError(field, f"unknown encoding {int(message.encoding)}")
    return _decode_file(message.data, kind, height, width, field)


def _decode_file(data: bytes, kind: str, height: int, width: int, field: str) -> NDArray[np.uint8]:
    if kind == "PNG":
        data = _pixels_of_png(data)
    try:
        # Only the header is read here, so that a file that would unpack to gigabytes never does.
        picture = PILImage.open(io.BytesIO(data), formats=[kind])
        if picture.size != (width, height):
            raise FieldError(field, f"the {kind} holds {picture.size[1]} x {picture.size[0]}")
        if picture.mode != "RGB":
            raise FieldError(field, f"the {kind} has mode {picture.mode}, expected 8-bit RGB")
        if picture.getexif().get(_ORIENTATION) in _TURNED:
            raise FieldError(
                field, f"the {kind}'s EXIF asks to turn it; send the pixels as they are to be seen"
            )
        picture.load()
    except FieldError:
        raise
    except (OSError, ValueError, SyntaxError, PILImage.DecompressionBombError) as error:
        raise FieldError(field, f"not a readable {kind} file") from error
    return np.asarray(picture)


def _pixels_of_png(data: bytes) -> bytes:
    """The file without its texts, profiles and further frames: a few kB of those can unpack to gigabytes."""
    out, at = [data[:8]], 8
    while at + 12 <= len(data):
        size = int.from_bytes(data[at : at + 4], "big")
        if data[at + 4 : at + 8] in (b"IHDR", b"PLTE", b"IDAT", b"IEND"):
            out.append(data[at : at + 12 + size])
        at += 12 + size
    return b"".join(out)
