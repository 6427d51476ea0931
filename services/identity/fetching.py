"""Asking an issuer over HTTPS: discovery, keys, userinfo, introspection. Bounded in time, size and place.

Sources: OpenID Connect Discovery 1.0 §4, RFC 8414 §3, OpenID Connect Core §5.3, RFC 7662.
"""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Mapping
from typing import Any
from urllib.parse import quote, urlsplit

import aiohttp
import msgspec
from yarl import URL

from edged import systemd
from edged.config.identity import Issuer
from edged.errors import ConfigError, Unauthenticated, Upstream, UpstreamTimeout, words_of
from edged.identity.keys import MAX_JWKS_BYTES, read_jwks

TIMEOUT_S = 10.0
MAX_REDIRECTS = 3
_WELL_KNOWN = ("/.well-known/openid-configuration", "/.well-known/oauth-authorization-server")


class IssuerSite:
    """One issuer's web site. ``session`` is shared; ``context`` trusts this issuer's CA."""

    def __init__(self, issuer: Issuer, session: aiohttp.ClientSession, context: ssl.SSLContext) -> None:
        self._issuer = issuer
        self._session = session
        self._context = context
        self._metadata: dict[str, Any] = {}
        self._secret = _secret(issuer)

    async def jwks(self) -> str:
        """The issuer's key document, found by discovery and checked to be usable. Raises Upstream."""
        metadata = await self._discover()
        document = await self._request("GET", _endpoint(metadata, "jwks_uri"))
        read_jwks(document)
        return document.decode("utf-8")

    async def userinfo(self, token: str) -> dict[str, Any]:
        """What userinfo says of the token's subject. Raises Unauthenticated or Upstream."""
        url = _endpoint(await self._known(), "userinfo_endpoint")
        answer = await self._request("GET", url, headers={"Authorization": f"Bearer {token}"})
        claims = _object(answer)
        if "sub" not in claims:  # OpenID Connect Core §5.3.2: it must be there, and be compared
            raise Upstream("the issuer's userinfo names no subject")
        return claims

    async def introspection(self, token: str) -> dict[str, Any]:
        """What introspection says of the token. Raises Unauthenticated when it is not active, or Upstream."""
        url = _endpoint(await self._known(), "introspection_endpoint")
        basic = aiohttp.encode_basic_auth(quote(self._issuer.introspection_client), quote(self._secret))
        answer = await self._request("POST", url, headers={"Authorization": basic}, data={"token": token})
        claims = _object(answer)
        if claims.get("active") is not True:
            raise Unauthenticated("the issuer says this token is not active")
        return claims

    async def _known(self) -> Mapping[str, Any]:
        return self._metadata or await self._discover()

    async def _discover(self) -> Mapping[str, Any]:
        base = self._issuer.url.rstrip("/")
        try:
            document = await self._request("GET", base + _WELL_KNOWN[0])
        except _NotThere:
            document = await self._request("GET", base + _WELL_KNOWN[1])
        metadata = _object(document)
        if metadata.get("issuer") != self._issuer.url:  # Discovery §4.3: identical
            raise Upstream("the issuer's discovery document names another issuer")
        self._metadata = metadata
        return metadata

    async def _request(self, method: str, url: str, **options: Any) -> bytes:
        """One answer of at most ``MAX_JWKS_BYTES``; redirects only within the same host."""
        host = urlsplit(url).netloc
        for _ in range(MAX_REDIRECTS + 1):
            try:
                async with (
                    asyncio.timeout(TIMEOUT_S),
                    self._session.request(
                        method, url, ssl=self._context, allow_redirects=False, **options
                    ) as answer,
                ):
                    if answer.status not in (301, 302, 303, 307, 308):
                        return await _content(answer)
                    url = str(URL(url).join(URL(answer.headers.get("Location", ""))))
            except TimeoutError as error:
                raise UpstreamTimeout("the issuer does not answer in time", detail=url) from error
            except (aiohttp.ClientError, OSError, ValueError) as error:
                raise Upstream("the issuer cannot be reached", detail=f"{url}: {words_of(error)}") from error
            target = urlsplit(url)
            if target.scheme != "https" or target.netloc != host or method != "GET":
                raise Upstream("the issuer redirects to another place", detail=url)
        raise Upstream("the issuer redirects without end", detail=url)


class _NotThere(Upstream):
    """404: the other well-known name may be the one."""


async def _content(answer: aiohttp.ClientResponse) -> bytes:
    if answer.status in (401, 403):
        raise Unauthenticated("the issuer refuses this token", detail=f"{answer.url}: {answer.status}")
    if answer.status != 200:
        kind = _NotThere if answer.status == 404 else Upstream
        raise kind("the issuer answers with an error", detail=f"{answer.url}: {answer.status}")
    parts: list[bytes] = []
    size = 0
    async for chunk in answer.content.iter_any():
        size += len(chunk)
        if size > MAX_JWKS_BYTES:
            raise Upstream("the issuer's answer is too large", detail=str(answer.url))
        parts.append(chunk)
    return b"".join(parts)


def _object(document: bytes) -> dict[str, Any]:
    try:
        return msgspec.json.decode(document, type=dict[str, Any])
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise Upstream("the issuer's answer is not a JSON object", detail=str(error)) from error


def _endpoint(metadata: Mapping[str, Any], name: str) -> str:
    url = metadata.get(name)
    if not isinstance(url, str) or urlsplit(url).scheme != "https":
        raise Upstream(f"the issuer publishes no {name} over https")
    return url


def _secret(issuer: Issuer) -> str:
    if issuer.introspection_secret_file is None:
        return ""
    try:
        return systemd.secret(issuer.introspection_secret_file).read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError([f"issuer.introspection_secret_file: {error}"]) from error
