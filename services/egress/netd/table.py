"""A declared nftables table, and the commands that lead from one to another. Pure.

What is compared: sets by their declaration, elements one by one, chains by their rules. Rules and sets
carry a digest of their own text as comment, so that a running table can be compared with a declared
one without parsing nft's language back.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

TABLE = "inet edged"
_BATCH = 256  # elements in one command


def digest(text: str) -> str:
    """Short enough for a comment, long enough to tell texts apart."""
    return hashlib.blake2b(text.encode(), digest_size=8).hexdigest()


@dataclass(frozen=True, slots=True)
class SetOf:
    """A set. ``elements`` None: the kernel (or DNS answers) fills it, and we never empty it."""

    spec: str
    elements: frozenset[str] | None = None

    @property
    def mark(self) -> str:
        return digest(self.spec)


@dataclass(frozen=True, slots=True)
class Chain:
    """``hook`` is '' for a chain only jumped to. ``marks``: digests, where the rules are not known."""

    rules: tuple[str, ...] = ()
    hook: str = ""
    marks: tuple[str, ...] | None = None

    @property
    def fingerprint(self) -> tuple[str, ...]:
        """What two chains with the same rules share."""
        return self.marks if self.marks is not None else tuple(digest(rule) for rule in self.rules)


@dataclass(frozen=True, slots=True)
class Table:
    """All of ``table inet edged``."""

    sets: dict[str, SetOf] = field(default_factory=dict)
    counters: frozenset[str] = frozenset()
    chains: dict[str, Chain] = field(default_factory=dict)


def changes(old: Table | None, new: Table) -> list[str]:
    """nft commands, to be run as one transaction; empty when nothing differs.

    Counters, quotas and accounts that stay declared are not touched.
    """
    before = old or Table()
    out = [f"add table {TABLE}"] if old is None else []
    out += [f"add counter {TABLE} {name}" for name in sorted(new.counters - before.counters)]
    stale = {
        name for name, kept in before.sets.items() if name in new.sets and kept.mark != new.sets[name].mark
    }
    renew = {name for name, chain in new.chains.items() if _differs(before.chains.get(name), chain)}
    if stale:  # a set can only be replaced while no rule uses it
        renew = set(new.chains)
    out += _chains_first(before, new, renew)
    out += [f"delete set {TABLE} {name}" for name in sorted(stale | (set(before.sets) - set(new.sets)))]
    for name, wanted in new.sets.items():
        kept = None if name in stale else before.sets.get(name)
        out += _set(name, kept, wanted)
    for name in (name for name in new.chains if name in renew):
        out += [f'add rule {TABLE} {name} {rule} comment "{digest(rule)}"' for rule in new.chains[name].rules]
    out += [f"delete chain {TABLE} {name}" for name in sorted(set(before.chains) - set(new.chains))]
    out += [f"delete counter {TABLE} {name}" for name in sorted(before.counters - new.counters)]
    return out


def _differs(old: Chain | None, new: Chain) -> bool:
    return old is None or old.fingerprint != new.fingerprint


def _chains_first(before: Table, new: Table, renew: set[str]) -> Iterator[str]:
    """Chains exist before rules jump to them; those renewed or leaving are emptied."""
    for name, chain in new.chains.items():
        if name not in before.chains:
            yield f"add chain {TABLE} {name}" + (f" {{ {chain.hook} ; }}" if chain.hook else "")
        elif name in renew:
            yield f"flush chain {TABLE} {name}"
    for name in sorted(set(before.chains) - set(new.chains)):
        yield f"flush chain {TABLE} {name}"


def _set(name: str, old: SetOf | None, new: SetOf) -> Iterator[str]:
    if old is None:
        yield f'add set {TABLE} {name} {{ {new.spec} ; comment "{new.mark}" ; }}'
    if new.elements is None:
        return
    known = (old.elements or frozenset()) if old is not None else frozenset()
    yield from elements("delete", name, sorted(known - new.elements))
    yield from elements("add", name, sorted(new.elements - known))


def elements(verb: str, name: str, items: Iterable[str]) -> Iterator[str]:
    """``add`` or ``delete`` elements, a few hundred a command."""
    rest = list(items)
    while rest:
        yield f"{verb} element {TABLE} {name} {{ {', '.join(rest[:_BATCH])} }}"
        rest = rest[_BATCH:]
