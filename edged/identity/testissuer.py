"""A token issuer for demonstrations and tests: real HTTPS, discovery, JWKS, userinfo, introspection.

It can rotate its keys, be down, be slow and lie. Never for a real site.
"""

from __future__ import annotations

import asyncio
import json
import secrets
import socket
import ssl
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any, Literal

import jwt
from aiohttp import web
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from jwt.algorithms import get_default_algorithms

from edged.identity.testca import ThrowAwayCa

AUDIENCE = "https://edge.example.org"
Algorithm = Literal["RS256", "ES256"]
PrivateKey = rsa.RSAPrivateKey | ec.EllipticCurvePrivateKey


class Fault(StrEnum):
    """What is wrong with the issuer, if anything."""

    NONE = "none"
    DOWN = "down"  # connections are cut
    BROKEN = "broken"  # every answer is a 500
    SLOW = "slow"  # no answer at all
    LYING = "lying"  # discovery names another issuer
    REDIRECTING = "redirecting"  # sends the caller to another host
    HUGE = "huge"  # answers without end


@dataclass(frozen=True, slots=True)
class IssuerKey:
    """One signing key of the issuer."""

    kid: str
    algorithm: Algorithm
    private: PrivateKey

    def public_jwk(self) -> dict[str, Any]:
        """The public half as its JWKS entry."""
        jwk = json.loads(get_default_algorithms()[self.algorithm].to_jwk(self.private.public_key()))
        return {**jwk, "kid": self.kid, "alg": self.algorithm, "use": "sig"}


def new_key(algorithm: Algorithm = "ES256") -> IssuerKey:
    """A fresh key with a random kid."""
    private: PrivateKey
    if algorithm == "RS256":
        private = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    else:
        private = ec.generate_private_key(ec.SECP256R1())
    return IssuerKey(secrets.token_hex(4), algorithm, private)


class ThrowAwayIssuer:
    """An issuer on a loopback port. ``keys[0]`` signs; all are published. ``url`` is its ``iss``."""

    def __init__(self, ca: ThrowAwayCa, *, algorithm: Algorithm = "ES256", host: str = "localhost") -> None:
        self.ca = ca
        self.keys = [new_key(algorithm)]
        self.fault = Fault.NONE
        self.userinfo: dict[str, Any] = {}
        self.introspection: dict[str, Any] = {"active": True}
        self.requests: Counter[str] = Counter()
        self.client, self.secret = "edged", "introspection-secret"
        self._host = host
        self._socket = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
        self._socket.bind(("127.0.0.1", 0))  # bound from the start: the url is known before it runs
        self.url = f"https://{host}:{self._socket.getsockname()[1]}/"

    @asynccontextmanager
    async def running(self) -> AsyncIterator[ThrowAwayIssuer]:
        """Serve while entered."""
        files = self.ca.host(self._host, "127.0.0.1")
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(files.certificate, files.key)
        app = web.Application()
        for path, handler in (
            ("/.well-known/openid-configuration", self._discovery),
            ("/jwks", self._jwks),
            ("/userinfo", self._userinfo),
        ):
            app.router.add_get(path, self._faulty(path, handler))
        app.router.add_post("/introspect", self._faulty("/introspect", self._introspect))
        runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.5, handler_cancellation=True)
        await runner.setup()
        await web.SockSite(runner, self._socket, ssl_context=context).start()
        try:
            yield self
        finally:
            await runner.cleanup()
            self._socket.close()

    def rotate(self, algorithm: Algorithm | None = None, *, keep_old: bool = True) -> IssuerKey:
        """A new signing key; the old ones stay published unless told otherwise."""
        key = new_key(algorithm or self.keys[0].algorithm)
        self.keys = [key, *(self.keys if keep_old else [])]
        return key

    def jwks(self) -> dict[str, Any]:
        """The key document."""
        return {"keys": [key.public_jwk() for key in self.keys]}

    def claims(self, **changes: Any) -> dict[str, Any]:
        """The claims of an ordinary WLCG token; ``None`` leaves a claim out."""
        now = int(time.time())
        claims = {
            "iss": self.url,
            "sub": "alice",
            "aud": AUDIENCE,
            "iat": now,
            "nbf": now,
            "exp": now + 3600,
            "jti": secrets.token_hex(8),
            "wlcg.ver": "1.0",
            "client_id": "broker",
            **changes,
        }
        return {name: value for name, value in claims.items() if value is not None}

    def token(
        self,
        *,
        groups: Sequence[str] | None = None,
        key: IssuerKey | None = None,
        headers: dict[str, Any] | None = None,
        **changes: Any,
    ) -> str:
        """A signed token; ``groups`` become ``wlcg.groups``, ``changes`` are claims (None: left out)."""
        key = key or self.keys[0]
        if groups is not None:
            changes["wlcg.groups"] = list(groups)
        claims = self.claims(**changes)
        return jwt.encode(
            claims, key.private, algorithm=key.algorithm, headers={"kid": key.kid, **(headers or {})}
        )

    def _faulty(
        self, path: str, handler: Callable[[web.Request], Awaitable[web.StreamResponse]]
    ) -> Callable[[web.Request], Awaitable[web.StreamResponse]]:
        async def answer(request: web.Request) -> web.StreamResponse:
            self.requests[path] += 1
            match self.fault:
                case Fault.DOWN:
                    if request.transport is not None:
                        request.transport.abort()
                    return web.Response(status=503)
                case Fault.BROKEN:
                    return web.Response(status=500)
                case Fault.SLOW:
                    await asyncio.sleep(3600)
                case Fault.REDIRECTING:
                    raise web.HTTPFound(f"https://127.0.0.1:{self._socket.getsockname()[1]}{path}")
                case Fault.HUGE:
                    return web.Response(body=b" " * (8 << 20))
            return await handler(request)

        return answer

    async def _discovery(self, request: web.Request) -> web.StreamResponse:
        base = self.url.rstrip("/")
        issuer = "https://someone.example/" if self.fault is Fault.LYING else self.url
        return web.json_response(
            {
                "issuer": issuer,
                "jwks_uri": f"{base}/jwks",
                "userinfo_endpoint": f"{base}/userinfo",
                "introspection_endpoint": f"{base}/introspect",
            }
        )

    async def _jwks(self, request: web.Request) -> web.StreamResponse:
        return web.json_response(self.jwks())

    async def _userinfo(self, request: web.Request) -> web.StreamResponse:
        if not request.headers.get("Authorization", "").startswith("Bearer "):
            return web.Response(status=401)
        return web.json_response(self.userinfo)

    async def _introspect(self, request: web.Request) -> web.StreamResponse:
        from aiohttp import BasicAuth

        given = BasicAuth.decode(request.headers.get("Authorization", "Basic Og=="))
        if (given.login, given.password) != (self.client, self.secret):
            return web.Response(status=401)
        form = await request.post()
        return web.json_response(self.introspection if form.get("token") else {"active": False})


def demo_token_file(directory: Path, token: str) -> Path:
    """A file only its owner reads, so that a token never stands on a command line."""
    file = directory / "token"
    file.touch(mode=0o600)
    file.write_text(token + "\n", encoding="ascii")
    return file
