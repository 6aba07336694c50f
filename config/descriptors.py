"""File descriptors: every connection takes one, and the service needs some for its own work."""

import resource
from contextlib import suppress
from typing import Final

KEPT: Final = 256  # for MongoDB, the mail server and DNS; half of all descriptors if there are few
FEW: Final = 1024  # with a lower limit, the pools of connections to MongoDB are smaller, too
USED: Final = 64  # by an idle service
STREAMS_PART: Final = 0.75  # fraction of the other descriptors for streams, which hold them for long


def raise_limit() -> None:
    """Raise the soft limit to the hard one. That of systemd and Docker, 1,024, is for programs that use select(2)."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with suppress(ValueError, OSError):  # macOS says that there is no limit, and has one
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def limit() -> int:
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return soft if soft != resource.RLIM_INFINITY else 1 << 20


def for_clients() -> int:
    """Return the first descriptor that is kept: the kernel gives the lowest one that is free (POSIX, "open")."""
    return limit() - min(KEPT, limit() // 2)


def for_streams() -> int:
    return int(STREAMS_PART * max(0, for_clients() - USED))
