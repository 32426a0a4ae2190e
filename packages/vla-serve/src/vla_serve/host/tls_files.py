"""PEM files of certificates and keys, looked into before gRPC, which says little about a bad one."""

from __future__ import annotations

import ssl
from pathlib import Path

from vla_core.errors import UserError


def check_pair(cert: Path, key: Path, options: tuple[str, str] = ("tls_cert", "tls_key")) -> None:
    """That two files are a certificate chain and its key.

    Args:
        cert, key: PEM files.
        options: what the two are called in errors.

    Raises:
        UserError: one cannot be read or is no such file, the two differ, or the key has a password.
    """
    readable(cert, options[0])
    readable(key, options[1])
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    try:
        context.load_cert_chain(cert, key, password=_no_password)
    except ssl.SSLError as error:
        words = f"{options[0]}, {options[1]}: {cert} and {key} are no certificate and its key as PEM"
        raise UserError(f"{words}{_reason(error)}") from None
    except ValueError:  # of the password that there is not
        raise UserError(f"{options[1]}: {key} has a password, which nobody could type here") from None


def check_authority(path: Path, option: str) -> None:
    """That a file holds certificates of an authority; :class:`UserError` where it does not."""
    readable(path, option)
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).load_verify_locations(path)
    except ssl.SSLError as error:
        raise UserError(f"{option}: {path} holds no certificate as PEM{_reason(error)}") from None


def readable(path: Path, option: str) -> bytes:
    """What a file holds; :class:`UserError` where it cannot be read."""
    try:
        return Path(path).read_bytes()
    except OSError as error:
        raise UserError(f"{option}: {path} cannot be read ({error.strerror})") from None


def _no_password() -> str:
    raise ValueError


def _reason(error: ssl.SSLError) -> str:
    return f" ({error.reason.lower().replace('_', ' ')})" if error.reason else ""
