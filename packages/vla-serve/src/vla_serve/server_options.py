"""The options of ``vla-serve``."""

from __future__ import annotations

import argparse
from pathlib import Path

from vla_core.errors import UserError
from vla_core.options import Options


def parser() -> argparse.ArgumentParser:
    """Of the command line."""
    out = Options(
        prog="vla-serve",
        description="Answer action requests from a checkpoint over gRPC.",
        epilog="Clients of a server that runs: vla-serve probe | doctor | bridge --help.",
    )
    add = out.add_argument
    add("--ckpt_path", type=Path, help="checkpoint directory, or the weights file inside it")
    add(
        "--policy",
        action="append",
        default=[],
        metavar="NAME=PATH",
        help="serve this checkpoint under a name; may be given several times (--ckpt_path: 'default')",
    )
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
    add(
        "--compile",
        choices=("off", "blocks"),
        default="off",
        help="blocks: faster on a GPU; 3B are ready after 80 to 100 s, not 20 to 30 (default: %(default)s)",
    )
    add("--fp8", action="store_true", help="large linear layers in float8; the log says what it costs")
    add("--eager", action="store_true", help="no CUDA graphs: a GPU serves at once, and slowly")
    add(
        "--idle_poll",
        action="store_true",
        help="idle cores poll and never halt: sooner answers, above all in a virtual machine, for the power "
        "of all cores that the server may run on (taskset); Linux",
    )
    batch = out.add_argument_group("batches").add_argument
    batch("--max_batch", type=int, help="rows of a run, at most (default: 8; on a GPU 32)")
    batch("--batch_wait_ms", type=float, default=0.0, help="wait for more rows (default: %(default)s)")
    batch(
        "--deterministic",
        action="store_true",
        help="runs of one shape: an answer does not depend on who else asks, bit by bit",
    )
    limits = out.add_argument_group("limits").add_argument
    limits("--max_queue", type=int, default=64, help="requests that may wait (default: %(default)s)")
    limits("--max_sessions", type=int, default=64, help="open sessions (default: %(default)s)")
    limits("--session_idle_s", type=float, default=600.0, help="close idle sessions (default: %(default)s)")
    limits("--max_denoise_steps", type=int, default=1000, help="of a request (default: %(default)s)")
    limits("--max_message_mb", type=int, default=32, help="largest request in MiB (default: %(default)s)")
    limits("--max_in_flight", type=int, default=64, help="requests of a connection (default: %(default)s)")
    limits("--max_in_flight_mb", type=int, default=256, help="MiB of all requests (default: %(default)s)")
    limits(
        "--max_in_flight_mpx",
        type=int,
        default=128,
        help="megapixels of their pictures, decoded (default: %(default)s)",
    )
    limits(
        "--body_timeout_s", type=float, default=10.0, help="for a request to arrive (default: %(default)s)"
    )
    limits("--model_timeout_s", type=float, default=60.0, help="a longer run is hung (default: %(default)s)")
    limits("--grace_s", type=float, default=30.0, help="to finish when stopped (default: %(default)s)")
    watch = out.add_argument_group("operation (of this machine alone)").add_argument
    watch("--admin_port", type=int, help="PolicyAdminService: load, promote, drain, unload (default: none)")
    watch(
        "--admin_token_file",
        type=Path,
        help="file with the token of its calls, written where there is none (default: --token_file)",
    )
    watch(
        "--dashboard",
        type=int,
        metavar="PORT",
        help="a page for a browser: what is served, how fast, what the robots see",
    )
    watch("--metrics_port", type=int, help="Prometheus metrics, GET /metrics (default: none)")
    watch("--otlp_endpoint", help="traces to this collector, e.g. http://127.0.0.1:4317 (default: none)")
    watch("--reflection", action="store_true", help="answer gRPC server reflection (grpcurl and the like)")
    watch("--log_format", choices=("text", "json"), default="text", help="default: %(default)s")
    watch(
        "--log_level",
        choices=("debug", "info", "warning", "error"),
        default="info",
        help="debug: also what is refused under load (default: %(default)s)",
    )
    access = out.add_argument_group("access (needed unless the host is this machine alone)").add_argument
    access("--tls_cert", type=Path, help="PEM file of the server's certificate chain")
    access("--tls_key", type=Path, help="PEM file of its key")
    access("--tls_client_ca", type=Path, help="PEM file: clients need a certificate of this authority")
    access("--token_file", type=Path, help="file with the token that every call must bring")
    access("--insecure", action="store_true", help="let whoever reaches the host use the policy")
    return out


def checkpoints(args: argparse.Namespace) -> dict[str, Path]:
    """Name -> checkpoint, in the order given.

    Raises:
        UserError: none, a name twice, or words that are no NAME=PATH.
    """
    found = {} if args.ckpt_path is None else {"default": args.ckpt_path}
    for text in args.policy:
        name, equals, path = text.partition("=")
        if not (equals and name and path and name.isprintable() and len(name) <= 64):
            raise UserError(f"--policy: '{text}' is no NAME=PATH")
        if name in found:
            raise UserError(f"--policy: '{name}' is given twice")
        found[name] = Path(path)
    if not found:
        raise UserError("--ckpt_path: missing; give it, or --policy NAME=PATH")
    return found
