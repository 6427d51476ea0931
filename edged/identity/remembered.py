"""Values with an end, bounded in number: what a front remembers between two asks."""

from __future__ import annotations

from collections.abc import Callable
from itertools import islice
from typing import Generic, TypeVar

Value = TypeVar("Value")


class Remembered(Generic[Value]):
    """A dictionary whose entries end at a given time. The oldest entries make room for new ones."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._held: dict[bytes, tuple[float, Value]] = {}

    def get(self, key: bytes, now: float) -> Value | None:
        """The value, unless it ended. Hot: ``tests/bench/verdicts.py`` measures it."""
        held = self._held.get(key)
        if held is None:
            return None
        if held[0] <= now:
            del self._held[key]
            return None
        return held[1]

    def put(self, key: bytes, value: Value, ends: float) -> None:
        """Remember ``value`` until ``ends`` (same clock as ``get``)."""
        self._held.pop(key, None)
        if len(self._held) >= self._limit:
            for oldest in list(islice(self._held, max(1, self._limit // 16))):
                del self._held[oldest]
        self._held[key] = (ends, value)

    def drop(self, covers: Callable[[Value], bool]) -> None:
        """Forget every value that ``covers``."""
        for key in [key for key, (_, value) in self._held.items() if covers(value)]:
            del self._held[key]

    def __len__(self) -> int:
        return len(self._held)
