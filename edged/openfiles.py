"""How many files a process may have open: connections, tunnels, channels and files in transfer are each one."""

from __future__ import annotations

import resource

MOST = 65536  # what our units have (LimitNOFILE)


def allow() -> None:
    """Up to ``MOST``, where the hard limit allows it. A shell's soft limit is 1024, for programs that use select."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = MOST if hard == resource.RLIM_INFINITY else min(hard, MOST)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
