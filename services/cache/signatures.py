"""Manifests, whitelists and the chain of signatures between them. Pure; source: CVMFS 2.12, verified.

Both documents are lines, then ``--``, then the hex hash of all bytes before that line, then a binary
signature. The chain: master key signs the whitelist, the whitelist names certificates by fingerprint,
the certificate's key signs the manifest.
"""

from __future__ import annotations

import calendar
import re
import time
import zlib
from collections.abc import Sequence
from dataclasses import dataclass

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import padding, rsa

from services.cache.names import Hasher, ObjectName

_MAX_CERTIFICATE = 1 << 20


class BadSignature(Exception):
    """A document is malformed, forged or out of date. The text says which, for the log."""


@dataclass(frozen=True, slots=True)
class Signed:
    """A document taken apart. ``hexhash`` is the very text that is signed."""

    lines: tuple[str, ...]
    hexhash: bytes
    signature: bytes


@dataclass(frozen=True, slots=True)
class Manifest:
    """``.cvmfspublished``: the root catalog of one revision."""

    repository: str
    revision: int
    catalog: ObjectName
    certificate: ObjectName | None
    timestamp: int
    ttl_s: int
    history: ObjectName | None = None
    meta: ObjectName | None = None

    def objects(self) -> list[tuple[ObjectName, str]]:
        """The objects named here, with the suffix of their kind."""
        named = ((self.certificate, "X"), (self.history, "H"), (self.meta, "M"))
        return [(self.catalog, "C"), *((name, suffix) for name, suffix in named if name)]


@dataclass(frozen=True, slots=True)
class Whitelist:
    """``.cvmfswhitelist``: which certificates may sign for a repository, until when (Unix seconds)."""

    repository: str
    expires: int
    fingerprints: frozenset[str]


def take_apart(data: bytes) -> Signed:
    """The parts of a signed document, its hash checked. Raises BadSignature."""
    cut = data.find(b"\n--\n")
    if cut < 0:
        raise BadSignature("no signature block")
    body, rest = data[: cut + 1], data[cut + 4 :]
    hexhash, newline, signature = rest.partition(b"\n")
    match = re.fullmatch(rb"([0-9a-f]{40})(-rmd160|-shake128)?", hexhash)
    if match is None or not newline:
        raise BadSignature("no hash before the signature")
    hasher = Hasher((match[2] or b"").decode())
    hasher.update(body)
    if hasher.hexdigest().encode() != match[1]:
        raise BadSignature("the text does not have the hash it names")
    try:
        lines = tuple(body.decode("ascii").splitlines())
    except UnicodeDecodeError:
        raise BadSignature("the text is not ASCII") from None
    return Signed(lines, hexhash, signature)


def parse_manifest(data: bytes) -> Manifest:
    """The manifest's fields; its hash is checked, its signature is not. Raises BadSignature."""
    fields = {line[0]: line[1:] for line in take_apart(data).lines if line}
    try:
        return Manifest(
            repository=fields["N"],
            revision=int(fields["S"]),
            catalog=ObjectName.parse(fields["C"]),
            certificate=_optional(fields.get("X")),
            timestamp=int(fields.get("T", "0")),
            ttl_s=int(fields.get("D", "240")),
            history=_optional(fields.get("H")),
            meta=_optional(fields.get("M")),
        )
    except (KeyError, ValueError) as error:
        raise BadSignature(f"manifest without a usable {error}") from None


def _optional(text: str | None) -> ObjectName | None:
    return ObjectName.parse(text) if text else None


def parse_whitelist(data: bytes) -> Whitelist:
    """The whitelist's fields; its hash is checked, its signature is not. Raises BadSignature."""
    lines = take_apart(data).lines
    fields = {line[0]: line[1:] for line in lines[1:] if line[:1] in ("E", "N") and ":" not in line}
    try:
        expires = calendar.timegm(time.strptime(fields["E"], "%Y%m%d%H%M%S"))
        name = fields["N"]
    except (KeyError, ValueError) as error:
        raise BadSignature(f"whitelist without a usable {error}") from None
    prints = (line.partition("#")[0].strip().upper() for line in lines[1:] if ":" in line.partition("#")[0])
    return Whitelist(name, expires, frozenset(prints))


def check_whitelist(data: bytes, repository: str, keys: Sequence[rsa.RSAPublicKey], now: float) -> Whitelist:
    """The whitelist, signed by one of the master ``keys``, for ``repository`` and not expired."""
    signed, whitelist = take_apart(data), parse_whitelist(data)
    if not any(_recovers(key, signed) for key in keys):
        raise BadSignature("whitelist is not signed by a configured master key")
    if whitelist.repository != repository:
        raise BadSignature(f"whitelist of another repository: {whitelist.repository[:100]!r}")
    if whitelist.expires < now:
        raise BadSignature("whitelist has expired")
    return whitelist


def _recovers(key: rsa.RSAPublicKey, signed: Signed) -> bool:
    """The master key signs the 40 characters in a bare PKCS#1 v1.5 block, with no DigestInfo around."""
    try:
        return key.recover_data_from_signature(signed.signature, padding.PKCS1v15(), None) == signed.hexhash
    except (InvalidSignature, ValueError):
        return False


def certificate(compressed: bytes) -> x509.Certificate:
    """The certificate in an ``X`` object (zlib-compressed PEM). Raises BadSignature."""
    try:
        stream = zlib.decompressobj()
        return x509.load_pem_x509_certificate(stream.decompress(compressed, _MAX_CERTIFICATE))
    except (zlib.error, ValueError) as error:
        raise BadSignature(f"unreadable certificate: {error}") from None


def check_manifest(data: bytes, repository: str, signer: x509.Certificate, whitelist: Whitelist) -> Manifest:
    """The manifest, signed by ``signer``, who stands in ``whitelist``. Raises BadSignature."""
    signed, manifest = take_apart(data), parse_manifest(data)
    if manifest.repository != repository:
        raise BadSignature(f"manifest of another repository: {manifest.repository[:100]!r}")
    if not fingerprints(signer) & whitelist.fingerprints:
        raise BadSignature("the certificate is not in the whitelist")
    key = signer.public_key()
    if not isinstance(key, rsa.RSAPublicKey):
        raise BadSignature("the certificate has no RSA key")
    try:
        key.verify(signed.signature, signed.hexhash, padding.PKCS1v15(), hashes.SHA1())  # noqa: S303 - the format's
    except InvalidSignature:
        raise BadSignature("the manifest's signature does not fit its certificate") from None
    return manifest


def fingerprints(signer: x509.Certificate) -> frozenset[str]:
    """The certificate's fingerprint as whitelists write it, for each of their hashes."""
    der = signer.public_bytes(serialization.Encoding.DER)
    found = set()
    for algorithm in ("", "-rmd160", "-shake128"):
        hasher = Hasher(algorithm)
        hasher.update(der)
        digest = hasher.hexdigest().upper()
        found.add(":".join(digest[i : i + 2] for i in range(0, 40, 2)) + algorithm.upper())
    return frozenset(found)


def master_key(pem: bytes) -> rsa.RSAPublicKey:
    """A repository's master key from its ``.pub`` file. Raises ValueError."""
    key = serialization.load_pem_public_key(pem)
    if not isinstance(key, rsa.RSAPublicKey):
        raise ValueError("not an RSA public key")  # noqa: TRY004
    return key
