"""A small signed repository made on the spot, so that every link of its chain can be broken to order."""

from __future__ import annotations

import datetime
import hashlib
import time
import zlib
from dataclasses import dataclass, field

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import padding, rsa
from cryptography.x509.oid import NameOID

from services.cache.names import ObjectName
from services.cache.signatures import fingerprints
from tests.support.stratum import REPOSITORY


def new_key() -> rsa.RSAPrivateKey:
    return rsa.generate_private_key(public_exponent=65537, key_size=2048)


def _stamp(moment: float) -> str:
    return time.strftime("%Y%m%d%H%M%S", time.gmtime(moment))


@dataclass(slots=True)
class Forge:
    """Keys of a repository and what they sign."""

    name: str = REPOSITORY
    master: rsa.RSAPrivateKey = field(default_factory=new_key)
    signer: rsa.RSAPrivateKey = field(default_factory=new_key)

    def public(self) -> bytes:
        """The master public key in PEM."""
        kind = serialization.PublicFormat.SubjectPublicKeyInfo
        return self.master.public_key().public_bytes(serialization.Encoding.PEM, kind)

    def certificate(self) -> x509.Certificate:
        """The signing certificate."""
        name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, self.name)])
        start = datetime.datetime(2026, 1, 1, tzinfo=datetime.UTC)
        return (
            x509.CertificateBuilder(name, name, self.signer.public_key(), 1)
            .not_valid_before(start)
            .not_valid_after(start + datetime.timedelta(days=3650))
            .sign(self.signer, hashes.SHA256())
        )

    def whitelist(
        self, certificate: x509.Certificate, *, expires: float | None = None, name: str = ""
    ) -> bytes:
        """A whitelist naming ``certificate``, by default valid for a month."""
        moment = time.time()
        prints = min(fingerprints(certificate), key=len)
        until = _stamp(expires or moment + 30 * 86400)
        text = f"{_stamp(moment)}\nE{until}\nN{name or self.name}\n{prints}\n".encode()
        hexhash = hashlib.sha1(text).hexdigest().encode()
        return text + b"--\n" + hexhash + b"\n" + _bare_signature(self.master, hexhash)

    def manifest(self, certificate: bytes, revision: int, *, name: str = "") -> bytes:
        """A manifest of ``revision``; ``certificate`` is the X object's bytes."""
        named = hashlib.sha1(certificate).hexdigest()
        text = (
            f"C{hashlib.sha1(b'catalog').hexdigest()}\nB100\nRd41d8cd98f00b204e9800998ecf8427e\nD240\nS{revision}\n"
            f"N{name or self.name}\nX{named}\nT{int(time.time())}\n"
        ).encode()
        hexhash = hashlib.sha1(text).hexdigest().encode()
        return text + b"--\n" + hexhash + b"\n" + self.signer.sign(hexhash, padding.PKCS1v15(), hashes.SHA1())

    def objects(self, revision: int, **whitelist: object) -> dict[str, bytes]:
        """Everything a stratum serves of it."""
        certificate = self.certificate()
        stored = zlib.compress(certificate.public_bytes(serialization.Encoding.PEM))
        path = ObjectName.of(hashlib.sha1(stored).hexdigest()).path("X")
        return {
            path: stored,
            ".cvmfspublished": self.manifest(stored, revision),
            ".cvmfswhitelist": self.whitelist(certificate, **whitelist),  # type: ignore[arg-type]
        }


def _bare_signature(key: rsa.RSAPrivateKey, text: bytes) -> bytes:
    """RSA over a type-1 block around the text itself, without DigestInfo, as CVMFS signs whitelists."""
    numbers = key.private_numbers()
    size = (numbers.public_numbers.n.bit_length() + 7) // 8
    block = b"\0\1" + b"\xff" * (size - 3 - len(text)) + b"\0" + text
    return pow(int.from_bytes(block), numbers.d, numbers.public_numbers.n).to_bytes(size)
