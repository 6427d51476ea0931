"""Drivers under test with a worker of their own."""

from __future__ import annotations

import os
import pwd
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from edged.config.jobs import Jobs
from services.jobs.batch.conformance import Subject
from services.jobs.batch.protocol import Driver
from tests.support.batch_worker import BatchWorker


@contextmanager
def subject(
    driver: Driver, account: str, environment: Mapping[str, str], config: Jobs | None = None, **known: Any
) -> Iterator[Subject]:
    """``driver`` serving ``account``, in a directory of its own."""
    with tempfile.TemporaryDirectory(prefix="edged-batch-") as name:
        directory = Path(name)
        directory.chmod(0o755)
        worker = BatchWorker(account, directory, environment, driver.verbs)

        def read(job: str, file: str) -> bytes | None:
            path = worker.sessions / job / file
            return path.read_bytes() if path.exists() else None

        try:
            yield Subject(
                system=driver.create(config or Jobs(), worker),
                put=worker.put,
                read=read,
                uid=pwd.getpwnam(account).pw_uid,
                **known,
            )
        finally:
            worker.close()


def me() -> str:
    """The account that runs the tests."""
    return pwd.getpwuid(os.getuid()).pw_name
