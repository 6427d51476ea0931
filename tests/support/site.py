"""A whole site for tests: a throw-away issuer and CA, a configuration, and the real ``edged run``.

    async with Site(tmp_path, jobs={...}).running() as site:
        async with site.api("jobs", site.token()) as api: ...

The daemon is a subprocess that can be killed and started again on the same state.
"""

from __future__ import annotations

import asyncio
import json
import os
import pwd
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

from edged.client import ApiClient, connected
from edged.errors import EdgeError, Unavailable
from edged.identity.testca import ThrowAwayCa
from edged.identity.testissuer import ThrowAwayIssuer
from tests.support.local_accounts import LocalAccount, ensure
from tests.support.toml import dumps

AUDIENCE = "https://edge.example.org"
ALL = "compute.read compute.create compute.modify compute.cancel storage.read:/ storage.modify:/"
DAEMON = LocalAccount("edgedt0", "edgedt0", 21000)
READY_S = 30.0
FINAL = ("FINISHED", "FAILED", "KILLED", "LOST")


class Site:
    """One site in ``root``. Keywords are tables of the configuration that replace the defaults."""

    def __init__(self, root: Path, **sections: Any) -> None:
        self.root = root
        root.chmod(0o755)
        self.issuer = ThrowAwayIssuer(ThrowAwayCa(root / "ca"))
        self.sections = sections
        self.environment: dict[str, str] = {}  # of the daemon, over the caller's
        self.file = root / "edged.toml"
        self.process: subprocess.Popen[bytes] | None = None
        self.listening: dict[str, list[str]] = {}

    def settings(self) -> dict[str, Any]:
        """The configuration, as it is written to the file."""
        host = self.issuer.ca.host("127.0.0.1", "localhost")
        own = pwd.getpwuid(os.geteuid()).pw_name
        base: dict[str, Any] = {
            "site": {"name": "TEST-SITE", "host": "localhost"},
            "runtime": {
                "state": str(self.root / "state"),
                "run": str(self.root / "run"),
                "user": DAEMON.name,
                "stop_deadline_s": 5,
            },
            "tls": {
                "certificate": str(host.certificate),
                "key": str(host.key),
                "ca_file": str(self.issuer.ca.file),
            },
            "observe": {"listen": "127.0.0.1:0"},
            "accounts": {"mode": "self"},
            "identity": {"listen": ["127.0.0.1:0"], "admins": ["/site/admins"]},
            "issuer": [
                {
                    "url": self.issuer.url,
                    "audience": [AUDIENCE],
                    "vo": "cms",
                    "ca_file": str(self.issuer.ca.file),
                }
            ],
            "mapping": [
                {"issuer": self.issuer.url, "groups": ["/cms"], "account": own, "class": "production"},
            ],
        }
        return {**base, **self.sections}

    def token(self, scope: str = ALL, groups: tuple[str, ...] = ("/cms",), **claims: Any) -> str:
        """A token of the site's issuer: alice of /cms, with everything, unless told otherwise."""
        told = {"aud": AUDIENCE, "scope": scope, "wlcg.groups": list(groups), **claims}
        return self.issuer.token(**told)

    @asynccontextmanager
    async def running(self) -> AsyncIterator[Site]:
        """Issuer and daemon up."""
        async with self.issuer.running():
            try:
                await self.start()
                yield self
            finally:
                self.stop()

    async def start(self) -> None:
        """Start the daemon and wait until it tells its addresses. Raises AssertionError with its log."""
        settings = self.settings()
        if settings["accounts"].get("mode") == "accountd":
            ensure((DAEMON,))
        self.file.write_text(dumps(settings))
        told = self.root / "run" / "listening.json"
        told.unlink(missing_ok=True)
        for key in (self.root / "ca").glob("*.key"):
            key.chmod(0o644)  # a throw-away key: the daemon reads it after giving up root
        with (self.root / "edged.log").open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "edged", "run", "--config", str(self.file)],
                stdout=log,
                stderr=log,
                cwd="/",
                env={**os.environ, **self.environment},
                start_new_session=True,
            )
        async with asyncio.timeout(READY_S):
            while not told.exists():
                assert self.process.poll() is None, f"edged ended:\n{self.log()[-4000:]}"
                await asyncio.sleep(0.02)
        self.listening = json.loads(told.read_text())
        await self._until_keys_are_known()

    async def _until_keys_are_known(self) -> None:
        """The issuer's keys are fetched in the background: a token that comes sooner is told to come again."""
        async with asyncio.timeout(READY_S), self.api("identity-api") as api:
            while True:
                try:
                    await api.call("GET", "/v1/whoami")
                except Unavailable:
                    await asyncio.sleep(0.1)
                except EdgeError:
                    return  # its settings may refuse alice; the keys are there
                else:
                    return

    def kill(self) -> None:
        """SIGKILL to the daemon; accountd ends by itself when its parent is gone."""
        assert self.process is not None
        self.process.kill()
        self.process.wait()

    def stop(self) -> None:
        """End it and everything it started."""
        if self.process is None:
            return
        with suppress(ProcessLookupError):
            self.process.send_signal(signal.SIGTERM)
        try:
            self.process.wait(20)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()

    def log(self) -> str:
        """What the daemon logged."""
        return (self.root / "edged.log").read_text(errors="replace")

    def url(self, service: str) -> str:
        """The base URL of a TLS listener."""
        return f"https://{self.listening[service][0]}"

    @asynccontextmanager
    async def api(self, service: str = "jobs", token: str | None = None) -> AsyncIterator[ApiClient]:
        """A client of one service."""
        async with connected(self.url(service), self.issuer.ca.file, token or self.token()) as client:
            yield client


async def ended(api: ApiClient, job: str, deadline_s: float = 60.0) -> dict[str, Any]:
    """The job's last view. Fails with the view when it has not ended in time."""
    return await reached(api, job, FINAL, deadline_s)


async def reached(
    api: ApiClient, job: str, states: tuple[str, ...], deadline_s: float = 60.0
) -> dict[str, Any]:
    """The first view in one of ``states``. Fails when it ends otherwise, or not in time."""
    view: dict[str, Any] = await api.call("GET", f"/v1/jobs/{job}")
    end = time.monotonic() + deadline_s
    while view["state"] not in states:
        assert view["state"] not in FINAL, view
        left = end - time.monotonic()
        assert left > 0, f"not in {deadline_s} s: {view}"
        seen = repr(view["changed_at"])
        view = await api.call("GET", f"/v1/jobs/{job}", wait=min(30.0, max(0.1, left)), seen=seen)
    return view


async def output(api: ApiClient, job: str, name: str = "stdout") -> str:
    """A file of the job."""
    async with api.request("GET", f"/v1/jobs/{job}/files/{name}") as response:
        return await response.text()


def queue(name: str, **more: Any) -> Mapping[str, Any]:
    """A [[jobs.queue]] table."""
    return {"name": name, "default_walltime_s": 60, **more}
