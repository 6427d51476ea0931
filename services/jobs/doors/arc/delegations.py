"""The ``/delegations`` calls: X.509 by certificate request, tokens by header.

The location of a new delegation is ``…/delegations/new/ID``: most clients take what follows the last slash,
one splits at ``new/``, and arcsub sends its chain to the path itself.
"""

from __future__ import annotations

import time

import jwt
from aiohttp import web

from edged.errors import BadRequest
from services.jobs.doors.arc import formats
from services.jobs.doors.arc.exchange import Exchange
from services.jobs.engine import Engine

MAX_CHAIN = 128 * 1024
PEM = "application/x-pem-file"


class Delegations:
    """The calls on the engine's credentials."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    async def all(self, call: Exchange) -> web.Response:
        kind = call.query.get("type", "")
        found = [
            {"id": one.id, "type": one.kind}
            for one in self._engine.credentials.all_of(call.caller.principal)
            if one.ready and kind in ("", one.kind)
        ]
        return formats.answer({"delegation": found}, "delegations", call.format)

    async def new(self, call: Exchange) -> web.Response:
        owner = call.caller.principal
        token = _token(call)
        if token:
            made = await self._engine.credentials.put_token(owner, token, _ends_at(token))
            return web.Response(status=201, headers={"location": self._location(call, made.id)})
        if call.query.get("type", "x509") != "x509":
            raise BadRequest("X-Token-Delegation: the token is missing")
        name, csr = await self._engine.credentials.request(owner)
        return _pem(csr, 201, self._location(call, name))

    def _location(self, call: Exchange, name: str) -> str:
        return f"{call.base}/delegations/new/{name}"

    async def put(self, call: Exchange) -> web.Response:
        """The chain that answers a request."""
        chain = await call.body(MAX_CHAIN)
        done = await self._engine.credentials.fulfil(call.caller.principal, call.name, chain)
        await self._engine.renewed(done.id)
        return web.Response(status=200)

    async def get(self, call: Exchange) -> web.Response:
        """The public part."""
        found = self._engine.credentials.of(call.caller.principal, call.name)
        if found.kind != "x509":
            raise BadRequest("a token is shown to nobody")
        return _pem(found.public, 200)

    async def renew(self, call: Exchange) -> web.Response:
        owner = call.caller.principal
        if token := _token(call):
            done = await self._engine.credentials.put_token(owner, token, _ends_at(token), call.name)
            await self._engine.renewed(done.id)
            return web.Response(status=200)
        name, csr = await self._engine.credentials.request(owner, call.name)
        return _pem(csr, 201, self._location(call, name))

    async def delete(self, call: Exchange) -> web.Response:
        await self._engine.credentials.delete(call.caller.principal, call.name)
        return web.Response(status=202)


def _pem(body: bytes, status: int, location: str = "") -> web.Response:
    headers = {"location": location} if location else None  # lower case: arc_gahp compares it so
    return web.Response(body=body, status=status, content_type=PEM, headers=headers)


def _token(call: Exchange) -> str:
    header = call.request.headers.get("X-Token-Delegation", "")
    scheme, _, token = header.partition(" ")
    if header and (scheme.lower() != "bearer" or not token.strip()):
        raise BadRequest("X-Token-Delegation: write Bearer and the token")
    return token.strip()


def _ends_at(token: str) -> float:
    """When the token says it ends. It is not ours to verify: it serves the job elsewhere."""
    try:
        claims = jwt.decode(token, options={"verify_signature": False})
        return float(claims["exp"])
    except (jwt.InvalidTokenError, KeyError, TypeError, ValueError):
        return time.time() + 86400.0
