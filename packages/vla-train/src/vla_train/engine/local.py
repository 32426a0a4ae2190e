"""One process, one device."""

from __future__ import annotations

from vla_train.engine.base import Engine


class Local(Engine):
    """Everything as it is: nothing is wrapped, exchanged or split."""
