"""[site], [tls], [log], [observe] and [runtime]: what all services share."""

from __future__ import annotations

from pathlib import Path
from typing import Literal
from urllib.parse import urlsplit

from pydantic import Field, field_validator

from edged.config.base import AbsolutePath, ByteSize, Count, GivenPath, ListenAddress, Seconds, Section, Word


class Site(Section):
    """Who we are."""

    name: Word = Field(description="The site's name as communities know it, e.g. CINECA or EXAMPLE-HPC")
    host: str = Field(default="", description="Public host name; empty: this machine's own name")
    aliases: tuple[str, ...] = Field(default=(), description="Other host names that mean this machine")
    edges: tuple[str, ...] = Field(
        default=(), description="Every edge machine of the site; more than one needs runtime.database"
    )


class Tls(Section):
    """The host certificate. Files are read again when they change."""

    certificate: GivenPath | None = Field(default=None, description="PEM chain, host certificate first")
    key: GivenPath | None = Field(default=None, description="PEM private key; or credential 'tls.key'")
    ca_directory: GivenPath | None = Field(
        default=None, description="Hashed directory of grid CAs and CRLs for X.509 clients"
    )
    ca_file: GivenPath | None = Field(
        default=None, description="CA bundle we trust as a client; default: system's"
    )
    minimum: Literal["1.2", "1.3"] = Field(default="1.2", description="Oldest TLS version accepted")


class Log(Section):
    """Where logs go: stderr, which journald collects, and an audit file when named."""

    level: Literal["debug", "info", "warning", "error"] = "info"
    format: Literal["json", "text"] = "json"
    audit_file: AbsolutePath | None = Field(
        default=None, description="Audit lines also go here (logrotate safe)"
    )


class Observe(Section):
    """Health and metrics: /healthz, /readyz, /metrics on a listener of their own."""

    listen: ListenAddress = Field(
        default="127.0.0.1:9464", description="Used by `edged run` with all services"
    )
    services: dict[Word, ListenAddress] = Field(
        default={
            "identity": "127.0.0.1:9465",
            "issuers": "127.0.0.1:9466",
            "jobs": "127.0.0.1:9467",
            "storage": "127.0.0.1:9468",
            "cache": "127.0.0.1:9469",
            "egress": "127.0.0.1:9470",
            "portal": "127.0.0.1:9471",
            "identity-api": "127.0.0.1:9472",
            "xrootd": "127.0.0.1:9473",
        },
        description="One listener per service when it is a process of its own",
    )


class Runtime(Section):
    """Directories of the suite itself. ``state`` must be a local disk."""

    state: AbsolutePath = Field(
        default=Path("/var/lib/edged"), description="Databases and keys; a local disk"
    )
    run: AbsolutePath = Field(default=Path("/run/edged"), description="Sockets and locks; gone at reboot")
    user: str = Field(default="edged", description="Whom `edged run` becomes when started as root")
    stop_deadline_s: Seconds = Field(default=30.0, description="Time for running requests when stopping")
    database: str = Field(
        default="",
        description="PostgreSQL for the jobs' and egress' state, e.g. postgresql+psycopg://edged@db/edged (no password "
        "here: peer, certificate or passfile); one edge writes, a second takes over. Empty: SQLite under `state`",
    )

    @field_validator("database")
    @classmethod
    def _postgresql(cls, value: str) -> str:
        """Said here and not when the service starts; without SQLAlchemy, which takes long to import."""
        if not value:
            return value
        try:
            parts = urlsplit(value)
            _ = parts.port
        except ValueError as error:
            raise ValueError(f"not a URL: {error}") from None
        if parts.scheme not in ("postgresql", "postgresql+psycopg") or not parts.path.strip("/"):
            raise ValueError("write postgresql+psycopg://USER@HOST/DATABASE")
        if parts.password is not None or "password=" in parts.query:
            raise ValueError("a password here would be read by all who read this file: use libpq's passfile")
        return value


class HttpLimits(Section):
    """What one source may do before any token is looked at, and how large a request may be."""

    connections_per_source: Count = 256
    connections: Count = 8192
    failed_authentications_per_minute: Count = Field(default=60, description="Per source address, then 429")
    header_bytes: ByteSize = Field(default=32768, description="All headers of one request")
    idle_s: Seconds = Field(
        default=75.0, description="Silence: between requests, within a body, of who does not take an answer"
    )
    header_s: Seconds = Field(default=15.0, description="Time to send a request head")


class Front(Section):
    """What every public HTTP listener has."""

    listen: tuple[ListenAddress, ...] = ()
    workers: Count = Field(default=1, description="Processes sharing the listener")
    tls: bool = Field(default=True, description="Plain HTTP only behind a trusted terminator or for tests")
    limits: HttpLimits = HttpLimits()
