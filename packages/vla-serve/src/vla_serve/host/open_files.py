"""How many files a server may have open: each connection is one."""

from __future__ import annotations

import logging

log = logging.getLogger("vla_serve.server")

MOST = 2**16


def allow_connections() -> None:
    """Raise this process's limit as far as the system lets it, where it has one (not on Windows).

    A limit of 1024 is the usual one: a client that opens that many connections would keep all others out.
    """
    try:
        import resource
    except ImportError:
        return
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    most = MOST if hard == resource.RLIM_INFINITY else min(hard, MOST)
    if soft == resource.RLIM_INFINITY:
        return
    wanted = most
    while soft < wanted:
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
        except (OSError, ValueError):  # the kernel has a limit below the hard one, as on macOS
            wanted //= 2
        else:
            break
    if wanted < most:
        allowed = max(soft, wanted)
        log.info("open files: at most %d connections, as the system does not allow %d", allowed, most)
