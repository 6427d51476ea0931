"""What ``edged doctor`` tells of the root:// view, found out with a real client."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path

from edged.config import Config
from edged.doctor import Finding
from edged.errors import EdgeError
from services.storage.xrootd import building, planning, probe, probing
from services.storage.xrootd.installation import Installation
from services.storage.xrootd.plan import Instance, Plan, Role
from services.storage.xrootd.probe import Outcome
from services.storage.xrootd.probekey import ProbeKey
from services.storage.xrootd.service import probe_key_file

PART = "xrootd"
DEADLINE_S = 15.0  # below the doctor's own


async def findings(config: Config) -> list[Finding]:
    """One finding a thing looked at; empty without [storage.xrootd]. For people: it takes seconds."""
    if config.storage is None or config.storage.xrootd is None:
        return []
    try:
        plan, installed = await asyncio.to_thread(planning.make, config)
    except EdgeError as error:
        return [Finding(PART, ok=False, text=error.message, advice=error.detail)]
    found = [_gate(installed)]
    found += [
        Finding(PART, ok=False, text=f"{label} is not shown: {why}") for label, why in plan.refused.items()
    ]
    found += _directory(installed.gate)
    try:
        key = ProbeKey.load(probe_key_file(plan))
    except OSError as error:
        advice = "run it as root or as edged's user, while edged runs (`edged run`, or edged-xrootd.service)"
        return [
            *found,
            Finding(PART, ok=False, text=f"the probes' key cannot be read: {error}", advice=advice),
        ]
    return found + await _probed(config, plan, key)


def _gate(installed: Installation) -> Finding:
    text = f"xrootd {installed.shown} with edged's gate {installed.gate}"
    if building.current(installed.gate, installed.shown):
        return Finding(PART, ok=True, text=text)
    why = "which was built from another edged's sources, or for another xrootd"
    return Finding(PART, ok=False, text=f"{text}, {why}", advice=f"run `{planning.BUILD}`")


def _directory(gate: Path) -> Iterator[Finding]:
    """Who may write the gate runs code as every account."""
    for path in (gate, gate.parent):
        facts = path.stat()
        if facts.st_uid != 0 or facts.st_mode & 0o022:
            yield Finding(
                PART,
                ok=False,
                text=f"{path} can be written by others than root",
                advice="chown root; chmod go-w",
            )


async def _probed(config: Config, plan: Plan, key: ProbeKey) -> list[Finding]:
    wishes = [
        (instance, wish)
        for instance in plan.instances
        if instance.role is not Role.PROXY
        for wish in probing.wishes(config, plan, instance, key)
    ]
    asked = await asyncio.gather(*(probe.ask(wish, deadline_s=DEADLINE_S) for _, wish in wishes))
    pairs = zip(wishes, asked, strict=True)
    return [_finding(instance, wish.url, outcomes) for (instance, wish), outcomes in pairs]


def _finding(instance: Instance, url: str, outcomes: list[Outcome]) -> Finding:
    failed = next((one for one in outcomes if not one.ok), None)
    if failed is None:
        took = sum(one.seconds for one in outcomes)
        steps = ", ".join(one.step for one in outcomes)
        return Finding(PART, ok=True, text=f"{instance.name} at {url}: {steps} in {took * 1000:.0f} ms")
    return Finding(
        PART, ok=False, text=f"{instance.name} at {url}: {failed.step}: {failed.said}", advice=_advice(failed)
    )


def _advice(failed: Outcome) -> str:
    said = failed.said.lower()
    if "tls" in said or "certificate" in said or "hostname" in said:
        return "clients must trust the host certificate's CA, and it must carry site.host as a DNS name"
    if "auth failed" in said:
        return "the server does not take our tokens: see the keys in the view's directory, and its log"
    if "denied" in said:
        return "the gate refuses, or the account may not write in the export's root"
    return "is it running? see the log of this instance"
