"""One client connection, on a raw non-blocking socket: the hot path of the cache.

A request whose line and header block were both seen before is answered with two dictionary look-ups and
one send; no object is made that outlives it. tests/bench/cache_hits.py holds what this costs. Everything
else is parsed strictly and, when it has to wait for something, answered by a task.
"""

from __future__ import annotations

import asyncio
import os
import socket
import time
from typing import TYPE_CHECKING

from edged.errors import EdgeError
from edged.logs import get_logger
from services.cache import answers, ranges, requests
from services.cache.answers import Answer
from services.cache.engine import traffic_of
from services.cache.files import OpenFile, in_page_cache, read_ahead
from services.cache.fill import Fill
from services.cache.requests import END, Refused, Request
from services.cache.residents import Hot
from services.cache.traffic import Outcome, Traffic

if TYPE_CHECKING:
    from services.cache.listener import Listener

log = get_logger("edged.cache.connection")

_JOIN = 16 << 10  # below this, head and body are sent as one copy; above, gathered
_PIECE = 512 << 10  # of a file, per sendfile: checked to be in the page cache first
_TURN = 4 << 20  # bytes one connection may send before others have their turn
_BUSY = (BlockingIOError, InterruptedError)


class Connection:
    """Reads requests and sends answers, one after the other."""

    __slots__ = (
        "_at",
        "_end",
        "_file",
        "_finished",
        "_hot",
        "_listener",
        "_out",
        "_pending",
        "_reading",
        "_sent_of_answer",
        "_task",
        "_writing",
        "closed",
        "fd",
        "moved",
        "peer",
        "since",
        "sock",
        "source",
        "waiting_for",
    )

    def __init__(self, sock: socket.socket, peer: bytes, source: str, listener: Listener) -> None:
        self.sock = sock
        self.fd = sock.fileno()
        self.peer = peer
        self.source = source
        self.closed = False
        self.since = listener.clock()  # the last step forward, by the loop's clock
        self.moved = 0  # bytes sent since the listener last looked
        self.waiting_for = "request"  # request, head, upstream or client: chooses the deadline
        self._listener = listener
        self._pending = b""
        self._out: bytes | memoryview = b""
        self._file: OpenFile | None = None
        self._at = self._end = 0
        self._hot: Hot | None = None
        self._finished: asyncio.Future[None] | None = None
        self._task: asyncio.Task[None] | None = None
        self._reading = self._writing = False
        self._sent_of_answer = 0
        self._read_on()

    @property
    def busy(self) -> bool:
        """An answer is being made or sent."""
        return self._task is not None or self._hot is not None

    @property
    def sending(self) -> bool:
        """The client is to take bytes."""
        return self._writing or self.waiting_for == "client"

    # reading

    def on_readable(self) -> None:
        """Bytes have come, or the end."""
        listener = self._listener
        try:
            count = self.sock.recv_into(listener.buffer)
        except _BUSY:
            return
        except OSError:
            self.close()
            return
        if count == 0:
            self.close()
            return
        data = listener.view[:count].tobytes()
        if self._task is None and self._hot is None and not self._pending:
            cut = data.find(b"\r\n")
            hot = listener.by_line.get(data[:cut])
            if hot is not None and data[cut:] in listener.plain_blocks:
                now = time.time()
                if now < hot.resident.expires:
                    self._hit(hot, now)
                    return
        self._take(data)

    def _take(self, data: bytes) -> None:
        self._pending += data
        if self.busy:  # pipelined: kept within a limit, then the client has to wait
            if len(self._pending) > self._listener.max_head:
                self._read_off()
            return
        self._advance()

    def _advance(self) -> None:
        """Answer the complete heads in what was read."""
        while self._pending and not self.busy and not self.closed:
            end = self._pending.find(END) + len(END)
            if end < len(END) or end > self._listener.max_head:
                self._incomplete(len(self._pending))
                return
            head, self._pending = self._pending[:end], self._pending[end:]
            self._request(head)
        if not self._reading and not self.closed:
            self._read_on()

    def _incomplete(self, size: int) -> None:
        if size > self._listener.max_head:
            self._refuse(Refused(431, "the request's head is too large"), b"")
            return
        if self.waiting_for != "head":
            self.waiting_for = "head"  # its time runs from the first byte, further bytes do not extend it
            self.since = self._listener.clock()
        # a reset may have come with these bytes, and libuv tells of an error only once
        self._listener.loop.call_soon(self._look_again)

    def _look_again(self) -> None:
        if self._reading and not self.closed:
            self.on_readable()

    def _request(self, head: bytes) -> None:
        listener = self._listener
        self.waiting_for = "upstream"
        self.since = listener.clock()
        try:
            request = requests.parse(head)
            route = listener.engine.route(request)
        except Refused as refusal:
            self._refuse(refusal, head[: head.find(b"\r\n")])
            return
        if request.method == b"GET" and request.version == "1.1" and request.fields.plain:
            listener.remember_block(head[len(request.line) :])
            hot = listener.engine.quick(route, request)
            if hot is not None:
                self._hit(hot, time.time())
                return
        self._task = listener.spawn(self._respond(request, route))

    def _refuse(self, refusal: Refused, line: bytes) -> None:
        """Say no and close: after a request we do not trust, nothing on this connection is."""
        self._listener.refused += 1
        answer = answers.plain(refusal.status, refusal.reason, Outcome.REFUSED)
        head = answers.head(answer, answer.size, keep_alive=False, old=False)
        try:
            self.sock.send(head + (answer.body or b""))
        except OSError:
            self.close()
            return
        self._log(line, refusal.status, answer.size or 0, Outcome.REFUSED, None, self.since)
        self.close()

    # hits

    def _hit(self, hot: Hot, now: float) -> None:
        """Send what is hot; mostly one system call."""
        resident = hot.resident
        resident.used = True
        second = int(now)
        head = resident.aged_head if resident.aged_at == second else resident.aged(second)
        body = resident.body
        self.waiting_for = "request"
        self.since = self._listener.clock()
        if body is None:
            self._hit_file(hot, head)
            return
        try:
            if len(body) <= _JOIN:
                data = head + body
                sent = self.sock.send(data)
            else:
                sent = self.sock.sendmsg((head, body))
        except _BUSY:
            sent = 0
        except OSError:
            self.close()
            return
        if sent == len(head) + len(body):
            self._count_hit(hot, now)
            return
        self._hot = hot
        self._out = memoryview(head + body)[sent:]
        self._write_on()

    def _hit_file(self, hot: Hot, head: bytes) -> None:
        self._hot = hot
        self._out = head
        self._file = hot.resident.file
        self._at, self._end = 0, hot.resident.size
        if self._push():
            self._sent()

    def _count_hit(self, hot: Hot, now: float) -> None:
        traffic, resident = hot.traffic, hot.resident
        if resident.body is not None:
            traffic.memory += 1
        else:
            traffic.disk += 1
        traffic.bytes += resident.size
        access = self._listener.access
        if access.wanted:
            access.hit(now, self.peer, hot.log)

    # sending

    def on_writable(self) -> None:
        """The socket takes more."""
        if self._push():
            self._write_off()
            self._sent()

    def _push(self) -> bool:
        """Send what the socket takes now; True when all is sent. Arranges to be called again otherwise."""
        try:
            if self._out and not self._push_bytes():
                self._write_on()
                return False
            turn = _TURN
            while self._at < self._end:
                assert self._file is not None
                piece = min(self._end - self._at, _PIECE)
                if not in_page_cache(self._file.fd, self._at + piece - 1):
                    self._write_off()
                    self._listener.spawn(self._fetch_pages(self._file, self._at, piece))
                    return False
                count = os.sendfile(self.fd, self._file.fd, self._at, piece)
                if count == 0:
                    raise OSError("the file is shorter than it was")  # noqa: TRY301
                self._at += count
                self.moved += count
                turn -= count
                if count < piece or turn <= 0:
                    self._write_on()
                    return self._at >= self._end
        except _BUSY:
            self._write_on()
            return False
        except OSError:
            self.close()
            return False
        return True

    def _push_bytes(self) -> bool:
        more = socket.MSG_MORE if self._at < self._end else 0
        count = self.sock.send(self._out, more)
        self.moved += count
        self._out = b"" if count == len(self._out) else memoryview(self._out)[count:]
        return not self._out

    async def _fetch_pages(self, file: OpenFile, offset: int, length: int) -> None:
        """Wait in a thread for the disk, then go on."""
        await asyncio.get_running_loop().run_in_executor(
            self._listener.disk, read_ahead, file.fd, offset, length
        )
        if not self.closed and self._push_after_pages(file, offset, length):
            self._sent()

    def _push_after_pages(self, file: OpenFile, offset: int, length: int) -> bool:
        """Send the piece just read even if memory is so short that it is gone again."""
        try:
            count = os.sendfile(self.fd, file.fd, offset, length)
        except _BUSY:
            count = 0
        except OSError:
            self.close()
            return False
        self._at += count
        self.moved += count
        return self._push()

    def _sent(self) -> None:
        """All of an answer, or of a piece of one, is out."""
        self.since = self._listener.clock()
        if self._finished is not None:
            finished, self._finished = self._finished, None
            if not finished.done():
                finished.set_result(None)
            return
        hot, self._hot = self._hot, None
        self._file = None
        self._at = self._end = 0
        if hot is not None:
            self._count_hit(hot, time.time())
        self.waiting_for = "request"
        if self._listener.stopping:
            self.close()
        elif self._pending or not self._reading:
            self._advance()

    async def _send(self, data: bytes, file: OpenFile | None = None, at: int = 0, end: int = 0) -> None:
        """Send bytes, then a piece of a file; returns when the kernel has them."""
        if self.closed:
            raise ConnectionResetError
        self._out, self._file, self._at, self._end = data, file, at, end
        self.waiting_for = "client"
        self._finished = finished = asyncio.get_running_loop().create_future()
        if self._push():
            self._write_off()
            self._sent()
        await finished
        self._sent_of_answer += len(data) + end - at
        self.waiting_for = "upstream"

    # answers that take time

    async def _respond(self, request: Request, route: object) -> None:
        started = self._listener.clock()
        traffic = traffic_of(route)  # type: ignore[arg-type]
        keep_alive, outcome, status = False, Outcome.ABORTED, 0
        self._sent_of_answer = 0
        try:
            answer = await self._answer(request, route, traffic)
            if answer is not None:
                status, outcome = answer.status, answer.outcome
                keep_alive = await self._deliver(request, answer)
            else:
                outcome = Outcome.FAILED
        except (ConnectionError, asyncio.CancelledError):
            outcome = Outcome.ABORTED
            if self._listener.stopping:
                raise
        except EdgeError as error:  # after the head went out: only closing tells the client
            outcome = Outcome.FAILED
            log.warning("answer broken off", extra={"reason": str(error), "bytes": self._sent_of_answer})
        except Exception:
            log.exception("answer failed", extra={"target": request.path.decode("latin-1")})
        finally:
            self._task = None
            self._log(request.line, status, max(0, self._sent_of_answer), outcome, traffic, started)
            if not keep_alive:
                self.close()
        if keep_alive and not self.closed:
            self.waiting_for = "request"
            self.since = self._listener.clock()
            self._file = None
            self._advance()

    async def _answer(self, request: Request, route: object, traffic: Traffic) -> Answer | None:
        try:
            return await self._listener.engine.answer(route, request)  # type: ignore[arg-type]
        except EdgeError as error:
            log.info("request failed", extra={"reason": str(error), "code": error.code})
            return answers.fault(error, traffic)

    async def _deliver(self, request: Request, answer: Answer) -> bool:
        """Send an answer; whether the connection may go on."""
        size = answer.size
        if answer.fill is not None and (size is None or request.fields.values.get(b"range")):
            await answer.fill.end()
            size = answer.fill.received
        first, end = 0, size or 0
        if answer.status == 200 and size is not None:
            answer, first, end = _ranged(request, answer, size)
        keep_alive = request.fields.keep_alive and not self._listener.stopping
        length = None if answer.status == 304 else end - first
        head = answers.head(answer, length, keep_alive=keep_alive, old=request.version == "1.0")
        self._sent_of_answer = -len(head)  # figures and log count content
        if request.is_head or answer.status == 304 or first == end:
            await self._send(head)
        elif answer.body is not None:
            await self._send(head + answer.body[first:end])
        elif answer.file is not None:
            await self._send(head, answer.file, first, end)
        elif answer.fill is not None:
            await self._stream(head, answer.fill, first, end)
        return keep_alive

    async def _stream(self, head: bytes, fill: Fill, at: int, end: int) -> None:
        """Send an object while it comes in."""
        generation = fill.generation
        while at < end:
            ready = min(await fill.more(at, generation), end)
            if at == 0:
                generation = fill.generation
            if fill.body is not None:
                await self._send(head + fill.body[at:ready])
            elif ready > at and fill.file is not None:
                await self._send(head, fill.file, at, ready)
            if ready <= at:
                raise EdgeError("the object is shorter than promised")
            head, at = b"", ready

    def _log(  # noqa: PLR0917 - the fields of a log line
        self, line: bytes, status: int, sent: int, outcome: Outcome, traffic: Traffic | None, started: float
    ) -> None:
        seconds = self._listener.clock() - started
        if traffic is not None:
            traffic.count(outcome, sent, seconds)
        self._listener.access.request(time.time(), self.peer, line, status, sent, outcome, seconds)

    # the socket

    def close(self) -> None:
        """Close now; harmless when closed."""
        if self.closed:
            return
        self.closed = True
        self._read_off()
        self._write_off()
        self.sock.close()
        self._out, self._file, self._hot = b"", None, None
        if self._finished is not None and not self._finished.done():
            self._finished.set_exception(ConnectionResetError())
            self._finished.exception()
        if self._task is not None:
            self._task.cancel()
        self._listener.forget(self)

    def _read_on(self) -> None:
        if not self._reading:
            self._reading = True
            self._listener.loop.add_reader(self.fd, self.on_readable)

    def _read_off(self) -> None:
        if self._reading:
            self._reading = False
            self._listener.loop.remove_reader(self.fd)

    def _write_on(self) -> None:
        if not self._writing:
            self._writing = True
            self._listener.loop.add_writer(self.fd, self.on_writable)

    def _write_off(self) -> None:
        if self._writing:
            self._writing = False
            self._listener.loop.remove_writer(self.fd)


def _ranged(request: Request, answer: Answer, size: int) -> tuple[Answer, int, int]:
    """The part of a complete answer the client asked for."""
    text = request.fields.values.get(b"range")
    if b"if-range" in request.fields.values:  # we have no strong validator to compare: send all
        text = None
    try:
        wanted = ranges.wanted(text, size)
    except ranges.Unsatisfiable:
        answer.status = 416
        answer.fields += b"Content-Range: bytes */%d\r\n" % size
        return answer, 0, 0
    if wanted is None:
        return answer, 0, size
    first, end = wanted
    answer.status = 206
    answer.fields += b"Content-Range: bytes %d-%d/%d\r\n" % (first, end - 1, size)
    return answer, first, end
