"""Batch verbs for tests of the accounts: what a driver would publish, reduced to the point."""

from __future__ import annotations

import os
from pathlib import Path
from typing import ClassVar

import msgspec

from edged.accounts.api import BatchVerb
from edged.accounts.clients import Workplace
from edged.errors import Busy
from edged.identity.words import Action


class Ran(msgspec.Struct):
    """What a client said, and who ran it."""

    code: int
    output: str
    timed_out: bool
    uid: int


class Run(BatchVerb, frozen=True):
    """A fixed client under the job's lock: ``id`` or ``sleep``, never what a message says."""

    action: ClassVar[Action] = Action.JOB_SUBMIT
    job: str
    sleep_s: float = 0.0

    def perform(self, where: Workplace) -> Ran:
        argv = ["sleep", str(self.sleep_s)] if self.sleep_s else ["env"]
        with where.lock(self.job) as lock:
            done = where.run_client(argv, deadline_s=60.0, lock_fd=lock)
        return Ran(done.code, done.stdout.decode(), done.timed_out, os.getuid())


class Alive(BatchVerb, frozen=True):
    """Whether the job's client lives."""

    action: ClassVar[Action] = Action.JOB_POLL
    job: str

    def perform(self, where: Workplace) -> bool:
        return where.client_alive(self.job)


class Sweep(BatchVerb, frozen=True):
    """A long answer."""

    action: ClassVar[Action] = Action.JOB_POLL
    rows: int

    def perform(self, where: Workplace) -> list[str]:
        return [f"job {row} of {where.account}: {'x' * 40}" for row in range(self.rows)]


class Echo(BatchVerb, frozen=True):
    """A long question."""

    action: ClassVar[Action] = Action.JOB_POLL
    text: str

    def perform(self, where: Workplace) -> int:
        return len(self.text)


class Refuse(BatchVerb, frozen=True):
    """A typed error with values."""

    action: ClassVar[Action] = Action.JOB_POLL

    def perform(self, where: Workplace) -> None:
        raise Busy("controller is busy", retry_after_s=7.0, detail="slurmctld says so", queue="gpu")


class Hidden(BatchVerb, frozen=True):
    """Not published: a worker must not know it."""

    action: ClassVar[Action] = Action.JOB_POLL

    def perform(self, where: Workplace) -> None:
        raise AssertionError("performed")


class Driver:
    name = "test"
    verbs = (Run, Alive, Sweep, Echo, Refuse)


DRIVER = Driver()


def publish(directory: Path) -> Path:
    """A distribution in ``directory`` whose entry point is DRIVER; for PYTHONPATH."""
    info = directory / "edged_test_verbs-1.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: edged-test-verbs\nVersion: 1\n")
    (info / "entry_points.txt").write_text("[edged.batch]\ntest = tests.support.verbs:DRIVER\n")
    return directory
