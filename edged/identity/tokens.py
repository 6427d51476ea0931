"""From the text of a bearer token to its issuer, header and payload, and then to a proven signature.

Nothing in a token chooses how it is checked: the algorithms are fixed, the key is the one that the
issuer, trusted by configuration, publishes under the ``kid`` of the header. Sources: RFC 7515, RFC
7519, RFC 8725 (best practice), WLCG Common JWT Profile 1.3.
"""

from __future__ import annotations

import binascii
import json
import re
from base64 import urlsafe_b64decode
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from edged.errors import Unauthenticated
from edged.identity.keys import ALGORITHMS, KeySet
from edged.identity.words import IssuerUrl

DEFAULT_TOKEN_BYTES = 16384
_COMPACT = re.compile(r"([A-Za-z0-9_-]{2,})\.([A-Za-z0-9_-]{2,})\.([A-Za-z0-9_-]*)", re.ASCII)
_OWN_KEY = ("jku", "x5u", "jwk", "x5c")  # RFC 8725 §3.10: headers by which a token brings its own key
_TYPES = frozenset({"jwt", "at+jwt", "application/jwt", "application/at+jwt"})


class UnknownKey(Unauthenticated):
    """A trusted issuer, but no key of that ``kid``: perhaps it was rotated and we have not heard yet."""

    def __init__(self, issuer: IssuerUrl, kid: str) -> None:
        super().__init__(
            "token signed with a key its issuer does not publish", detail=f"{issuer} kid {kid!r}"
        )
        self.issuer = issuer
        self.kid = kid


@dataclass(frozen=True, slots=True)
class Unproven:
    """A token taken apart. Nothing in it is to be believed before ``prove``."""

    issuer: IssuerUrl
    algorithm: str
    kid: str
    payload: Mapping[str, Any]
    signed: bytes
    signature: bytes


def take_apart(token: str, *, limit: int = DEFAULT_TOKEN_BYTES) -> Unproven:
    """The parts of a compact JWS (RFC 7515 §7.1). Raises Unauthenticated with a reason safe to show."""
    if len(token) > limit:
        raise Unauthenticated(f"token longer than {limit} bytes")
    match = _COMPACT.fullmatch(token)
    if match is None:
        raise Unauthenticated("not a signed token (three base64url parts are needed)")
    algorithm, kid = _read_header(match[1])
    payload = _object(match[2], "payload")
    issuer = payload.get("iss")
    if not isinstance(issuer, str) or not issuer:
        raise Unauthenticated("token without issuer (iss)")
    signed = token[: match.end(2)].encode("ascii")
    return Unproven(IssuerUrl(issuer), algorithm, kid, payload, signed, _bytes(match[3], "signature"))


def prove(token: Unproven, keys: KeySet) -> None:
    """Check the signature with the issuer's key. Raises UnknownKey or Unauthenticated."""
    published = keys.named(token.kid)
    if not published:
        raise UnknownKey(token.issuer, token.kid)
    for key in published:
        if token.algorithm in key.algorithms:
            if key.verifies(token.algorithm, token.signed, token.signature):
                return
            raise Unauthenticated("token signature is wrong")
    raise Unauthenticated(f"token says {token.algorithm}, which its key is not for")


@lru_cache(maxsize=256)  # all tokens of one key have the same header
def _read_header(text: str) -> tuple[str, str]:
    """Algorithm and kid of a header that tries nothing clever."""
    header = _object(text, "header")
    algorithm = header.get("alg")
    if not isinstance(algorithm, str) or algorithm not in ALGORITHMS:
        shown = (
            algorithm
            if isinstance(algorithm, str) and re.fullmatch(r"\w{1,16}", algorithm)
            else "of the token"
        )
        raise Unauthenticated(f"algorithm {shown} is not accepted: only asymmetric signatures are")
    for name in ("crit", "b64", "zip", "enc"):
        if name in header:  # RFC 7515 §4.1.11: what is critical and not understood is refused
            raise Unauthenticated(f"token header has {name!r}, which is not accepted")
    for name in _OWN_KEY:
        if name in header:
            raise Unauthenticated(f"token header brings its own key ({name}); only the issuer's keys count")
    kind = header.get("typ", "JWT")
    if not isinstance(kind, str) or kind.lower() not in _TYPES:
        raise Unauthenticated("token header has a typ that is no access token's")
    kid = header.get("kid")
    if not isinstance(kid, str) or not 0 < len(kid) <= 255:
        raise Unauthenticated("token header without kid: the key cannot be chosen")
    return algorithm, kid


def _bytes(text: str, part: str) -> bytes:
    try:
        return urlsafe_b64decode(text + "=" * (-len(text) % 4))
    except (binascii.Error, ValueError):
        raise Unauthenticated(f"token {part} is not base64url") from None


def _object(text: str, part: str) -> dict[str, Any]:
    try:
        value = _strict_json(_bytes(text, part).decode("utf-8"))
    except (ValueError, RecursionError):
        raise Unauthenticated(f"token {part} is not a plain JSON object") from None
    if not isinstance(value, dict):
        raise Unauthenticated(f"token {part} is not a plain JSON object")
    return value


def _without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):  # RFC 7515 §4: two parsers must not see two values
        raise ValueError("a name appears twice")
    return found


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name} is no JSON")


_strict_json = json.JSONDecoder(object_pairs_hook=_without_duplicates, parse_constant=_no_constant).decode
