"""Sign-in at an OpenID provider: authorization code with PKCE, state and nonce; the ID token is verified.

Sources: OpenID Connect Core 1.0 §3.1, RFC 7636 (S256), RFC 9700 §2.1 (the browser that began must end it:
state is bound to it by a cookie).
"""

from __future__ import annotations

import base64
import secrets
from dataclasses import dataclass
from hashlib import sha256
from typing import Any
from urllib.parse import quote, urlencode

import aiohttp
import jwt
import msgspec

from edged import systemd
from edged.config.portal import Oidc
from edged.config.site import Tls
from edged.errors import BadRequest, Denied, Upstream, words_of
from edged.identity.words import IssuerUrl, Principal, VoName
from edged.tls import client_context

ALGORITHMS = ["RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES384", "EdDSA"]
ASK_S = 10.0
BEGUN_S = 600.0
MOST_BEGUN = 1000
LEEWAY_S = 30
MAX_ANSWER = 1 << 20


@dataclass(frozen=True, slots=True)
class Begun:
    """A sign-in under way. ``browser`` is what the browser's cookie must carry at its end."""

    browser: str
    nonce: str
    verifier: str
    until: float


class Provider:
    """One provider; its metadata and keys are asked for at each sign-in, so a rotation is no event."""

    def __init__(self, settings: Oidc, tls: Tls, url: str) -> None:
        self._settings = settings
        self._tls = tls
        self._back = f"{url}/signin/oidc/callback"
        self._begun: dict[str, Begun] = {}
        secret = settings.client_secret_file
        self._secret = systemd.secret(secret).read_text().strip() if secret is not None else ""

    async def begin(self, now: float) -> tuple[str, str]:
        """Where to send the browser, and the cookie to give it. Raises Upstream."""
        async with self._session() as session:
            metadata = await self._metadata(session)
        while len(self._begun) >= MOST_BEGUN:
            del self._begun[next(iter(self._begun))]
        state = secrets.token_urlsafe(24)
        browser, nonce, verifier = (secrets.token_urlsafe(32) for _ in range(3))
        begun = Begun(browser, nonce, verifier, now + BEGUN_S)
        self._begun[state] = begun
        query = {
            "response_type": "code",
            "client_id": self._settings.client_id,
            "redirect_uri": self._back,
            "scope": " ".join(self._settings.scopes),
            "state": state,
            "nonce": begun.nonce,
            "code_challenge": challenge(begun.verifier),
            "code_challenge_method": "S256",
        }
        endpoint = _https(metadata, "authorization_endpoint")
        return f"{endpoint}{'&' if '?' in endpoint else '?'}{urlencode(query)}", begun.browser

    async def end(self, state: str, code: str, browser: str, now: float) -> Principal:
        """Who signed in. Raises BadRequest, Denied or Upstream. A state serves once."""
        begun = self._begun.pop(state, None)
        if begun is None or begun.until < now or not secrets.compare_digest(begun.browser, browser):
            raise BadRequest("this sign-in was not begun here, or too long ago: begin again")
        async with self._session() as session:
            metadata = await self._metadata(session)
            answer = await self._exchange(session, metadata, code, begun)
            keys = await self._json(session, "GET", _https(metadata, "jwks_uri"))
        claims = self._verified(str(answer.get("id_token", "")), keys, begun.nonce)
        groups = self._admitted(claims)
        return Principal(
            issuer=IssuerUrl(self._settings.issuer),
            subject=str(claims["sub"]),
            vo=VoName(""),
            groups=groups,
            client=self._settings.client_id,
        )

    def _session(self) -> aiohttp.ClientSession:
        context = client_context(self._tls, self._settings.ca_file)
        return aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(ssl=context),
            timeout=aiohttp.ClientTimeout(total=ASK_S),
            cookie_jar=aiohttp.DummyCookieJar(),
        )

    async def _metadata(self, session: aiohttp.ClientSession) -> dict[str, Any]:
        url = self._settings.issuer.rstrip("/") + "/.well-known/openid-configuration"
        metadata = await self._json(session, "GET", url)
        if metadata.get("issuer") != self._settings.issuer:  # Discovery §4.3: identical
            raise Upstream("the provider's discovery document names another issuer")
        return metadata

    async def _exchange(
        self, session: aiohttp.ClientSession, metadata: dict[str, Any], code: str, begun: Begun
    ) -> dict[str, Any]:
        form = {
            "grant_type": "authorization_code",
            "code": code,
            "redirect_uri": self._back,
            "client_id": self._settings.client_id,
            "code_verifier": begun.verifier,
        }
        headers = {}
        if self._secret:  # client_secret_basic, RFC 6749 §2.3.1
            pair = f"{quote(self._settings.client_id)}:{quote(self._secret)}"
            headers["Authorization"] = "Basic " + base64.b64encode(pair.encode()).decode()
        return await self._json(
            session, "POST", _https(metadata, "token_endpoint"), data=form, headers=headers
        )

    async def _json(
        self, session: aiohttp.ClientSession, method: str, url: str, **options: Any
    ) -> dict[str, Any]:
        try:
            async with session.request(method, url, allow_redirects=False, **options) as response:
                raw = await response.content.read(MAX_ANSWER)
                while len(raw) < MAX_ANSWER and (more := await response.content.read(MAX_ANSWER)):
                    raw += more
                if response.status != 200:
                    raise Upstream("the provider refused", detail=f"{url}: status {response.status}")
                return msgspec.json.decode(raw, type=dict[str, Any])
        except (TimeoutError, aiohttp.ClientError, msgspec.MsgspecError) as error:
            raise Upstream(
                "the provider does not answer as it should", detail=f"{url}: {words_of(error)}"
            ) from error

    def _verified(self, token: str, keys: dict[str, Any], nonce: str) -> dict[str, Any]:
        try:
            kid = jwt.get_unverified_header(token).get("kid")
            held = jwt.PyJWKSet.from_dict(keys).keys
            key = next(k for k in held if kid is None or k.key_id == kid)
            claims: dict[str, Any] = jwt.decode(
                token,
                key,
                algorithms=ALGORITHMS,
                audience=self._settings.client_id,
                issuer=self._settings.issuer,
                leeway=LEEWAY_S,
                options={"require": ["exp", "iat", "sub", "iss", "aud"]},
            )
        except (jwt.PyJWTError, StopIteration) as error:
            raise Denied("the provider's ID token is not valid", detail=str(error)) from error
        if not secrets.compare_digest(str(claims.get("nonce", "")), nonce):
            raise Denied("the provider's ID token is not of this sign-in")
        if claims.get("azp", self._settings.client_id) != self._settings.client_id:
            raise Denied("the provider's ID token is another client's")
        return claims

    def _admitted(self, claims: dict[str, Any]) -> tuple[str, ...]:
        """All groups of a member of one that may see the page. Raises Denied."""
        held = claims.get(self._settings.groups_claim) or []
        listed = [held] if isinstance(held, str) else held if isinstance(held, list) else []
        groups = tuple(one for one in listed if isinstance(one, str))
        if not set(groups) & set(self._settings.groups):
            raise Denied("not a member of a group that may see this page", subject=str(claims.get("sub", "")))
        return groups


def challenge(verifier: str) -> str:
    """RFC 7636 §4.2, S256."""
    return base64.urlsafe_b64encode(sha256(verifier.encode()).digest()).rstrip(b"=").decode()


def _https(metadata: dict[str, Any], name: str) -> str:
    url = metadata.get(name)
    if not isinstance(url, str) or not url.startswith("https://"):
        raise Upstream(f"the provider names no {name}")
    return url
