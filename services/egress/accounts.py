"""Who sent what where: bytes both ways, connections and refusals, gathered until the ledger takes them."""

from __future__ import annotations

from collections import Counter
from typing import NamedTuple

from edged.config.egress import Way
from edged.egress.outcomes import Outcome
from edged.egress.policy import Asker


class AccountKey(NamedTuple):
    """What is counted apart. ``destination`` is a configured name, '' when no rule matched."""

    vo: str
    account: str
    job_class: str
    job: str
    source: str
    destination: str
    way: Way


class Account:
    """Figures of one key since the ledger last took them. ``up`` is what left the site."""

    __slots__ = ("connections", "down", "key", "observed", "open", "refused", "up")

    def __init__(self, key: AccountKey) -> None:
        self.key = key
        self.up = self.down = self.connections = self.observed = 0
        self.open = 0  # tunnels that still report here
        self.refused: Counter[Outcome] = Counter()

    def moved(self, up: int, down: int) -> None:
        """Bytes went through."""
        self.up += up
        self.down += down

    @property
    def empty(self) -> bool:
        """Whether there is nothing to take."""
        return not (self.up or self.down or self.connections or self.observed or self.refused)


class Figures(NamedTuple):
    """What the ledger adds to its hour."""

    key: AccountKey
    up: int
    down: int
    connections: int
    observed: int
    refused: dict[Outcome, int]


class Accounts:
    """All accounts in use. Totals by closed labels stay for the metrics; the rest leaves with ``take``."""

    def __init__(self) -> None:
        self._accounts: dict[AccountKey, Account] = {}
        self.bytes: Counter[tuple[str, str, Way, str]] = Counter()  # (vo, destination, way, direction)
        self.ended: Counter[tuple[str, Way, Outcome]] = Counter()  # (vo, way, outcome)

    def of(self, asker: Asker | None, way: Way, destination: str) -> Account:
        """The account of an asker at a destination; None: nobody we know."""
        key = (
            AccountKey(asker.vo, asker.account, asker.job_class, asker.job, asker.source, destination, way)
            if asker is not None
            else AccountKey("", "", "", "", "", destination, way)
        )
        account = self._accounts.get(key)
        if account is None:
            account = self._accounts[key] = Account(key)
        return account

    def take(self) -> list[Figures]:
        """The figures since the last call, which start again from nothing."""
        taken = []
        for key, account in list(self._accounts.items()):
            if not account.empty:
                figures = Figures(
                    key,
                    account.up,
                    account.down,
                    account.connections,
                    account.observed,
                    dict(account.refused),
                )
                taken.append(figures)
                self._total(figures)
                account.up = account.down = account.connections = account.observed = 0
                account.refused.clear()
            elif not account.open:
                del self._accounts[key]
        return taken

    def give_back(self, figures: list[Figures]) -> None:
        """Figures the ledger could not write: they count again at the next ``take``."""
        for item in figures:
            account = self._accounts.setdefault(item.key, Account(item.key))
            account.moved(item.up, item.down)
            account.connections += item.connections
            account.observed += item.observed
            account.refused.update(item.refused)
            self._total(item, -1)

    def _total(self, item: Figures, sign: int = 1) -> None:
        key = item.key
        self.bytes[key.vo, key.destination, key.way, "up"] += sign * item.up
        self.bytes[key.vo, key.destination, key.way, "down"] += sign * item.down
        self.ended[key.vo, key.way, Outcome.ALLOWED] += sign * (item.connections - item.observed)
        self.ended[key.vo, key.way, Outcome.OBSERVED] += sign * item.observed
        for outcome, count in item.refused.items():
            self.ended[key.vo, key.way, outcome] += sign * count
