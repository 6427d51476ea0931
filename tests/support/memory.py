"""How much memory work leaves behind: bytes that Python holds, by the unit, and never a matter of time."""

from __future__ import annotations

import gc
import tracemalloc
from collections.abc import Awaitable, Callable


async def left_behind(work: Callable[[int], Awaitable[None]], *, warm: int, count: int) -> float:
    """Bytes held per unit after ``count`` units of ``work``; ``warm`` of them fill caches and pools before."""
    await work(warm)
    tracemalloc.start()
    try:
        await work(warm)  # what the traced part itself makes once
        gc.collect()
        before = tracemalloc.get_traced_memory()[0]
        await work(count)
        gc.collect()
        return (tracemalloc.get_traced_memory()[0] - before) / count
    finally:
        tracemalloc.stop()
