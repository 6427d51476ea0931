"""What a real slurmrestd 23.11 told by v0.0.39, the one version that no test meets alive."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from services.jobs.batch.protocol import BatchState, Cause
from services.jobs.batch.slurmrest import reading
from services.jobs.batch.slurmrest.system import INVALID_JOB
from services.jobs.batch.slurmrest.wire import Told

ANSWERS = Path(__file__).parents[2] / "recorded/slurmrestd/v0.0.39"


def answer(name: str) -> bytes:
    return (ANSWERS / f"{name}.json").read_bytes()


def test_a_listing() -> None:
    jobs = [reading.live(job, "x") for job in msgspec.json.decode(answer("jobs"), type=reading.Jobs).jobs]
    assert [(job.state, job.cause, job.exit_code) for job in jobs] == [
        (BatchState.FAILED, Cause.EXIT, 255),
        (BatchState.RUNNING, Cause.NONE, None),
        (BatchState.KILLED, Cause.CANCELLED, 143),  # the launcher's own: TERM
    ]
    assert all(job.ref.name.startswith("edged-") and job.ref.submitted_at > 1e9 for job in jobs)
    assert jobs[1].nodes and not reading.unchanged(Told(200, answer("jobs")))


def test_nothing_new() -> None:
    assert reading.unchanged(Told(200, answer("jobs-unchanged")))


@pytest.mark.parametrize("name", ["job-unknown", "job-impossible"])
def test_a_number_without_a_job(name: str) -> None:
    faults = msgspec.json.decode(answer(name), type=reading.Jobs).errors
    assert {fault.code for fault in faults} <= INVALID_JOB and faults


def test_accounting() -> None:
    (failed,) = msgspec.json.decode(answer("db-failed"), type=reading.Remembered).jobs
    found = reading.remembered(failed, "x", {})
    assert (found.state, found.cause, found.account) == (BatchState.FAILED, Cause.EXIT, "cms")
    assert found.started_at and found.ended_at and found.nodes and found.tres["cpu"] == "1"
    (gone,) = msgspec.json.decode(answer("db-cancelled"), type=reading.Remembered).jobs
    found = reading.remembered(gone, "x", {"cmsprd": 20001})
    assert (found.state, found.cause, found.cancelled_by) == (BatchState.KILLED, Cause.CANCELLED, 20001)


def test_the_site() -> None:
    rows = msgspec.json.decode(answer("partitions"))["partitions"]
    nodes = [msgspec.convert(row, reading.Place) for row in msgspec.json.decode(answer("nodes"))["nodes"]]
    cpu, gpu = reading.partitions(rows, nodes)
    assert (cpu.name, cpu.up, cpu.nodes_usable, cpu.cpus, cpu.max_walltime_s) == ("cpu", True, 2, 32, 172800)
    assert [(one.gres, one.total) for one in gpu.gpus] == [("gpu:h200", 4)]
