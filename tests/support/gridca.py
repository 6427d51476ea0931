"""A throw-away grid: a CA directory with CRL and signing policy, user certificates, RFC 3820 proxies."""

from __future__ import annotations

import datetime
import secrets
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import NameOID

from edged.identity.proxies import INHERIT_ALL, LIMITED, PROXY_CERT_INFO

INDEPENDENT = bytes.fromhex("06082b06010505071502")
NOW = datetime.datetime.now(datetime.UTC)
DAY = datetime.timedelta(days=1)
LENGTH = b"\x30"  # SEQUENCE


@dataclass(frozen=True, slots=True)
class Credential:
    """A certificate, its key and the chain above it."""

    certificate: x509.Certificate
    key: ec.EllipticCurvePrivateKey
    chain: tuple[x509.Certificate, ...] = ()

    def pem(self) -> bytes:
        """As a proxy file: certificate, key, chain."""
        return b"".join([_pem(self.certificate), _key(self.key), *map(_pem, self.chain)])


class GridCa:
    """One CA. ``directory`` is its hashed certificate directory, shared with other CAs given to ``trust``."""

    def __init__(self, directory: Path, name: str = "Test Grid CA") -> None:
        directory.mkdir(parents=True, exist_ok=True)
        self.directory = directory
        self.key = ec.generate_private_key(ec.SECP256R1())
        self.name = _name(("DC", "org"), ("DC", "edged-test"), ("CN", name))
        self.revoked: list[int] = []
        self.certificate = self._root()
        self.hash = self.trust(_pem(self.certificate))

    def _root(self) -> x509.Certificate:
        usage = x509.KeyUsage(False, False, False, False, False, True, True, False, False)
        identifier = x509.SubjectKeyIdentifier.from_public_key(self.key.public_key())
        return (
            _builder(self.name, self.name, self.key)
            .add_extension(x509.BasicConstraints(True, None), True)
            .add_extension(usage, True)
            .add_extension(identifier, False)
            .sign(self.key, hashes.SHA256())
        )

    def trust(self, pem: bytes) -> str:
        """Put a CA into the directory under its OpenSSL hash, which is returned."""
        made = subprocess.run(
            [shutil.which("openssl") or "openssl", "x509", "-hash", "-noout"],
            input=pem, capture_output=True, check=True,
        )  # fmt: skip
        found = made.stdout.decode().strip()
        (self.directory / f"{found}.0").write_bytes(pem)
        return found

    def user(self, name: str) -> Credential:
        """An end entity ``/DC=org/DC=edged-test/CN=name``."""
        key = ec.generate_private_key(ec.SECP256R1())
        usage = x509.KeyUsage(True, False, True, False, False, False, False, False, False)
        certificate = (
            _builder(_name(("DC", "org"), ("DC", "edged-test"), ("CN", name)), self.name, key)
            .add_extension(x509.BasicConstraints(False, None), True)
            .add_extension(usage, True)
            .sign(self.key, hashes.SHA256())
        )
        return Credential(certificate, key)

    def crl(self, *, next_update: datetime.datetime | None = None) -> None:
        """Write the CA's CRL with what is in ``revoked``."""
        builder = x509.CertificateRevocationListBuilder().issuer_name(self.name)
        builder = builder.last_update(NOW - DAY).next_update(next_update or NOW + DAY)
        for serial in self.revoked:
            one = x509.RevokedCertificateBuilder().serial_number(serial).revocation_date(NOW - DAY)
            builder = builder.add_revoked_certificate(one.build())
        made = builder.sign(self.key, hashes.SHA256())
        (self.directory / f"{self.hash}.r0").write_bytes(made.public_bytes(Encoding.PEM))

    def policy(self, *patterns: str) -> None:
        """Write the CA's signing policy."""
        quoted = " ".join(f'"{pattern}"' for pattern in patterns)
        (self.directory / f"{self.hash}.signing_policy").write_text(
            f"access_id_CA X509 '/DC=org/DC=edged-test/CN=Test Grid CA'\npos_rights globus CA:sign\n"
            f"cond_subjects globus '{quoted}'\n"
        )


def proxy(
    owner: Credential, *, policy: bytes = INHERIT_ALL, hours: float = 12, subject: x509.Name | None = None
) -> Credential:
    """An RFC 3820 proxy of ``owner``, which may itself be one."""
    key = ec.generate_private_key(ec.SECP256R1())
    serial = secrets.randbelow(1 << 62)
    number = x509.NameAttribute(NameOID.COMMON_NAME, str(serial))
    certificate = (
        x509.CertificateBuilder()
        .subject_name(subject or x509.Name([*owner.certificate.subject, number]))
        .issuer_name(owner.certificate.subject)
        .public_key(key.public_key())
        .serial_number(serial)
        .not_valid_before(NOW - datetime.timedelta(days=2 if hours < 0 else 0, minutes=5))
        .not_valid_after(NOW + datetime.timedelta(hours=hours))
        .add_extension(x509.KeyUsage(True, False, True, False, False, False, False, False, False), True)
        .add_extension(x509.UnrecognizedExtension(PROXY_CERT_INFO, info(policy)), True)
        .sign(owner.key, hashes.SHA256())
    )
    return Credential(certificate, key, (owner.certificate, *owner.chain))


def limited(owner: Credential) -> Credential:
    """A limited proxy."""
    return proxy(owner, policy=LIMITED)


def info(policy: bytes) -> bytes:
    """ProxyCertInfo ::= SEQUENCE { proxyPolicy SEQUENCE { policyLanguage OID } }."""
    inner = LENGTH + bytes([len(policy)]) + policy
    return LENGTH + bytes([len(inner)]) + inner


def _name(*parts: tuple[str, str]) -> x509.Name:
    kinds = {"DC": NameOID.DOMAIN_COMPONENT, "CN": NameOID.COMMON_NAME}
    return x509.Name([x509.NameAttribute(kinds[kind], value) for kind, value in parts])


def _builder(
    subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePrivateKey
) -> x509.CertificateBuilder:
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(NOW - DAY)
        .not_valid_after(NOW + 30 * DAY)
    )


def _pem(certificate: x509.Certificate) -> bytes:
    return certificate.public_bytes(Encoding.PEM)


def _key(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(Encoding.PEM, PrivateFormat.TraditionalOpenSSL, NoEncryption())
