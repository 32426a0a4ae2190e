"""Answered chunks as the client has them, and how one is continued. Shapes: T action steps, A action dims."""

from __future__ import annotations

from dataclasses import dataclass

from vla_core.types import ActionChunk

from vla_serve.client_errors import PolicyClientError


@dataclass(frozen=True)
class Continuation:
    """The chunk that is executed while the next one is computed; see :meth:`ServedChunk.after`."""

    chunk_id: str
    executed_steps: int
    delay_steps: int


@dataclass(frozen=True)
class ServedChunk(ActionChunk):
    """An answer ``actions [T, A]``.

    Args:
        chunk_id: its name in this session's episode.
        frozen_steps: so many first actions are those of the chunk that it continues; the robot executes
            them from there while this answer is computed.
    """

    chunk_id: str = ""
    frozen_steps: int = 0

    def after(self, executed_steps: int, delay_steps: int) -> Continuation:
        """This chunk as the one to continue, for ``previous`` of :meth:`PolicyClient.predict`.

        Args:
            executed_steps: control steps from this chunk's observation to the present one, also those whose
                actions came from the chunk before.
            delay_steps: control steps from the present observation until the answer takes over. So many
                actions of this chunk are executed meanwhile, and the answer begins with them.
        """
        if not self.chunk_id:
            raise PolicyClientError("previous: this server names no chunks; it is of an older version")
        return Continuation(self.chunk_id, executed_steps, delay_steps)
