"""What is surely not on disk, told without asking the disk: a Bloom filter over the stored names.

A cold miss would otherwise cost a thread and a directory look-up just to hear "no". Names are hashes, so
their own digits choose the bits. What another process stores is not in here: among several processes
the ticket's holder looks on disk again. What was evicted stays in here until the next start.
"""

from __future__ import annotations

from services.cache.names import ObjectName

_BITS = 1 << 25  # 4 MiB: for a million objects 0.4 % false positives


class Presence:
    """``complete`` once all stored names were added; until then nothing is surely absent."""

    def __init__(self) -> None:
        self.complete = False
        self._bits = bytearray(_BITS // 8)

    def add(self, name: ObjectName) -> None:
        """It is stored, or soon will be."""
        for bit in _places(name):
            self._bits[bit >> 3] |= 1 << (bit & 7)

    def lacks(self, name: ObjectName) -> bool:
        """True: it is surely not stored."""
        if not self.complete:
            return False
        return any(not self._bits[bit >> 3] & 1 << (bit & 7) for bit in _places(name))


def _places(name: ObjectName) -> tuple[int, int]:
    key = name.key
    return int(key[3:11], 16) % _BITS, int(key[11:19], 16) % _BITS
