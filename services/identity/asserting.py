"""Identities that a front verified itself (X.509 proxy, pod): only the accounts configured for it."""

from __future__ import annotations

from edged.config import Config
from edged.errors import Denied
from edged.identity.judge import Judged
from edged.identity.mapping import Mapped, Rules
from edged.identity.scopes import parse_scopes
from edged.identity.words import AccountName, IssuerUrl, Principal, ServiceName, VoName

MAX_SUBJECT = 1024


def issuer_of(service: ServiceName) -> IssuerUrl:
    """The issuer under which such subjects are known, in bans and logs: ``edged:jobs``."""
    return IssuerUrl(f"edged:{service}")


def assertion(
    config: Config, rules: Rules, service: ServiceName, subject: str, account: AccountName, *, until: float
) -> Judged:
    """What ``service`` may claim for ``subject``. Raises Denied when configuration does not say so."""
    if not 0 < len(subject) <= MAX_SUBJECT or not subject.isprintable():
        raise Denied("not a subject name")
    listed = next(
        (one for one in config.identity.assertions if one.service == service and account in one.accounts),
        None,
    )
    if listed is None:
        raise Denied(f"{service} may not assert identities for this account", detail=account)
    rule = rules.of_account(account)
    if rule is None:  # the VO of an account is what its mapping says
        raise Denied("no mapping rule leads to this account", detail=account)
    vo = rule.vo or next(issuer.vo for issuer in config.issuers if issuer.url == rule.issuer)
    principal = Principal(issuer=issuer_of(service), subject=subject, vo=VoName(vo))
    mapped = Mapped(
        rule=config.mappings.index(rule),
        account=account,
        job_class=listed.job_class,
        vo=VoName(vo),
        capabilities=parse_scopes(" ".join(listed.grants)).capabilities,
    )
    return Judged(principal, mapped, until)
