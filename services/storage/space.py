"""Space and quota of exports: the account's own answer, reused for a while."""

from __future__ import annotations

import time

from edged import metrics
from edged.accounts.api import Files, Space
from edged.config.storage import Export
from edged.errors import EdgeError
from services.storage.exchange import Exchange
from services.storage.namespace import Target

_SAME = metrics.Across.LARGEST  # every worker tells of the same file systems
TOTAL = metrics.gauge("storage_space_total_bytes", "Space an export may fill.", ("export",), across=_SAME)
USED = metrics.gauge("storage_space_used_bytes", "Space used of an export.", ("export",), across=_SAME)
INODES = metrics.gauge("storage_inodes_total", "Inodes an export may use.", ("export",), across=_SAME)
INODES_USED = metrics.gauge("storage_inodes_used", "Inodes used of an export.", ("export",), across=_SAME)

REMEMBERED = 1024


class Spaces:
    """Space by export and account; file systems compute quotas slowly, so an answer is kept ``keep_s``."""

    def __init__(self, files: Files, keep_s: float) -> None:
        self._files = files
        self._keep_s = keep_s
        self._known: dict[tuple[str, str], tuple[float, Space]] = {}
        self.latest: dict[str, tuple[float, Space]] = {}  # by export: Unix seconds, what SRR tells

    async def of(self, exchange: Exchange, target: Target) -> Space | None:
        """For the collection of a request; None when the file system does not tell."""
        return await self.ask(exchange.grant, exchange.verdict.account, target)

    async def ask(self, grant: bytes, account: str, target: Target) -> Space | None:
        """As ``account`` sees it."""
        key = (target.export.label, account)
        now = time.monotonic()
        known = self._known.get(key)
        if known is not None and now - known[0] < self._keep_s:
            return known[1]
        try:
            space = within(await self._files.space(grant, target.place), target.export.size)
        except EdgeError:
            return None
        if len(self._known) >= REMEMBERED:
            self._known.clear()
        self._known[key] = (now, space)
        self._note(target.export, space)
        return space

    def _note(self, export: Export, space: Space) -> None:
        self.latest[export.label] = (time.time(), space)
        values = {
            TOTAL: space.total,
            USED: space.used,
            INODES: space.files_total,
            INODES_USED: space.files_used,
        }
        for gauge, value in values.items():
            gauge.labels(export.label).set(value)


def within(space: Space, size: int | None) -> Space:
    """Cut to the size the site gave the export; the account's own quota wins when it is tighter."""
    if size is None or size >= space.total:
        return space
    available = min(space.available, max(size - space.used, 0))
    return Space(size, space.used, available, space.files_total, space.files_used)
