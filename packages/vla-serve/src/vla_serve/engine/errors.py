"""What the engine raises; a front says it in the words of its transport."""

from __future__ import annotations

from vla_core.errors import UserError


class FieldError(UserError):
    """A value that cannot be read or does not fit; ``field`` is its path, ``reason`` for programs."""

    def __init__(self, field: str, description: str, reason: str = "INVALID_FIELD") -> None:
        super().__init__(f"{field}: {description}")
        self.field, self.description, self.reason = field, description, reason


class EngineError(Exception):
    """Why a request has no answer, through no fault of its content."""


class Refused(EngineError):
    """Not now; worth another try after ``retry_after_s`` seconds."""

    def __init__(self, message: str, reason: str, retry_after_s: float) -> None:
        super().__init__(message)
        self.reason, self.retry_after_s = reason, retry_after_s


class DeadlinePassed(EngineError):
    """The request's deadline passed before the model could start on it."""


class Superseded(EngineError):
    """A newer request of the session took its place."""


class NotServing(EngineError):
    """The engine is stopping, or its model is dead or hung."""


class ModelFailed(EngineError):
    """The policy raised; the cause is ``__cause__``."""


class WrongState(EngineError):
    """What was asked cannot be done as things stand."""
