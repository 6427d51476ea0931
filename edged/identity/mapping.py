"""Ordered rules: from a token's claims to the account, the class and the VO. Pure; deny by default."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from edged.config.identity import Mapping
from edged.errors import Denied
from edged.identity import entitlements
from edged.identity.claims import Claims
from edged.identity.scopes import parse_scopes
from edged.identity.words import AccountName, Capability, JobClass, VoName

Note = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Mapped:
    """Where a token leads. ``rule`` is the index in [[mapping]]."""

    rule: int
    account: AccountName
    job_class: JobClass
    vo: VoName
    capabilities: tuple[Capability, ...]


class Rules:
    """The [[mapping]] rules, read once: groups with their slash, grants parsed."""

    def __init__(self, rules: Sequence[Mapping], match_authority: frozenset[str] = frozenset()) -> None:
        self._rules = tuple(
            _Rule(index, rule, rule.issuer in match_authority) for index, rule in enumerate(rules)
        )

    def choose(self, claims: Claims, note: Note | None = None) -> Mapped:
        """The first rule whose conditions all hold. Raises Denied when none does."""
        for rule in self._rules:
            why_not = rule.why_not(claims)
            if note is not None:
                note(f"mapping[{rule.index}] → {rule.account}: {why_not or 'every condition holds'}")
            if why_not is None:
                return rule.mapped(claims)
        raise Denied("no mapping rule of this site covers this token", detail=f"{claims.principal.for_log()}")

    def of_account(self, account: str) -> Mapping | None:
        """The first rule that leads to ``account``."""
        return next((rule.rule for rule in self._rules if rule.rule.account == account), None)


class _Rule:
    def __init__(self, index: int, rule: Mapping, match_authority: bool) -> None:
        self.index = index
        self.rule = rule
        self.account = AccountName(rule.account)
        self._groups = frozenset("/" + group.strip("/") for group in rule.groups)
        self._scopes = frozenset(rule.scopes)
        self._authority = match_authority
        self._grants = parse_scopes(" ".join(rule.grants)).capabilities

    def why_not(self, claims: Claims) -> str | None:
        """None when the rule applies, else the first condition that does not hold."""
        principal, rule = claims.principal, self.rule
        if principal.issuer != rule.issuer:
            return "it is for another issuer"
        if rule.subjects and principal.subject not in rule.subjects:
            return "the subject is not listed"
        if self._groups and self._groups.isdisjoint(principal.groups):
            return f"none of the groups {', '.join(sorted(self._groups))}"
        if rule.entitlements and not any(
            entitlements.holds(one, principal.entitlements, authority=self._authority)
            for one in rule.entitlements
        ):
            return "none of the entitlements"
        if not self._scopes <= claims.scopes.words:
            return f"lacks scope {', '.join(sorted(self._scopes - claims.scopes.words))}"
        if rule.clients and principal.client not in rule.clients:
            return "the client is not listed"
        return None

    def mapped(self, claims: Claims) -> Mapped:
        """WLCG profile: any capability in the token, and only capabilities count."""
        scopes = claims.scopes
        return Mapped(
            rule=self.index,
            account=self.account,
            job_class=self.rule.job_class,
            vo=VoName(self.rule.vo or claims.principal.vo),
            capabilities=scopes.capabilities if scopes.capability_based else self._grants,
        )
