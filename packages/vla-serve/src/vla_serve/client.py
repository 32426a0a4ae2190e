"""The robot's or simulator's side: no torch, Python >= 3.10. Shapes: T action steps, A action dims."""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable, Mapping
from types import TracebackType
from typing import Any, TypeVar

import grpc
import numpy as np
from numpy.typing import NDArray
from vla_core.errors import UserError
from vla_core.specs import ActionSpec, ObservationSpec, RobotSpec
from vla_core.types import Observation

from vla_serve.chunks import Continuation, ServedChunk, served_chunk
from vla_serve.client_batch import BatchCalls
from vla_serve.client_errors import (
    HandshakeError,
    PolicyClientError,
    PolicyServerError,
    PolicyTimeout,
    SessionLost,
    from_rpc,
)
from vla_serve.codec import Encoding, check_encoding
from vla_serve.connection import TLS, connect
from vla_serve.engine.errors import FieldError
from vla_serve.observation_codec import encode_observation
from vla_serve.request_options import write_options, write_previous, write_view_keys
from vla_serve.spec_codec import decode_spec, encode_action_spec, encode_observation_spec
from vla_serve.timings import Timings as Timings
from vla_serve.v1 import policy_pb2 as pb
from vla_serve.v1.policy_pb2_grpc import PolicyServiceStub
from vla_serve.wire import serialise

R = TypeVar("R")

_PREDICT = f"/{pb.DESCRIPTOR.services_by_name['PolicyService'].full_name}/Predict"


class PolicyClient(BatchCalls):
    """One session with a policy server.

    A context manager: entering opens the session (the handshake), leaving closes it. Not
    thread-safe; give each robot or simulator its own.

    Args:
        address: ``host:port``.
        embodiment: which contract of the policy; empty: its only one.
        observation_spec: what will be sent; None: not compared. Cameras, their order and sizes and
            the state groups must equal the contract's.
        action_spec: what will be executed; None: not compared. Its horizon is never compared.
        policy: name of the policy; empty: the server's only one.
        encoding: of images: ``raw`` (lossless, fastest on a LAN), ``png`` (lossless, smaller) or
            ``jpeg`` (lossy, smallest).
        timeout_s: deadline of each call unless it says otherwise.
        real_time_chunking: a policy that cannot continue a chunk (``previous`` of :meth:`predict`) is an
            error on entering.
        tls: how to know the server, and what to show it; None: no TLS.
        token: that the server asks for; sent with every call.

    Raises:
        UserError: a bad argument, here.
        HandshakeError: on entering, when client and policy disagree, or the policy cannot do what is asked;
            it names the field.
        PolicyClientError: any call with an input that would be wrong again; it names the field.
        PolicyServerError: any call the server could not answer (see its subclasses
            ``PolicyBusy``, ``PolicyTimeout``, ``PolicyUnavailable``).
    """

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
        tls: TLS | None = None,
        token: str | None = None,
    ) -> None:
        if ":" not in address:
            raise UserError(f"address: '{address}' has no port; write HOST:PORT, for example 127.0.0.1:10093")
        check_encoding(encoding)
        self._timeout_s = _positive(timeout_s)
        self._address, self._encoding = address, encoding
        self._config = pb.SessionConfig(
            policy=policy, embodiment=embodiment, real_time_chunking=real_time_chunking
        )
        if observation_spec is not None:
            self._config.observation_spec.CopyFrom(encode_observation_spec(observation_spec))
        if action_spec is not None:
            self._config.action_spec.CopyFrom(encode_action_spec(action_spec))
        self._channel = connect(address, tls)
        self._metadata = None if token is None else (("authorization", f"Bearer {token}"),)
        self._stub = PolicyServiceStub(self._channel)
        # Takes bytes: a large request is serialised once, also for the check of its size.
        self._predict: Callable[..., pb.PredictResponse] = self._channel.unary_unary(
            _PREDICT, request_serializer=bytes, response_deserializer=pb.PredictResponse.FromString
        )
        self._session: str | None = None
        self._lost = False
        self._hold: Any = None
        self._contract: RobotSpec | None = None
        self._max_bytes = 0
        self._max_delay: int | None = None
        self._instruction = ""
        self._timings: Timings | None = None
        self._seed: int | None = None

    def __enter__(self) -> PolicyClient:
        try:
            self.open()
        except (UserError, PolicyServerError):
            self._channel.close()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    @property
    def contract(self) -> RobotSpec:
        """What the policy takes and gives; without statistics, which stay on the server."""
        if self._contract is None:
            raise PolicyClientError("no session; use 'with PolicyClient(...) as client:' or call open()")
        return self._contract

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

    def wait_ready(self, timeout_s: float = 60.0) -> None:
        """Return once the server answers.

        Raises:
            PolicyTimeout: it did not within ``timeout_s`` seconds.
        """
        self._call(self._stub.GetServerInfo, pb.GetServerInfoRequest(), timeout_s, wait=True)

    def server_info(self) -> pb.GetServerInfoResponse:
        """What the server serves, and its limits."""
        return self._call(self._stub.GetServerInfo, pb.GetServerInfoRequest())

    def open(self) -> None:
        """Open the session, and a new one after :class:`SessionLost`; entering the context does this."""
        if self._session is None or self._lost:
            self._hold = None
            reply = self._call(self._stub.OpenSession, pb.OpenSessionRequest(config=self._config))
            self._contract = decode_spec(reply.contract)
            self._lost = False
            self._session, self._max_bytes = reply.session_id, reply.max_message_bytes
            self._stay(reply.session_id)
            if reply.HasField("real_time_chunking"):
                self._max_delay = reply.real_time_chunking.max_delay_steps
            elif self._config.real_time_chunking:  # a server that knows of it would have refused
                raise HandshakeError(
                    f"config.real_time_chunking: the server at {self._address} is of a version without it"
                )

    def _stay(self, session: str) -> None:
        """Have the server know that this client is there, for as long as the connection is."""
        if self._hold is None or self._hold.done():
            self._hold = self._stub.HoldSession(
                pb.HoldSessionRequest(session_id=session), metadata=self._metadata
            )

    def reset(self, instruction: str | None = None) -> None:
        """Start a new episode.

        Args:
            instruction: for the episode's observations that carry none.
        """
        request = pb.ResetSessionRequest(session_id=self._open_session(), instruction=instruction or "")
        self._call(self._stub.ResetSession, request)
        self._instruction = instruction or ""

    def predict(
        self,
        observation: Observation,
        seed: int | None = None,
        timeout_s: float | None = None,
        *,
        step: int | None = None,
        denoise_steps: int | None = None,
        previous: Continuation | None = None,
        view_keys: Mapping[str, str] | None = None,
    ) -> ServedChunk:
        """The action chunk ``[T, A]`` for an observation, in real units.

        Args:
            observation: raw images and numbers that fit ``contract.observation``; state, depth and
                camera matrices may come in any numeric dtype. Its ``embodiment`` is ignored: the
                session has one.
            seed: of the policy's noise, in [0, 2^63); None: the server draws one (see :attr:`seed`).
            timeout_s: deadline; None: the client's.
            step: control step of the episode; may not decrease until :meth:`reset`, so that a
                forgotten reset is an error.
            denoise_steps: 1 to 1000; None: the server's setting.
            previous: the chunk being executed, as ``chunk.after(executed_steps, delay_steps)``: the answer
                begins with the actions that are executed until it takes over, and goes on from there
                (real-time chunking). Needs ``step``, in this and in that chunk's request. A request that was
                lost may be made again. :class:`~vla_serve.ControlLoop` does all that.
            view_keys: camera name -> key of its picture, for cameras that stand still before a scene that
                does not change: the policy's geometry encoder uses what it knows of that key, and does not
                look at the image. Keys are this session's, this camera's, and forgotten by :meth:`reset`.
        """
        start = time.perf_counter()
        request = pb.PredictRequest(session_id=self._open_session())
        raw_images: dict[str, NDArray[np.uint8]] = {}
        try:
            encode_observation(
                observation,
                self.contract.observation,
                self._encoding,
                self._instruction,
                request.observation,
                raw_images,
            )
        except FieldError as error:
            raise PolicyClientError(str(error), {error.field: error.description}) from None
        write_options(request, seed, step, denoise_steps)
        write_previous(request, previous)
        write_view_keys(request, view_keys)
        data = serialise(request, raw_images)
        if len(data) > self._max_bytes:
            raise PolicyClientError(
                f"observation: {len(data)} bytes, the server takes {self._max_bytes}; "
                "use encoding='png' or 'jpeg', or raise its --max_message_mb"
            )
        self._stay(request.session_id)
        reply = self._call(self._predict, data, timeout_s)
        took_ms = (time.perf_counter() - start) * 1000
        self._timings = Timings.of(took_ms, reply.timings)
        self._seed = reply.seed
        if previous is not None and (not reply.chunk_id or reply.frozen_steps != previous.delay_steps):
            raise PolicyServerError(f"{self._address}: the server did not continue the previous chunk")
        return served_chunk(reply, self.contract.action)

    def close(self) -> None:
        """Close session and connection; a server that is gone is no error."""
        if self._session is not None:
            session, self._session = self._session, None
            # It may have expired, or the server went away: closed is what was wanted.
            with contextlib.suppress(PolicyClientError, PolicyServerError):
                self._call(self._stub.CloseSession, pb.CloseSessionRequest(session_id=session), 2.0)
        if self._hold is not None:
            self._hold.cancel()
            self._hold = None
        self._channel.close()

    def _open_session(self) -> str:
        if self._session is None:
            raise PolicyClientError("no session; use 'with PolicyClient(...) as client:' or call open()")
        return self._session

    def _call(
        self, method: Callable[..., R], request: Any, timeout_s: float | None = None, wait: bool = False
    ) -> R:
        deadline = self._timeout_s if timeout_s is None else _positive(timeout_s)
        try:
            return method(request, timeout=deadline, wait_for_ready=wait, metadata=self._metadata)
        except grpc.RpcError as error:
            mapped = from_rpc(error, self._address)
            self._lost |= isinstance(mapped, SessionLost)
            if wait and isinstance(mapped, PolicyTimeout):
                mapped = PolicyTimeout(f"{self._address}: not ready after {deadline:g} s")
            raise mapped from None


def _positive(timeout_s: float) -> float:
    if not 0 < timeout_s < math.inf:
        raise UserError(f"timeout_s: must be positive and finite, got {timeout_s}")
    return float(timeout_s)
