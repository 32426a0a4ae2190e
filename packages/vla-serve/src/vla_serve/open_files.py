"""How many files a server may have open: each connection is one."""

from __future__ import annotations

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
    if soft != resource.RLIM_INFINITY and soft < most:
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))
