"""The example driver passes the published suite: what its author runs."""

from __future__ import annotations

import os
import pwd
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from edged.config.jobs import Jobs
from services.jobs.batch.conformance import Conformance, Subject
from tests.support import example_batch, local_accounts
from tests.support.batch_worker import BatchWorker
from tests.support.example_batch.driver import DRIVER, SLOTS


@pytest.fixture(scope="module")
def subject() -> Iterator[Subject]:
    if os.getuid() == 0:
        local_accounts.ensure()
    account = local_accounts.CMSPRD.name if os.getuid() == 0 else pwd.getpwuid(os.getuid()).pw_name
    with tempfile.TemporaryDirectory(prefix="edged-pq-") as name:
        root = Path(name)
        root.chmod(0o755)
        (root / "spool").mkdir()
        (root / "spool").chmod(0o777)
        shutil.copy(Path(example_batch.__file__).parent / "pq", root / "pq")
        (root / "pq").chmod(0o755)
        environment = {"PATH": f"{root}:/usr/bin:/bin", "PQ_SPOOL": str(root / "spool")}
        worker = BatchWorker(account, root, environment, DRIVER.verbs)

        def read(job: str, file: str) -> bytes | None:
            path = worker.sessions / job / file
            return path.read_bytes() if path.exists() else None

        uid = pwd.getpwnam(account).pw_uid
        system = DRIVER.create(Jobs(), worker)
        yield Subject(
            system, worker.put, read, uid, fillers=SLOTS, impossible={"nodes": 2}, dependencies=False,
            shortest_walltime_s=1, patience_s=30,
        )  # fmt: skip
        worker.close()


class TestPq(Conformance):
    pass
