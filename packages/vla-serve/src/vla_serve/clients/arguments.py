"""What a user passes, checked where it is passed: an error of ours that names the argument."""

from __future__ import annotations

import math
import numbers
import operator
from collections.abc import Iterable, Mapping
from typing import Any

from vla_core.errors import UserError
from vla_core.types import Observation

from vla_serve.clients.errors import PolicyClientError

LONGEST_S = 1e9
"""gRPC takes a deadline that its clock cannot hold for one that has passed."""


def wrong(field: str, description: str) -> PolicyClientError:
    """The error for an argument that is wrong and would be wrong again."""
    return PolicyClientError(f"{field}: {description}", {field: description})


def text(value: Any, field: str) -> str:
    """A text that can be sent: a lone half of a surrogate pair is no character of any encoding."""
    if not isinstance(value, str):
        raise wrong(field, f"{value!r} is a {type(value).__name__}, expected a text")
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise wrong(field, f"holds half a character (a surrogate) at {error.start}") from None
    return value


def whole(value: Any, limit: int, field: str) -> int:
    """A whole number from 0 to ``limit - 1``, of any integer type, or a float that is one."""
    try:
        number = operator.index(value)
    except TypeError:
        number = int(value) if isinstance(value, float) and value.is_integer() else -1
    if not 0 <= number < limit:
        raise wrong(field, f"{value!r} is no whole number in 0 to {limit - 1}")
    return number


def seconds(value: Any, field: str = "timeout_s") -> float:
    """A time that ends: ``inf`` would make a robot wait for ever, and say nothing."""
    number = float(value) if isinstance(value, numbers.Real) else math.nan
    if not 0 < number < math.inf:
        raise wrong(field, f"must be positive and finite, got {value!r}")
    if number > LONGEST_S:
        raise wrong(field, f"{value!r} s is longer than {LONGEST_S:.0e} s")
    return number


def several(value: Any, field: str) -> list[Any]:
    """A list of what can be gone through, an array or a range for example."""
    if not isinstance(value, Iterable):
        raise wrong(field, f"a {type(value).__name__}, expected several")
    return list(value)


def instance(value: Any, kind: type[Any], field: str) -> None:
    """Raise for an object of another type than ``kind``, where one is easily mistaken for the other."""
    if not isinstance(value, kind):
        raise wrong(field, f"a {type(value).__name__}, expected a {kind.__name__}")


def within(option: str, value: float | None, low: float, high: float) -> None:
    """Raise :class:`UserError` for a number that is given and outside of what makes sense."""
    if value is not None and not low <= value <= high:
        raise UserError(f"{option}: {value} is outside {low} to {high}")


def address(value: Any) -> str:
    """``HOST:PORT``, or what else gRPC resolves (``unix:PATH``)."""
    if not isinstance(value, str):
        raise UserError(f"address: {value!r} is no text; write HOST:PORT")
    value = value.strip()  # as a port file is read, with its end of line
    if value.startswith("unix:"):
        return value
    if "://" in value and not value.startswith("dns://"):
        raise UserError(f"address: '{value}' is a URL; write HOST:PORT, for example 127.0.0.1:10093")
    host, _, port = value.rpartition(":")
    if not host or not (port.isascii() and port.isdigit()):
        raise UserError(f"address: '{value}' has no port; write HOST:PORT, for example 127.0.0.1:10093")
    if int(port) >= 2**16:
        raise UserError(f"address: '{value}': a port is below 65536")
    return value


def token(value: Any) -> str | None:
    """A token as a header can carry it."""
    if value is None:
        return None
    if not isinstance(value, str) or not (value and value.isascii() and value.isprintable()):
        raise UserError("token: must be one line of printable ASCII")  # which it is, nobody's log needs
    return value


def observation(value: Any) -> Observation:
    """The types of an observation; its contents are compared with the contract later."""
    if not isinstance(value, Observation):
        raise wrong("observation", f"a {type(value).__name__}, expected a vla_core.Observation")
    text(value.instruction, "observation.instruction")
    for field in ("images", "depth", "intrinsics", "extrinsics"):
        given = getattr(value, field)
        if field != "images" and given is None:
            continue
        if not isinstance(given, Mapping):
            raise wrong(f"observation.{field}", f"a {type(given).__name__}, expected camera name -> array")
        for name in given:
            text(name, f"observation.{field}")
    return value
