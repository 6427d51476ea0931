"""The page in a real browser, light, dark and narrow: it is drawn, fits, and asks nobody else.

The pictures stay in the test's directory (``--basetemp``) to be looked at.
"""

from __future__ import annotations

import asyncio
import shutil
import struct
import time
import zlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from aiohttp import web

from edged.logs import rfc3339
from edged.peers import Readiness, Ready
from edged.summary import JobCount, Partition
from edged.usage import Usage, day_of
from services.portal import page
from services.portal.audit import Answer, Decision
from services.portal.figures import Snapshot
from services.portal.front import HEADERS
from services.portal.readings import Readings
from services.portal.sessions import Session

CHROMIUM = shutil.which("chromium")
FLAGS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--hide-scrollbars",
    "--disable-background-networking", "--disable-component-update", "--disable-sync", "--disable-dev-shm-usage",
)  # fmt: skip
BROWSER_S = 90.0
METRICS = """
edged_storage_space_used_bytes{export="cms"} 7.1e14
edged_storage_space_total_bytes{export="cms"} 1e15
edged_storage_transfers{kind="get",vo="cms"} 12
edged_storage_bytes_total{kind="get",vo="cms"} 3.2e13
edged_storage_bytes_total{kind="put",vo="ska"} 9.1e12
edged_cache_requests_total{source="cms.cern.ch",outcome="memory"} 81234
edged_cache_requests_total{source="cms.cern.ch",outcome="miss"} 512
edged_cache_sent_bytes_total{source="cms.cern.ch"} 9.3e11
edged_egress_tunnels 41
edged_egress_bytes_total{vo="cms",destination="frontier",way="connect",direction="in"} 4e9
edged_egress_bytes_total{vo="cms",destination="frontier",way="connect",direction="out"} 2e8
edged_egress_connections_total{vo="cms",way="connect",outcome="allowed"} 1233
edged_identity_verdicts_total{issuer="https://cms-auth.cern.ch/",outcome="ok"} 54321
edged_identity_verdicts_total{issuer="https://cms-auth.cern.ch/",outcome="denied"} 12
"""

pytestmark = pytest.mark.skipif(
    CHROMIUM is None, reason="no chromium here: the page is unproven in a browser"
)


def busy(now: float) -> Snapshot:
    """A site in use."""
    readings = Readings()
    readings.add(METRICS)
    usage = [
        Usage(
            day=day_of(now - 86400 * back),
            vo=vo,
            queue="gpu" if vo == "intertwin" else "cpu",
            gpu_kind="h200" if vo == "intertwin" else "",
            jobs=100 + back,
            finished=95,
            cpu_allocated_s=share * 3.6e6 * (1 + (back * 7 + share) % 5),
            cpu_measured_s=share * 3.6e6,
            cpu_used_s=share * 3.1e6,
            gpu_allocated_s=3.6e5 * (1 + back % 4) if vo == "intertwin" else 0.0,
            gpu_measured_s=2.7e5 if vo == "intertwin" else 0.0,
            gpu_used_s=2.1e5 if vo == "intertwin" else None,
            bytes_in=share * 10**11 * (1 + back % 3),
            bytes_out=share * 10**10,
        )
        for back in range(30)
        for share, vo in enumerate(("intertwin", "ska", "cms", "atlas"), 1)
    ]
    refused = Snapshot().refusals
    refused.update(
        {("token", "no mapping for this token"): 31, ("egress", "no rule allows this destination"): 208}
    )
    states = {"QUEUED": 1200, "RUNNING": 340, "FINISHED": 9120, "FAILED": 77}
    return Snapshot(
        at=now - 3,
        processes=[
            Readiness(name, "127.0.0.1:9467", Ready(True, {}, "0.1.0"))
            for name in ("identity", "issuers", "jobs", "storage", "cache")
        ]
        + [
            Readiness(
                "egress", "127.0.0.1:9470", Ready(False, {"egress": "the resolvers do not answer"}, "0.1.0")
            )
        ],
        jobs=[
            JobCount(vo, queue, s, n)
            for vo in ("atlas", "cms")
            for queue in ("cpu", "gpu")
            for s, n in states.items()
        ],
        partitions=[
            Partition(batch="slurm", name="gpu", up=True, cpus=512, cpus_free=96, gpus={"gpu:h200": (32, 5)}),
            Partition(batch="slurm", name="cpu", up=True, cpus=8192, cpus_free=1033),
        ],
        usage=usage,
        readings=readings,
        refusals=refused,
    )


class Pages:
    """Serves the pages of a made-up site with the portal's own headers, and keeps who asked for what."""

    def __init__(self) -> None:
        now = time.time()
        session = Session("operator", "x", 0.0)
        lines = [
            Decision(
                rfc3339(now - n),
                "token",
                {"issuer": "https://cms-auth.cern.ch/"},
                False,
                "no mapping for this token",
            )
            for n in range(5)
        ]
        self.asked: list[str] = []
        self.url = ""
        self._pages = {
            "/": page.document("EXAMPLE-HPC", "Overview", page.overview(busy(now), now), session),
            "/search": page.document("EXAMPLE-HPC", "Search", page.found("alice", Answer(lines)), session),
            "/signin": page.document("EXAMPLE-HPC", "Sign in", page.sign_in(token=True, oidc=True), None),
        }
        self._style = Path(page.__file__).with_name("style.css").read_bytes()

    @asynccontextmanager
    async def running(self) -> AsyncIterator[Pages]:
        server = web.Server(self._answer)
        runner = web.ServerRunner(server)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        self.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
        try:
            yield self
        finally:
            await runner.cleanup()

    async def _answer(self, request: web.BaseRequest) -> web.Response:
        path = request.rel_url.path
        self.asked.append(path)
        if path == "/style.css":
            return web.Response(body=self._style, content_type="text/css", headers=HEADERS)
        if path not in self._pages:
            return web.Response(status=404)
        return web.Response(text=self._pages[path], content_type="text/html", headers=HEADERS)


async def drawn(url: str, picture: Path, *, width: int, height: int, dark: bool = False) -> str:
    """Draw ``url`` to a PNG; returns what the browser complained of."""
    flags = [
        *FLAGS,
        *(
            ["--blink-settings=preferredColorScheme=0"]
            if dark
            else ["--blink-settings=preferredColorScheme=1"]
        ),
    ]
    process = await asyncio.create_subprocess_exec(
        str(CHROMIUM),
        *flags,
        f"--user-data-dir={picture.with_suffix('.profile')}",
        f"--window-size={width},{height}",
        f"--screenshot={picture}",
        "--enable-logging=stderr",
        url,
        stdout=asyncio.subprocess.DEVNULL,
        stderr=asyncio.subprocess.PIPE,
    )
    try:
        async with asyncio.timeout(BROWSER_S):
            _, said = await process.communicate()
    except TimeoutError:
        process.kill()
        await process.wait()
        raise
    return "\n".join(line for line in said.decode(errors="replace").splitlines() if "CONSOLE" in line)


def pixels(picture: Path) -> tuple[int, int, set[bytes], bytes]:
    """Width, height, the colours of some rows, and the first pixel's colour, of an 8-bit RGB(A) PNG."""
    data = picture.read_bytes()
    width, height, _, kind = struct.unpack(">IIBB", data[16:26])
    size = {2: 3, 6: 4}[kind]
    at, packed = 8, b""
    while at < len(data):
        (length,) = struct.unpack(">I", data[at : at + 4])
        if data[at + 4 : at + 8] == b"IDAT":
            packed += data[at + 8 : at + 8 + length]
        at += 12 + length
    raw = zlib.decompress(packed)
    first = raw[1 : 1 + 3]  # filter 0, 1 and 2 leave the first pixel of the first row as it is
    return width, height, {raw[i : i + size] for i in range(0, len(raw), 997)}, first


@pytest.mark.timeout(300)
async def test_the_page_is_drawn_in_light_dark_and_narrow(tmp_path: Path) -> None:
    views = {
        "light": ("/", 1280, 3600, False),
        "dark": ("/", 1280, 3600, True),
        "narrow": ("/", 500, 2400, False),
        "search": ("/search", 1280, 700, False),
        "signin": ("/signin", 800, 500, True),
    }
    async with Pages().running() as pages:
        for name, (path, width, height, dark) in views.items():
            picture = tmp_path / f"{name}.png"
            complaints = await drawn(pages.url + path, picture, width=width, height=height, dark=dark)
            assert not complaints
            found_width, found_height, colours, corner = pixels(picture)
            assert (found_width, found_height) == (width, height)
            assert len(colours) > 8  # something is there
            assert (max(corner) < 60) is dark
        assert set(pages.asked) <= {"/", "/search", "/signin", "/style.css", "/favicon.ico"}
