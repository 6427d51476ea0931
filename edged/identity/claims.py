"""What a proven payload says: checked as its issuer's profile demands, and put into our words.

Sources: WLCG Common JWT Profile 1.3, SciTokens 2.0, AARC-G002/G069 (EGI Check-in), RFC 9068.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from edged.config.identity import Issuer
from edged.errors import Unauthenticated
from edged.identity.entitlements import groups_of
from edged.identity.scopes import Scopes, parse_scopes
from edged.identity.words import IssuerUrl, Principal, VoName

NOT_BEFORE_GRACE_S = 60.0  # WLCG profile; exp gets none
AUDIENCE_SHOWN = 200  # characters of what a token says, in the log
MAX_SUBJECT = 255
MAX_GROUPS = 512
MAX_WORD = 1024

_REQUIRED = {"wlcg": ("wlcg.ver", "jti"), "scitokens": ("ver",), "aarc": ()}
_GROUPS = ("wlcg.groups", "groups")
_ENTITLEMENTS = ("eduperson_entitlement", "entitlements", "eduPersonEntitlement")
_FROM_ISSUER = (*_GROUPS, *_ENTITLEMENTS, "scope")
_VERSION = {"wlcg.ver": re.compile(r"[0-9]+\.[0-9]+"), "ver": re.compile(r"scitokens?:2\.[0-9]+")}


@dataclass(frozen=True, slots=True)
class Claims:
    """A token in our words. ``principal.vo`` is the issuer's; a mapping rule may replace it."""

    principal: Principal
    scopes: Scopes
    expires_at: float


def check_validity(payload: Mapping[str, Any], issuer: Issuer, now: float) -> float:
    """The time checks; returns ``exp`` (Unix seconds). Raises Unauthenticated."""
    expires = _time(payload, "exp")
    issued = _time(payload, "iat")
    if expires <= now:
        raise Unauthenticated("token expired", detail=f"{now - expires:.0f} s ago by this machine's clock")
    if issued > now + NOT_BEFORE_GRACE_S:
        ahead = f"{issued - now:.0f} s from now by this machine's clock"
        raise Unauthenticated("token issued in the future: check the clocks", detail=ahead)
    if expires - issued > issuer.max_lifetime_s:
        raise Unauthenticated(
            f"token lives longer than the {issuer.max_lifetime_s:.0f} s accepted of its issuer"
        )
    if "nbf" in payload and _time(payload, "nbf") > now + NOT_BEFORE_GRACE_S:
        raise Unauthenticated("token not valid yet (nbf)")
    return expires


def completed(payload: Mapping[str, Any], answer: Mapping[str, Any]) -> dict[str, Any]:
    """The payload with the groups, entitlements and scopes that the issuer's own answer gives.

    ``answer`` comes from userinfo or introspection. It must speak of the same subject (OpenID
    Connect Core §5.3.2), and may replace nothing else. Raises Unauthenticated.
    """
    if answer.get("active") is False:
        raise Unauthenticated("the issuer says this token is not active")
    if "sub" in answer and answer["sub"] != payload.get("sub"):
        raise Unauthenticated("the issuer's answer is about another subject")
    if "iss" in answer and answer["iss"] != payload.get("iss"):
        raise Unauthenticated("the issuer's answer is about another issuer's token")
    return {**payload, **{name: answer[name] for name in _FROM_ISSUER if name in answer}}


def read_claims(payload: Mapping[str, Any], issuer: Issuer, expires_at: float) -> Claims:
    """Subject, groups, entitlements and scopes. Raises Unauthenticated with a reason safe to show."""
    for name in _REQUIRED[issuer.profile]:
        value = payload.get(name)
        if not isinstance(value, str) or not value:
            raise Unauthenticated(f"token without {name}, which its profile ({issuer.profile}) demands")
        if name in _VERSION and not _VERSION[name].fullmatch(value):
            raise Unauthenticated(f"token with a {name} that is none of its profile's")
    scopes = parse_scopes(_text(payload, "scope"), scitokens=issuer.profile == "scitokens")
    _check_audience(payload, issuer, scopes)
    entitlements = _list(payload, _ENTITLEMENTS)
    groups = tuple(dict.fromkeys("/" + group.strip("/") for group in _list(payload, _GROUPS)))
    if issuer.profile == "aarc":
        groups = tuple(dict.fromkeys((*groups, *groups_of(entitlements))))
    principal = Principal(
        issuer=IssuerUrl(issuer.url),
        subject=_subject(payload),
        vo=VoName(issuer.vo),
        groups=groups,
        entitlements=entitlements,
        client=_text(payload, "client_id") or _text(payload, "azp"),
        token_id=_text(payload, "jti"),
    )
    return Claims(principal, scopes, expires_at)


def _check_audience(payload: Mapping[str, Any], issuer: Issuer, scopes: Scopes) -> None:
    audience = payload.get("aud")
    if isinstance(audience, str):
        audience = [audience]
    if audience is not None and not (
        isinstance(audience, list) and all(isinstance(one, str) for one in audience)
    ):
        raise Unauthenticated("token with an audience (aud) that is neither text nor a list of texts")
    if any(one in issuer.audience for one in audience or ()):
        return
    if not issuer.audience_optional:
        if not audience:
            raise Unauthenticated("token without audience (aud)")
        named = ", ".join(map(repr, audience))[:AUDIENCE_SHOWN]
        detail = f"for {named}; this site takes {', '.join(map(repr, issuer.audience))} of its issuer"
        raise Unauthenticated("token is for another audience", detail=detail)
    if scopes.capability_based:  # the opt-in is for group mapping; a foreign capability is not ours to honour
        raise Unauthenticated("token with capabilities, but not for this audience")


def _subject(payload: Mapping[str, Any]) -> str:
    subject = payload.get("sub")
    if not isinstance(subject, str) or not subject:
        raise Unauthenticated("token without subject (sub)")
    if len(subject) > MAX_SUBJECT or not (subject.isascii() and subject.isprintable()):
        raise Unauthenticated(f"token subject is not plain ASCII of at most {MAX_SUBJECT} characters")
    return subject


def _time(payload: Mapping[str, Any], name: str) -> float:
    value = payload.get(name)
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise Unauthenticated(f"token without a usable {name}")
    if not 0 <= value <= 1e11:
        raise Unauthenticated(f"token without a usable {name}")
    return float(value)


def _text(payload: Mapping[str, Any], name: str) -> str:
    value = payload.get(name)
    if value is None:
        return ""
    if not isinstance(value, str) or not value.isprintable() or (name != "scope" and len(value) > MAX_WORD):
        raise Unauthenticated(f"token with a {name} that is not plain text")
    return value


def _list(payload: Mapping[str, Any], names: tuple[str, ...]) -> tuple[str, ...]:
    found: list[str] = []
    for name in names:
        value = payload.get(name)
        if value is None:
            continue
        items = [value] if isinstance(value, str) else value
        if not isinstance(items, list) or len(items) > MAX_GROUPS:
            raise Unauthenticated(f"token with a {name} that is no list of at most {MAX_GROUPS} texts")
        for item in items:
            if not isinstance(item, str) or len(item) > MAX_WORD or not item.isprintable():
                raise Unauthenticated(f"token with a {name} that is no list of plain texts")
            found.append(item)
    return tuple(dict.fromkeys(found))
