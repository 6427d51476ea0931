"""One planned cut."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from enum import Enum


class Step(Enum):
    """A point of a protocol; its value tells it in words. Relays have their own."""


@dataclass(eq=False, slots=True)
class Cut:
    """At the first ``times`` times that ``step`` is come to, and never again; ``happened`` from the last of them.

    ``told``: whether the far side hears of it at once; otherwise its end of the connection stays open, as
    behind a network that has gone.
    """

    step: Step
    times: int = 1
    told: bool = True
    done: int = 0
    happened: asyncio.Event = field(default_factory=asyncio.Event)

    def due(self, step: Step) -> bool:
        """Whether to cut now."""
        if step is not self.step or self.done == self.times:
            return False
        self.done += 1
        if self.done == self.times:
            self.happened.set()
        return True
