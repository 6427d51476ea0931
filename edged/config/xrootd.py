"""[storage.xrootd] and [storage.xrootd.proxy]: the root:// view and the nodes' way to remote files."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import AfterValidator, Field

from edged.config.base import AbsolutePath, ByteSize, Count, Seconds, Section, Word

Port = Annotated[int, Field(ge=1024, le=65535)]


def _one_word(value: Path) -> Path:
    """The server's configuration knows no quotes."""
    if any(character.isspace() or character in "$#" for character in str(value)):
        raise ValueError("xrootd's configuration allows no blank, '$' or '#' in a path")
    return value


PlainPath = Annotated[AbsolutePath, AfterValidator(_one_word)]


class Proxy(Section):
    """A forwarding proxy with a disk cache for nodes without a route; places come from the egress policy."""

    port: Port = 1098
    cache: PlainPath = Field(description="Directory of the disk cache, on a local disk of its own")
    cache_size: ByteSize = Field(default=100 << 30, description="Disk cache, in bytes")
    memory: ByteSize = Field(default=1 << 30, ge=1 << 30, description="Blocks held in memory, at least 1 GiB")
    source: Word | None = Field(
        default=None, description="The one [[egress.source]] that may use it; None: all of them"
    )
    user: str = Field(default="", description="Whom it runs as; empty: [runtime] user")


class Xrootd(Section):
    """The real xrootd, configured, fed and kept alive by edged. It listens on every address of the machine."""

    port: Port = Field(default=1094, description="Where clients connect")
    data_port: Port = Field(
        default=10940, description="First port of the exports' own servers, one each, when there are several"
    )
    cmsd_port: Port = Field(default=1213, description="Where data servers report to the redirector")
    report_port: Port = Field(
        default=9931, description="Where servers tell edged how they are, on loopback (UDP)"
    )
    exports: tuple[Word, ...] = Field(default=(), description="Names of the exports to show; empty: all")
    backend: Literal["auto", "instances", "multiuser"] = Field(
        default="auto",
        description="One server per export and account, or one for all with the xrootd-multiuser plugin; "
        "'auto' takes the plugin where an export has several accounts",
    )
    bin: AbsolutePath = Field(default=Path("/usr/bin"), description="Where xrootd and cmsd are")
    gate: PlainPath = Field(
        default=Path("/usr/local/lib/edged/libEdgedGate.so"),
        description="edged's part of the server, made by `edged xrootd build`; its directory is root's",
    )
    data_tls: bool = Field(
        default=True, description="Encrypt data of root:// as well as its login; roots:// always is"
    )
    threads: Count = Field(default=512, description="Most threads of one server")
    probe_s: Seconds = Field(default=15.0, description="Period of the probes that readiness tells of")
    startup_s: Annotated[int, Field(ge=1, le=90)] = Field(
        default=5, description="How long the redirector waits for its data servers after a start"
    )
    proxy: Proxy | None = None
