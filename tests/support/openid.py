"""An OpenID provider for browsers: authorization code with PKCE, checked as strictly as a real one does."""

from __future__ import annotations

import base64
import secrets
import ssl
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from hashlib import sha256
from typing import Any
from urllib.parse import quote, urlencode

import jwt
from aiohttp import web

from edged.identity.testca import ThrowAwayCa
from edged.identity.testissuer import new_key


class OpenIdProvider:
    """``claims`` go into the ID token over the right ones; ``forge`` signs with a key nobody published."""

    def __init__(self, ca: ThrowAwayCa, *, client: str, secret: str) -> None:
        self.client, self.secret = client, secret
        self.claims: dict[str, Any] = {}
        self.forge = False
        self.url = ""
        self._ca = ca
        self._key = new_key()
        self._codes: dict[str, dict[str, str]] = {}

    @asynccontextmanager
    async def running(self) -> AsyncIterator[OpenIdProvider]:
        """Serve while entered."""
        files = self._ca.host("localhost", "127.0.0.1")
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(files.certificate, files.key)
        app = web.Application()
        app.router.add_get("/.well-known/openid-configuration", self._discovery)
        app.router.add_get("/authorize", self._authorize)
        app.router.add_post("/token", self._token)
        app.router.add_get("/jwks", self._jwks)
        runner = web.AppRunner(app, access_log=None)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0, ssl_context=context)
        await site.start()
        port = runner.addresses[0][1]
        self.url = f"https://localhost:{port}"
        try:
            yield self
        finally:
            await runner.cleanup()

    async def _discovery(self, _request: web.Request) -> web.Response:
        names = {"authorization_endpoint": "authorize", "token_endpoint": "token", "jwks_uri": "jwks"}
        return web.json_response(
            {"issuer": self.url, **{key: f"{self.url}/{name}" for key, name in names.items()}}
        )

    async def _jwks(self, _request: web.Request) -> web.Response:
        return web.json_response({"keys": [self._key.public_jwk()]})

    async def _authorize(self, request: web.Request) -> web.Response:
        """The user agrees at once."""
        asked = dict(request.query)
        if asked["client_id"] != self.client or asked["code_challenge_method"] != "S256":
            return web.Response(status=400)
        code = secrets.token_urlsafe(16)
        self._codes[code] = asked
        back = urlencode({"code": code, "state": asked["state"]})
        return web.Response(status=302, headers={"Location": f"{asked['redirect_uri']}?{back}"})

    async def _token(self, request: web.Request) -> web.Response:
        form = await request.post()
        asked = self._codes.pop(str(form.get("code")), None)
        basic = base64.b64encode(f"{quote(self.client)}:{quote(self.secret)}".encode()).decode()
        verifier = str(form.get("code_verifier", ""))
        challenge = base64.urlsafe_b64encode(sha256(verifier.encode()).digest()).rstrip(b"=").decode()
        if (
            asked is None
            or request.headers.get("Authorization") != f"Basic {basic}"
            or form.get("redirect_uri") != asked["redirect_uri"]
            or challenge != asked["code_challenge"]
        ):
            return web.json_response({"error": "invalid_grant"}, status=400)
        return web.json_response(
            {"access_token": "x", "token_type": "Bearer", "id_token": self._signed(asked["nonce"])}
        )

    def _signed(self, nonce: str) -> str:
        now = int(time.time())
        claims = {
            "iss": self.url, "sub": "operator-1", "aud": self.client, "iat": now, "exp": now + 300, "nonce": nonce,
            "wlcg.groups": ["/site/operators"], **self.claims,
        }  # fmt: skip
        key = new_key() if self.forge else self._key
        return jwt.encode(claims, key.private, algorithm=key.algorithm, headers={"kid": self._key.kid})
