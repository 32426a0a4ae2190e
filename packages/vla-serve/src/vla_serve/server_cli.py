"""``vla-serve``: answer action requests from a checkpoint over gRPC."""

from __future__ import annotations

import argparse
import importlib
import logging
import os
import signal
import sys
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from vla_core.errors import UserError

log = logging.getLogger("vla_serve.server")

PROGRAMS = {
    "probe": "vla_serve.probe_cli",
    "doctor": "vla_serve.doctor_cli",
    "bridge": "vla_serve.bridge_cli",
}
"""First word of the command line -> module: clients of a server, imported when named."""


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="vla-serve",
        description="Answer action requests from a checkpoint over gRPC.",
        epilog="Clients of a server that runs: vla-serve probe | doctor | bridge --help.",
    )
    add = parser.add_argument
    add("--ckpt_path", type=Path, required=True, help="checkpoint directory, or the weights file inside it")
    add("--host", default="127.0.0.1", help="address or name to listen on (default: %(default)s)")
    add("--port", type=int, default=10093, help="0: a free one (default: %(default)s)")
    add("--port_file", type=Path, help="write the bound port here once requests are answered")
    add("--device", default="cpu", help="cpu, cuda or cuda:N (default: %(default)s)")
    add("--dtype", choices=("float32", "bfloat16"), default="float32", help="default: %(default)s")
    add("--use_bf16", action="store_true", help="the same as --dtype bfloat16")
    add("--threads", type=int, help="CPU threads of the model (default: the fastest number, measured)")
    add("--denoise_steps", type=int, help="for requests that say nothing (default: the policy's own)")
    add(
        "--cache_mib", type=int, help="MiB of geometry features that view keys may fill (default: as trained)"
    )
    add("--compile", choices=("off", "blocks"), default="off", help="a GPU's blocks, in the first minute")
    add("--eager", action="store_true", help="no CUDA graphs: a GPU serves at once, and slowly")
    batch = parser.add_argument_group("batches").add_argument
    batch("--max_batch", type=int, help="rows of a run, at most (default: 8; on a GPU 32)")
    batch("--batch_wait_ms", type=float, default=0.0, help="wait for more rows (default: %(default)s)")
    batch(
        "--deterministic",
        action="store_true",
        help="runs of one shape: an answer does not depend on who else asks, bit by bit",
    )
    limits = parser.add_argument_group("limits").add_argument
    limits("--max_queue", type=int, default=64, help="requests that may wait (default: %(default)s)")
    limits("--max_sessions", type=int, default=64, help="open sessions (default: %(default)s)")
    limits("--session_idle_s", type=float, default=600.0, help="close idle sessions (default: %(default)s)")
    limits("--max_denoise_steps", type=int, default=1000, help="of a request (default: %(default)s)")
    limits("--max_message_mb", type=int, default=32, help="largest request in MiB (default: %(default)s)")
    limits("--max_in_flight", type=int, default=64, help="requests of a connection (default: %(default)s)")
    limits("--max_in_flight_mb", type=int, default=256, help="MiB of all requests (default: %(default)s)")
    limits(
        "--body_timeout_s", type=float, default=10.0, help="for a request to arrive (default: %(default)s)"
    )
    limits("--model_timeout_s", type=float, default=60.0, help="a longer run is hung (default: %(default)s)")
    limits("--grace_s", type=float, default=30.0, help="to finish when stopped (default: %(default)s)")
    access = parser.add_argument_group("access (needed unless the host is this machine alone)").add_argument
    access("--tls_cert", type=Path, help="PEM file of the server's certificate chain")
    access("--tls_key", type=Path, help="PEM file of its key")
    access("--tls_client_ca", type=Path, help="PEM file: clients need a certificate of this authority")
    access("--token_file", type=Path, help="file with the token that every call must bring")
    access("--insecure", action="store_true", help="let whoever reaches the host use the policy")
    return parser


def _server(args: argparse.Namespace) -> Any:
    """The server, not started; the port is reserved before anything is loaded."""
    from vla_serve.listen import Reservation, Security, read_token

    try:
        from vla_serve.server import PolicyServer
    except ModuleNotFoundError as error:
        raise _not_installed(error) from error
    security = Security(
        args.tls_cert,
        args.tls_key,
        args.tls_client_ca,
        None if args.token_file is None else read_token(args.token_file),
        args.insecure,
    )
    reservation = Reservation(args.host, args.port)
    with ExitStack() as undo:
        undo.callback(reservation.release)
        security.check(reservation.addresses)
        server = _serving(args, security, reservation, PolicyServer)
        undo.pop_all()
    return server


def _serving(args: argparse.Namespace, security: Any, reservation: Any, server: Any) -> Any:
    policy, on_thread, on_warm = _load(args)
    names = (
        "max_queue max_sessions session_idle_s denoise_steps max_denoise_steps max_message_mb max_in_flight "
        "max_in_flight_mb body_timeout_s model_timeout_s batch_wait_ms deterministic"
    )
    return server(
        policy,
        host=args.host,
        max_batch=args.max_batch or (32 if args.device.startswith("cuda") else 8),
        security=security,
        reservation=reservation,
        on_thread=on_thread,
        on_warm=on_warm,
        **{name: getattr(args, name) for name in names.split()},
    )


def _not_installed(error: ModuleNotFoundError) -> UserError:
    return UserError(f"'{error.name}' is not installed: pip install 'vla-serve[server]'")


def _load(
    args: argparse.Namespace,
) -> tuple[Any, Callable[[str], None], Callable[[Callable[[], object]], None]]:
    """The policy, and how its threads are set up."""
    try:
        import torch
        from vla_core.graphs import GraphedPolicy, compile_blocks
        from vla_core.policy import VLAPolicy
        from vla_core.threads import fastest_thread_count
    except ModuleNotFoundError as error:
        raise _not_installed(error) from error
    if args.threads is not None and args.threads < 1:
        raise UserError(f"--threads: must be at least 1, got {args.threads}")
    cuda = args.device.startswith("cuda")
    if cuda and not torch.cuda.is_available():
        raise UserError(f"--device {args.device}: no CUDA device here; use --device cpu")
    dtype = torch.bfloat16 if args.use_bf16 or args.dtype == "bfloat16" else torch.float32
    policy = VLAPolicy.from_pretrained(args.ckpt_path, args.device, dtype, args.cache_mib)
    if args.compile == "blocks":
        log.info("compiling %d blocks, once for each batch size", compile_blocks(policy.model))
    if cuda and not args.eager:
        policy = GraphedPolicy(policy)

    def on_thread(kind: str) -> None:
        if cuda and kind == "model":
            torch.cuda.set_device(args.device if ":" in args.device else 0)
        # Threads that prepare do small work, many at a time: none of them brings a team of its own.
        torch.set_num_threads(args.threads or torch.get_num_threads() if kind == "model" else 1)

    def on_warm(run: Callable[[], object]) -> None:
        if args.threads is None and not cuda:
            log.info("threads %s", fastest_thread_count(run))

    return policy, on_thread, on_warm


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
    server = _server(args)
    server.start()
    if hasattr(server.engine.policy, "graphs"):
        server.engine.policy.graphs.seal()
    _Signals(server.interrupt)
    try:
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


def _write_port(path: Path, port: int) -> None:
    # A reader sees nothing or the whole number.
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    temporary.write_text(f"{port}\n")
    temporary.replace(path)


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit code: 0 after a clean stop, 1 when the model failed, 2 for a mistake."""
    words = list(sys.argv[1:] if argv is None else argv)
    if words and words[0] in PROGRAMS:
        program: Any = importlib.import_module(PROGRAMS[words[0]])
        return int(program.main(words[1:]))
    args = _parser().parse_args(words)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    try:
        return _serve(args)
    except UserError as error:
        print(f"vla-serve: {error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
