"""The local disks edged writes on: there, local, and with room."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

from edged.config import Config
from edged.doctor import Finding

PART = "disk"
LOW = 0.05
NETWORKED = {"nfs", "nfs4", "gpfs", "lustre", "ceph", "beegfs", "cifs", "fuse.sshfs"}


async def findings(config: Config) -> list[Finding]:
    """State and audit log."""
    places = {"runtime.state": config.runtime.state}
    if config.log.audit_file is not None:
        places["log.audit_file"] = config.log.audit_file.parent
    return await asyncio.to_thread(lambda: [f for key, place in places.items() for f in examined(key, place)])


def examined(key: str, place: Path) -> list[Finding]:
    """One directory, named by its key in the configuration."""
    try:
        told = os.statvfs(place)
    except OSError as error:
        return [Finding(PART, False, f"{place}: {error.strerror}", f"make the directory that {key} names")]
    kind = file_system(place, Path("/proc/self/mounts").read_text())
    free = told.f_bavail / max(1, told.f_blocks)
    inodes = told.f_favail / told.f_files if told.f_files else 1.0
    found = [
        Finding(PART, free > LOW, f"{place}: {free:.0%} free", "make room: without it no job is accepted")
    ]
    if told.f_flag & os.ST_RDONLY:
        found.append(
            Finding(
                PART, False, f"{place}: is mounted read-only", "mount it writable; dmesg tells why it is not"
            )
        )
    if inodes <= LOW:
        found.append(
            Finding(PART, False, f"{place}: {inodes:.0%} of inodes free", "remove small files there")
        )
    if key == "runtime.state" and kind in NETWORKED:
        found.append(
            Finding(PART, False, f"{place}: is on {kind}", "databases need a local disk: move runtime.state")
        )
    return found


def file_system(place: Path, mounts: str) -> str:
    """The kind of file system ``place`` is on, from the text of /proc/mounts."""
    best, kind = "", ""
    for line in mounts.splitlines():
        fields = line.split()
        point = fields[1].encode().decode("unicode_escape") if len(fields) > 2 else ""
        if point and place.is_relative_to(point) and len(point) >= len(best):
            best, kind = point, fields[2]
    return kind
