"""SSH user certificates, revocation lists and the lines that sshd needs. Pure: keys and times come in.

Certificates are those of OpenSSH's PROTOCOL.certkeys, revocation lists those of its PROTOCOL.krl. The
certificate authority's key stays with the signer; see services/identity.
"""

from __future__ import annotations

import base64
import ipaddress
import struct
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol

import msgspec
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePublicKey
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPublicKey
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    PublicFormat,
    SSHCertificateBuilder,
    SSHCertificateType,
    load_ssh_public_key,
)

from edged.errors import BadRequest
from edged.identity.words import Action

CLOCKS_S = 60.0  # how far the login node's clock may be behind ours
MAX_KEY = 8192
MIN_RSA_BITS = 3072
KINDS = ("ssh-ed25519 ", "ssh-rsa ", *(f"ecdsa-sha2-nistp{bits} " for bits in (256, 384, 521)))

PublicKey = Ed25519PublicKey | EllipticCurvePublicKey | RSAPublicKey


class Certificate(msgspec.Struct, frozen=True, tag=True):
    """A certificate as one line of a ``-cert.pub`` file, and its end (Unix seconds)."""

    text: str
    serial: int
    account: str
    expires_at: float


class SlurmToken(msgspec.Struct, frozen=True, tag=True):
    """A JWT that slurmrestd takes for one account, and its end (Unix seconds)."""

    text: str
    account: str
    expires_at: float


class Credentials(Protocol):
    """What drivers of remote batch systems get to act as an account; ``IdentityClient`` is the real one.

    Both raise Denied when the grant does not cover ``action``, or the configuration has no such cluster.
    """

    async def ssh_certificate(
        self, grant: bytes, cluster: str, public_key: str, action: Action
    ) -> Certificate: ...

    async def slurm_token(self, grant: bytes, cluster: str, action: Action) -> SlurmToken: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Order:
    """What a certificate shall say. ``key_id`` appears in sshd's log; ``principal`` is the account."""

    public_key: str
    serial: int
    principal: str
    key_id: str
    valid_from: float
    valid_to: float
    extensions: Sequence[str] = ()
    source_addresses: Sequence[str] = ()
    force_command: str = ""


def sign(order: Order, key: Ed25519PrivateKey) -> Certificate:
    """The certificate. Raises BadRequest for a public key that is none, or too weak."""
    builder = (
        SSHCertificateBuilder()
        .public_key(public_key(order.public_key))
        .serial(order.serial)
        .type(SSHCertificateType.USER)
        .key_id(order.key_id.encode()[:1024])
        .valid_principals([order.principal.encode()])
        .valid_after(int(order.valid_from - CLOCKS_S))
        .valid_before(int(order.valid_to))
    )
    if order.force_command:
        builder = builder.add_critical_option(b"force-command", order.force_command.encode())
    if order.source_addresses:
        builder = builder.add_critical_option(b"source-address", ",".join(order.source_addresses).encode())
    for extension in sorted(order.extensions):
        builder = builder.add_extension(extension.encode(), b"")
    text = builder.sign(key).public_bytes().decode()
    return Certificate(text, order.serial, order.principal, float(int(order.valid_to)))


def public_key(text: str) -> PublicKey:
    """A public key from one line of a ``.pub`` file. Raises BadRequest: no key, a kind not taken, too weak."""
    line = text.strip()
    if len(line) > MAX_KEY or "\n" in line or not line.isascii():
        raise BadRequest("not a line with an SSH public key")
    if not line.startswith(KINDS):  # no certificates, no DSA, no keys of security tokens
        raise BadRequest("not a public key of a kind that is signed: ssh-ed25519, ecdsa-sha2-nistp*, ssh-rsa")
    try:
        found = load_ssh_public_key(line.encode())
    except (ValueError, UnsupportedAlgorithm):
        raise BadRequest("not an SSH public key") from None
    if isinstance(found, RSAPublicKey) and found.key_size < MIN_RSA_BITS:
        raise BadRequest(f"RSA keys need {MIN_RSA_BITS} bits; better: ssh-keygen -t ed25519")
    if not isinstance(found, Ed25519PublicKey | EllipticCurvePublicKey | RSAPublicKey):
        raise BadRequest("only ed25519, ECDSA and RSA keys are signed")
    return found


def source(address: str) -> str:
    """An address or network as ``source-address`` writes it. Raises BadRequest."""
    try:
        return str(ipaddress.ip_network(address, strict=False))
    except ValueError:
        raise BadRequest(f"not an IP address or network: {address[:64]!r}") from None


def authority_line(key: Ed25519PublicKey, site: str) -> str:
    """The CA's public key as sshd's TrustedUserCAKeys file has it."""
    line = key.public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH).decode()
    return f"{line} edged-ssh-ca@{site}"


def sshd_lines(site: str, helper: str = "") -> str:
    """What a site puts into sshd_config, with the reason for each line."""
    lines = [
        f"# certificates of {site}'s edged: the account is the certificate's only principal",
        "TrustedUserCAKeys /etc/ssh/edged-ca.pub",
        "RevokedKeys /etc/ssh/edged-revoked.krl   # from GET /v1/ssh/revoked, e.g. every minute by cron",
        "MaxSessions 10                            # the default is enough: edged opens at most 4",
        "MaxStartups 100:30:200                    # logins at once: 10:30:100 is low for many accounts",
    ]
    if helper:
        lines.append(f"# certificates for jobs carry force-command={helper}")
    return "\n".join(lines) + "\n"


_MAGIC = 0x5353484B524C0A00  # "SSHKRL\n\0"
_FORMAT = 1
_CERTIFICATES = 1
_SERIAL_LIST = 0x20


def revocation_list(
    authority: Ed25519PublicKey, serials: Iterable[int], *, version: int, made_at: float
) -> bytes:
    """A KRL that sshd reads as RevokedKeys: these serials of this CA. Format: OpenSSH PROTOCOL.krl."""
    head = struct.pack("!QIQQQ", _MAGIC, _FORMAT, version, int(made_at), 0) + _string(b"") + _string(b"edged")
    listed = sorted(set(serials))
    if not listed:
        return head
    blob = authority.public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH).split()[1]
    section = _string(base64.b64decode(blob)) + _string(b"")
    section += bytes((_SERIAL_LIST,)) + _string(struct.pack(f"!{len(listed)}Q", *listed))
    return head + bytes((_CERTIFICATES,)) + _string(section)


def _string(content: bytes) -> bytes:
    return struct.pack("!I", len(content)) + content
