"""The running daemons' own word, from their health listeners."""

from __future__ import annotations

import asyncio

from edged import peers
from edged.config import Config
from edged.doctor import Finding

PART = "daemon"


async def findings(config: Config) -> list[Finding]:
    """One for each process that should run here, and one for each part of it that is not ready."""
    async with peers.session() as session:
        found = await asyncio.gather(*(peers.readiness(session, peer) for peer in peers.configured(config)))
    return [finding for ready in found for finding in judged(ready)]


def judged(ready: peers.Readiness) -> list[Finding]:
    """One process."""
    if ready.answered is None:
        return [
            Finding(
                PART,
                False,
                f"{ready.name}: does not answer at {ready.address}",
                f"systemctl status 'edged-{ready.name}.*'; journalctl -u 'edged-{ready.name}.*'",
            )
        ]
    if not ready.answered.not_ready:
        return [Finding(PART, True, f"{ready.name}: ready, version {ready.answered.version}")]
    return [
        Finding(PART, False, f"{ready.name}: {part}: {why}", "the reason above says what it lacks")
        for part, why in ready.answered.not_ready.items()
    ]
