"""Plain http answers on their way back: the head is read and re-written once, the rest only moves."""

from __future__ import annotations

import socket

from edged.errors import BadRequest
from services.egress import http
from services.egress.heads import end_of, parse_answer
from services.egress.limits import Meter
from services.egress.pipes import Pipes
from services.egress.stream import Stream

_HEAD_BYTES = 64 * 1024


class AnswerStream(Stream):
    """A stream whose first bytes are an HTTP answer's head, or several (1xx, RFC 9110 §15.2)."""

    __slots__ = ("_answer", "_headed", "_us")

    def __init__(
        self, source: socket.socket, sink: socket.socket, pipes: Pipes, meter: Meter | None, us: str
    ) -> None:
        super().__init__(source, sink, pipes, meter)
        self._answer = bytearray()
        self._headed = False
        self._us = us

    def pump(self) -> bool:
        """As Stream.pump; an answer that is not HTTP becomes a 502 of ours."""
        if self._headed or self._read_head():
            return super().pump()
        return False

    def _read_head(self) -> bool:
        while True:
            try:
                data = self.source.recv(_HEAD_BYTES)
            except BlockingIOError:
                return False
            if not data:
                return self._bad("the origin closed the connection without an answer")
            self._answer += data
            try:
                if self._translated():
                    return True
            except BadRequest as error:
                return self._bad(f"the origin's answer is malformed: {error.message}")

    def _translated(self) -> bool:
        """Take complete heads off the buffer; True once the final one is among them. Raises BadRequest."""
        out = b""
        while (end := end_of(self._answer, _HEAD_BYTES)) > 0:
            head = parse_answer(bytes(self._answer[:end]))
            del self._answer[:end]
            if head.status >= 200:
                self.preset(out + http.answer_for_client(head, self._us) + bytes(self._answer))
                self._headed = True
                return True
            if head.status != 101:  # we asked for no upgrade
                out += head.line + b"\r\n\r\n"
        if out:
            self.sink.send(out)
        return False

    def _bad(self, why: str) -> bool:
        self.preset(http.refusal(502, why, "http_protocol_error"))
        self._headed = self.ended = True
        return True
