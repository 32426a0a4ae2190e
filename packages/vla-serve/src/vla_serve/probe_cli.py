"""``vla-serve probe``: ask a server what it serves, and how fast and how surely it answers."""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Sequence

from vla_core.errors import UserError
from vla_core.options import Options

from vla_serve.access_args import access, add_access
from vla_serve.clients.arguments import seconds
from vla_serve.clients.client import PolicyClient
from vla_serve.clients.errors import PolicyServerError
from vla_serve.contract_text import contract_lines, server_lines
from vla_serve.probing.probe import influences, load, repeats
from vla_serve.probing.probe_report import latency_lines, repeats_line


def _parser() -> argparse.ArgumentParser:
    parser = Options(
        prog="vla-serve probe",
        description="Ask a server what it serves, and how it answers made-up observations.",
        epilog="Exit codes: 0; 1 equal requests had different answers, or the server failed; 2 a mistake.",
    )
    add_access(parser)
    add = parser.add_argument
    add("--requests", type=int, default=50, help="of each client (default: %(default)s)")
    add("--clients", type=int, default=1, help="that ask at the same time (default: %(default)s)")
    add("--seed", type=int, default=0, help="of the observations and the noise (default: %(default)s)")
    add("--denoise_steps", type=int, help="of each request (default: the server's)")
    add("--wait_s", type=float, default=0.0, help="for a server that still starts (default: %(default)s)")
    add(
        "--tolerance",
        type=float,
        default=0.0,
        help="equal requests may be answered so far apart, in the action's units (default: %(default)s)",
    )
    return parser


def _check(args: argparse.Namespace) -> None:
    for name, least in (("requests", 1), ("clients", 1), ("seed", 0)):
        if getattr(args, name) < least:
            raise UserError(f"--{name}: must be at least {least}, got {getattr(args, name)}")
    if not 0 <= args.tolerance < math.inf:
        raise UserError(f"--tolerance: must be finite and not negative, got {args.tolerance}")


def _run(args: argparse.Namespace) -> int:
    _check(args)
    options = access(args)
    with PolicyClient(args.address, **{**options, "timeout_s": seconds(args.timeout_s)}) as client:
        print("\n".join(server_lines(client.server_info())))
        spec = client.contract
        print("\n".join(contract_lines(spec, client.max_delay_steps, client.camera_inputs)))
        changes = influences(client, args.seed, args.denoise_steps)
        moved = ", ".join(f"{name} {value:.3g}" for name, value in changes.items())
        print(f"the answer moves with: {moved} (largest change of an action)")
        deaf = [name for name, value in changes.items() if value == 0]
        if deaf:
            print(f"the answer does not depend on: {', '.join(deaf)}")
    worst = max(repeats(args.address, options, args.seed, args.denoise_steps))
    print(repeats_line(worst, args.tolerance))
    found = load(args.address, options, args.clients, args.requests, args.seed, args.denoise_steps)
    print(f"\n{args.clients} client(s), {args.requests} requests each, images {args.encoding}")
    print(*latency_lines(found, spec.action.control_hz, spec.action.horizon), sep="\n")
    return 0 if worst <= args.tolerance else 1


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; returns 0, 1 when answers differ or the server failed, 2 for a mistake."""
    args = _parser().parse_args(argv)
    try:
        if args.wait_s:
            PolicyClient(args.address, **access(args)).wait_ready(seconds(args.wait_s, "wait_s"))
        return _run(args)
    except UserError as error:
        print(f"vla-serve probe: {error}", file=sys.stderr)
        return 2
    except PolicyServerError as error:
        print(f"vla-serve probe: {error}", file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())
