"""Waiting for a condition of the outside world, with a deadline instead of a sleep."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import TypeVar

T = TypeVar("T")


def until(condition: Callable[[], T], what: str, deadline_s: float = 30.0, period_s: float = 0.05) -> T:
    """The first true value of ``condition``. Raises TimeoutError naming ``what``."""
    end = time.monotonic() + deadline_s
    while not (value := condition()):
        if time.monotonic() > end:
            raise TimeoutError(f"{what}: not within {deadline_s} s")
        time.sleep(period_s)
    return value


async def until_async(
    condition: Callable[[], Awaitable[T]], what: str, deadline_s: float = 30.0, period_s: float = 0.1
) -> T:
    """The first true value of ``condition``. Raises TimeoutError naming ``what``."""
    end = time.monotonic() + deadline_s
    while not (value := await condition()):
        if time.monotonic() > end:
            raise TimeoutError(f"{what}: not within {deadline_s} s")
        await asyncio.sleep(period_s)
    return value
