"""What is believed of a GPU figure, what Slurm's usage words say, and a journal made before there were any."""

from __future__ import annotations

import shlex
import subprocess
from pathlib import Path

import pytest
import sqlalchemy as sa

from edged.config.jobs import GpuSampler
from edged.state import Store
from edged.usage import Span
from services.jobs import gpus, journal, usage
from services.jobs.batch.protocol import BatchJob, BatchRef, BatchState
from services.jobs.batch.script import Payload, session_files
from services.jobs.batch.slurm import gpus as slurm_gpus

RECORDED = Path(__file__).parents[2] / "recorded/slurm/24.05/sacct-gpus.txt"


@pytest.mark.parametrize(
    ("content", "use"),
    [
        (b'{"gpus": 2, "seconds": 50, "busy": 25, "samples": 5}', gpus.GpuUse(100, 25)),
        (b'{"gpus": 2, "seconds": 500, "busy": 25}', gpus.GpuUse(100, 25)),  # never more than it was given
        (b'{"gpus": 2, "seconds": 50, "busy": 1e9}', gpus.GpuUse(100, 100)),
        (b'{"gpus": 1, "seconds": 50, "busy": 0}', gpus.GpuUse(50, 0)),  # the first node of two
        (b'{"gpus": 2, "seconds": 50, "busy": -1}', None),
        (b'{"gpus": 0, "seconds": 50, "busy": 0}', None),
        (b'{"gpus": 2, "seconds": 1e999, "busy": 0}', None),
        (b"", None),
        (b"[]", None),
        (b"\xff" * 5000, None),
    ],
)
def test_a_job_cannot_claim_more_than_it_had(content: bytes, use: gpus.GpuUse | None) -> None:
    assert gpus.sampled(content, allocated_s=100.0) == use


def _ended(id_: str, submitted: float) -> BatchJob:
    ref = BatchRef("c", id_, submitted, "edged-x")
    return BatchJob(ref=ref, state=BatchState.FINISHED, raw_state="COMPLETED", tres={"gres/gpu": "2"})


def test_slurm_tells_busy_from_idle_from_not_measured() -> None:
    busy = slurm_gpus.read(RECORDED.read_text())
    cases = {"101": 186 * 6.0, "102": 0.0, "103": None, "104": 100.0 + 100.0}
    assert {id_: slurm_gpus.told(_ended(id_, 1763690000), busy).gpu_s for id_ in cases} == cases
    again = slurm_gpus.told(_ended("101", 1763600000), busy)
    assert again.gpu_s == 6.0, "an id that came back is another job"


def test_only_ended_jobs_with_gpus_are_asked_about() -> None:
    with_gpus = _ended("1", 0.0)
    without = BatchJob(ref=BatchRef("c", "2", 0.0, "x"), state=BatchState.FINISHED, raw_state="COMPLETED")
    running = BatchJob(
        ref=BatchRef("c", "3", 0.0, "x"),
        state=BatchState.RUNNING,
        raw_state="RUNNING",
        tres={"gres/gpu": "1"},
    )
    assert slurm_gpus.wanted([with_gpus, without, running]) == ["1"]


def test_a_journal_without_the_columns_gets_them_and_keeps_its_rows(tmp_path: Path) -> None:
    old = Store.local("jobs", tmp_path / "jobs.sqlite", journal.MIGRATIONS[:2])
    assert old.prepare() == [1, 2]
    with old.engine.begin() as connection:
        for name in ("gpu_measured_s", "gpu_used_s"):
            connection.execute(sa.text(f"ALTER TABLE usage DROP COLUMN {name}"))
        connection.execute(
            sa.text(
                "INSERT INTO usage VALUES ('j','2026-01-02','cms','a','pilot','q','FINISHED','h200',1,2,60,50,0)"
            )
        )
    store = Store.local("jobs", tmp_path / "jobs.sqlite", journal.MIGRATIONS)
    assert store.prepare() == [3]
    with store.reading() as connection:
        (row,) = usage.rows(connection, Span("2026-01-01", "2026-01-31"))
    assert (row.gpu_allocated_s, row.gpu_measured_s, row.gpu_used_s) == (120.0, 0.0, None)


def test_the_program_beside_is_ended_and_its_end_awaited(tmp_path: Path) -> None:
    """The shell that runs the payload, with a sampler that takes its time over its last words."""
    beside = gpus.sampler(GpuSampler(library="/nonexistent"))
    assert beside is not None
    assert gpus.sampler(GpuSampler(library="")) is None
    slow = tmp_path / "slow.sh"
    slow.write_text("trap 'sleep 0.3; touch ended; exit' TERM\ntouch began\nwhile :; do sleep 0.05; done\n")
    told = type(beside)(shlex.join(["/bin/bash", str(slow)]), {})
    payload = Payload(script="while [ ! -e began ]; do sleep 0.05; done\n", beside=told)
    for name, (content, _) in session_files("job1", payload).items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(content)
    done = subprocess.run(
        ["/bin/bash", ".edged/run.sh"], cwd=tmp_path, capture_output=True, timeout=20, check=True
    )
    assert (tmp_path / "ended").exists()
    assert done.stderr == b""
