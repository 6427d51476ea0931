"""The ARC door's CPU per call, as brokers call it: submissions, status, the list, the information.

    python -m tests.bench.arc_status [--jobs 10000]

A whole site on the local batch system: the jobs wait for an input that never comes, so that nothing but the
door, the engine and the journal (SQLite, durable) works. CPU is that of all edged processes, from /proc.
Then the same for Debian's A-REX where it is installed; its list is of fewer jobs and is not compared.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import pwd
import ssl
import tempfile
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import aiohttp

from tests.real.doors.arc.fixtures import ALICE, ArcSite, arc_sections, grid_of, with_tls
from tests.real.jobs.fixtures import local_jobs
from tests.support import arex
from tests.support.gridca import GridCa, proxy
from tests.support.site import Site

ADL = (
    '<ActivityDescription xmlns="http://www.eu-emi.eu/es/2010/12/adl"><Application><Executable>'
    "<Path>/bin/true</Path></Executable><Output>o</Output></Application><Resources/>"
    "<DataStaging><InputFile><Name>never</Name></InputFile></DataStaging></ActivityDescription>"
)
XRSL = "&(executable=/bin/true)(stdout=o)(inputfiles=(never ''))"
TICK = os.sysconf("SC_CLK_TCK")


class Server:
    """Whose CPU is counted, and how to reach it."""

    def __init__(
        self, base: str, pids: Callable[[], list[int]], context: ssl.SSLContext, token: str | None
    ) -> None:
        self.base = base
        self.pids = pids
        self.context = context
        self.headers = {"Accept": "application/json"}
        if token is not None:
            self.headers["Authorization"] = f"Bearer {token}"

    def cpu_s(self) -> float:
        return sum(map(_cpu_s, self.pids()))

    def session(self, *, keep: bool = True) -> aiohttp.ClientSession:
        connector = aiohttp.TCPConnector(ssl=self.context, force_close=not keep)
        return aiohttp.ClientSession(headers=self.headers, connector=connector)

    async def cost(self, name: str, count: int, units: int, call: Callable[[], Awaitable[object]]) -> float:
        """CPU milliseconds per unit of ``count`` calls, printed."""
        for _ in range(max(1, count // 5)):  # what happens once only is not the call's price
            await call()
        cpu, started = self.cpu_s(), time.perf_counter()
        for _ in range(count):
            await call()
        wall = time.perf_counter() - started
        spent = (self.cpu_s() - cpu) * 1000 / (count * units)
        print(f"  {name:34} {spent:9.3f} ms CPU   {count * units / wall:9.1f} /s")
        return spent


def _cpu_s(pid: int) -> float:
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return 0.0
    return (int(fields[11]) + int(fields[12])) / TICK


def children(root: int) -> list[int]:
    """A process and all below it."""
    parents: dict[int, list[int]] = {}
    for entry in filter(str.isdigit, os.listdir("/proc")):
        try:
            parent = int(Path(f"/proc/{entry}/stat").read_text().rpartition(")")[2].split()[1])
        except (FileNotFoundError, ProcessLookupError):
            continue
        parents.setdefault(parent, []).append(int(entry))
    found, todo = [], [root]
    while todo:
        found.append(todo.pop())
        todo += parents.get(found[-1], [])
    return found


async def measured(server: Server, *, jobs: int = 10_000) -> dict[str, float]:
    """Every figure of one server."""
    spent: dict[str, float] = {}
    made: list[str] = []

    async def post(session: aiohttp.ClientSession, action: str, data: bytes) -> list[dict[str, Any]]:
        kind = {"Content-Type": "application/json"} if action != "new" else {}
        async with session.post(f"{server.base}/jobs?action={action}", data=data, headers=kind) as answer:
            body = await answer.read()
            assert answer.status == 201 and body, (answer.status, answer.reason, body)
            found = json.loads(body)["job"]
        return found if isinstance(found, list) else [found]

    async def submit(session: aiohttp.ClientSession, data: bytes) -> None:
        made.extend(row["id"] for row in await post(session, "new", data))

    async def anew() -> None:
        while True:  # A-REX 6.17 fails some handshakes
            with suppress(aiohttp.ClientConnectorSSLError):
                async with server.session(keep=False) as session:
                    return await submit(session, XRSL.encode())

    async with server.session() as session:
        bulk = ("<ActivityDescriptions>" + ADL * 100 + "</ActivityDescriptions>").encode()
        spent["submit, keep-alive"] = await server.cost(
            "submit, keep-alive", 500, 1, lambda: submit(session, XRSL.encode())
        )
        spent["submit, new TLS"] = await server.cost("submit, new TLS connection", 300, 1, anew)
        spent["submit, bulk"] = await server.cost(
            "submit, bulk of 100, per job", 5, 100, lambda: submit(session, bulk)
        )
        while len(made) < jobs:
            await submit(session, bulk)
        for number in (1, 100, 1000):
            body = json.dumps({"job": [{"id": one} for one in made[:number]]}).encode()
            spent[f"status {number}"] = await server.cost(
                f"status of {number:,}",
                300 if number < 1000 else 100,
                1,
                partial(post, session, "status", body),
            )
        spent["info 1000"] = await server.cost("info of 1,000", 5, 1, lambda: post(session, "info", body))

        async def listed() -> None:
            async with session.get(f"{server.base}/jobs") as answer:
                assert answer.status == 200 and len(await answer.read()) > 20 * jobs, answer.reason

        spent[f"list {len(made)}"] = await server.cost(f"GET /jobs of {len(made):,}", 20, 1, listed)
        print(f"  memory of all processes: {sum(map(_memory, server.pids())) >> 20} MiB")
    return spent


def _memory(pid: int) -> int:
    try:
        return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except (FileNotFoundError, ProcessLookupError):
        return 0


async def ours(jobs: int) -> dict[str, float]:
    """A site of its own."""
    own = pwd.getpwuid(os.geteuid()).pw_name
    with tempfile.TemporaryDirectory(prefix="edged-arc-bench-") as root:
        site = Site(Path(root))
        grid, alice = grid_of(site)
        extra = arc_sections(site.root, {ALICE: own})
        settings = local_jobs(Path(root), arc=extra["arc"])
        log = {"level": "warning"}
        site.sections.update(identity=extra["identity"], tls=with_tls(site, grid), jobs=settings, log=log)
        async with site.running():
            arc = await ArcSite(site, grid, alice).ready()
            context = ssl.create_default_context(cafile=str(site.issuer.ca.file))
            assert site.process is not None
            pid = site.process.pid
            print("edged, bearer token")
            found = await measured(
                Server(arc.rest(), lambda: children(pid), context, site.token()), jobs=jobs
            )
            context = ssl.create_default_context(cafile=str(site.issuer.ca.file))
            context.load_cert_chain(str(arc.proxy_file(proxy(alice))))
            server = Server(arc.rest(), lambda: children(pid), context, None)
            print("edged, X.509 proxy")
            async with server.session() as session:
                ready = XRSL.encode()

                async def submit() -> None:
                    async with session.post(f"{server.base}/jobs?action=new", data=ready) as answer:
                        assert answer.status == 201

                found["submit, proxy"] = await server.cost("submit, keep-alive", 500, 1, submit)
    return found


async def peer(jobs: int) -> dict[str, float]:
    """A-REX with an X.509 proxy: it is much slower with a token, whose keys it fetches for each request."""
    with tempfile.TemporaryDirectory(prefix="edged-arex-") as name:
        root = Path(name)
        root.chmod(0o755)
        grid = GridCa(root / "certificates")
        file = root / "proxy.pem"
        file.touch(mode=0o600)
        file.write_bytes(proxy(grid.user("alice")).pem())
        with arex.running(root / "arex", grid, ALICE) as (base, pid):
            context = ssl.create_default_context(capath=str(grid.directory))
            context.load_cert_chain(str(file))
            print("A-REX (REST daemon only), X.509 proxy")
            return await measured(Server(base, lambda: children(pid), context, None), jobs=jobs)


async def main() -> None:
    options = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    options.add_argument("--jobs", type=int, default=10_000)
    given = options.parse_args()
    mine = await ours(given.jobs)
    if why := arex.missing():
        print(f"no peer: {why}")
        return
    theirs = await peer(1200)
    for name in (name for name in mine if name in theirs):
        print(f"  {name:24} A-REX/edged {theirs[name] / mine[name]:6.1f}")


if __name__ == "__main__":
    asyncio.run(main())
