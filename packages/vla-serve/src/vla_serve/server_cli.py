"""``vla-serve``: answer action requests from a checkpoint over gRPC."""

from __future__ import annotations

import argparse
import logging
import os
import signal
import sys
import threading
from collections.abc import Sequence
from pathlib import Path

from vla_core.errors import UserError


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="vla-serve", description="Answer action requests from a checkpoint over gRPC."
    )
    add = parser.add_argument
    add("--ckpt_path", type=Path, required=True, help="checkpoint directory, or the weights file inside it")
    add("--host", default="127.0.0.1", help="address to listen on; 0.0.0.0 for all (default: %(default)s)")
    add("--port", type=int, default=10093, help="0: a free one (default: %(default)s)")
    add("--port_file", type=Path, help="write the bound port here once requests are answered")
    add("--device", default="cpu", help="cpu, cuda or cuda:N (default: %(default)s)")
    add("--dtype", choices=("float32", "bfloat16"), default="float32", help="default: %(default)s")
    add("--use_bf16", action="store_true", help="the same as --dtype bfloat16")
    add("--max_queue", type=int, default=64, help="requests that may wait (default: %(default)s)")
    add("--max_sessions", type=int, default=64, help="open sessions (default: %(default)s)")
    add("--session_idle_s", type=float, default=600.0, help="close idle sessions (default: %(default)s)")
    add("--threads", type=int, help="CPU threads of the model (default: torch's choice)")
    add("--denoise_steps", type=int, help="for requests that say nothing (default: the policy's own)")
    add(
        "--cache_mib",
        type=int,
        help="MiB that view keys may fill with geometry features (default: as trained)",
    )
    add("--max_message_mb", type=int, default=32, help="largest request in MiB (default: %(default)s)")
    return parser


def _serve(args: argparse.Namespace) -> None:
    try:
        import torch
        from vla_core.policy import VLAPolicy

        from vla_serve.server import PolicyServer
    except ModuleNotFoundError as error:
        raise UserError(f"'{error.name}' is not installed: pip install 'vla-serve[server]'") from error
    if args.threads is not None:
        if args.threads < 1:
            raise UserError(f"--threads: must be at least 1, got {args.threads}")
        torch.set_num_threads(args.threads)
    if args.device.startswith("cuda") and not torch.cuda.is_available():
        raise UserError(f"--device {args.device}: no CUDA device here; use --device cpu")
    dtype = torch.bfloat16 if args.use_bf16 or args.dtype == "bfloat16" else torch.float32
    policy = VLAPolicy.from_pretrained(args.ckpt_path, args.device, dtype, args.cache_mib)
    server = PolicyServer(
        policy,
        host=args.host,
        port=args.port,
        max_queue=args.max_queue,
        max_sessions=args.max_sessions,
        session_idle_s=args.session_idle_s,
        denoise_steps=args.denoise_steps,
        max_message_mb=args.max_message_mb,
    )
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    server.start()
    try:
        if args.port_file is not None:
            _write_port(args.port_file, server.port)
        stop.wait()
    finally:
        server.stop()


def _write_port(path: Path, port: int) -> None:
    # A reader sees nothing or the whole number.
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    temporary.write_text(f"{port}\n")
    temporary.replace(path)


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit code: 0 after a clean stop, 2 for a user's mistake."""
    args = _parser().parse_args(argv)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    try:
        _serve(args)
    except UserError as error:
        print(f"vla-serve: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
