"""A probe of one server with the ecosystem's own Python client, in a process of its own.

``python -m services.storage.xrootd.probe`` reads a ``Wish`` as JSON from standard input and writes a
``Finding`` for each step: the client keeps its token in the environment, threads of its own and a TLS
library of its own, and a hung one is killed.
"""

from __future__ import annotations

import asyncio
import importlib
import os
import sys
import time
import zlib
from collections.abc import Awaitable, Callable
from typing import Any

import msgspec

DATA = bytes(range(256)) * 256
CHUNKS = [(0, 100), (30_000, 100), (65_000, 100)]
STEP_S = 10


class Wish(msgspec.Struct, frozen=True, kw_only=True):
    """What to probe. ``directory``: where the probe may write; '' looks only (stat of ``path``)."""

    url: str
    token: str
    path: str
    directory: str = ""
    ca_file: str = ""
    ca_directory: str = ""


class Outcome(msgspec.Struct, frozen=True):
    """One step: what, whether it worked, how long it took, and what the server said if not."""

    step: str
    ok: bool
    seconds: float
    said: str = ""


async def ask(wish: Wish, *, deadline_s: float) -> list[Outcome]:
    """Probe in a child process; its end is certain when this returns."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-P", "-m", __name__,
        stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
    )  # fmt: skip
    began = time.perf_counter()
    try:
        async with asyncio.timeout(deadline_s):
            out, err = await process.communicate(msgspec.json.encode(wish))
        return msgspec.json.decode(out, type=list[Outcome])
    except TimeoutError:
        return [Outcome("answer", ok=False, seconds=time.perf_counter() - began, said="no answer in time")]
    except msgspec.MsgspecError:
        said = err.decode("utf-8", "replace").strip().splitlines()
        return [Outcome("client", ok=False, seconds=0.0, said=said[-1] if said else "the client died")]
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()


# --- inside the child


class Client:
    """The steps, on the callbacks of XRootD.client made awaitable."""

    def __init__(self, wish: Wish) -> None:
        self._wish = wish
        self._client: Any = importlib.import_module("XRootD.client")  # untyped, and optional
        self._flags: Any = importlib.import_module("XRootD.client.flags")
        self._system = self._client.FileSystem(wish.url)
        self.outcomes: list[Outcome] = []

    async def run(self) -> list[Outcome]:
        """All steps, up to the first that fails."""
        steps = (
            [self.stat]
            if not self._wish.directory
            else [self.make, self.write, self.checksum, self.vector, self.remove]
        )
        for step in steps:
            if not await self._timed(step):
                break
        return self.outcomes

    async def stat(self) -> None:
        await self._call(self._system.stat, self._wish.path)

    async def make(self) -> None:
        """The probe's own directory."""
        flags = self._flags.MkDirFlags.MAKEPATH
        await self._call(self._system.mkdir, self._wish.directory, flags)

    async def write(self) -> None:
        """A new file."""
        flags = self._flags.OpenFlags.DELETE
        file = self._client.File()
        await self._call(file.open, self._file, flags)
        await self._call(file.write, DATA)
        await self._call(file.close)

    async def checksum(self) -> None:
        """adler32 as the server has it."""
        answer = await self._call(self._system.query, self._flags.QueryCode.CHECKSUM, self._path)
        said = bytes(answer).rstrip(b"\0\n ").decode().split()[-1]
        if int(said, 16) != zlib.adler32(DATA):
            raise ValueError(f"checksum {said}, not {zlib.adler32(DATA):08x}")

    async def vector(self) -> None:
        """Pieces of it in one request."""
        file = self._client.File()
        await self._call(file.open, self._file, self._flags.OpenFlags.READ)
        answer = await self._call(file.vector_read, CHUNKS)
        await self._call(file.close)
        got = [bytes(chunk.buffer) for chunk in answer.chunks]
        if got != [DATA[at : at + size] for at, size in CHUNKS]:
            raise ValueError("other bytes came back")

    async def remove(self) -> None:
        await self._call(self._system.rm, self._path)

    @property
    def _path(self) -> str:
        return f"{self._wish.directory}/{os.getpid()}-{self._wish.url.rpartition(':')[2]}"

    @property
    def _file(self) -> str:
        return f"{self._wish.url}/{self._path}"

    async def _timed(self, step: Callable[[], Awaitable[None]]) -> bool:
        began = time.perf_counter()
        said = ""
        try:
            await step()
        except (OSError, ValueError, TimeoutError) as error:
            said = str(error) or type(error).__name__
        took = time.perf_counter() - began
        name = getattr(step, "__name__", "step")
        self.outcomes.append(Outcome(name, ok=not said, seconds=took, said=said))
        return not said

    async def _call(self, start: Callable[..., Any], *arguments: Any) -> Any:
        """Start one operation; its callback comes on a thread of the client. Raises OSError."""
        loop = asyncio.get_running_loop()
        ended: asyncio.Future[tuple[Any, Any]] = loop.create_future()

        def callback(status: Any, answer: Any, _hosts: Any) -> None:
            loop.call_soon_threadsafe(ended.set_result, (status, answer))

        begun = start(*arguments, callback=callback)
        if not begun.ok:
            raise OSError(begun.message.strip())
        async with asyncio.timeout(STEP_S):
            status, answer = await ended
        if not status.ok:
            raise OSError(status.message.strip())
        return answer


def main() -> None:
    """Probe and end, without waiting for the client's threads."""
    wish = msgspec.json.decode(sys.stdin.buffer.read(1 << 16), type=Wish)
    trust = {"X509_CERT_FILE": wish.ca_file, "X509_CERT_DIR": wish.ca_directory}
    os.environ.update({name: value for name, value in trust.items() if value})
    short = {"XRD_CONNECTIONRETRY": "1", "XRD_CONNECTIONWINDOW": "5", "XRD_REQUESTTIMEOUT": str(STEP_S)}
    os.environ.update(short | {"BEARER_TOKEN": wish.token})
    try:
        outcomes = asyncio.run(Client(wish).run())
    except ImportError:
        outcomes = [
            Outcome("client", ok=False, seconds=0.0, said="no XRootD for Python: pip install 'edged[xrootd]'")
        ]
    sys.stdout.buffer.write(msgspec.json.encode(outcomes))
    sys.stdout.flush()
    os._exit(0)


if __name__ == "__main__":
    main()
