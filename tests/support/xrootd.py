"""A whole edged with both views of two VOs' files, and the command-line clients that use them.

As root: accounts cmsprd and atlprd behind one redirector. The servers listen on every address of the
machine, on ports that were free a moment ago.
"""

from __future__ import annotations

import atexit
import functools
import json
import os
import shutil
import signal
import socket
import sqlite3
import subprocess
import sys
import tempfile
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from edged.identity.testca import HostFiles, ThrowAwayCa
from edged.identity.testissuer import AUDIENCE, ThrowAwayIssuer
from services.storage.xrootd import building, keystore
from tests.support.local_accounts import ATLPRD, CMSPRD, PILOT1, LocalAccount, ensure
from tests.support.toml import dumps
from tests.support.waiting import until

HOST = "localhost"
EVERYTHING = "storage.read:/ storage.modify:/"
needs_xrootd = pytest.mark.skipif(
    os.geteuid() != 0 or not all(map(shutil.which, ("xrootd", "cmsd", "xrdcp", "g++"))),
    reason="needs root, and the packages xrootd-server, xrootd-client, libxrootd-server-dev and g++",
)


@functools.cache
def gate() -> Path:
    """edged's gate, compiled once a test run, where accounts can read it."""
    directory = Path(tempfile.mkdtemp(prefix="edged-gate-"))
    atexit.register(shutil.rmtree, directory, ignore_errors=True)
    directory.chmod(0o755)
    library = directory / "libEdgedGate.so"
    building.build(library, Path("/usr/bin/xrootd"))
    return library


@contextmanager
def scratch() -> Iterator[Path]:
    """A directory that accounts reach: pytest closes its own to them at each start of any run."""
    with tempfile.TemporaryDirectory(prefix="edged-xrootd-", ignore_cleanup_errors=True) as directory:
        path = Path(directory)
        path.chmod(0o755)
        yield path


def free_ports(count: int) -> list[int]:
    """Different ports, in a row, that were free a moment ago."""
    for _ in range(100):
        socks = []
        try:
            first = socket.socket()
            socks.append(first)
            first.bind(("", 0))
            base = first.getsockname()[1]
            for number in range(base + 1, base + count):
                sock = socket.socket()
                socks.append(sock)
                sock.bind(("", number))
            return list(range(base, base + count))
        except OSError:
            continue
        finally:
            for sock in socks:
                sock.close()
    raise RuntimeError("no free ports")


@dataclass(frozen=True, slots=True)
class Done:
    """How a client ended."""

    code: int
    text: str

    def __bool__(self) -> bool:
        return self.code == 0


class XrootdSite:
    """Both views of one or two VOs."""

    def __init__(
        self,
        directory: Path,
        *,
        vos: Sequence[str] = ("cms", "atlas"),
        accounts: Mapping[str, LocalAccount] | None = None,
        settings: Mapping[str, Any] | None = None,
        sections: Mapping[str, Any] | None = None,
    ) -> None:
        self.directory = directory
        self.ca = ThrowAwayCa(directory / "ca")
        self.accounts = accounts or {"cms": CMSPRD, "atlas": ATLPRD}
        self.vos = tuple(vos)
        self.issuers = {vo: ThrowAwayIssuer(self.ca) for vo in vos}
        self.port, self.cmsd_port, self.report_port, self.dav, self.observe, *rest = free_ports(5 + len(vos))
        self.data_port = rest[0]
        self.log = directory / "log"
        self.file = directory / "edged.toml"
        self._settings = dict(settings or {})
        self._sections = dict(sections or {})
        self._process: subprocess.Popen[bytes] | None = None

    # --- the daemon

    def start(self, *, ready: bool = True) -> XrootdSite:
        """Run it; with ``ready`` until every server answered its probe."""
        ensure()
        self._prepare()
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "edged", "run", "--config", str(self.file)],
                stdout=log, stderr=log, stdin=subprocess.DEVNULL, cwd="/", start_new_session=True,
            )  # fmt: skip
        if ready:
            try:
                until(lambda: self.ready() and self.keys_known(), f"edged is ready; see {self.log}", 40)
            except BaseException:
                self.stop()
                raise
        return self

    def ready(self) -> bool:
        """Whether it says so. Raises RuntimeError when it ended."""
        assert self._process is not None
        if self._process.poll() is not None:
            raise RuntimeError(self.log.read_text()[-3000:])
        return not self.not_ready()

    def keys_known(self) -> bool:
        """Whether the servers have a key of each issuer: a site's first token may come before it is fetched."""
        file = self.directory / "run/xrootd/keys" / keystore.FILE
        if not file.exists():
            return False
        rows = sqlite3.connect(f"file:{file}?mode=ro", uri=True).execute("SELECT issuer FROM keycache")
        return {self.issuers[vo].url for vo in self.vos} <= {url for (url,) in rows}

    def not_ready(self) -> dict[str, str]:
        """What /readyz says is missing."""
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self.observe}/readyz", timeout=2) as page:
                return dict(json.load(page)["not_ready"])
        except urllib.error.HTTPError as error:
            return dict(json.load(error)["not_ready"])
        except OSError:
            return {"edged": "no answer"}

    def reload(self) -> None:
        """SIGHUP, after the file was written again."""
        self._write_config()
        assert self._process is not None
        self._process.send_signal(signal.SIGHUP)

    def stop(self) -> None:
        """SIGTERM, and wait."""
        if self._process is not None:
            self._process.send_signal(signal.SIGTERM)
            try:
                self._process.wait(30)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait(10)
            self._process = None

    def __enter__(self) -> XrootdSite:
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.stop()

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    def server(self, instance: str, program: str = "xrootd") -> int:
        """The pid of a running server, from its command line; 0 when there is none."""
        config = str(self.servers / instance / "xrootd.cfg")
        for entry in Path("/proc").glob("[0-9]*"):
            try:
                words = (entry / "cmdline").read_bytes().split(b"\0")
            except OSError:
                continue
            if words[0].endswith(f"/{program}".encode()) and config.encode() in words:
                return int(entry.name)
        return 0

    @property
    def servers(self) -> Path:
        return self.directory / "run-xrootd"

    # --- clients

    @property
    def url(self) -> str:
        return f"roots://{HOST}:{self.port}"

    @property
    def plain_url(self) -> str:
        return f"root://{HOST}:{self.port}"

    @property
    def dav_url(self) -> str:
        return f"https://{HOST}:{self.dav}"

    def token(self, scope: str | None = EVERYTHING, *, vo: str = "cms", **claims: Any) -> str:
        """A token of the VO's issuer."""
        return self.issuers[vo].token(**{"scope": scope, "groups": [f"/{vo}"], **claims})

    def run(self, token: str, *argv: str | Path, timeout_s: float = 60, **environment: str) -> Done:
        """A client with ``token``, which gives up soon."""
        done = subprocess.run(
            [str(word) for word in argv], capture_output=True, text=True, timeout=timeout_s, check=False,
            env={**os.environ, **self.client_environment, "BEARER_TOKEN": token, **environment},
        )  # fmt: skip
        return Done(done.returncode, (done.stdout + done.stderr).replace("\0", ""))

    @property
    def client_environment(self) -> dict[str, str]:
        return {
            "X509_CERT_DIR": str(self.ca_directory),
            "XRD_CONNECTIONRETRY": "3",
            "XRD_CONNECTIONWINDOW": "3",
            "XRD_REQUESTTIMEOUT": "20",
            "XRD_STREAMTIMEOUT": "20",
            "XRD_STREAMERRORWINDOW": "8",
        }

    def fs(self, token: str, *words: str, **more: Any) -> Done:
        """xrdfs on the redirector."""
        return self.run(token, "xrdfs", self.url, *words, **more)

    def put(self, token: str, source: Path, path: str, *options: str, **more: Any) -> Done:
        return self.run(token, "xrdcp", "-s", *options, source, f"{self.url}/{path}", **more)

    def get(self, token: str, path: str, target: Path | str, *options: str, **more: Any) -> Done:
        return self.run(token, "xrdcp", "-s", "-f", *options, f"{self.url}/{path}", target, **more)

    def curl(self, token: str, path: str, *options: str) -> Done:
        """The other view; ``text`` is the status."""
        return self.run(
            "", "curl", "-sS", "-o", "/dev/null", "-w", "%{http_code}", "--cacert", self.ca.file,
            "-H", f"Authorization: Bearer {token}", *options, f"{self.dav_url}{path}",
        )  # fmt: skip

    def edged(self, *words: str) -> Done:
        """Our own command with this configuration."""
        return self.run("", sys.executable, "-m", "edged", *words, "--config", self.file)

    @property
    def ca_directory(self) -> Path:
        hashed = self.directory / "certificates"
        if not hashed.exists():
            hashed.mkdir()
            (hashed / "ca.pem").write_bytes(self.ca.file.read_bytes())
            subprocess.run(["openssl", "rehash", str(hashed)], check=True, capture_output=True)
        return hashed

    def root(self, vo: str) -> Path:
        return self.directory / "data" / vo

    def events(self, event: str) -> list[dict[str, Any]]:
        """The log's lines of one kind."""
        found = [json.loads(line) for line in self.log.read_text().splitlines() if line.startswith("{")]
        return [line for line in found if line["event"] == event]

    # --- configuration

    @functools.cached_property
    def host(self) -> HostFiles:
        """One certificate for as long as the site lives: a new one restarts the servers."""
        host = self.ca.host(HOST, "127.0.0.1", "::1")
        for file in (host.certificate, host.key):
            os.chown(file, PILOT1.uid, PILOT1.uid)
        self.ca.directory.chmod(0o755)
        return host

    def _prepare(self) -> None:
        for vo in self.vos:
            self.root(vo).mkdir(parents=True, exist_ok=True)
            os.chown(self.root(vo), self.accounts[vo].uid, self.accounts[vo].uid)
        self._write_config()

    def _write_config(self) -> None:
        self.file.write_text(dumps(self.tree()))

    def tree(self) -> dict[str, Any]:
        """The configuration."""
        host = self.host
        for vo in self.vos:
            (self.directory / f"{vo}.jwks").write_text(json.dumps(self.issuers[vo].jwks()))
        xrootd = {
            "port": self.port, "cmsd_port": self.cmsd_port, "data_port": self.data_port,
            "report_port": self.report_port, "gate": str(gate()), "probe_s": 1.0, "startup_s": 3,
            **self._settings,
        }  # fmt: skip
        base = {
            "site": {"name": "TEST", "host": HOST},
            "runtime": {
                "state": str(self.directory / "state"), "run": str(self.directory / "run"),
                "user": PILOT1.name, "stop_deadline_s": 5.0,
            },
            "tls": {"certificate": str(host.certificate), "key": str(host.key), "ca_file": str(self.ca.file)},
            "observe": {"listen": f"127.0.0.1:{self.observe}"},
            "accounts": {"mode": "accountd"},
            "issuer": [
                {"url": self.issuers[vo].url, "audience": [AUDIENCE], "vo": vo,
                 "jwks_file": str(self.directory / f"{vo}.jwks")}
                for vo in self.vos
            ],
            "mapping": [
                {"issuer": self.issuers[vo].url, "groups": [f"/{vo}"], "account": self.accounts[vo].name}
                for vo in self.vos
            ],
            "storage": {
                "listen": [f"127.0.0.1:{self.dav}"],
                "xrootd": xrootd,
                "export": [{"prefix": f"/{vo}", "root": str(self.root(vo)), "vo": vo} for vo in self.vos],
            },
        }  # fmt: skip
        return {**base, **self._sections}
