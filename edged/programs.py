"""Asking a program of the machine one short question, as ``edged doctor`` does."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from edged.errors import Unavailable

ASK_S = 10.0
MAX_OUTPUT = 4 << 20


@dataclass(frozen=True, slots=True)
class Said:
    """How a program ended and what it said."""

    code: int
    out: str
    complaint: str


async def ask(
    argv: Sequence[str | Path], *, environment: Mapping[str, str] | None = None, deadline_s: float = ASK_S
) -> Said:
    """Run and read it. Raises Unavailable when it is missing, hangs, or says too much.

    A program that hangs in the kernel (a dead file server) cannot even be killed: it is left behind.
    """
    try:
        process = await asyncio.create_subprocess_exec(
            *argv,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            env={**os.environ, "LC_ALL": "C", **(environment or {})},
        )
    except OSError as error:
        raise Unavailable(f"{argv[0]}: {error.strerror}") from error
    try:
        async with asyncio.timeout(deadline_s):
            out, complaint = await process.communicate()
    except TimeoutError:
        process.kill()
        raise Unavailable(f"{Path(argv[0]).name}: no answer within {deadline_s:.0f} s") from None
    if len(out) > MAX_OUTPUT:
        raise Unavailable(f"{Path(argv[0]).name}: says too much")
    return Said(process.returncode or 0, out.decode("utf-8", "replace"), _first_line(complaint))


def _first_line(text: bytes) -> str:
    return text.decode("utf-8", "replace").strip().partition("\n")[0][:300]
