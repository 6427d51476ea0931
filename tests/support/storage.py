"""A whole edged with a WebDAV endpoint: ``edged run`` as a child process, its own CA and tokens.

As root the front runs as one account and files belong to another; otherwise self mode.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import ssl
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from edged.identity.testca import ThrowAwayCa
from edged.identity.testissuer import AUDIENCE, ThrowAwayIssuer
from tests.support.accounts import is_root, own_account
from tests.support.local_accounts import CMSPRD, PILOT1, ensure
from tests.support.waiting import until

EVERYTHING = "storage.read:/ storage.modify:/"
HOST = "localhost"


def free_port() -> int:
    """A port that was free a moment ago."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


class StorageSite:
    """One endpoint. ``root`` is what the export /cms shows; further exports and settings by keyword."""

    def __init__(
        self,
        directory: Path,
        *,
        tls: bool = True,
        ca: ThrowAwayCa | None = None,
        issuer: ThrowAwayIssuer | None = None,
        settings: Mapping[str, Any] | None = None,
        exports: tuple[dict[str, Any], ...] = (),
        identity: Mapping[str, Any] | None = None,
        log_level: str = "info",
    ) -> None:
        self.directory = directory
        directory.mkdir(parents=True, exist_ok=True)
        self.ca = ca or ThrowAwayCa(directory / "ca")
        self.issuer = issuer or ThrowAwayIssuer(self.ca)
        self.root = directory / "data"
        self.port = free_port()
        self.observe = free_port()
        self.tls = tls
        self.base = f"{'https' if tls else 'http'}://{HOST}:{self.port}"
        self.url = f"{self.base}/cms"
        self.account = CMSPRD.name if is_root() else own_account()
        self.log = directory / "log"
        self._settings = dict(settings or {})
        self._exports = exports
        self._identity = dict(identity or {})
        self._log_level = log_level
        self._process: subprocess.Popen[bytes] | None = None

    # --- the daemon

    def start(self) -> StorageSite:
        """Run it, and wait until it listens."""
        self._prepare()
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "edged", "run", "--config", str(self.directory / "edged.toml")],
                stdout=log,
                stderr=log,
                stdin=subprocess.DEVNULL,
                start_new_session=True,
            )
        try:
            until(self._ready, f"edged is ready; see {self.log}", 30)
        except BaseException:
            self.kill()
            raise
        return self

    def _ready(self) -> bool:
        assert self._process is not None
        if self._process.poll() is not None:
            raise RuntimeError(self.log.read_text()[-3000:])
        try:
            url = f"http://127.0.0.1:{self.observe}/readyz"
            return bool(urllib.request.urlopen(url, timeout=2).status == 200)
        except (OSError, urllib.error.HTTPError):
            return False

    def stop(self) -> None:
        """SIGTERM, and wait."""
        if self._process is not None:
            self._process.send_signal(signal.SIGTERM)
            try:
                self._process.wait(30)
            except subprocess.TimeoutExpired:
                self.kill()
            self._process = None

    def kill(self) -> None:
        """SIGKILL to the front: nothing gets a chance to clean up."""
        if self._process is not None:
            self._process.kill()
            self._process.wait(10)
            self._process = None

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    def __enter__(self) -> StorageSite:
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.stop()

    # --- what tests ask of it

    def token(self, scope: str | None = EVERYTHING, **claims: Any) -> str:
        """A token of the site's issuer."""
        return self.issuer.token(scope=scope, **claims)

    def token_file(self, scope: str = EVERYTHING) -> Path:
        """The same in a file that clients are given."""
        file = self.directory / "token"
        file.touch(mode=0o600)
        file.write_text(self.token(scope))
        return file

    @property
    def ca_directory(self) -> Path:
        """The CA as grid clients want it: a hashed directory."""
        hashed = self.directory / "certificates"
        if not hashed.exists():
            hashed.mkdir()
            (hashed / "ca.pem").write_bytes(self.ca.file.read_bytes())
            subprocess.run(["openssl", "rehash", str(hashed)], check=True, capture_output=True)
        return hashed

    def context(self) -> ssl.SSLContext | None:
        """How a Python client trusts it."""
        return ssl.create_default_context(cafile=str(self.ca.file)) if self.tls else None

    def put_file(self, name: str, data: bytes = b"", size: int | None = None) -> Path:
        """A file of the account made behind our back. ``size``: sparse."""
        path = self.root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
        if size is not None:
            os.truncate(path, size)
        self.own(path)
        for parent in path.relative_to(self.root).parents:
            self.own(self.root / parent)
        return path

    def own(self, path: Path) -> None:
        """Give it to the account."""
        if is_root():
            os.chown(path, CMSPRD.uid, CMSPRD.uid, follow_symlinks=False)

    def temporaries(self) -> list[Path]:
        """Unfinished uploads on the disk."""
        return [path for path in self.root.rglob(".edged-upload-*") if path.is_file()]

    def metrics(self) -> str:
        """The page Prometheus would scrape."""
        with urllib.request.urlopen(f"http://127.0.0.1:{self.observe}/metrics", timeout=5) as page:
            return str(page.read().decode())

    # --- configuration

    def _prepare(self) -> None:
        if is_root():
            ensure()
        for folder in (self.directory, *self.directory.parents):
            if folder.stat().st_uid == os.geteuid() and str(folder).startswith(("/tmp/", "/dev/shm/")):
                folder.chmod(0o755)
        self.root.mkdir(exist_ok=True)
        self.own(self.root)
        for export in self._exports:
            Path(export["root"]).mkdir(parents=True, exist_ok=True)
            self.own(Path(export["root"]))
        jwks = self.directory / "jwks.json"
        jwks.write_text(json.dumps(self.issuer.jwks()))
        (self.directory / "edged.toml").write_text(_toml(self._tree(jwks)))

    def _tree(self, jwks: Path) -> dict[str, Any]:
        host = self.ca.host(HOST, "127.0.0.1", "::1")
        if is_root():
            for file in (host.certificate, host.key):
                os.chown(file, PILOT1.uid, PILOT1.uid)
            self.ca.directory.chmod(0o755)
        return {
            "site": {"name": "TEST", "host": HOST, "aliases": ["127.0.0.1"]},
            "runtime": {
                "state": str(self.directory / "state"),
                "run": str(self.directory / "run"),
                "user": PILOT1.name,
                "stop_deadline_s": 5.0,
            },
            "log": {"level": self._log_level},
            "tls": {
                "certificate": str(host.certificate),
                "key": str(host.key),
                "ca_file": str(self.ca.file),
            },
            "observe": {"listen": f"127.0.0.1:{self.observe}"},
            "accounts": {"mode": "accountd" if is_root() else "self"},
            "identity": {
                "assertions": [
                    {"service": "storage", "accounts": [self.account],
                     "grants": ["storage.read:/", "storage.modify:/"]}
                ],
                **self._identity,
            },
            "issuer": [
                {"url": self.issuer.url, "audience": [AUDIENCE], "vo": "cms", "jwks_file": str(jwks)}
            ],
            "mapping": [
                {"issuer": self.issuer.url, "groups": ["/cms/readers"], "account": self.account,
                 "grants": ["storage.read:/"]},
                {"issuer": self.issuer.url, "account": self.account},
            ],
            "storage": {
                "listen": [f"127.0.0.1:{self.port}"],
                "tls": self.tls,
                "limits": {"failed_authentications_per_minute": 100000, "connections_per_source": 4096},
                "export": [{"prefix": "/cms", "root": str(self.root), "vo": "cms"}, *self._exports],
                **self._settings,
            },
        }  # fmt: skip


def _toml(tree: Mapping[str, Any]) -> str:
    """Inline tables all the way down: JSON's strings, numbers and lists are TOML's."""
    return "\n".join(f"{key} = {_value(value)}" for key, value in tree.items()) + "\n"


def _value(value: Any) -> str:
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{json.dumps(k)} = {_value(v)}" for k, v in value.items()) + "}"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(_value(item) for item in value) + "]"
    return json.dumps(value)


def wait_for_port(port: int) -> None:
    """Until somebody listens there."""

    def listening() -> bool:
        with socket.socket() as sock:
            return sock.connect_ex(("127.0.0.1", port)) == 0

    until(listening, f"port {port} answers", 20)
