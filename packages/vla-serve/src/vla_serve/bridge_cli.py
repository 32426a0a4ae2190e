"""``vla-serve bridge``: answer the clients of openpi, StarVLA and vla-eval from a server that runs."""

from __future__ import annotations

import argparse
import asyncio
import logging
import signal
import sys
from collections.abc import Sequence
from contextlib import AsyncExitStack
from functools import partial
from pathlib import Path
from typing import Any

from vla_core.errors import UserError
from vla_core.options import Options

from vla_serve.access_args import access, add_access
from vla_serve.clients.arguments import seconds, within
from vla_serve.clients.async_client import AsyncPolicyClient
from vla_serve.clients.errors import PolicyServerError
from vla_serve.host.listen import Reservation, Security, read_token
from vla_serve.host.open_files import allow_connections


def _parser() -> argparse.ArgumentParser:
    parser = Options(
        prog="vla-serve bridge",
        description="Answer WebSocket clients of openpi, StarVLA and vla-eval from a server that runs.",
    )
    add_access(parser)
    add = parser.add_argument
    add("--repack", type=Path, help="YAML file: their keys to the robot's cameras and state groups")
    add("--openpi_port", type=int, help="for openpi-client; 0: a free one")
    add("--starvla_port", type=int, help="for StarVLA's evaluation clients; 0: a free one")
    add("--vla_eval_port", type=int, help="for vla-eval; 0: a free one")
    add("--denoise_steps", type=int, help="of each request (default: the server's)")
    add("--wait_s", type=float, default=60.0, help="for a server that still starts (default: %(default)s)")
    own = parser.add_argument_group("access to the bridge (as to vla-serve itself)").add_argument
    own("--host", default="127.0.0.1", help="address or name to listen on (default: %(default)s)")
    own("--listen_cert", type=Path, help="PEM file of the bridge's certificate chain")
    own("--listen_key", type=Path, help="PEM file of its key")
    own("--listen_client_ca", type=Path, help="PEM file: clients need a certificate of this authority")
    own("--listen_token_file", type=Path, help="file with the token that every client must bring")
    own("--insecure", action="store_true", help="let whoever reaches the host use the policy")
    own("--max_message_mb", type=int, default=32, help="largest message in MiB (default: %(default)s)")
    own("--max_connections", type=int, default=64, help="of a port (default: %(default)s)")
    return parser


async def _run(args: argparse.Namespace) -> None:
    try:
        from vla_serve.bridges import start
    except ModuleNotFoundError as error:
        raise UserError(f"'{error.name}' is not installed: pip install 'vla-serve[bridge]'") from error
    ports = {"openpi": args.openpi_port, "starvla": args.starvla_port, "vla_eval": args.vla_eval_port}
    if all(port is None for port in ports.values()):
        raise UserError("give --openpi_port, --starvla_port or --vla_eval_port")
    within("max_message_mb", args.max_message_mb, 1, 1024)
    within("max_connections", args.max_connections, 1, 100_000)
    names = ("listen_cert", "listen_key", "listen_token_file", "listen_client_ca")
    token = None if args.listen_token_file is None else read_token(args.listen_token_file, names[2])
    security = Security(args.listen_cert, args.listen_key, args.listen_client_ca, token, args.insecure, names)
    options = access(args)
    embodiment = options.pop("embodiment")
    connect = partial(AsyncPolicyClient, args.address, **options)
    async with AsyncExitStack() as stack:
        reserved = {}
        for name, port in ports.items():
            if port is not None:
                reserved[name] = Reservation(args.host, port, f"{name}_port")
                stack.callback(reserved[name].release)
                security.check(reserved[name].addresses)
                if warning := security.warning(reserved[name].addresses):
                    print(f"vla-serve bridge: warning: {name}: {warning}", file=sys.stderr)
        info = connect()
        await info.wait_ready(seconds(args.wait_s, "wait_s"))
        if args.denoise_steps is not None:
            most = (await info.server_info()).limits.max_denoise_steps
            within("denoise_steps", args.denoise_steps, 1, most)
        speakers = await start.speakers(
            connect,
            list(reserved),
            start.read(args.repack),
            args.policy,
            embodiment,
            args.timeout_s,
            args.denoise_steps,
        )
        await info.close()
        stop = asyncio.Event()
        for number in (signal.SIGTERM, signal.SIGINT):
            asyncio.get_running_loop().add_signal_handler(number, stop.set)
        for name, speaker in speakers.items():
            listener: Any = start.Listener(
                speaker, reserved[name], security, args.max_message_mb << 20, args.max_connections
            )
            await listener.start()
            stack.push_async_callback(listener.stop)
            print(f"{name} {listener.url}", flush=True)
        await stop.wait()


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; returns 0 after a clean stop, 1 when there is no server, 2 for a mistake."""
    args = _parser().parse_args(argv)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    allow_connections()
    try:
        asyncio.run(_run(args))
    except UserError as error:
        print(f"vla-serve bridge: {error}", file=sys.stderr)
        return 2
    except PolicyServerError as error:
        print(f"vla-serve bridge: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
