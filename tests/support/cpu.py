"""What a process and all it started have used: CPU seconds and memory."""

from __future__ import annotations

import os
from pathlib import Path

TICK = os.sysconf("SC_CLK_TCK")


def undisturbed() -> None:
    """Run this process and its children before all else on the machine (sched(7), SCHED_RR). Needs root.

    For short benches on a shared machine: wall time is then what an idle one would show.
    """
    os.sched_setscheduler(0, os.SCHED_RR, os.sched_param(1))


def tree(pid: int) -> list[int]:
    """The process and its living descendants."""
    parents: dict[int, int] = {}
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            parents[int(entry.name)] = int(_fields(int(entry.name))[1])
        except OSError:
            continue
    found = [pid]
    for one in found:
        found += [child for child, parent in parents.items() if parent == one]
    return found


def tree_seconds(pid: int) -> float:
    """User and system CPU seconds of the tree, those of reaped children included."""
    total = 0
    for one in tree(pid):
        try:
            total += sum(int(value) for value in _fields(one)[11:15])
        except OSError:
            continue
    return total / TICK


def pss_bytes(pid: int) -> int:
    """Proportional set size of one process."""
    for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
        if line.startswith("Pss:"):
            return int(line.split()[1]) * 1024
    return 0


def _fields(pid: int) -> list[str]:
    """Fields of /proc/PID/stat after the name: state, ppid, …"""
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
