"""What every driver must do, as tests that its author runs.

    @pytest.fixture(scope="module")
    def subject() -> Iterator[Subject]:
        yield Subject(system=..., put=..., read=..., uid=...)

    class TestMine(Conformance):
        pass

Tests are coroutines (pytest-asyncio, auto mode). Nothing is faked: jobs run on the real batch system as the
account, and each test waits for what it looks at, with ``patience_s`` as the deadline.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar
from uuid import uuid4

import pytest

from edged.errors import Unavailable
from services.jobs.batch import script
from services.jobs.batch.protocol import (
    BatchJob,
    BatchRef,
    BatchState,
    BatchSystem,
    Cause,
    Dependency,
    GpuRequest,
    Refused,
    Submission,
)
from services.jobs.batch.script import Files, Payload

T = TypeVar("T")

QUIET_S = 9.0  # longer than a driver takes for "just now"

HOSTILE = (
    "plain", "", " two  words ", "new\nline", "tab\tand\rreturn", "$(touch owned)", "`touch owned`", "'\"\\",
    "; touch owned", "-rf", "*", "~", "${HOME}", "\x1b[2J", "é漢字", "#SBATCH --time=1", "a" * 5000,
)  # fmt: skip


@dataclass
class Subject:
    """A driver under test and what the suite needs to know of its surroundings.

    ``put(job, files)`` writes a session's files as the account, ``read(job, name)`` reads one back (None: it
    is not there). ``base`` has whatever every submission needs (partition …). ``fillers`` submissions like
    ``filler`` leave no room for another. ``impossible``: one the batch system refuses.
    ``shortest_walltime_s``: the least time limit it enforces.
    """

    system: BatchSystem
    put: Callable[[str, Files], object]
    read: Callable[[str, str], bytes | None]
    uid: int
    grant: bytes = b""
    base: dict[str, Any] = field(default_factory=dict)
    filler: dict[str, Any] = field(default_factory=dict)
    fillers: int = 1
    impossible: dict[str, Any] = field(default_factory=dict)
    gpu: dict[str, Any] | None = None
    dependencies: bool = True
    shortest_walltime_s: int = 60
    patience_s: float = 60.0

    def job(self) -> str:
        """A new job id."""
        return f"c{uuid4().hex[:12]}"

    def submission(self, job: str, **asked: Any) -> Submission:
        return Submission(job=job, **{**self.base, **asked})

    async def submit(self, payload: Payload, job: str = "", **asked: Any) -> BatchRef:
        job = job or self.job()
        self.put(job, script.session_files(job, payload))
        return (await self.system.submit(self.grant, self.submission(job, **asked))).ref

    async def shell(self, text: str, job: str = "", **asked: Any) -> BatchRef:
        """Submit a script whose output goes to ``out`` and ``err``."""
        return await self.submit(Payload(script=text, stdout="out", stderr="err"), job, **asked)

    async def final(self, ref: BatchRef) -> BatchJob:
        """The job's final facts, once accounting has them."""

        seen: list[BatchJob] = []

        async def look() -> BatchJob | None:
            seen[:] = await self.system.finals(self.grant, [ref])
            return seen[0] if seen and seen[0].state.final else None

        return await self.until(look, f"{ref.name} ended", seen)

    async def seen(self, ref: BatchRef, *states: BatchState) -> BatchJob:
        """The job as swept, once it is in one of ``states``."""

        seen: list[BatchJob] = []

        async def look() -> BatchJob | None:
            seen[:] = [job for job in (await self.system.sweep(self.grant)).jobs() if job.ref.same(ref)]
            return next((job for job in seen if job.state in states), None)

        return await self.until(look, f"{ref.name} in {states}", seen)

    async def until(
        self, look: Callable[[], Awaitable[T | None]], what: str, seen: Sequence[BatchJob] = ()
    ) -> T:
        """What ``look`` finds; that the batch system cannot answer now, which any call may say, is no end.

        Raises TimeoutError with what was ``seen`` last, from the last of such answers.
        """
        end = time.monotonic() + self.patience_s
        refusal: Unavailable | None = None
        while True:
            try:
                found = await look()
            except Unavailable as error:
                found, refusal = None, error
            if found is not None:
                return found
            if time.monotonic() > end:
                raise TimeoutError(f"{what}; seen last: {list(seen)}") from refusal
            await asyncio.sleep(0.1)

    def output(self, ref: BatchRef, name: str = "out") -> str:
        content = self.read(ref.name.removeprefix("edged-"), name)
        assert content is not None, f"{name} is not there"
        return content.decode()

    async def walltime_job(self) -> BatchRef:
        """A job that will be killed at its time limit."""
        return await self.shell("sleep 600", walltime_s=self.shortest_walltime_s)


class Conformance:
    """The suite."""

    async def test_a_job_runs_to_its_end(self, subject: Subject) -> None:
        before = time.time()
        ref = await subject.shell('echo "I am $EDGED_JOB_ID"; echo bad >&2')
        done = await subject.final(ref)
        assert (done.state, done.cause, done.exit_code) == (BatchState.FINISHED, Cause.NONE, 0)
        assert done.ref.same(ref)
        assert subject.output(ref) == f"I am {ref.name.removeprefix('edged-')}\n"
        assert subject.output(ref, "err") == "bad\n"
        assert done.nodes
        assert done.started_at and done.ended_at and before - 2 <= done.started_at <= done.ended_at + 1

    async def test_exit_codes_are_kept(self, subject: Subject) -> None:
        refs = [await subject.shell(f"exit {code}") for code in (7, 128, 255)]
        for code, ref in zip((7, 128, 255), refs, strict=True):
            done = await subject.final(ref)
            assert (done.state, done.cause, done.exit_code) == (BatchState.FAILED, Cause.EXIT, code)

    async def test_a_signal_is_a_failure(self, subject: Subject) -> None:
        """The payload runs below a shell, which tells of a signal as 128 + its number."""
        done = await subject.final(await subject.shell("kill -9 $$"))
        assert done.state is BatchState.FAILED
        assert done.exit_code == 137 or done.signal == 9

    async def test_a_running_job_is_cancelled(self, subject: Subject) -> None:
        ref = await subject.shell("echo started; sleep 300 && echo survived")
        await subject.seen(ref, BatchState.RUNNING)
        await subject.system.cancel(subject.grant, ref)
        done = await subject.final(ref)
        assert (done.state, done.cause, done.cancelled_by) == (
            BatchState.KILLED,
            Cause.CANCELLED,
            subject.uid,
        )
        assert "survived" not in (subject.read(ref.name.removeprefix("edged-"), "out") or b"").decode()
        await subject.system.cancel(subject.grant, ref)  # gone already: no error

    async def test_a_waiting_job_is_cancelled_and_never_runs(self, subject: Subject) -> None:
        fillers = [await subject.shell("sleep 300", **subject.filler) for _ in range(subject.fillers)]
        try:
            for filler in fillers:
                await subject.seen(filler, BatchState.RUNNING)
            ref = await subject.shell("echo ran")
            await subject.seen(ref, BatchState.QUEUED)
            await subject.system.cancel(subject.grant, ref)
            done = await subject.final(ref)
        finally:
            for filler in fillers:
                await subject.system.cancel(subject.grant, filler)
        assert done.state is BatchState.KILLED
        assert subject.read(ref.name.removeprefix("edged-"), "out") is None
        for filler in fillers:
            await subject.final(filler)

    async def test_jobs_are_found_by_name(self, subject: Subject) -> None:
        job, since = subject.job(), time.time() - 5
        assert await subject.system.find(subject.grant, job, since) == []
        ref = await subject.shell("exit 0", job)
        found = await subject.system.find(subject.grant, job, since)
        assert [one.ref.id for one in found] == [ref.id]
        await subject.final(ref)
        found = await subject.system.find(subject.grant, job, since)
        assert [(one.ref.id, one.state) for one in found] == [(ref.id, BatchState.FINISHED)]

    async def test_unknown_and_foreign_refs_are_missing(self, subject: Subject) -> None:
        ref = await subject.shell("exit 0")
        await subject.final(ref)
        unknown = BatchRef(
            ref.cluster, "66666666", 0.0, "edged-nobody"
        )  # Slurm has no number above 67,108,863
        impostor = BatchRef(ref.cluster, ref.id, ref.submitted_at, "edged-somebodyelse")
        assert await subject.system.finals(subject.grant, [unknown, impostor]) == []
        await subject.system.cancel(subject.grant, unknown)

    async def test_a_duplicate_exits_at_once(self, subject: Subject) -> None:
        """However often a job is submitted, its payload runs once."""
        job = subject.job()
        first = await subject.shell("echo ran >>runs; sleep 2", job)
        second = (await subject.system.submit(subject.grant, subject.submission(job))).ref
        ends = [await subject.final(ref) for ref in (first, second)]
        assert subject.output(first, "runs") == "ran\n"
        if second != first:
            assert sorted(end.exit_code or 0 for end in ends) == [0, script.EXIT_DUPLICATE]

    async def test_hostile_arguments_and_environment_arrive_unchanged(self, subject: Subject) -> None:
        environment = {f"H{number}": text for number, text in enumerate(HOSTILE)}
        text = 'printf "%s\\0" "$@"; ' + "; ".join(f'printf "%s\\0" "$H{n}"' for n in range(len(HOSTILE)))
        payload = Payload(script=text, arguments=HOSTILE, environment=environment, stdout="out")
        ref = await subject.submit(payload)
        assert (await subject.final(ref)).exit_code == 0
        assert subject.output(ref).split("\0")[:-1] == [*HOSTILE, *HOSTILE]
        assert subject.read(ref.name.removeprefix("edged-"), "owned") is None

    async def test_directives_and_batch_variables_have_no_effect(self, subject: Subject) -> None:
        text = "#!/bin/bash\n#SBATCH --job-name=stolen\n#SBATCH --output=stolen\n#PBS -N stolen\nexit 0\n"
        environment = {"SBATCH_JOB_NAME": "stolen", "SLURM_JOB_NAME": "stolen", "EDGED_JOB_ID": "stolen"}
        ref = await subject.submit(Payload(script=text, environment=environment, stdout="out"))
        done = await subject.final(ref)
        assert (done.ref.name, done.exit_code) == (ref.name, 0)
        assert subject.read(ref.name.removeprefix("edged-"), "stolen") is None

    async def test_streams_go_where_they_should(self, subject: Subject) -> None:
        job = subject.job()
        subject.put(job, {"in put": (b"from a file\n", 0o600)})
        payload = Payload(
            executable="/bin/sh",
            arguments=("-c", "cat; echo two >&2"),
            stdin="in put",
            stdout="a b/c",
            join=True,
        )
        ref = await subject.submit(payload, job)
        await subject.final(ref)
        assert subject.output(ref, "a b/c") == "from a file\ntwo\n"

    async def test_an_uploaded_program_runs(self, subject: Subject) -> None:
        job = subject.job()
        subject.put(job, {"-my prog": (b'#!/bin/sh\necho "got $1"\n', 0o600)})
        ref = await subject.submit(Payload(executable="-my prog", arguments=("x y",), stdout="out"), job)
        await subject.final(ref)
        assert subject.output(ref) == "got x y\n"

    async def test_the_outcome_is_written_beside(self, subject: Subject) -> None:
        ref = await subject.shell("exit 5")
        await subject.final(ref)
        outcome = script.read_outcome(subject.output(ref, str(script.OUTCOME)).encode())
        assert outcome is not None and outcome.exit_code == 5

    async def test_sweeps_tell_what_changed(self, subject: Subject) -> None:
        before = await subject.system.sweep(subject.grant)
        ref = await subject.shell("exit 0")
        await subject.seen(ref, BatchState.FINISHED)
        after = await subject.system.sweep(subject.grant)
        assert ref.id in {job.ref.id for job in after.since(before).changed}
        assert ref.name in after.since(None).gone | {job.ref.name for job in after.since(None).changed}
        assert ref.name in before.since(after).gone
        assert not after.since(after).changed

    async def test_a_job_stays_in_sight_while_nothing_changes(self, subject: Subject) -> None:
        """What answers "nothing new" must not be taken for "nothing there"."""
        ref = await subject.shell("sleep 300")
        await subject.seen(ref, BatchState.RUNNING)
        end = time.monotonic() + QUIET_S
        while time.monotonic() < end:
            found = await subject.system.sweep(subject.grant)
            assert ref.name in {job.ref.name for job in found.jobs()}
            await asyncio.sleep(0.5)
        await subject.system.cancel(subject.grant, ref)

    async def test_dependents_wait_or_are_cancelled(self, subject: Subject) -> None:
        if not subject.dependencies:
            pytest.skip("the batch system has no dependencies")
        first = await subject.shell("sleep 1; date +%s.%N; exit 1")
        anyway = await subject.shell("date +%s.%N", after=(Dependency(first, ok=False),))
        never = await subject.shell("date", after=(Dependency(first),))
        assert (await subject.final(anyway)).state is BatchState.FINISHED
        assert float(subject.output(anyway)) > float(subject.output(first))
        assert (await subject.final(never)).state is BatchState.KILLED

    async def test_the_impossible_is_refused(self, subject: Subject) -> None:
        job = subject.job()
        with pytest.raises(Refused) as refusal:
            await subject.shell("exit 0", job, **subject.impossible)
        assert refusal.value.message

    async def test_gpus_are_given(self, subject: Subject) -> None:
        if subject.gpu is None:
            with pytest.raises(Refused):
                await subject.shell("exit 0", gpus=GpuRequest("gpu:none", 1))
            return
        ref = await subject.shell('echo "$CUDA_VISIBLE_DEVICES"', **subject.gpu)
        await subject.final(ref)
        asked = subject.gpu["gpus"]
        assert isinstance(asked, GpuRequest)
        assert len(subject.output(ref).strip().split(",")) == asked.count

    async def test_the_site_is_described(self, subject: Subject) -> None:
        state = await subject.system.site(subject.grant)
        assert state.cluster and state.partitions
        assert any(part.up and part.nodes_usable for part in state.partitions)
        assert all(0 <= part.cpus_free <= part.cpus for part in state.partitions)

    async def test_the_time_limit_ends_a_job(self, subject: Subject) -> None:
        ref = await subject.walltime_job()
        done = await subject.final(ref)
        assert (done.state, done.cause) == (BatchState.FAILED, Cause.TIME)
