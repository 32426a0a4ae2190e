"""Answered chunks as the client has them, and how one is continued. Shapes: T action steps, A action dims."""

from __future__ import annotations

import logging
from dataclasses import dataclass

import numpy as np
from vla_core.specs import ActionSpec
from vla_core.types import ActionChunk

from vla_serve.clients.errors import PolicyClientError, PolicyServerError
from vla_serve.engine.errors import FieldError
from vla_serve.messages.codec import decode_tensor
from vla_serve.v1 import policy_pb2 as pb

log = logging.getLogger("vla_serve.clients.client")


@dataclass(frozen=True)
class Continuation:
    """The chunk that is executed while the next one is computed; see :meth:`ServedChunk.after`."""

    chunk_id: str
    executed_steps: int
    delay_steps: int


@dataclass(frozen=True)
class PolicyRevision:
    """What answered: a name's policy may be replaced while its server runs.

    Args:
        policy: its name.
        revision: of the name, in this server's life.
        weights_digest, statistics_digest: SHA-256 in hex; empty where the policy came from no file.
        data_digest: SHA-256 of the numbers it was trained on; empty where the server does not know.
        checkpoint: where it was loaded from, as the server was told; empty as above.
    """

    policy: str
    revision: str
    weights_digest: str = ""
    statistics_digest: str = ""
    data_digest: str = ""
    checkpoint: str = ""


@dataclass(frozen=True)
class ServedChunk(ActionChunk):
    """An answer ``actions [T, A]``.

    Args:
        chunk_id: its name in this session's episode.
        frozen_steps: so many first actions are those of the chunk that it continues; the robot executes
            them from there while this answer is computed.
        revision: what answered; None: the server is of a version that does not say.
        request_id: its name in the server's log.
        notes: what is most likely wrong with what it answers, a line each; once a session, and logged.
    """

    chunk_id: str = ""
    frozen_steps: int = 0
    revision: PolicyRevision | None = None
    request_id: str = ""
    notes: tuple[str, ...] = ()

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


def served_chunk(reply: pb.PredictResponse, spec: ActionSpec, address: str) -> ServedChunk:
    """The chunk of a reply of the server at ``address``; ``spec`` is the contract's.

    Raises:
        PolicyServerError: actions that a robot must not have.
    """
    try:
        actions_TA = decode_tensor(reply.actions, "actions")
    except FieldError as error:
        raise PolicyServerError(f"{address}: {error}") from None
    if actions_TA.shape != (spec.horizon, spec.dim) or not np.isfinite(actions_TA).all():
        raise PolicyServerError(
            f"{address}: answered actions {list(actions_TA.shape)} that are not the finite "
            f"[{spec.horizon}, {spec.dim}] of the contract"
        )
    revision = revision_of(reply.revision) if reply.HasField("revision") else None
    for note in reply.notes:
        log.warning("%s: %s", address, note)
    named = reply.chunk_id, reply.frozen_steps, revision, reply.request_id
    return ServedChunk(actions_TA, spec, *named, tuple(reply.notes))


def revision_of(message: pb.PolicyRevision) -> PolicyRevision:
    """What a message says of who answered."""
    return PolicyRevision(
        message.policy,
        message.revision,
        message.weights_digest,
        message.statistics_digest,
        message.data_digest,
        message.checkpoint,
    )
