"""The robot's or simulator's side: no torch, Python >= 3.10. Shapes: T action steps, A action dims."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Mapping, Sequence
from types import TracebackType
from typing import Any, TypeVar

import grpc
from vla_core.errors import UserError
from vla_core.specs import RobotSpec
from vla_core.types import Observation

from vla_serve.clients.batch import BatchSession, Difference, Results
from vla_serve.clients.chunks import Continuation, ServedChunk
from vla_serve.clients.errors import PolicyClientError, PolicyServerError
from vla_serve.messages.spec_codec import decode_spec
from vla_serve.rpcs.timings import Timings as Timings
from vla_serve.v1 import policy_pb2 as pb

R = TypeVar("R")


class PolicyClient(BatchSession):
    """One session with a policy server.

    A context manager: entering opens the session (the handshake), leaving closes it. Not
    thread-safe; give each robot or simulator its own. :class:`AsyncPolicyClient` is its twin for asyncio.

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
        camera_inputs: camera -> what will be sent with its pictures, of ``depth``, ``intrinsics`` and
            ``extrinsics``; a camera that is not named: nothing. A policy that needs more is an error on
            entering. None: not compared; an observation that lacks it is refused before it is sent.
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

    def __enter__(self) -> PolicyClient:
        try:
            self.open()
        except (UserError, PolicyServerError):
            self._leave()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def wait_ready(self, timeout_s: float = 60.0) -> None:
        """Return once the server answers.

        Raises:
            PolicyTimeout: it did not within ``timeout_s`` seconds.
        """
        self._call(self._connection.stub.GetServerInfo, pb.GetServerInfoRequest(), timeout_s, wait=True)

    def server_info(self) -> pb.GetServerInfoResponse:
        """What the server serves, and its limits."""
        return self._call(self._connection.stub.GetServerInfo, pb.GetServerInfoRequest())

    def policy_contract(self) -> RobotSpec:
        """What a session would be held to; opens none."""
        config = self._config
        request = pb.GetPolicyContractRequest(policy=config.policy, embodiment=config.embodiment)
        return decode_spec(self._call(self._connection.stub.GetPolicyContract, request).contract)

    def check_compatibility(self) -> list[Difference]:
        """All in which this client's specs and the policy differ, before a session is opened; empty: it fits.

        Raises:
            PolicyClientError: no such policy or embodiment.
        """
        request = pb.CheckCompatibilityRequest(config=self._config)
        return self._differences(self._call(self._connection.stub.CheckCompatibility, request))

    def open(self) -> None:
        """Open the session; a new one after :class:`SessionLost` or :meth:`close`.

        Entering the context does this. An open session stays as it is.
        """
        if self._session is None or self._lost:
            request = pb.OpenSessionRequest(config=self._config)
            self._opened(self._call(self._connection.stub.OpenSession, request))

    def reset(self, instruction: str | None = None) -> None:
        """Start a new episode.

        Args:
            instruction: for the episode's observations that carry none.
        """
        request = self._reset_request(instruction)
        self._call(self._connection.stub.ResetSession, request)
        self._instruction = request.instruction

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
        supersedes: bool = False,
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
            supersedes: what the session asked before, and still waits, is given up for this: those calls
                raise :class:`~vla_serve.PolicySuperseded`.
        """
        start = time.perf_counter()
        data = self._predict_request(observation, seed, step, denoise_steps, previous, view_keys, supersedes)
        self._stay()
        reply: pb.PredictResponse = self._call(self._connection.predict, data, timeout_s)
        return self._answer(reply, previous, (time.perf_counter() - start) * 1000)

    def predict_batch(
        self,
        observations: Sequence[Observation],
        seeds: Sequence[int] | None = None,
        timeout_s: float | None = None,
        *,
        steps: Sequence[int] | None = None,
        denoise_steps: int | None = None,
    ) -> Results:
        """A chunk for each of several observations, of a vectorised simulator for example.

        Args:
            observations: each as for :meth:`predict`.
            seeds: of the policy's noise, one each; None: the server draws them.
            timeout_s: deadline of all together; None: the client's.
            steps: control steps, one each; of one session, so none below those that it had before.
            denoise_steps: of all.

        Returns:
            In the order of the observations: its chunk, or what :meth:`predict` would have raised. One bad
            observation costs no other its answer.

        Raises:
            UserError: numbers of seeds or steps that are not that of the observations.
            PolicyServerError: the whole call failed, for example because the server is gone.
        """
        deadline = self._deadline(timeout_s)
        end = time.monotonic() + deadline
        results, items = self._items(observations, seeds, steps, denoise_steps)
        self._stay()
        for wave in self._waves(items, self._limits or self._known_limits(self.server_info())):
            calls = [(call, self._send(call, end)) for call in wave]
            try:
                for call, future in calls:
                    self._receive(results, call, future.result())
            except grpc.RpcError as error:
                raise self._failure(error, deadline, False) from None
            finally:
                for _, future in calls:
                    future.cancel()  # of those that are over, nothing
        return results

    def close(self) -> None:
        """Close session and connection; a server that is gone is no error."""
        session, self._session = self._session, None
        if session is not None:
            # It may have expired, or the server went away: closed is what was wanted.
            with contextlib.suppress(PolicyClientError, PolicyServerError):
                request = pb.CloseSessionRequest(session_id=session)
                self._call(self._connection.stub.CloseSession, request, 2.0)
        self._leave()

    def _call(
        self, method: Callable[..., R], request: Any, timeout_s: float | None = None, wait: bool = False
    ) -> R:
        deadline = self._deadline(timeout_s)
        try:
            return method(request, timeout=deadline, wait_for_ready=wait, metadata=self._metadata)
        except grpc.RpcError as error:
            raise self._failure(error, deadline, wait) from None
