"""Memory of all our processes while many uploads run at once over https: MiB, and KiB for each upload.

Run: python tests/bench/storage_uploads.py
"""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from tests.bench.storage_peers import Server, ground
from tests.support.storage import StorageSite

SIZE = 1 << 20
BLOCK = bytes(1 << 16)
COUNTS = (1, 100, 1000)


class Upload:
    """One upload in the midst: three quarters are sent and taken, the rest waits."""

    def __init__(self, site: StorageSite, number: int) -> None:
        self._site = site
        self._number = number

    async def begin(self) -> None:
        self._reader, self._writer = await asyncio.open_connection(
            "localhost", self._site.port, ssl=self._site.context(), limit=1 << 14
        )
        head = (
            f"PUT /cms/up-{self._number} HTTP/1.1\r\nHost: localhost:{self._site.port}\r\n"
            f"Authorization: Bearer {self._site.token()}\r\nContent-Length: {SIZE}\r\n\r\n"
        )
        self._writer.write(head.encode())
        for _ in range(SIZE // len(BLOCK) * 3 // 4):
            self._writer.write(BLOCK)
            await self._writer.drain()

    async def finish(self) -> None:
        for _ in range(SIZE // len(BLOCK) // 4):
            self._writer.write(BLOCK)
            await self._writer.drain()
        line = await self._reader.readline()
        if b" 20" not in line:
            raise RuntimeError(line.decode())
        self._writer.close()


async def measured(server: Server, site: StorageSite, count: int) -> int:
    """Resident bytes while ``count`` uploads run."""
    uploads = [Upload(site, number) for number in range(count)]
    for start in range(0, count, 50):
        await asyncio.gather(*(upload.begin() for upload in uploads[start : start + 50]))
    while len(site.temporaries()) < count:
        await asyncio.sleep(0.1)
    found = server.memory()
    for start in range(0, count, 50):
        await asyncio.gather(*(upload.finish() for upload in uploads[start : start + 50]))
    return found


def main() -> None:
    with ground() as here:
        server = here.edged()
        figures = {count: asyncio.run(measured(server, here.site, count)) for count in COUNTS}
        first = figures[COUNTS[0]]
        for count, found in figures.items():
            each = (found - first) / max(1, count - COUNTS[0]) / 1024
            print(f"{count:5} uploads at once: {found >> 20:5} MiB resident, {each:7.0f} KiB for each more")


main()
