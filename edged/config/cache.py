"""[cache], [[cache.repository]] and [[cache.destination]]."""

from __future__ import annotations

import ipaddress
import re
from pathlib import Path
from typing import Annotated, Literal
from urllib.parse import urlsplit

from pydantic import AfterValidator, Field, field_validator, model_validator

from edged.config.base import AbsolutePath, ByteSize, Count, GivenPath, ListenAddress, Seconds, Section, Word
from edged.config.site import Front, HttpLimits

PRIVATE = ("127.0.0.0/8", "10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "::1/128", "fc00::/7")


def _base_url(value: str) -> str:
    parts = urlsplit(value)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ValueError(f"not an http(s) URL: {value!r}")
    if parts.path not in ("", "/") or parts.query or parts.fragment or parts.username:
        raise ValueError(f"only scheme, host and port belong here: {value!r}")
    return f"{parts.scheme}://{parts.netloc.lower()}"


def _authority(value: str) -> str:
    if not re.fullmatch(r"(\[[0-9a-f:.]+\]|[a-z0-9.-]+)(:\d{1,5})?", value.lower()):
        raise ValueError(f"not host or host:port: {value!r}")
    return value.lower().removesuffix(":80")


def _network(value: str) -> str:
    try:
        return str(ipaddress.ip_network(value))
    except ValueError as error:
        raise ValueError(f"not a network: {error}") from None


def _pattern(value: str) -> str:
    if not re.fullmatch(r"(\*\.)?[a-z0-9][a-z0-9._-]*", value):
        raise ValueError(f"not a repository name or *.domain: {value!r}")
    return value


BaseUrl = Annotated[str, AfterValidator(_base_url)]
Authority = Annotated[str, AfterValidator(_authority)]
Network = Annotated[str, AfterValidator(_network)]
Pattern = Annotated[str, AfterValidator(_pattern)]


class Repository(Section):
    """CVMFS repositories that share their stratum-1 servers and master keys."""

    name: Pattern = Field(
        description="software.eessi.io, or *.cern.ch for a whole domain; the exact name wins"
    )
    stratums: tuple[BaseUrl, ...] = Field(min_length=1, description="Stratum-1 servers, best first")
    hosts: tuple[Authority, ...] = Field(
        default=(), description="Other names of the stratums that clients may ask for, e.g. aliases"
    )
    keys: tuple[GivenPath, ...] = Field(
        default=(), description="Master public keys (PEM); set: every manifest's signature chain is checked"
    )
    geo: Literal["configured", "stratum"] = Field(
        default="configured",
        description="Who sorts stratums for clients: the order above, or the stratum's own geo service",
    )


class Destination(Section):
    """Web servers cached by their own Cache-Control: Frontier and the like. Nothing else is cached."""

    name: Word
    hosts: tuple[Authority, ...] = Field(min_length=1, description="host[:port] as clients ask for it")
    upstreams: tuple[BaseUrl, ...] = Field(
        default=(), description="Where to fetch, best first; empty: the hosts"
    )
    prefix: str = Field(default="/", pattern="^/", description="Only paths that start with this")
    negative_s: float = Field(
        default=10.0, ge=0, description="404 and 410 without a lifetime are kept this long"
    )
    stale_if_error_s: float = Field(
        default=3600.0, ge=0, description="Stale answers serve this long in an outage"
    )
    max_object: ByteSize = Field(default=256 << 20, description="Larger answers pass through uncached")

    @property
    def bases(self) -> tuple[str, ...]:
        """Base URLs to fetch from, best first."""
        return self.upstreams or tuple(f"http://{host}" for host in self.hosts)


class UpstreamLimits(Section):
    """How long upstreams may take. CVMFS clients give a proxy 5 s, so every answer must come before."""

    connect_s: Seconds = Field(default=1.5, description="TCP (and TLS) connection")
    slow_s: Seconds = Field(default=1.0, description="No answer yet: the next upstream is asked as well")
    answer_s: Seconds = Field(default=4.0, lt=5.0, description="No upstream answered: 504")
    stall_s: Seconds = Field(
        default=2.0, description="A body that moves slower than min_rate for this long is left"
    )
    min_rate: ByteSize = Field(
        default=1024, description="Bytes per second of a body that is worth waiting for"
    )
    connections: Count = Field(default=64, description="To one upstream, per worker")
    failures: Count = Field(default=5, description="In a row; then the upstream rests")
    rest_s: Seconds = Field(default=10.0, description="Length of that rest; doubled up to 16 times")


class Cache(Front):
    """The CVMFS and HTTP proxy of the compute nodes; see services/cache/README.md."""

    listen: tuple[ListenAddress, ...] = ("127.0.0.1:3128",)
    tls: bool = False
    limits: HttpLimits = HttpLimits(
        connections_per_source=512, connections=32768, header_bytes=65536, header_s=5.0, idle_s=60.0
    )
    sources: tuple[Network, ...] = Field(default=PRIVATE, description="Who may connect: the nodes' networks")
    store: AbsolutePath = Field(default=Path("/var/cache/edged"), description="Directory of the disk store")
    disk: ByteSize = Field(default=50 << 30, description="Size of the disk store, shared by all workers")
    disk_free: ByteSize = Field(default=1 << 30, description="Never fill the file system below this")
    memory: ByteSize = Field(
        default=512 << 20, description="Hot small objects in memory, all workers together"
    )
    memory_object: ByteSize = Field(default=128 << 10, description="Largest object kept in memory")
    open_files: Count = Field(default=4096, description="Larger hot objects kept open, per worker")
    fresh_s: Seconds = Field(
        default=61.0, description="Manifests and whitelists are fetched again after this"
    )
    stale_s: float = Field(default=86400.0, ge=0, description="They serve this long when no stratum answers")
    geo_s: Seconds = Field(
        default=3600.0, description="Answers of a stratum's geo service are kept this long"
    )
    max_repositories: Count = Field(
        default=1024, description="Repositories known at once, wildcards included"
    )
    max_object: ByteSize = Field(default=4 << 30, description="Largest object fetched")
    fills: Count = Field(default=512, description="Objects being fetched at once, per worker")
    access_log: AbsolutePath | None = Field(
        default=None, description="One JSON line per request (logrotate safe)"
    )
    admin: AbsolutePath | None = Field(
        default=None, description="Directory of the administration sockets; default: <runtime.run>/cache"
    )
    upstream: UpstreamLimits = UpstreamLimits()
    repositories: tuple[Repository, ...] = Field(default=(), alias="repository")
    destinations: tuple[Destination, ...] = Field(default=(), alias="destination")

    @field_validator("tls")
    @classmethod
    def _plain(cls, value: bool) -> bool:
        if value:
            raise ValueError("must be false: CVMFS clients speak plain HTTP to their proxy")
        return value

    @model_validator(mode="after")
    def _distinct(self) -> Cache:
        names = [repository.name for repository in self.repositories]
        places = [f"{host}{d.prefix}" for d in self.destinations for host in d.hosts]
        for kind, values in (("repository", names), ("destination", places)):
            double = {value for value in values if values.count(value) > 1}
            if double:
                raise ValueError(f"{kind} named twice: {', '.join(sorted(double))}")
        return self
