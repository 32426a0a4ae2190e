"""Log lines: one event a line whatever is in it, as text or JSON, with the request it is about."""

from __future__ import annotations

import json
import logging
import re
import secrets
import sys
from collections.abc import Iterable
from contextvars import ContextVar
from datetime import datetime, timezone
from itertools import count
from typing import Any, Literal

from vla_serve.messages.status import one_line

LogFormat = Literal["text", "json"]

_REQUEST: ContextVar[str] = ContextVar("vla_request_id", default="")
_WELL_FORMED = re.compile(r"[A-Za-z0-9._-]{1,64}")

# Random once: asking the system anew for each request would let go of the interpreter's lock each time.
_PROCESS = secrets.token_hex(4)
_COUNT = count(1)

HEADER = "x-request-id"
"""A caller's own name for a request, so that its log and the server's can be laid side by side."""


def take_request_id(metadata: Iterable[tuple[str, Any]] | None) -> str:
    """Name the request that begins in this task: as its caller does, if that is a plain word, or anew."""
    given = next((value for key, value in metadata or () if key == HEADER), None)
    plain = isinstance(given, str) and _WELL_FORMED.fullmatch(given)
    name = given if plain and given is not None else f"{_PROCESS}{next(_COUNT):06x}"
    _REQUEST.set(name)
    return name


def request_id() -> str:
    """The name of the request that this task is about; empty outside one."""
    return _REQUEST.get()


class TextFormatter(logging.Formatter):
    """``time level logger: message``; what a client wrote cannot begin a line of its own."""

    def __init__(self) -> None:
        super().__init__("%(asctime)s %(levelname)s %(name)s: %(message)s")

    def formatMessage(self, record: logging.LogRecord) -> str:
        """One line; a traceback follows it."""
        return one_line(super().formatMessage(record))

    def formatException(self, ei: Any) -> str:
        """Lines that begin with blanks: an error's message may have a client's line breaks in it."""
        return "\n".join(f"    {one_line(line)}" for line in super().formatException(ei).split("\n"))


class JsonFormatter(logging.Formatter):
    """A JSON object a line: ``time`` (UTC), ``level``, ``logger``, ``message``, ``request_id``."""

    def format(self, record: logging.LogRecord) -> str:
        """The line."""
        when = datetime.fromtimestamp(record.created, timezone.utc)
        fields: dict[str, str] = {
            "time": when.isoformat(timespec="milliseconds").replace("+00:00", "Z"),
            "level": record.levelname,
            "logger": record.name,
            "message": record.getMessage(),
        }
        name = request_id()
        if name:
            fields["request_id"] = name
        if record.exc_info:
            fields["traceback"] = self.formatException(record.exc_info)
        return json.dumps(fields)  # ASCII, so that no other line separator of Unicode gets through either


def set_up(log_format: LogFormat, level: str) -> None:
    """Send the log of this process to standard error."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonFormatter() if log_format == "json" else TextFormatter())
    logging.basicConfig(level=level.upper(), handlers=[handler], force=True)
