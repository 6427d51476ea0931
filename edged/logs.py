"""Structured logs: one JSON object a line, request ids, and an audit channel of its own.

Log events, not prose: ``log.info("transfer finished", extra={"bytes": n})``. A value can never
forge a line or a field, because every line is one JSON document.
"""

from __future__ import annotations

import logging
import os
import sys
import time
from collections.abc import Mapping
from contextlib import suppress
from contextvars import ContextVar
from io import TextIOWrapper
from logging.handlers import WatchedFileHandler
from pathlib import Path
from typing import IO, Literal

import msgspec

from edged import systemd

request_id: ContextVar[str] = ContextVar("request_id", default="")

_STANDARD = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName"}
_MAX_TEXT = 8192
_encode = msgspec.json.Encoder(enc_hook=str).encode

AUDIT = "edged.audit"


def get_logger(name: str) -> logging.Logger:
    """The logger of a module; use the module's import path."""
    return logging.getLogger(name)


class JsonFormatter(logging.Formatter):
    """One JSON object a line: time (RFC 3339, UTC), level, logger, event, request, then the fields."""

    def format(self, record: logging.LogRecord) -> str:
        entry: dict[str, object] = {
            "time": rfc3339(record.created),
            "level": record.levelname.lower(),
            "logger": record.name,
            "event": record.getMessage()[:_MAX_TEXT],
        }
        if rid := request_id.get():
            entry["request"] = rid
        for key, value in vars(record).items():
            if key not in _STANDARD:
                entry[key] = value[:_MAX_TEXT] if isinstance(value, str) else value
        if record.exc_info and record.exc_info[0] is not None:
            entry["trace"] = self.formatException(record.exc_info)[-_MAX_TEXT:]
        return _encode(entry).decode("utf-8", "replace")


class TextFormatter(logging.Formatter):
    """For a person at a terminal; control characters are escaped so that no value moves the cursor."""

    def format(self, record: logging.LogRecord) -> str:
        fields = " ".join(f"{key}={value!r}" for key, value in vars(record).items() if key not in _STANDARD)
        moment = time.strftime("%H:%M:%S", time.localtime(record.created))
        line = f"{moment} {record.levelname.lower():7} {record.name}: {record.getMessage()!r:.2000} {fields}"
        if record.exc_info and record.exc_info[0] is not None:
            line += "\n" + self.formatException(record.exc_info)
        return line


class AuditFile(WatchedFileHandler):
    """Follows logrotate's rename. Its group may read it: the portal's unit is in it, and searches."""

    def _open(self) -> TextIOWrapper:
        stream = super()._open()
        with suppress(OSError):  # not ours, e.g. as a worker's
            os.fchmod(stream.fileno(), 0o640)
        return stream


def rfc3339(moment: float) -> str:
    """``1.5`` → ``1970-01-01T00:00:01.500Z``."""
    whole = int(moment)
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(whole)) + f".{int((moment - whole) * 1000):03d}Z"


def setup(
    *,
    level: str = "info",
    form: Literal["json", "text"] = "json",
    audit_file: Path | None = None,
    stream: IO[str] | None = None,
) -> None:
    """Send all logs to ``stream`` (stderr); audit lines go to their own file as well when one is named.

    A unit with a log directory of its own keeps its audit file there: no service may write another's.
    """
    # nobody reads these of a record; finding them costs a third of a log line (logging HOWTO, Optimization)
    logging._srcfile = None
    logging.logThreads = logging.logProcesses = logging.logMultiprocessing = False
    handler = logging.StreamHandler(stream or sys.stderr)
    handler.setFormatter(JsonFormatter() if form == "json" else TextFormatter())
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level.upper())
    for noisy in ("aiohttp.access", "asyncio", "asyncssh"):
        logging.getLogger(noisy).setLevel(logging.WARNING)
    channel = logging.getLogger(AUDIT)
    channel.setLevel(logging.INFO)
    channel.handlers.clear()
    if audit_file is not None:
        own = systemd.log_directory()
        audit_file = own / audit_file.name if own is not None else audit_file
        audit_handler = AuditFile(audit_file, encoding="utf-8")
        audit_handler.setFormatter(JsonFormatter())
        channel.addHandler(audit_handler)


def audit(
    what: str, *, who: Mapping[str, object] | None, allowed: bool, reason: str, **fields: object
) -> None:
    """One line per decision: who, what, on which account and path, allowed or not, and why."""
    logging.getLogger(AUDIT).info(
        what, extra={"who": dict(who or {}), "allowed": allowed, "reason": reason, **fields}
    )
