"""A circuit breaker: an upstream that failed several times in a row rests. Pure: time comes in."""

from __future__ import annotations

from dataclasses import dataclass

_MAX_DOUBLINGS = 4


@dataclass(slots=True)
class Breaker:
    """After ``failures`` failures in a row it rests ``rest_s``; each failed trial doubles it, up to 16-fold."""

    failures: int
    rest_s: float
    in_a_row: int = 0
    rests_until: float = 0.0

    def allows(self, now: float) -> bool:
        """Whether the upstream should be asked before others. One that rests may still be asked last."""
        return now >= self.rests_until

    def worked(self) -> None:
        """A proper answer came."""
        self.in_a_row = 0
        self.rests_until = 0.0

    def failed(self, now: float) -> bool:
        """No answer, or one that proves the server broken. True when this opens the circuit."""
        self.in_a_row += 1
        if self.in_a_row < self.failures:
            return False
        opened = now >= self.rests_until
        doublings = min(self.in_a_row - self.failures, _MAX_DOUBLINGS)
        self.rests_until = now + self.rest_s * (1 << doublings)
        return opened
