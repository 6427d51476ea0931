"""The cost of an installed edge: `python -m tests.bench.operate_edge`, as root; boots a machine.

Prints how long the role takes from nothing to ready and a second time, each unit's time from start to ready,
and each idle process's memory. Bars: 180 s, 40 s without a change, 2 s, 80 MB PSS.
"""

from __future__ import annotations

import os
import sys
import tempfile
from pathlib import Path

from tests.support.edge import UNITS, Edge, bare, wheelhouse
from tests.support.machine import CannotBoot


def main() -> None:
    """Print the table."""
    with tempfile.TemporaryDirectory(prefix="edged-bench-") as name:
        Path(name).chmod(0o755)
        try:
            with bare(Path(name)) as edge:
                measure(edge)
        except CannotBoot as why:
            sys.exit(f"not measured: {why}")


def measure(edge: Edge) -> None:
    """One machine: both plays, then each unit."""
    wheels = str(wheelhouse())
    print(f"load average {os.getloadavg()[0]:.1f} on {os.cpu_count()} CPUs (other work counts)")
    first = edge.play(edged_wheelhouse=wheels)
    print(f"from nothing to ready: {first.seconds:.0f} s (bar 180 s), {first.changed} changes")
    second = edge.play(edged_wheelhouse=wheels)
    print(f"second run: {second.seconds:.0f} s (bar 40 s), {second.changed} changes")
    print(f"{'unit':14} {'ready':>7} {'CPU':>6}   processes (PSS MB)")
    for unit in UNITS:
        edge.machine.run("systemctl", "restart", f"edged-{unit}.service", limit_s=90)
    for unit in UNITS:
        print(f"{unit:14} {ready_s(edge, unit):5.2f} s {cpu_s(edge, unit):4.2f} s   {memory(edge, unit)}")


def ready_s(edge: Edge, unit: str) -> float:
    """From exec to READY=1, by systemd's own clock."""
    started, ready = (
        int(edge.machine.property(f"edged-{unit}.service", name))
        for name in ("ExecMainStartTimestampMonotonic", "ActiveEnterTimestampMonotonic")
    )
    return (ready - started) / 1e6


def cpu_s(edge: Edge, unit: str) -> float:
    """What the main process used since its start."""
    pid = edge.machine.property(f"edged-{unit}.service", "MainPID")
    fields = edge.machine.read("cat", f"/proc/{pid}/stat").rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def memory(edge: Edge, unit: str) -> str:
    """PSS of every process of the unit."""
    group = edge.machine.property(f"edged-{unit}.service", "ControlGroup")
    pids = edge.machine.read("cat", f"/sys/fs/cgroup/systemd{group}/cgroup.procs").split()
    found = []
    for pid in pids:
        rollup = edge.machine.read("cat", f"/proc/{pid}/smaps_rollup")
        (pss,) = (line.split()[1] for line in rollup.splitlines() if line.startswith("Pss:"))
        found.append(f"{int(pss) / 1024:.0f}")
    return " + ".join(found)


if __name__ == "__main__":
    main()
