"""For ``edged doctor``: the exports' file systems answer and have room; the root:// view can be given."""

from __future__ import annotations

import asyncio

from edged import programs
from edged.config import Config
from edged.config.storage import Export
from edged.doctor import Finding
from edged.errors import Unavailable
from services.storage.xrootd import findings as xrootd

PART = "export"
LOW = 0.03
HUNG = "the file server hangs or the mount is stale: other exports go on, this one does not"


async def findings(config: Config) -> list[Finding]:
    """Nothing without [storage]."""
    if config.storage is None:
        return []
    found = list(await asyncio.gather(*(_export(export) for export in config.storage.exports)))
    return [*found, *(await xrootd.findings(config))]


async def _export(export: Export) -> Finding:
    """In a process of its own: one that hangs on a dead server is left behind."""
    where = f"{export.prefix} at {export.root}"
    try:
        said = await programs.ask(["stat", "-f", "-c", "%a %b %T", export.root])
    except Unavailable as error:
        return Finding(PART, False, f"{where}: {error.message}", HUNG)
    if said.code != 0:
        return Finding(
            PART, False, f"{where}: {said.complaint}", "mount the file system, or correct storage.export.root"
        )
    return judged(where, said.out)


def judged(where: str, said: str) -> Finding:
    """``said``: free blocks, all blocks and kind, as stat -f tells them."""
    free, blocks, kind = said.split(maxsplit=2)
    share = int(free) / max(1, int(blocks))
    return Finding(
        PART, share > LOW, f"{where}: {kind.strip()}, {share:.0%} free", "make room, or lower the VO's quota"
    )
