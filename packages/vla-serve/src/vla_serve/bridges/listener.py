"""One port, one protocol: WebSocket without compression, and who may use it."""

from __future__ import annotations

import asyncio
import hmac
import logging
import ssl
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from aiohttp import web
from vla_core.types import Observation

from vla_serve.clients.async_client import AsyncPolicyClient
from vla_serve.clients.chunks import ServedChunk
from vla_serve.clients.errors import PolicyBusy, SessionLost
from vla_serve.host.listen import Reservation, Security
from vla_serve.messages.status import one_line

log = logging.getLogger("vla_serve.bridge")

HEARTBEAT_S = 300.0
"""A connection whose other end answers no ping for half as long is closed; simulators pause for long."""

GREETING_S = 10.0
"""A connection that has not asked for anything by then is closed, as one of ``vla-serve`` itself."""

STOP_S = 0.5
"""Each of aiohttp's two waits for connections that are open at a stop: a minute by itself."""


def refused(name: str, error: Exception) -> None:
    """Say in the log what a client of a protocol is told."""
    log.info("%s refused: %s", name, one_line(str(error)))


class Speaker(Protocol):
    """A protocol; one object serves all its connections."""

    name: str
    health: str
    """Path that answers 200 without a token."""
    health_body: str

    async def serve(self, socket: web.WebSocketResponse) -> None:
        """A connection, until its other end closes it."""
        ...


@dataclass(frozen=True)
class Asker:
    """Asks the server for a connection; opens clients that are alike.

    Args:
        connect: the client of an embodiment (empty: the server's only one), not opened.
        timeout_s: a busy server is asked again for so long.
        denoise_steps: of each request, whatever it asks for; None: what it asks for, or the server's.
    """

    connect: Callable[[str], AsyncPolicyClient]
    timeout_s: float
    denoise_steps: int | None = None

    async def ask(
        self, client: AsyncPolicyClient, observation: Observation, denoise_steps: int | None = None
    ) -> ServedChunk:
        """An answer; over a session that expired meanwhile too, for these protocols know of none.

        ``denoise_steps``: that the request asks for, if its protocol has a word for them.
        """
        steps = denoise_steps if self.denoise_steps is None else self.denoise_steps
        end, opened = time.monotonic() + self.timeout_s, False
        while True:
            try:
                return await client.predict(observation, denoise_steps=steps)
            except PolicyBusy as error:
                if time.monotonic() + error.retry_after_s > end:
                    raise
                await asyncio.sleep(error.retry_after_s)
            except SessionLost:
                if opened:
                    raise
                opened = True
                await client.open()


class Listener:
    """Serves a protocol on a port.

    Args:
        speaker: the protocol.
        reservation: of host and port; taken over.
        security: what a caller must show; a token as ``Authorization: Api-Key TOKEN`` or ``Bearer TOKEN``,
            a certificate in the greeting of TLS.
        max_message_bytes: a longer message ends its connection.
        max_connections: that are open; one more is answered 503.
    """

    def __init__(
        self,
        speaker: Speaker,
        reservation: Reservation,
        security: Security,
        max_message_bytes: int,
        max_connections: int,
    ) -> None:
        security.check(reservation.addresses)
        self._speaker, self._reservation, self._security = speaker, reservation, security
        self._max_bytes, self._limit, self._open = max_message_bytes, max_connections, 0
        self._runner: web.AppRunner | None = None
        self._listening: list[asyncio.Server] = []

    @property
    def url(self) -> str:
        """Where it listens."""
        scheme = "ws" if self._security.cert is None else "wss"
        return f"{scheme}://{self._reservation.targets()[0]}"

    async def start(self) -> None:
        """Answer from now on."""
        app = web.Application()
        app.router.add_get("/{path:.*}", self._handle)
        self._runner = web.AppRunner(
            app,
            access_log=None,
            handle_signals=False,
            keepalive_timeout=GREETING_S,
            shutdown_timeout=STOP_S,
        )
        await self._runner.setup()
        server = self._runner.server
        assert server is not None  # it is set up
        context = _context(self._security)
        if warning := self._security.warning(self._reservation.addresses):
            log.warning("%s: %s", self._speaker.name, warning)
        self._reservation.release()
        for address in self._reservation.addresses:
            # Not as a site of aiohttp's: a greeting of TLS may take a minute there.
            listening = await asyncio.get_running_loop().create_server(
                server,
                address,
                self._reservation.port,
                ssl=context,
                ssl_handshake_timeout=None if context is None else GREETING_S,
            )
            self._listening.append(listening)

    async def stop(self) -> None:
        """End all connections."""
        for listening in self._listening:
            listening.close()
        if self._runner is not None:
            await self._runner.cleanup()

    async def _handle(self, request: web.Request) -> web.StreamResponse:
        if request.path == self._speaker.health:
            kind = "application/json" if self._speaker.health_body.startswith("{") else "text/plain"
            return web.Response(text=self._speaker.health_body, content_type=kind)
        if not self._known(request.headers.get("Authorization", "")):
            log.info("%s client %s refused: no token, or a wrong one", self._speaker.name, request.remote)
            return web.Response(status=401, text="Authorization: Api-Key TOKEN is missing or wrong\n")
        socket = web.WebSocketResponse(
            compress=False, max_msg_size=self._max_bytes, heartbeat=HEARTBEAT_S, timeout=1.0
        )
        if not socket.can_prepare(request).ok:
            return web.Response(status=426, text=f"a WebSocket for {self._speaker.name} clients\n")
        if self._open >= self._limit:
            log.info("%s client %s refused: --max_connections", self._speaker.name, request.remote)
            return web.Response(status=503, text=f"{self._limit} connections are open (--max_connections)\n")
        self._open += 1
        try:
            await self._converse(request, socket)
        finally:
            self._open -= 1
        return socket

    async def _converse(self, request: web.Request, socket: web.WebSocketResponse) -> None:
        await socket.prepare(request)
        log.info("%s client %s", self._speaker.name, request.remote)
        try:
            await self._speaker.serve(socket)
        except (ConnectionError, asyncio.TimeoutError):
            log.info("%s client %s went", self._speaker.name, request.remote)

    def _known(self, shown: str) -> bool:
        token = self._security.token
        kind, _, given = shown.partition(" ")
        return token is None or (
            kind in ("Api-Key", "Bearer") and hmac.compare_digest(given.encode(), token.encode())
        )


def _context(security: Security) -> ssl.SSLContext | None:
    if security.cert is None or security.key is None:
        return None
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(security.cert, security.key)  # looked into by Security.check
    if security.client_ca is not None:
        context.load_verify_locations(security.client_ca)
        context.verify_mode = ssl.CERT_REQUIRED
    return context
