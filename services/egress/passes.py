"""Job tokens as passes: who a tunnel speaks for, remembered for seconds, dropped at once when told."""

from __future__ import annotations

import hashlib
import ipaddress
import time
from collections import OrderedDict
from collections.abc import Callable

from edged.egress.addresses import Address, canonical
from edged.egress.names import Names
from edged.egress.wishes import Credentials
from edged.errors import EdgeError, Unauthenticated
from edged.identity.client import JobFacts, Verdicts
from edged.identity.words import JobId, Principal

REMEMBER_S = 10.0  # nodes of a job may become known later
_REMEMBERED = 16384


class Pass:
    """A job's proven facts and, when its nodes are known, the addresses it may come from."""

    __slots__ = ("facts", "nodes", "until")

    def __init__(self, facts: JobFacts, nodes: frozenset[Address], until: float) -> None:
        self.facts, self.nodes, self.until = facts, nodes, until

    def good_from(self, address: Address) -> bool:
        """Whether the job runs at ``address``; where its nodes are unknown, anywhere."""
        return not self.nodes or canonical(address) in self.nodes


class Passes:
    """Asks identity about job tokens. Tokens are kept as digests only."""

    def __init__(self, identity: Verdicts, names: Names) -> None:
        self._identity = identity
        self._names = names
        self._told = 0
        self._passes: OrderedDict[tuple[JobId, bytes], Pass] = OrderedDict()
        self.on_end: Callable[[JobId], None] = lambda _job: None
        self.on_ban: Callable[[Callable[[Principal], bool]], None] = lambda _covers: None
        identity.on_job_end(self._job_ended)
        identity.on_ban(self._banned)

    def known(self, credentials: Credentials) -> Pass | None:
        """The remembered pass; None when identity has to be asked, or cannot be at all just now."""
        found = self._passes.get(_key(credentials))
        if found is None or found.until <= time.monotonic() or self._identity.not_ready() is not None:
            return None
        return found

    async def ask(self, credentials: Credentials) -> Pass:
        """Identity's word on a token. Raises Unauthenticated or Unavailable."""
        while True:
            told = self._told
            try:
                facts = await self._identity.job_facts(credentials.job, credentials.token)
            except Unauthenticated:
                self._passes.pop(_key(credentials), None)
                raise
            nodes = await self._addresses(facts.nodes)
            if told == self._told:
                break  # else an end or a ban came meanwhile, perhaps of this very job: ask again
        if facts.nodes and not nodes:
            raise Unauthenticated("the job's nodes have no known address")
        found = Pass(facts, nodes, time.monotonic() + REMEMBER_S)
        self._passes[_key(credentials)] = found
        if len(self._passes) > _REMEMBERED:
            self._passes.popitem(last=False)
        return found

    async def _addresses(self, nodes: tuple[str, ...]) -> frozenset[Address]:
        found: set[Address] = set()
        for node in nodes:
            try:
                found.add(canonical(ipaddress.ip_address(node)))
            except ValueError:
                try:
                    found.update(canonical(a) for a in (await self._names.resolve(node)).addresses)
                except EdgeError:
                    continue
        return frozenset(found)

    def _job_ended(self, job: JobId) -> None:
        self._forget(lambda facts: facts.job == job)
        self.on_end(job)

    def _banned(self, covers: Callable[[Principal], bool], _keep_jobs: bool) -> None:
        self._forget(lambda facts: covers(facts.principal))
        self.on_ban(covers)

    def _forget(self, these: Callable[[JobFacts], bool]) -> None:
        self._told += 1
        for key in [key for key, kept in self._passes.items() if these(kept.facts)]:
            del self._passes[key]


def _key(credentials: Credentials) -> tuple[JobId, bytes]:
    return credentials.job, hashlib.blake2b(credentials.token.encode(), digest_size=16).digest()
