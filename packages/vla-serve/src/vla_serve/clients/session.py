"""What a client knows of its session, and what it says in it: all but how the bytes travel.

The synchronous and the asynchronous client are this with a transport each, so that they check, ask and fail
alike. Shapes: T action steps, A action dims.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray
from vla_core.errors import UserError
from vla_core.specs import ActionSpec, ObservationSpec, RobotSpec
from vla_core.types import Observation

from vla_serve.camera_inputs import decode_inputs, encode_sent
from vla_serve.clients import arguments
from vla_serve.clients.chunks import Continuation, ServedChunk, served_chunk
from vla_serve.clients.connection import TLS, Connection
from vla_serve.clients.errors import (
    HandshakeError,
    PolicyClientError,
    PolicyServerError,
    PolicyTimeout,
    SessionLost,
    from_rpc,
)
from vla_serve.clients.request_options import write_options, write_previous, write_view_keys
from vla_serve.clients.trace_context import Metadata, trace_context
from vla_serve.engine.errors import FieldError
from vla_serve.messages.codec import Encoding, check_encoding
from vla_serve.messages.observation_codec import encode_observation
from vla_serve.messages.spec_codec import (
    decode_bounds,
    decode_spec,
    encode_action_spec,
    encode_observation_spec,
)
from vla_serve.messages.wire import serialise
from vla_serve.rpcs.timings import Timings
from vla_serve.v1 import policy_pb2 as pb

F = TypeVar("F", bound=Exception)


class ClientSession:
    """One session with a policy server, without the calls; for the arguments see :class:`PolicyClient`."""

    def __init__(
        self,
        address: str,
        *,
        embodiment: str = "",
        observation_spec: ObservationSpec | None = None,
        action_spec: ActionSpec | None = None,
        policy: str = "",
        encoding: Encoding = "raw",
        timeout_s: float = 10.0,
        real_time_chunking: bool = False,
        camera_inputs: Mapping[str, Collection[str]] | None = None,
        tls: TLS | None = None,
        token: str | None = None,
    ) -> None:
        check_encoding(encoding)
        self._timeout_s = arguments.seconds(timeout_s)
        self._address, self._encoding, self._tls = arguments.address(address), encoding, tls
        self._config = pb.SessionConfig(
            policy=arguments.text(policy, "policy"),
            embodiment=arguments.text(embodiment, "embodiment"),
            real_time_chunking=bool(real_time_chunking),
        )
        if observation_spec is not None:
            arguments.instance(observation_spec, ObservationSpec, "observation_spec")
            self._config.observation_spec.CopyFrom(encode_observation_spec(observation_spec))
        if action_spec is not None:
            arguments.instance(action_spec, ActionSpec, "action_spec")
            self._config.action_spec.CopyFrom(encode_action_spec(action_spec))
        if camera_inputs is not None:
            arguments.instance(camera_inputs, Mapping, "camera_inputs")
            self._config.camera_inputs.CopyFrom(encode_sent(camera_inputs, observation_spec))
        if tls is not None:
            arguments.instance(tls, TLS, "tls")
        bearer = arguments.token(token)
        self._token: Metadata = () if bearer is None else (("authorization", f"Bearer {bearer}"),)
        self._link: Connection | None = Connection(self._address, tls)
        self._session: str | None = None
        self._lost = False
        self._hold: Any = None
        self._contract: RobotSpec | None = None
        self._camera_inputs: frozenset[str] = frozenset()
        self._bounds: tuple[NDArray[np.float64], NDArray[np.float64]] | None = None
        self._max_bytes = 0
        self._max_delay: int | None = None
        self._instruction = ""
        self._timings: Timings | None = None
        self._seed: int | None = None

    @property
    def contract(self) -> RobotSpec:
        """What the policy takes and gives; without statistics, which stay on the server."""
        if self._contract is None:
            raise self._not_open()
        return self._contract

    @property
    def camera_inputs(self) -> frozenset[str]:
        """What the policy cannot do without, of ``depth``, ``intrinsics`` and ``extrinsics``.

        In each observation, at least one camera must have all of them. Empty: pictures are enough.
        """
        return self._camera_inputs

    @property
    def action_bounds(self) -> tuple[NDArray[np.float64], NDArray[np.float64]] | None:
        """Smallest and largest demonstrated action ``[A]``; None: unknown. Answers may lie outside."""
        return self._bounds

    @property
    def max_delay_steps(self) -> int | None:
        """Longest delay that the policy bridges when it continues a chunk; None: it cannot continue one."""
        return self._max_delay

    @property
    def timings(self) -> Timings | None:
        """Of the last answer."""
        return self._timings

    @property
    def seed(self) -> int | None:
        """The noise seed the last answer was made with."""
        return self._seed

    @property
    def _metadata(self) -> Metadata:
        """Of a call: the token, and the caller's trace."""
        return self._token + trace_context()

    @property
    def _connection(self) -> Connection:
        """The connection; a new one after it was closed."""
        if self._link is None:
            self._link = Connection(self._address, self._tls)
        return self._link

    def _not_open(self) -> PolicyClientError:
        return PolicyClientError(
            f"no session; use 'with {type(self).__name__}(...) as client:' or call open()"
        )

    def _open_session(self) -> str:
        if self._session is None:
            raise self._not_open()
        return self._session

    def _opened(self, reply: pb.OpenSessionResponse) -> None:
        """The handshake succeeded."""
        self._hold = None
        self._contract, self._bounds = decode_spec(reply.contract), decode_bounds(reply.contract)
        try:
            self._camera_inputs = decode_inputs(reply.contract.camera_inputs)
        except FieldError as error:
            raise HandshakeError(f"{error}; the policy at {self._address} needs a newer client") from None
        self._lost = False
        self._session, self._max_bytes = reply.session_id, reply.max_message_bytes
        self._stay()
        self._max_delay = None
        if reply.HasField("real_time_chunking"):
            self._max_delay = reply.real_time_chunking.max_delay_steps
        elif self._config.real_time_chunking:  # a server that knows of it would have refused
            raise HandshakeError(
                f"config.real_time_chunking: the server at {self._address} is of a version without it"
            )

    def _stay(self) -> None:
        """Have the server know that this client is there, for as long as the connection is."""
        if self._hold is None or self._hold.done():
            self._hold = self._connection.stub.HoldSession(
                # Lasts as long as the session: not a part of the trace that it happens to begin in.
                pb.HoldSessionRequest(session_id=self._open_session()),
                metadata=self._token,
            )

    def _leave(self) -> None:
        """Forget the connection; the next call makes another."""
        self._session = None
        if self._hold is not None:
            self._hold.cancel()
            self._hold = None
        if self._link is not None:
            self._link.close()
            self._link = None

    def _reset_request(self, instruction: str | None) -> pb.ResetSessionRequest:
        said = arguments.text("" if instruction is None else instruction, "instruction")
        return pb.ResetSessionRequest(session_id=self._open_session(), instruction=said)

    def _predict_request(
        self,
        observation: Observation,
        seed: int | None,
        step: int | None,
        denoise_steps: int | None,
        previous: Continuation | None,
        view_keys: Mapping[str, str] | None,
        supersedes: bool = False,
    ) -> bytes:
        """A request of the session."""
        session = self._open_session()
        request, images = self._message(observation, seed, step, denoise_steps)
        request.session_id = session
        write_previous(request, previous)
        write_view_keys(request, view_keys)
        request.supersedes = bool(supersedes)
        return self._bytes(request, images)

    def _message(
        self, observation: Observation, seed: int | None, step: int | None, denoise_steps: int | None
    ) -> tuple[pb.PredictRequest, dict[str, NDArray[np.uint8]]]:
        """A request that names no session, checked against the contract; and its RAW images."""
        request = pb.PredictRequest()
        raw_images: dict[str, NDArray[np.uint8]] = {}
        arguments.observation(observation)
        try:
            encode_observation(
                observation,
                self.contract.observation,
                self._encoding,
                self._instruction,
                request.observation,
                raw_images,
                camera_inputs=self._camera_inputs,
            )
        except FieldError as error:
            raise PolicyClientError(str(error), {error.field: error.description}) from None
        write_options(request, seed, step, denoise_steps)
        return request, raw_images

    def _bytes(self, request: pb.PredictRequest, raw_images: Mapping[str, NDArray[np.uint8]]) -> bytes:
        data = serialise(request, raw_images)
        if len(data) > self._max_bytes:
            raise PolicyClientError(
                f"observation: {len(data)} bytes, the server takes {self._max_bytes}; "
                "use encoding='png' or 'jpeg', or raise its --max_message_mb"
            )
        return data

    def _answer(
        self, reply: pb.PredictResponse, previous: Continuation | None, round_trip_ms: float
    ) -> ServedChunk:
        """The chunk of a reply, or why a robot must not have it."""
        self._timings = Timings.of(round_trip_ms, reply.timings)
        self._seed = reply.seed
        if previous is not None and (not reply.chunk_id or reply.frozen_steps != previous.delay_steps):
            raise PolicyServerError(f"{self._address}: the server did not continue the previous chunk")
        return served_chunk(reply, self.contract.action, self._address)

    def _deadline(self, timeout_s: float | None) -> float:
        return self._timeout_s if timeout_s is None else arguments.seconds(timeout_s)

    def _failure(
        self, error: Any, deadline_s: float, waited: bool
    ) -> PolicyClientError | PolicyServerError | UserError:
        """The exception for a failed call; ``waited``: for a server to be there at all."""
        mapped = self._noted(from_rpc(error, self._address))
        if waited and isinstance(mapped, PolicyTimeout):
            return PolicyTimeout(f"{self._address}: not ready after {deadline_s:g} s")
        return mapped

    def _noted(self, error: F) -> F:
        """An error that the server answered with; the session it does not know is opened anew by ``open``."""
        self._lost |= isinstance(error, SessionLost)
        return error
