"""A small WebDAV client for tests: one keep-alive connection, whole answers, nothing normalised."""

from __future__ import annotations

import http.client
import socket
import ssl
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Self
from xml.etree import ElementTree

from tests.support.storage import EVERYTHING, StorageSite

D = "{DAV:}"


@dataclass(slots=True)
class Answer:
    """One answer, header names in lower case."""

    status: int
    headers: dict[str, str]
    body: bytes
    lines: list[str] = field(default_factory=list)

    @property
    def text(self) -> str:
        return self.body.decode()

    @property
    def xml(self) -> ElementTree.Element:
        return ElementTree.fromstring(self.body)

    @property
    def hrefs(self) -> list[str]:
        """The href of every response of a multistatus."""
        return [str(node.findtext(f"{D}href")) for node in self.xml.findall(f"{D}response")]

    def properties(self, index: int = 0) -> dict[str, str]:
        """Properties found (status 200) for one response: Clark name → text."""
        response = self.xml.findall(f"{D}response")[index]
        found = {}
        for propstat in response.findall(f"{D}propstat"):
            if " 200 " in str(propstat.findtext(f"{D}status")):
                for prop in propstat.findall(f"{D}prop/*"):
                    found[prop.tag] = "".join(prop.itertext())
        return found


class Dav:
    """Requests below ``path`` of a site; names given are relative to it, or absolute with a slash."""

    def __init__(
        self, site: StorageSite, path: str = "/cms", root: Path | None = None, scope: str = EVERYTHING
    ) -> None:
        self.site = site
        self.path = path
        self.root = root or site.root
        self.token: str | None = site.token(scope)
        self._connection: http.client.HTTPConnection | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def with_scope(self, scope: str | None, **claims: object) -> Dav:
        """The same place with another token; None: no token at all."""
        other = Dav(self.site, self.path, self.root)
        other.token = self.site.token(scope, **claims) if scope is not None else None
        return other

    def full(self, name: str) -> str:
        """The request target of a name."""
        if name.startswith("/"):
            return name
        return f"{self.path}/{name}" if name else self.path

    def url(self, name: str) -> str:
        """The URL of a name."""
        return self.site.base + self.full(name)

    def __call__(self, method: str, name: str = "", body: bytes | None = None, /, **headers: str) -> Answer:
        """One request; ``Want_Digest="adler32"`` becomes the header Want-Digest."""
        given = {key.replace("_", "-"): value for key, value in headers.items()}
        if self.token is not None and "Authorization" not in given:
            given["Authorization"] = f"Bearer {self.token}"
        try:
            return self._once(method, self.full(name), body, given)
        except (http.client.RemoteDisconnected, BrokenPipeError, ConnectionResetError):
            self.close()  # the server closed a kept connection
            return self._once(method, self.full(name), body, given)

    def _once(self, method: str, target: str, body: bytes | None, headers: dict[str, str]) -> Answer:
        if self._connection is None:
            self._connection = self._connect()
        connection = self._connection
        connection.putrequest(method, target, skip_accept_encoding=True)
        for name, value in headers.items():
            connection.putheader(name, value.encode("utf-8"))
        if body is not None:
            connection.putheader("Content-Length", str(len(body)))
        connection.endheaders(body)
        response = connection.getresponse()
        data = response.read()
        if response.will_close:
            self.close()
        return Answer(response.status, {n.lower(): v for n, v in response.getheaders()}, data)

    def _connect(self) -> http.client.HTTPConnection:
        context = self.site.context()
        if context is None:
            return http.client.HTTPConnection("localhost", self.site.port, timeout=30)
        return http.client.HTTPSConnection("localhost", self.site.port, timeout=30, context=context)

    def raw(self) -> socket.socket:
        """A bare connection, for requests that are cut or malformed on purpose."""
        sock = socket.create_connection(("localhost", self.site.port), timeout=20)
        context = self.site.context()
        if context is None:
            return sock
        wrapped: ssl.SSLSocket = context.wrap_socket(sock, server_hostname="localhost")
        return wrapped

    def head_of(self, method: str, name: str, **headers: str) -> bytes:
        """The bytes of a request head for ``raw``."""
        lines = [f"{method} {self.full(name)} HTTP/1.1", f"Host: localhost:{self.site.port}"]
        lines += [f"{key.replace('_', '-')}: {value}" for key, value in headers.items()]
        if self.token is not None:
            lines.append(f"Authorization: Bearer {self.token}")
        return ("\r\n".join(lines) + "\r\n\r\n").encode()


def read_until(sock: socket.socket, end: bytes, limit: int = 1 << 20) -> bytes:
    """Bytes up to and with ``end``, or all there are."""
    data = b""
    while end not in data and len(data) < limit:
        block = sock.recv(65536)
        if not block:
            break
        data += block
    return data
