"""What callers hand over for their jobs: X.509 proxies (delegated by CSR) and tokens.

A proxy's private key is made here and never leaves but as a file of its owner's job, readable by the
job's account only. Each credential belongs to one principal; renewing it reaches the jobs that use it.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Iterable, Mapping

import msgspec
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)
from cryptography.x509.oid import NameOID

from edged.errors import BadRequest, Busy, NotFound
from edged.identity import proxies
from edged.identity.words import Principal
from edged.state import Store
from services.jobs import journal

PROXY_FILE, TOKEN_FILE = ".edged/proxy.pem", ".edged/bearer_token"
MAX_TOKEN = 16384
EACH = 1000  # credentials a principal may keep
UNFINISHED_S = 3600.0  # a CSR nobody answered is forgotten after this
KEY_BITS = 2048


class Credential(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One delegation. ``key`` waits for its chain; ``content`` is what a job finds in its file."""

    id: str
    issuer: str
    subject: str
    kind: str  # x509 or jwt
    created_at: float
    key: bytes = b""
    content: bytes = b""
    public: bytes = b""  # the chain without its key
    expires_at: float = 0.0

    @property
    def ready(self) -> bool:
        """Whether a job can use it."""
        return bool(self.content)


class Credentials:
    """All credentials, in memory and in the journal."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._all: dict[str, Credential] = {}

    def restore(self, found: Iterable[Credential]) -> None:
        """Fill the memory at start."""
        self._all = {one.id: one for one in found}

    def of(self, owner: Principal, name: str) -> Credential:
        """The caller's credential. NotFound for anybody else's."""
        found = self._all.get(name)
        if found is None or (found.issuer, found.subject) != (owner.issuer, owner.subject):
            raise NotFound("no such delegation")
        return found

    def all_of(self, owner: Principal) -> list[Credential]:
        """All of the caller's, oldest first."""
        return [
            one for one in self._all.values() if (one.issuer, one.subject) == (owner.issuer, owner.subject)
        ]

    def files(self, name: str) -> Mapping[str, tuple[bytes, int]]:
        """What a job with this delegation finds in its session directory; empty when it is gone."""
        found = self._all.get(name)
        if found is None or not found.ready:
            return {}
        return {PROXY_FILE if found.kind == "x509" else TOKEN_FILE: (found.content, 0o600)}

    async def request(self, owner: Principal, name: str = "") -> tuple[str, bytes]:
        """A key and its CSR (PEM), for a new delegation or to renew ``name``."""
        before = self.of(owner, name) if name else None
        if before is not None and before.kind != "x509":
            raise BadRequest("this delegation is a token")
        self._check_room(owner, before)
        key, csr = await asyncio.to_thread(_new_request)
        one = before or _blank(owner, "x509")
        await self._put(msgspec.structs.replace(one, key=key, created_at=time.time()))
        return one.id, csr

    async def fulfil(self, owner: Principal, name: str, pem: bytes) -> Credential:
        """Take the signed chain for the key made last. Raises BadRequest, NotFound."""
        one = self.of(owner, name)
        if not one.key:
            raise BadRequest("no certificate was requested for this delegation")
        chain = proxies.read_chain(pem)
        found = proxies.linked(chain, time.time())
        key = load_pem_private_key(one.key, None)
        if chain[0].public_key() != key.public_key():
            raise BadRequest("the certificate is not for the key of this delegation")
        if owner.issuer.startswith("edged:") and proxies.normal(found.subject) != proxies.normal(
            owner.subject
        ):
            raise BadRequest("the proxy is somebody else's")
        leaf, *rest = (certificate.public_bytes(Encoding.PEM) for certificate in chain)
        done = msgspec.structs.replace(
            one,
            key=b"",
            content=b"".join([leaf, one.key, *rest]),  # the order every grid tool reads
            public=b"".join([leaf, *rest]),
            expires_at=found.ends_at,
        )
        await self._put(done)
        return done

    async def put_token(self, owner: Principal, token: str, expires_at: float, name: str = "") -> Credential:
        """Keep a token for jobs, as a new delegation or instead of the one in ``name``."""
        if not 0 < len(token) <= MAX_TOKEN or not token.isascii() or not token.isprintable():
            raise BadRequest("not a token")
        before = self.of(owner, name) if name else None
        if before is not None and before.kind != "jwt":
            raise BadRequest("this delegation is a certificate")
        self._check_room(owner, before)
        done = msgspec.structs.replace(
            before or _blank(owner, "jwt"), content=token.encode() + b"\n", expires_at=expires_at
        )
        await self._put(done)
        return done

    async def delete(self, owner: Principal, name: str) -> None:
        """Forget it. Jobs keep the file they have."""
        await self._drop([self.of(owner, name).id])

    async def sweep(self, used: frozenset[str]) -> None:
        """Forget what has expired and what was never finished, unless a job uses it."""
        now = time.time()
        dead = [
            one.id
            for one in self._all.values()
            if one.id not in used
            and (one.expires_at < now if one.ready else one.created_at + UNFINISHED_S < now)
        ]
        if dead:
            await self._drop(dead)

    def _check_room(self, owner: Principal, before: Credential | None) -> None:
        if before is None and len(self.all_of(owner)) >= EACH:
            raise Busy(f"{EACH} delegations are kept for one identity; delete some", retry_after_s=60)

    async def _put(self, one: Credential) -> None:
        await self._store.write(journal.put_credential(one.id, msgspec.msgpack.encode(one)))
        self._all[one.id] = one

    async def _drop(self, names: list[str]) -> None:
        await self._store.write(journal.drop_credentials(names))
        for name in names:
            self._all.pop(name, None)


def _blank(owner: Principal, kind: str) -> Credential:
    name = os.urandom(10).hex()
    return Credential(id=name, issuer=owner.issuer, subject=owner.subject, kind=kind, created_at=time.time())


def _new_request() -> tuple[bytes, bytes]:
    """A key and an ordinary version 1 CSR: signers put their own subject into the proxy."""
    key = rsa.generate_private_key(public_exponent=65537, key_size=KEY_BITS)
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "edged delegation")])
    csr = x509.CertificateSigningRequestBuilder().subject_name(subject).sign(key, hashes.SHA256())
    written = key.private_bytes(Encoding.PEM, PrivateFormat.TraditionalOpenSSL, NoEncryption())
    return written, csr.public_bytes(Encoding.PEM)
