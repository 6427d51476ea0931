"""The one policy of proxy, relays and NAT: who may reach what. Pure: no clock, no socket, no name look-up.

First match decides, nothing matches → refused. A place is judged by the address it resolved to; the
guard (``addresses.py``) has spoken before any rule does.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from edged.config import egress as settings
from edged.config.egress import Protocol, RuleAction, Way
from edged.egress.addresses import Address, Guard, NetworkSet, canonical
from edged.egress.destinations import Destination, Place
from edged.egress.outcomes import PASSED, Outcome
from edged.identity.client import JobFacts

_DAYS = ("mon", "tue", "wed", "thu", "fri", "sat", "sun")


@dataclass(frozen=True, slots=True)
class Asker:
    """Who wants out: the source's words, replaced by the job's where a token proved one."""

    source: str
    address: str
    vo: str = ""
    account: str = ""
    job_class: str = ""
    job: str = ""


@dataclass(frozen=True, slots=True)
class Decision:
    """``reason`` is safe to show. ``rule`` and ``destination`` are '' when no rule matched."""

    outcome: Outcome
    reason: str
    rule: str = ""
    destination: str = ""

    @property
    def allowed(self) -> bool:
        """Whether the bytes may flow."""
        return self.outcome in PASSED


class Rule:
    """One ``[[egress.rule]]`` with its names looked up."""

    __slots__ = (
        "_accounts",
        "_classes",
        "_jobs",
        "_sources",
        "_vos",
        "_ways",
        "destinations",
        "name",
        "settings",
    )

    def __init__(self, config: settings.EgressRule, destinations: Sequence[Destination]) -> None:
        self.name = config.name
        self.settings = config
        self.destinations = tuple(d for d in destinations if d.name in config.to)
        self._sources = frozenset(config.sources)
        self._vos = frozenset(config.vos)
        self._accounts = frozenset(config.accounts)
        self._classes = frozenset(str(word) for word in config.classes)
        self._jobs = frozenset(config.jobs)
        self._ways = frozenset(config.ways)

    def speaks_of(self, asker: Asker, way: Way) -> bool:
        """Whether all words about *who* hold; a word left out holds for everybody."""
        return (
            way in self._ways
            and (not self._sources or asker.source in self._sources)
            and (not self._vos or asker.vo in self._vos)
            and (not self._accounts or asker.account in self._accounts)
            and (not self._classes or asker.job_class in self._classes)
            and (not self._jobs or asker.job in self._jobs)
        )

    def holds_at(self, moment: datetime) -> bool:
        """Whether the window is open at ``moment`` (local time)."""
        return self.settings.window is None or window_open(self.settings.window, moment)

    def destination_of(self, place: Place) -> Destination | None:
        """The first of the rule's destinations that has the place."""
        return next((d for d in self.destinations if d.has(place)), None)


def window_open(window: settings.Window, moment: datetime) -> bool:
    """A window past midnight belongs to the day on which it began."""
    minute = moment.hour * 60 + moment.minute
    if window.start <= window.until:
        inside, day = window.start <= minute < window.until, moment
    else:
        inside = minute >= window.start or minute < window.until
        day = moment if minute >= window.start else moment - timedelta(days=1)
    return inside and (not window.days or _DAYS[day.weekday()] in window.days)


class Policy:
    """Sources, destinations and rules of one configuration."""

    __slots__ = ("_nets", "_sources", "destinations", "guard", "rules", "timed")

    def __init__(self, config: settings.Egress, guard: Guard | None = None) -> None:
        self.guard = guard or Guard(deny=config.deny, inside=config.inside)
        self.destinations = tuple(Destination(item) for item in config.destinations)
        self.rules = tuple(Rule(item, self.destinations) for item in config.rules)
        self.timed = any(rule.settings.window for rule in self.rules)
        self._sources = {source.name: source for source in config.sources}
        self._nets = NetworkSet((net, source.name) for source in config.sources for net in source.networks)

    @property
    def sources(self) -> Iterable[settings.Source]:
        """All sources, in the order of the configuration."""
        return self._sources.values()

    def source_of(self, address: Address) -> settings.Source | None:
        """The source with the most specific network that holds ``address``."""
        name = self._nets.find(canonical(address))
        return self._sources[name] if name is not None else None

    def by_address(self, source: settings.Source, address: Address) -> Asker:
        """The asker as whom a source without a job token counts."""
        return Asker(
            source.name,
            str(canonical(address)),
            source.vo or "",
            source.account or "",
            source.job_class or "",
        )

    def by_job(self, source: settings.Source, address: Address, facts: JobFacts) -> Asker:
        """The asker a job token speaks for, at ``source``."""
        return Asker(
            source.name, str(canonical(address)), facts.vo, facts.account, facts.job_class.value, facts.job
        )

    def may_resolve(self, asker: Asker, way: Way, host: str, port: int, moment: datetime) -> Decision:
        """Whether any rule could let ``host`` pass: names nobody may reach are not asked of the DNS."""
        for rule in self.rules:
            if not rule.speaks_of(asker, way) or not rule.holds_at(moment):
                continue
            for destination in rule.destinations:
                if destination.may_hold(host, port, Protocol.TCP):
                    if rule.settings.action is RuleAction.REFUSE and destination.has(Place(host, None, port)):
                        return _by(rule, destination)
                    return Decision(
                        Outcome.ALLOWED, "to be decided on the address", rule.name, destination.name
                    )
        return Decision(Outcome.NO_RULE, "no rule lets you reach that host and port")

    def decide(self, asker: Asker, way: Way, place: Place, moment: datetime) -> Decision:
        """The answer for one resolved address."""
        assert place.address is not None
        why = self.guard.refuses(place.address, place.port)
        if why is not None:
            return Decision(Outcome.ADDRESS, why)
        for rule in self.rules:
            if rule.speaks_of(asker, way) and rule.holds_at(moment):
                destination = rule.destination_of(place)
                if destination is not None:
                    return _by(rule, destination)
        return Decision(Outcome.NO_RULE, "no rule lets you reach that host and port")

    def trace(self, asker: Asker, way: Way, place: Place, moment: datetime) -> Iterator[str]:
        """For `explain`: what each rule said, up to the one that decided."""
        assert place.address is not None
        if why := self.guard.refuses(place.address, place.port):
            yield f"guard: {why}"
            return
        for number, rule in enumerate(self.rules, 1):
            said = f"rule {number} {rule.name!r}: "
            if not rule.speaks_of(asker, way):
                yield said + "not about this asker or way"
            elif not rule.holds_at(moment):
                yield said + "outside its time window"
            elif (destination := rule.destination_of(place)) is None:
                yield said + "not about this destination"
            else:
                yield said + f"{rule.settings.action} {destination.name!r}"
                return
        yield "no rule matched: refused"


def _by(rule: Rule, destination: Destination) -> Decision:
    outcome, verb = _SAYS[rule.settings.action]
    return Decision(outcome, f"rule {rule.name} {verb} {destination.name}", rule.name, destination.name)


_SAYS = {
    RuleAction.ALLOW: (Outcome.ALLOWED, "allows"),
    RuleAction.OBSERVE: (Outcome.OBSERVED, "observes"),
    RuleAction.REFUSE: (Outcome.RULE, "refuses"),
}
