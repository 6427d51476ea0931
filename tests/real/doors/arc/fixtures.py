"""A site with the ARC door, a grid CA, and ARC's own command line clients."""

from __future__ import annotations

import asyncio
import os
import pwd
import shutil
import tempfile
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp
import pytest
import pytest_asyncio

from tests.real.jobs.fixtures import local_jobs, slurm_settings
from tests.support.gridca import Credential, GridCa, proxy
from tests.support.site import Site
from tests.support.slurm import SlurmTestbed, missing

__all__ = ["arc", "arc_slurm", "slurm"]

ALICE, MALLORY = "/DC=org/DC=edged-test/CN=alice", "/DC=org/DC=edged-test/CN=mallory"
TERMINAL = ("FINISHED", "FAILED", "KILLED")
CLIENT_CONF = "[common]\nrejectdiscovery = .*\n"


@dataclass(slots=True)
class ArcSite:
    """The site, its grid, and alice."""

    site: Site
    grid: GridCa
    alice: Credential

    async def ready(self) -> ArcSite:
        """Itself, once the keys of the token issuer are known."""
        async with self.http() as rest, asyncio.timeout(30):
            while True:
                async with rest.session.get(f"{rest.base}/jobs") as answer:
                    if answer.status != 503:
                        return self
                await asyncio.sleep(0.1)

    @property
    def address(self) -> str:
        """``localhost:port``: what the host certificate says."""
        return "localhost:" + self.site.listening["jobs"][0].rpartition(":")[2]

    def rest(self, version: str = "1.0") -> str:
        return f"https://{self.address}/arex/rest/{version}"

    def proxy_file(self, credential: Credential | None = None, name: str = "proxy") -> Path:
        """A proxy file: alice's own, or the credential given."""
        file = self.site.root / f"{name}.pem"
        file.touch(mode=0o600)
        file.write_bytes((credential or proxy(self.alice)).pem())
        return file

    @asynccontextmanager
    async def http(
        self, token: str | None = "", credential: Credential | None = None, version: str = "1.0"
    ) -> AsyncIterator[Rest]:
        """A plain HTTP client: alice's token unless told otherwise; None: without one."""
        import ssl

        context = ssl.create_default_context(cafile=str(self.site.issuer.ca.file))
        if credential is not None:
            file = str(self.proxy_file(credential, f"c{id(credential)}"))
            context.load_cert_chain(file)
        headers = {"Accept": "application/json"}
        if token is not None:
            headers["Authorization"] = f"Bearer {token or self.site.token()}"
        connector = aiohttp.TCPConnector(ssl=context)
        async with aiohttp.ClientSession(headers=headers, connector=connector) as session:
            yield Rest(session, self.rest(version))


@dataclass(slots=True)
class Rest:
    """Calls with checks of the outer status."""

    session: aiohttp.ClientSession
    base: str

    async def call(self, method: str, path: str, status: int = 200, **more: Any) -> Any:
        """The decoded JSON, or the text."""
        async with self.session.request(method, f"{self.base}{path}", **more) as answer:
            text = await answer.text()
            assert answer.status == status, (answer.status, answer.reason, text[:500])
            return await answer.json() if "json" in answer.content_type else text

    async def act(self, action: str, *ids: str) -> list[dict[str, Any]]:
        """An action on some jobs."""
        body = {"job": [{"id": one} for one in ids]}
        return (await self.call("POST", f"/jobs?action={action}", 201, json=body))["job"]  # type: ignore[no-any-return]

    async def submit(self, text: str, query: str = "") -> list[dict[str, Any]]:
        """The rows of a submission."""
        answer = await self.call("POST", f"/jobs?action=new{query}", 201, data=text.encode())
        return answer["job"]  # type: ignore[no-any-return]

    async def state(self, job: str) -> str:
        return (await self.act("status", job))[0]["state"]  # type: ignore[no-any-return]

    async def reached(self, job: str, states: tuple[str, ...] = TERMINAL, deadline_s: float = 60.0) -> str:
        """Poll as brokers do."""
        async with asyncio.timeout(deadline_s):
            while (state := await self.state(job)) not in states:
                assert state not in TERMINAL, (job, state, await self.act("info", job))
                await asyncio.sleep(0.1)
        return state


class Arc:
    """ARC's command line clients with a home of their own."""

    def __init__(self, site: ArcSite, home: Path, credential: Credential | None = None) -> None:
        self.site = site
        self.home = home
        (home / ".arc").mkdir(parents=True, exist_ok=True)
        (home / ".arc" / "client.conf").write_text(CLIENT_CONF)
        self.proxy = home / "proxy.pem"
        self.proxy.touch(mode=0o600)
        self.proxy.write_bytes((credential or proxy(site.alice)).pem())

    @property
    def environment(self) -> Mapping[str, str]:
        return {
            "HOME": str(self.home),
            "PATH": "/usr/bin:/bin",
            "X509_USER_PROXY": str(self.proxy),
            "X509_CERT_DIR": str(self.site.grid.directory),
            "LC_ALL": "C",
        }

    async def run(self, program: str, *arguments: str, status: int | None = 0) -> str:
        """Output and errors together. Fails on another exit status than ``status``."""
        process = await asyncio.create_subprocess_exec(
            f"/usr/bin/{program}", *arguments, env=self.environment, cwd=self.home,
            stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT,
        )  # fmt: skip
        try:
            async with asyncio.timeout(60):
                out, _ = await process.communicate()
        finally:
            if process.returncode is None:
                process.kill()
                await process.wait()
        text = out.decode("utf-8", "replace")
        assert status is None or process.returncode == status, f"{program}: {process.returncode}\n{text}"
        return text


def no_arc() -> str | None:
    """Why ARC's clients cannot run here, or None."""
    absent = [name for name in ("arcsub", "arcinfo", "arcproxy") if shutil.which(name) is None]
    return f"not installed: {', '.join(absent)} (see .ci/packages.txt)" if absent else None


def arc_sections(root: Path, accounts: Mapping[str, str], **arc: Any) -> dict[str, Any]:
    """The [jobs.arc] table and what it needs elsewhere."""
    return {
        "identity": {
            "listen": ["127.0.0.1:0"],
            "admins": ["/site/admins"],
            "assertions": [
                {"service": "jobs", "accounts": sorted(set(accounts.values())), "class": "production"}
            ],
        },
        "arc": {"subjects": dict(accounts), **arc},
    }


def grid_of(site: Site) -> tuple[GridCa, Credential]:
    """A grid CA that also knows the CA of the site's host certificate, and alice."""
    grid = GridCa(site.root / "certificates")
    grid.trust(site.issuer.ca.file.read_bytes())
    grid.crl()
    grid.policy("/DC=org/DC=edged-test/*")
    return grid, grid.user("alice")


def with_tls(site: Site, grid: GridCa) -> dict[str, Any]:
    """[tls] with the grid's directory."""
    return {**site.settings()["tls"], "ca_directory": str(grid.directory)}


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def arc() -> AsyncIterator[ArcSite]:
    """Self mode on the local batch system."""
    own = pwd.getpwuid(os.geteuid()).pw_name
    with tempfile.TemporaryDirectory(prefix="edged-arc-") as root:
        site = Site(Path(root))
        grid, alice = grid_of(site)
        extra = arc_sections(site.root, {ALICE: own}, node_access=["outbound"])
        site.sections.update(
            identity=extra["identity"],
            tls=with_tls(site, grid),
            jobs=local_jobs(Path(root), arc=extra["arc"]),
        )
        async with site.running():
            yield await ArcSite(site, grid, alice).ready()


@pytest.fixture(scope="module")
def slurm() -> Iterator[SlurmTestbed]:
    """A real Slurm for one module."""
    if why := missing():
        pytest.skip(why)
    with SlurmTestbed() as testbed:
        yield testbed


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def arc_slurm(slurm: SlurmTestbed) -> AsyncIterator[ArcSite]:
    """accountd, two VOs, real Slurm with GPUs."""
    with tempfile.TemporaryDirectory(prefix="edged-arc-") as root:
        site = Site(Path(root))
        grid, alice = grid_of(site)
        extra = arc_sections(site.root, {ALICE: "cmsprd"})
        settings = slurm_settings(Path(root), slurm, site.issuer.url, arc=extra["arc"])
        site.sections.update(settings, identity=extra["identity"], tls=with_tls(site, grid))
        async with site.running():
            yield await ArcSite(site, grid, alice).ready()
