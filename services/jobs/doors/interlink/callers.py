"""Who calls: a virtual kubelet with a token or a certificate, or the API server on this machine.

The token is one per virtual node. Who owns a pod is said by the cluster (its namespace, annotations),
so rules of the site decide which of them it may bring, and as which account. runAsUser is never read.
"""

from __future__ import annotations

import base64
import binascii
import fnmatch
import hmac
import os
import pwd
import socket
import struct
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import msgspec
from aiohttp import web

from edged.config.doors import Plugin, PodRule
from edged.errors import ConfigError, Denied, Unauthenticated
from edged.http.api import bearer
from edged.identity.client import Verdicts
from edged.identity.words import AccountName, Action, Verdict
from edged.logs import audit
from services.jobs.doors.interlink.pods import Pod


class Callers(Protocol):
    """How one listener knows who calls."""

    plugin: bool

    async def verdict(self, request: web.BaseRequest) -> Verdict:
        """Raises Unauthenticated, Denied, Unavailable."""
        ...


class TokenCallers:
    """A bearer token; on listeners with mutual TLS, a client certificate may do instead."""

    plugin = False

    def __init__(self, identity: Verdicts, subjects: Mapping[str, str] | None = None) -> None:
        self._identity = identity
        self._subjects = subjects or {}

    async def verdict(self, request: web.BaseRequest) -> Verdict:
        if not self._subjects or "Authorization" in request.headers:
            return await self._identity.verdict(bearer(request))
        transport = request.transport
        subject = distinguished(transport.get_extra_info("peercert") if transport else None)
        account = self._subjects.get(subject)
        if account is None:
            raise Unauthenticated("no token, and a certificate this site does not know")
        return await self._identity.asserted(subject, AccountName(account))


def distinguished(certificate: Mapping[str, Any] | None) -> str:
    """``CN=vk,O=example``: the subject as the configuration writes it, in the certificate's order."""
    short = {
        "commonName": "CN",
        "organizationName": "O",
        "organizationalUnitName": "OU",
        "domainComponent": "DC",
        "countryName": "C",
    }
    parts = [pair for group in (certificate or {}).get("subject", ()) for pair in group]
    return ",".join(f"{short.get(name, name)}={value}" for name, value in parts)


class PluginCallers:
    """The stock API server: it forwards no token, so it proves itself by a secret or its local user."""

    plugin = True

    def __init__(self, identity: Verdicts, settings: Plugin) -> None:
        self._identity = identity
        self._account = AccountName(settings.account)
        self._secret = _secret(settings)
        self._uids = frozenset(_uid(user) for user in settings.users)

    async def verdict(self, request: web.BaseRequest) -> Verdict:
        if not (self._knows_secret(request) or self._knows_user(request)):
            raise Unauthenticated("only this site's interLink API server may call here")
        return await self._identity.asserted("interlink-plugin", self._account)

    def _knows_secret(self, request: web.BaseRequest) -> bool:
        """Basic authentication: what Go's client makes of ``http://edged:SECRET@127.0.0.1``."""
        scheme, _, text = request.headers.get("Authorization", "").partition(" ")
        if self._secret is None or scheme.lower() != "basic":
            return False
        try:
            _, _, given = base64.b64decode(text, validate=True).partition(b":")
        except (binascii.Error, ValueError):
            return False
        return hmac.compare_digest(given, self._secret)

    def _knows_user(self, request: web.BaseRequest) -> bool:
        transport = request.transport
        peer = transport.get_extra_info("socket") if transport else None
        if not self._uids or peer is None or peer.family != socket.AF_UNIX:
            return False
        with socket.socket(fileno=os.dup(peer.fileno())) as own:
            _, uid, _ = struct.unpack("3i", own.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
        return uid in self._uids


def _secret(settings: Plugin) -> bytes | None:
    if settings.secret_file is None:
        return None
    try:
        secret = settings.secret_file.read_bytes().strip()
    except OSError as error:
        raise ConfigError([f"jobs.interlink.plugin.secret_file: {error}"]) from None
    if len(secret) < 16:
        raise ConfigError(["jobs.interlink.plugin.secret_file: shorter than 16 bytes"])
    return secret


def _uid(user: str) -> int:
    try:
        return pwd.getpwnam(user).pw_uid
    except KeyError:
        raise ConfigError([f"jobs.interlink.plugin.users: no local user {user!r}"]) from None


def require(verdict: Verdict, action: Action, path: str) -> None:
    """Raises Denied, and audits it, when the caller may not."""
    if verdict.has(action):
        return
    reason = f"the token has no {action.value}"
    audit(
        f"interlink {path}",
        who=verdict.principal.for_log(),
        account=verdict.account,
        allowed=False,
        reason=reason,
    )
    raise Denied(reason)


def rule_for(pod: Pod, account: str, rules: Sequence[PodRule]) -> PodRule:
    """The first rule that fits a pod from the virtual node mapped to ``account``. Raises Denied."""
    if not rules:
        return PodRule()
    for rule in rules:
        if rule.callers and account not in rule.callers:
            continue
        if not any(fnmatch.fnmatchcase(pod.metadata.namespace, one) for one in rule.namespaces):
            continue
        if all(pod.annotations.get(key) == value for key, value in rule.annotations.items()):
            return rule
    raise Denied(f"this site takes no such pods of namespace {pod.metadata.namespace[:64]!r} from this node")


async def acting(identity: Verdicts, caller: Verdict, rule: PodRule, pod: Pod) -> Verdict:
    """The verdict a pod is submitted under: the caller's, or one for the rule's account.

    The owner stays the caller's principal, so a ban of the token's subject ends these jobs, too.
    """
    if rule.account is None or rule.account == caller.account:
        return caller
    subject = f"pod:{pod.metadata.namespace}:{caller.principal.issuer}:{caller.principal.subject}"
    other = await identity.asserted(subject[:1000], AccountName(rule.account))
    if other.vo != caller.vo:
        raise Denied(f"account {rule.account} is not of {caller.vo}")
    return msgspec.structs.replace(other, principal=caller.principal)
