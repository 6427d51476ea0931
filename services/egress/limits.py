"""What one rule grants one subject: connections at once, set-ups and bytes per second, a byte quota."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field

from edged.config.egress import EgressRule, Per
from edged.egress.policy import Asker

Clock = Callable[[], float]

_BURST_S = 1.0  # a bucket holds what this long would fill
_MIN_GRANT = 16 * 1024  # smaller permissions would make a slow tunnel run many tiny turns


@dataclass(slots=True)
class Meter:
    """Counters of one (rule, subject). Times are monotonic seconds."""

    rule: EgressRule
    clock: Clock = time.monotonic
    open: int = 0
    tokens: float = field(init=False)
    connects: float = field(init=False)
    spent: int = 0
    period_end: float = field(init=False)
    _filled: float = field(init=False)
    waiting: list[Callable[[], None]] = field(default_factory=list)

    def __post_init__(self) -> None:
        now = self.clock()
        self.tokens = (self.rule.rate or 0) * _BURST_S
        self.connects = float(self.rule.connects_per_s or 0)
        self.period_end = now + self.rule.quota_s
        self._filled = now

    def refuses(self) -> str | None:
        """Why no further connection is admitted now, or None; counts one set-up when admitted."""
        self._refill()
        rule = self.rule
        if rule.connections is not None and self.open >= rule.connections:
            return f"rule {rule.name}: {rule.connections} connections at once are open"
        if rule.quota is not None and self.spent >= rule.quota:
            return f"rule {rule.name}: byte quota used up"
        if rule.connects_per_s is not None:
            if self.connects < 1:
                return f"rule {rule.name}: more than {rule.connects_per_s} connections per second"
            self.connects -= 1
        return None

    def allowance(self, want: int) -> int:
        """How many of ``want`` bytes may move now; 0: ask again when ``waiting`` is called."""
        self._refill()
        if self.rule.quota is not None:
            want = min(want, self.rule.quota - self.spent)
        if self.rule.rate is not None:
            if self.tokens < min(_MIN_GRANT, self.rule.rate * _BURST_S):
                return 0
            want = min(want, int(self.tokens))
        return max(want, 0)

    @property
    def exhausted(self) -> bool:
        """Whether the quota is used up: its tunnels end."""
        return self.rule.quota is not None and self.spent >= self.rule.quota

    def moved(self, count: int) -> None:
        """``count`` bytes went through."""
        self.spent += count
        self.tokens -= count

    def idle(self) -> bool:
        """Whether forgetting this meter loses nothing."""
        self._refill()
        rule = self.rule
        full = self.connects >= (rule.connects_per_s or 0) and self.tokens >= (rule.rate or 0) * _BURST_S
        return not self.open and not self.spent and full

    def wake(self) -> None:
        """Let those who waited for bytes try again."""
        waiting, self.waiting = self.waiting, []
        for resume in waiting:
            resume()

    def _refill(self) -> None:
        now = self.clock()
        passed, self._filled = now - self._filled, now
        rule = self.rule
        if rule.rate is not None:
            self.tokens = min(self.tokens + passed * rule.rate, rule.rate * _BURST_S)
        if rule.connects_per_s is not None:
            self.connects = min(self.connects + passed * rule.connects_per_s, rule.connects_per_s)
        if now >= self.period_end:
            self.spent = 0
            self.period_end = now + rule.quota_s


class Meters:
    """The meters in use. Rules without any limit have none."""

    def __init__(self, rules: tuple[EgressRule, ...], clock: Clock = time.monotonic) -> None:
        self._clock = clock
        self._meters: dict[tuple[str, str], Meter] = {}
        self.replace(rules)

    def replace(self, rules: tuple[EgressRule, ...]) -> None:
        """New rules; what is already counted stays with rules of the same name."""
        self._limited = {rule.name: rule for rule in rules if _limits(rule)}
        for (name, _), meter in self._meters.items():
            if name in self._limited:
                meter.rule = self._limited[name]

    def of(self, rule: str, asker: Asker) -> Meter | None:
        """The meter that counts ``asker`` under ``rule``."""
        limited = self._limited.get(rule)
        if limited is None:
            return None
        key = (rule, subject(limited.per, asker))
        meter = self._meters.get(key)
        if meter is None:
            meter = self._meters[key] = Meter(limited, self._clock)
        return meter

    def wake(self) -> None:
        """Let every tunnel that waits for its rate go on; called several times a second."""
        for meter in self._meters.values():
            if meter.waiting:
                meter.wake()

    def sweep(self) -> None:
        """Forget meters that say nothing any more."""
        for key in [key for key, meter in self._meters.items() if meter.idle()]:
            del self._meters[key]


def _limits(rule: EgressRule) -> bool:
    return any(value is not None for value in (rule.rate, rule.connections, rule.connects_per_s, rule.quota))


def subject(per: Per, asker: Asker) -> str:
    """Whom a limit is counted for; without a job, account or VO, its source address."""
    chosen = {Per.JOB: asker.job, Per.ACCOUNT: asker.account, Per.VO: asker.vo, Per.SOURCE: ""}[per]
    return f"{per}:{chosen}" if chosen else f"address:{asker.address}"
