"""[storage], [storage.third_party] and [[storage.export]]."""

from __future__ import annotations

import ipaddress
from typing import Annotated, Literal

from pydantic import AfterValidator, Field

from edged.config.base import AbsolutePath, AccountNameField, ByteSize, Count, Prefix, Seconds, Section, Word
from edged.config.site import Front
from edged.config.xrootd import Xrootd

# What is never a partner's data server unless the site says so: this machine, private and special
# networks (RFC 6890 registries), carrier-grade NAT, multicast and metadata services.
INTERNAL_NETWORKS = (
    "0.0.0.0/8",
    "10.0.0.0/8",
    "100.64.0.0/10",
    "127.0.0.0/8",
    "169.254.0.0/16",
    "172.16.0.0/12",
    "192.0.0.0/24",
    "192.0.2.0/24",
    "192.168.0.0/16",
    "198.18.0.0/15",
    "198.51.100.0/24",
    "203.0.113.0/24",
    "224.0.0.0/4",
    "240.0.0.0/4",
    "::/96",
    "fc00::/7",
    "fe80::/10",
    "fec0::/10",
    "ff00::/8",
    "2001:db8::/32",
    "100::/64",
)


def _network(value: str) -> str:
    try:
        ipaddress.ip_network(value, strict=True)
    except ValueError:
        raise ValueError(f"not a network: {value!r}; write 10.0.0.0/8 or 2001:db8::/32") from None
    return value


Network = Annotated[str, AfterValidator(_network)]


class Export(Section):
    """A piece of the file system shown outside."""

    name: Word | None = Field(default=None, description="Short name in logs and metrics; default: the prefix")
    prefix: Prefix = Field(description="Where it appears in the namespace, e.g. /cms")
    root: AbsolutePath = Field(description="The directory it shows")
    vo: Word
    accounts: tuple[AccountNameField, ...] = Field(
        default=(), description="Who may use it; empty: the VO's accounts"
    )
    anonymous: AccountNameField | None = Field(
        default=None, description="Anyone may read, as this account (listed in [[identity.assertions]])"
    )
    upkeep: AccountNameField | None = Field(
        default=None,
        description="Account for dumps, space and sweeping (listed in [[identity.assertions]])",
    )
    size: ByteSize | None = Field(default=None, description="Space shown where no quota is known")
    create_parents: bool = Field(
        default=True,
        description="Missing parents are made: Rucio needs it, RFC 4918 says 409",
    )
    prune: Annotated[int, Field(ge=0)] = Field(
        default=0, description="Remove directories a DELETE leaves empty, this many levels up; 0: never"
    )
    dump_every_s: Seconds | None = Field(
        default=None, description="Period of consistency dumps (dumps/dump_YYYYMMDD); needs `upkeep`"
    )

    @property
    def label(self) -> str:
        """The export's short name."""
        return self.name or self.prefix.strip("/").replace("/", "-") or "root"


class ThirdParty(Section):
    """Third-party copies: whom we exchange data with, and how much at once."""

    partners: tuple[str, ...] = Field(
        default=(),
        description="Host patterns (*.cern.ch) tokens may be sent to and data exchanged with; '*': any host",
    )
    deny: tuple[Network, ...] = Field(
        default=INTERNAL_NETWORKS, description="Never connect there, whatever a name resolves to"
    )
    allow: tuple[Network, ...] = Field(default=(), description="Exceptions from `deny`")
    plain_http: bool = Field(default=False, description="Also http:// partners: tokens in the clear")
    per_vo: Count = Field(default=40, description="Copies running at once for one VO; more wait")
    waiting: Count = Field(default=1000, description="Copies waiting in all; more fail")
    streams: Annotated[int, Field(ge=1, le=16)] = Field(default=4, description="Most connections of one pull")
    marker_s: Seconds = Field(default=5.0, description="Period of performance markers (FTS expects 5 s)")
    connect_s: Seconds = Field(default=30.0, description="Connection and TLS handshake, each address")
    stall_s: Seconds = Field(default=120.0, description="A copy without a byte for so long ends")
    digest_s: Seconds = Field(default=900.0, description="How long a partner may compute a checksum")
    attempts: Count = Field(default=4, description="Tries of one pull; later ones resume by range")
    redirects: Annotated[int, Field(ge=0, le=20)] = 5


class Storage(Front):
    """The WebDAV endpoint."""

    exports: tuple[Export, ...] = Field(default=(), alias="export")
    url: str = Field(default="", description="Public URL, where it differs from site.host and `listen`")
    third_party: ThirdParty = ThirdParty()
    durable: bool = Field(default=True, description="fsync before an upload is acknowledged")
    digests: tuple[Literal["md5", "sha-256", "sha-512", "crc32c"], ...] = Field(
        default=(), description="Computed for every upload besides adler32"
    )
    depth_infinity: bool = Field(default=False, description="Answer PROPFIND Depth: infinity (else 403)")
    listing: Count = Field(default=1_000_000, description="Longest directory listing, in entries")
    xml_body: ByteSize = Field(default=256 << 10, description="Largest PROPFIND, PROPPATCH or LOCK body")
    upload: ByteSize = Field(default=16 << 40, description="Largest file")
    upload_memory: ByteSize = Field(default=256 << 20, description="Bytes held for all running uploads")
    threads: Count = Field(default=8, description="Blocking file calls at once, per export")
    stall_s: Seconds = Field(default=120.0, description="A peer without a byte for so long is cut")
    locks: Count = Field(default=10_000, description="WebDAV locks held at once")
    lock_s: Seconds = Field(default=3600.0, description="Longest life of a lock without refresh")
    space_s: Seconds = Field(default=30.0, description="How long an answer about space and quota is reused")
    report: str = Field(
        default="/.well-known/wlcg-storage-report", description="Path of the SRR; empty: none"
    )
    report_public: bool = Field(default=False, description="SRR without a token")
    xrootd: Xrootd | None = Field(default=None, description="The same exports as root://")
