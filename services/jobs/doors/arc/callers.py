"""Who calls: a bearer token, else the X.509 certificate or proxy of the TLS connection.

The handshake verified the chain against ``tls.ca_directory``; whose it is, whether it is revoked and which
account the site gives its owner is decided here, once for each connection and again after a while.
"""

from __future__ import annotations

import asyncio
import ssl
import time
from typing import Any
from weakref import WeakKeyDictionary

from aiohttp import web
from cryptography import x509

from edged.config import Config
from edged.config.doors import Arc
from edged.errors import Denied, Unauthenticated
from edged.http.api import bearer
from edged.identity.client import Verdicts
from edged.identity.proxies import Proven, normal, proven
from edged.identity.revocation import CaDirectory
from edged.identity.words import AccountName, Verdict

CHECK_AGAIN_S = 60.0


class Callers:
    """Gives the verdict on a request."""

    def __init__(self, config: Config, arc: Arc, identity: Verdicts) -> None:
        self._identity = identity
        self._accounts = {normal(subject): AccountName(name) for subject, name in arc.subjects.items()}
        directory = config.tls.ca_directory
        self._authorities = CaDirectory(directory, arc.crls) if directory is not None else None
        self._known: WeakKeyDictionary[Any, tuple[Proven, float]] = WeakKeyDictionary()

    async def verdict(self, request: web.BaseRequest) -> Verdict:
        """Raises Unauthenticated, Denied, Unavailable. A token goes before a certificate."""
        if "Authorization" in request.headers:
            return await self._identity.verdict(bearer(request))
        transport = request.transport
        connection = transport.get_extra_info("ssl_object") if transport is not None else None
        if connection is None or connection.getpeercert(True) is None:
            raise Unauthenticated("a bearer token or an X.509 proxy is needed")
        who = await self._proven(connection)
        account = self._accounts.get(who.subject)
        if account is None:
            raise Denied("your certificate's subject is not known at this site", detail=who.subject)
        return await self._identity.asserted(who.subject, account)

    async def _proven(self, connection: Any) -> Proven:
        found, checked_at = self._known.get(connection, (None, 0.0))
        now = time.time()
        if found is None or now > checked_at + CHECK_AGAIN_S:
            found = await asyncio.to_thread(self._prove, connection)
            self._known[connection] = (found, now)
        if found.ends_at < now:
            raise Unauthenticated("the certificate or proxy has expired")
        return found

    def _prove(self, connection: Any) -> Proven:
        if self._authorities is None:
            raise Unauthenticated("X.509 is not accepted here")
        chain = [x509.load_der_x509_certificate(one) for one in _verified(connection)]
        found = proven(chain)
        self._authorities.check(chain)
        return found


def _verified(connection: Any) -> list[bytes]:
    """The chain as OpenSSL verified it in this connection's handshake, leaf first, DER.

    The chain the client sent is no substitute: it may hold what was not part of the verification. A resumed
    TLS session has none; then the client must make a full handshake.
    """
    if hasattr(connection, "get_verified_chain"):  # Python 3.13
        return list(connection.get_verified_chain())
    found = connection._sslobj.get_verified_chain()
    if not found:
        raise Unauthenticated("the TLS session was resumed: connect anew to show the certificate")
    return [ssl.PEM_cert_to_DER_cert(one.public_bytes()) for one in found]
