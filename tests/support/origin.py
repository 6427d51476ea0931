"""A small web server outside: answers with who asked, and counts."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class Origin(ThreadingHTTPServer):
    """``/peer`` tells the caller's address; everything else is the same bytes, cacheable for an hour."""

    daemon_threads = True
    BODY = b"o" * 20_000

    def __init__(self, host: str) -> None:
        self.asked: list[str] = []
        super().__init__((host, 0), _Handler)

    @property
    def port(self) -> int:
        """Its port."""
        return int(self.server_address[1])

    @property
    def authority(self) -> str:
        """host:port."""
        return f"{self.server_address[0]!s}:{self.port}"

    @classmethod
    @contextmanager
    def running(cls, host: str) -> Iterator[Origin]:
        """Serve while entered."""
        origin = cls(host)
        thread = threading.Thread(target=origin.serve_forever, args=(0.05,), daemon=True)
        thread.start()
        try:
            yield origin
        finally:
            origin.shutdown()
            origin.server_close()
            thread.join()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Origin

    def do_GET(self) -> None:
        self.server.asked.append(self.path)
        body = self.client_address[0].encode() if self.path == "/peer" else Origin.BODY
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("Cache-Control", "no-store" if self.path == "/peer" else "max-age=3600")
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the base class's name
        return
