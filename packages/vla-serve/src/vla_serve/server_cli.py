"""``vla-serve``: answer action requests from checkpoints over gRPC."""

from __future__ import annotations

import argparse
import importlib
import logging
import math
import os
import signal
import sys
from collections.abc import Callable, Sequence
from contextlib import ExitStack, nullcontext
from pathlib import Path
from typing import Any

from vla_core.errors import UserError, suggest
from vla_core.heap import settle_heap, settled_heap

from vla_serve.host.idle_poll import idle_poll
from vla_serve.host.memory import keep_freed_memory
from vla_serve.host.open_files import allow_connections
from vla_serve.observability.logs import set_up
from vla_serve.server_options import checkpoints
from vla_serve.server_options import parser as _parser

log = logging.getLogger("vla_serve.server")

PROGRAMS = {
    "probe": "vla_serve.probe_cli",
    "doctor": "vla_serve.doctor_cli",
    "bridge": "vla_serve.bridge_cli",
}
"""First word of the command line -> module: clients of a server, imported when named."""
SWITCH_S = 0.0005
"""A thread of Python gives way after so long; docs/reliability.md says what that changes."""


def _loader(args: argparse.Namespace) -> Any:
    from vla_serve.loading import CheckpointLoader

    bfloat16 = args.use_bf16 or args.dtype == "bfloat16"
    return CheckpointLoader.of(
        args.device, bfloat16, args.threads, args.cache_mib, args.compile, not args.eager, args.fp8
    )


def _server(args: argparse.Namespace) -> Any:
    """The server, not started; the port is reserved before anything is loaded."""
    from vla_serve.host.listen import Reservation, Security, own_token, read_token

    paths = checkpoints(args)
    if not 0 <= args.grace_s < math.inf:
        raise UserError(f"grace_s: must be finite and not negative, got {args.grace_s}")
    if args.port_file is not None:
        _check_port_file(args.port_file)
    if args.admin_token_file is not None and args.admin_port is None:
        raise UserError("admin_token_file: there is no --admin_port")
    if args.admin_port is not None and args.admin_token_file is None and args.token_file is None:
        raise UserError("admin_port: needs --admin_token_file (a new file gets a new token) or --token_file")
    admin_token = None if args.admin_token_file is None else own_token(args.admin_token_file)
    security = Security(
        args.tls_cert,
        args.tls_key,
        args.tls_client_ca,
        None if args.token_file is None else read_token(args.token_file),
        args.insecure,
    )
    try:
        from vla_serve.server import PolicyServer

        loader = _loader(args)
    except ModuleNotFoundError as error:
        raise UserError(f"'{error.name}' is not installed: pip install 'vla-serve[server]'") from error
    most = (32 if args.device.startswith("cuda") else 8) if args.max_batch is None else args.max_batch
    reservation = Reservation(args.host, args.port)
    names = (
        "max_queue max_sessions session_idle_s denoise_steps max_denoise_steps max_message_mb max_in_flight "
        "max_in_flight_mb max_in_flight_mpx body_timeout_s model_timeout_s batch_wait_ms deterministic "
        "admin_port metrics_port dashboard otlp_endpoint reflection"
    )
    with ExitStack() as undo:
        undo.callback(reservation.release)
        security.check(reservation.addresses)
        if warning := security.warning(reservation.addresses):  # whatever the level of the log
            print(f"vla-serve: warning: {warning}", file=sys.stderr)
        server = PolicyServer(
            {name: loader(path) for name, path in paths.items()},
            host=args.host,
            max_batch=most,
            loader=loader,
            security=security,
            admin_token=admin_token,
            reservation=reservation,
            **{name: getattr(args, name) for name in names.split()},
        )
        undo.pop_all()
    return server


class _Signals:
    """The first signal stops the server in order, the second ends the process, also under a hung model."""

    def __init__(self, stop: Callable[[], None]) -> None:
        self._stop, self._seen = stop, False
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._handle)

    def _handle(self, number: int, frame: object) -> None:
        if self._seen:
            os._exit(128 + number)
        self._seen = True
        self._stop()


def _serve(args: argparse.Namespace) -> int:
    # Threads that prepare would keep the one that answers waiting for up to 5 ms each time.
    sys.setswitchinterval(SWITCH_S)
    keep_freed_memory()
    allow_connections()
    with idle_poll() if args.idle_poll else nullcontext():
        server = _server(args)
        server.start()
        _Signals(server.interrupt)
        try:
            with settled_heap():
                settle_heap()
                if server.dashboard_url:
                    print(f"dashboard {server.dashboard_url}", flush=True)
                if args.port_file is not None:
                    _write_port(args.port_file, server.port)
                server.wait()
        finally:
            server.stop(0.0 if server.failure else args.grace_s)
    if server.failure:
        print(f"vla-serve: {server.failure}", file=sys.stderr, flush=True)
        logging.shutdown()
        os._exit(1)  # the interpreter would wait for a thread that hangs
    return 0


def _check_port_file(path: Path) -> None:
    """Raise :class:`UserError` where it could not be written once all is loaded."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"port_file: {path.parent} cannot be made ({error.strerror})") from None
    if path.is_dir() or not os.access(path.parent, os.W_OK):
        raise UserError(f"port_file: {path} is a directory, or in one that cannot be written")


def _write_port(path: Path, port: int) -> None:
    # A reader sees nothing or the whole number.
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    temporary.write_text(f"{port}\n")
    temporary.replace(path)


def _run(words: list[str]) -> int:
    if words and words[0] in PROGRAMS:
        program: Any = importlib.import_module(PROGRAMS[words[0]])
        return int(program.main(words[1:]))
    parser = _parser()
    if words and not words[0].startswith("-"):
        parser.error(f"no program '{words[0]}'{suggest(words[0], PROGRAMS)}")
    args = parser.parse_args(words)
    set_up(args.log_format, args.log_level)
    try:
        return _serve(args)
    except UserError as error:
        print(f"vla-serve: {error}", file=sys.stderr)
        return 2


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit code: 0 after a clean stop, 1 when the model failed, 2 for a mistake,
    130 when it was interrupted before it served.
    """
    words = list(sys.argv[1:] if argv is None else argv)
    try:
        return _run(words)
    except KeyboardInterrupt:
        name = " ".join(["vla-serve", *(word for word in words[:1] if word in PROGRAMS)])
        print(f"\n{name}: interrupted", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(main())
