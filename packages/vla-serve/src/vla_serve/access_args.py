"""Command-line options of the programs that are clients of a server: where it is, and what to show it."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from vla_serve.clients.connection import TLS
from vla_serve.host.listen import read_token

SHOWN = ("tls", "tls_ca", "tls_cert", "tls_key", "tls_server_name", "token_file")
"""What :func:`add_shown` adds."""


def add_access(parser: argparse.ArgumentParser) -> None:
    """The options that :func:`access` reads."""
    parser.add_argument("--address", required=True, help="HOST:PORT of vla-serve")
    parser.add_argument("--policy", default="", help="name on the server (default: its only one)")
    parser.add_argument("--embodiment", default="", help="name in the policy (default: its only one)")
    parser.add_argument("--timeout_s", type=float, default=30.0, help="of a request (default: %(default)s)")
    parser.add_argument(
        "--encoding", choices=("raw", "png", "jpeg"), default="raw", help="of images (default: %(default)s)"
    )
    add_shown(parser)


def add_shown(parser: argparse.ArgumentParser) -> None:
    """The options that :func:`shown` reads."""
    add = parser.add_argument_group("access to the server").add_argument
    add("--tls", action="store_true", help="the server has TLS, and an authority that this system trusts")
    add("--tls_ca", type=Path, help="PEM file of the authority of the server's certificate")
    add("--tls_cert", type=Path, help="PEM file of this client's certificate")
    add("--tls_key", type=Path, help="PEM file of its key")
    add("--tls_server_name", help="name in the server's certificate, where it is not the address")
    add("--token_file", type=Path, help="file with the token that the server asks for")


def access(args: argparse.Namespace) -> dict[str, Any]:
    """Keyword arguments of a client; :class:`UserError` for a token file that cannot be read."""
    return {
        "policy": args.policy,
        "embodiment": args.embodiment,
        "timeout_s": args.timeout_s,
        "encoding": args.encoding,
        **shown(vars(args)),
    }


def shown(given: Mapping[str, Any]) -> dict[str, Any]:
    """How a client knows its server, and what it shows; :class:`UserError` as of :func:`access`."""
    files = [given[name] for name in ("tls_ca", "tls_cert", "tls_key", "tls_server_name")]
    token_file = given["token_file"]
    return {
        "tls": TLS(*files) if given["tls"] or any(files) else None,
        "token": None if token_file is None else read_token(token_file),
    }
