"""Decisions and ends of tunnels on their way to the log: what repeats within a tick becomes one line.

A job that runs into a closed door ten thousand times a second must not fill the audit file, and a
storm of allowed set-ups must not spend its time on formatting; each line says how many it stands for.
"""

from __future__ import annotations

from edged import logs
from edged.config.egress import Way
from edged.egress.outcomes import PASSED, Outcome
from edged.egress.policy import Asker

log = logs.get_logger("services.egress")


class Closed:
    """Sums over tunnels that ended alike."""

    __slots__ = ("bytes_in", "bytes_out", "longest_s", "tunnels")

    def __init__(self) -> None:
        self.tunnels = self.bytes_out = self.bytes_in = 0
        self.longest_s = 0.0


class Journal:
    """Gathers until ``flush``, which the gate calls every tick and when it stops."""

    def __init__(self) -> None:
        self._decisions: dict[tuple[Asker, str, Outcome, Way, str], int] = {}
        self._closed: dict[tuple[Asker, str, str], Closed] = {}

    def decided(self, asker: Asker, to: str, outcome: Outcome, way: Way, reason: str) -> None:
        """One decision."""
        key = (asker, to, outcome, way, reason)
        self._decisions[key] = self._decisions.get(key, 0) + 1

    def closed(self, asker: Asker, to: str, why: str) -> Closed:
        """Where to add an ended tunnel's figures."""
        key = (asker, to, why)
        found = self._closed.get(key)
        if found is None:
            found = self._closed[key] = Closed()
        return found

    def flush(self) -> None:
        """Write the lines."""
        decisions, self._decisions = self._decisions, {}
        closed, self._closed = self._closed, {}
        for (asker, to, outcome, way, reason), times in decisions.items():
            logs.audit(
                "egress",
                who=_who(asker),
                allowed=outcome in PASSED,
                reason=reason,
                to=to,
                way=way,
                outcome=outcome,
                times=times,
            )
        for (asker, to, why), sums in closed.items():
            log.info(
                "tunnel closed",
                extra={
                    **_who(asker), "to": to, "why": why, "tunnels": sums.tunnels, "bytes_out": sums.bytes_out,
                    "bytes_in": sums.bytes_in, "longest_s": round(sums.longest_s, 3),
                },
            )  # fmt: skip


def _who(asker: Asker) -> dict[str, object]:
    return {"vo": asker.vo, "account": asker.account, "job": asker.job, "source": asker.address}
