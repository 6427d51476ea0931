"""The servers' summary stream (xrd.report): XML over UDP on loopback, turned into metrics.

Source: XRootD monitoring reference, "Summary monitoring data format".
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

from defusedxml import ElementTree

from edged import metrics
from edged.logs import get_logger

log = get_logger("services.storage.xrootd.reports")

LARGEST = 65536

CONNECTIONS = metrics.gauge("xrootd_connections", "Open connections.", ("server",))
BYTES = metrics.gauge("xrootd_link_bytes", "Bytes since the server's start.", ("server", "direction"))
LOGINS = metrics.gauge("xrootd_logins", "Logins since the server's start.", ("server", "outcome"))
THREADS = metrics.gauge("xrootd_threads", "Threads of the server.", ("server",))
HEARD = metrics.gauge(
    "xrootd_report_timestamp_seconds", "When a server last reported, Unix seconds.", ("server",)
)


@dataclass(frozen=True, slots=True)
class Summary:
    """One report. Counters run since the server's start."""

    instance: str
    program: str
    at: float
    connections: int
    bytes_in: int
    bytes_out: int
    threads: int
    logins: int
    refused: int


def parse(packet: bytes) -> Summary | None:
    """None when it is no report."""
    try:
        tree = ElementTree.fromstring(packet.rstrip(b"\0"))
    except (ElementTree.ParseError, ValueError):
        return None
    if tree.tag != "statistics":
        return None
    found = {one.get("id"): one for one in tree.iter("stats")}
    return Summary(
        instance=tree.get("ins", ""),
        program=tree.get("pgm", ""),
        at=_number(tree.get("tod")),
        connections=int(_of(found, "link", "num")),
        bytes_in=int(_of(found, "link", "in")),
        bytes_out=int(_of(found, "link", "out")),
        threads=int(_of(found, "sched", "threads")),
        logins=int(_of(found, "xrootd", "lgn/num")),
        refused=int(_of(found, "xrootd", "lgn/af")),
    )


def _of(found: dict[str | None, Any], part: str, path: str) -> float:
    one = found.get(part)
    return _number(one.findtext(path)) if one is not None else 0.0


def _number(text: str | None) -> float:
    try:
        return float(text or 0)
    except ValueError:
        return 0.0


class Reports(asyncio.DatagramProtocol):
    """Listens. Anyone on the machine may send: only configured names become labels."""

    def __init__(self, port: int) -> None:
        self._port = port
        self.known: frozenset[str] = frozenset()
        self.last: dict[str, Summary] = {}

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Listen while entered; a port in use costs metrics and nothing else."""
        loop = asyncio.get_running_loop()
        try:
            transport, _ = await loop.create_datagram_endpoint(
                lambda: self, local_addr=("127.0.0.1", self._port)
            )
        except OSError as error:
            log.warning("no reports of the servers", extra={"port": self._port, "reason": str(error)})
            yield
            return
        try:
            yield
        finally:
            transport.close()

    def datagram_received(self, data: bytes, addr: tuple[str | Any, int]) -> None:
        """One report."""
        summary = parse(data[:LARGEST])
        if summary is None or summary.instance not in self.known:
            return
        name = summary.instance
        self.last[name] = summary
        HEARD.labels(name).set(summary.at)
        CONNECTIONS.labels(name).set(summary.connections)
        BYTES.labels(name, "in").set(summary.bytes_in)
        BYTES.labels(name, "out").set(summary.bytes_out)
        THREADS.labels(name).set(summary.threads)
        LOGINS.labels(name, "allowed").set(summary.logins)
        LOGINS.labels(name, "refused").set(summary.refused)
