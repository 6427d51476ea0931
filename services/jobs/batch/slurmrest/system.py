"""The ``slurmrest`` batch system. See ``protocol.BatchSystem`` for what each call promises."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from pathlib import PurePosixPath
from typing import TypeVar

import msgspec

from edged.config.batch import SlurmRestCluster
from edged.errors import Busy, Unavailable, UnknownOutcome
from edged.identity.grants import peek
from services.jobs.batch.protocol import (
    NAME_PREFIX,
    BatchJob,
    BatchRef,
    Cause,
    Refused,
    SiteState,
    Submission,
    Submitted,
    Sweep,
    session_directory,
    unique_name,
)
from services.jobs.batch.slurm.driver import latest
from services.jobs.batch.slurm.refusals import BUSY, REFUSALS
from services.jobs.batch.slurmrest import reading, shapes
from services.jobs.batch.slurmrest.rest import Rest
from services.jobs.batch.slurmrest.wire import Told

T = TypeVar("T")

CLOCKS_S = 5.0  # how far slurmctld's clock may be from ours before a change could be overlooked for a while
WHOLE_S = 30.0  # a listing is taken anew at least this often
LOOKUPS = 8
INVALID_JOB = frozenset({2017, 2139})  # no such job; a number that no job can have
UNKNOWN_KEY = 9001
EARLIEST = 1_000_000_000

# "Job violates accounting/QOS policy" also stands for a full submit limit, which passes; the reason is not told
_LIMITS = "Job violates accounting/QOS policy (job submit limit, user's size and/or time limits)"

_encode = msgspec.msgpack.Encoder().encode
_read = msgspec.msgpack.Decoder(BatchJob).decode


class SlurmRest:
    """One cluster behind a slurmrestd."""

    def __init__(self, cluster: SlurmRestCluster, rest: Rest) -> None:
        self.name = cluster.name
        self._settings = cluster
        self._rest = rest
        self._cluster = cluster.cluster or cluster.name
        self._uids: dict[str, int] = {"root": 0}
        self._listed: dict[tuple[str, ...], tuple[float, frozenset[bytes]]] = {}

    async def submit(self, grant: bytes, submission: Submission) -> Submitted:
        account = peek(grant).account
        sessions = PurePosixPath(self._settings.sessions.replace("{account}", account))
        session = session_directory(sessions, submission.job)
        version = await self._rest.version(grant)
        told = await self._rest.submit(grant, shapes.request(version, submission, session, account))
        answer = _decoded(told, reading.Submitted)
        if told.status == 200 and answer is not None and answer.job_id:
            # errors may stand beside the id: the job waits, e.g. because all nodes it could have are down (2068)
            return Submitted(BatchRef(self._cluster, str(answer.job_id), 0.0, submission.name))
        raise _refusal(told, answer.errors if answer else [])

    async def find(self, grant: bytes, job: str, since: float) -> Sequence[BatchJob]:
        name, account = unique_name(job), peek(grant).account
        found = {one.ref.id: one for one in await self._live(grant, (account,)) if one.ref.name == name}
        if self._settings.accounting:
            begin = f"uts{max(int(since), EARLIEST)}"
            for more in ({}, {"state": "CANCELLED", "end_time": "now"}):
                rows = await self._rows(grant, "jobs", job_name=name, start_time=begin, **more)
                for row in rows:
                    if row.state.final and row.ref.name == name:
                        found.setdefault(row.ref.id, row)
        return list(found.values())

    async def sees_all(self, grant: bytes) -> bool:
        return self._settings.accounting

    async def sweep(self, grant: bytes, accounts: Sequence[str] = ()) -> Sweep:
        """The whole listing, or "nothing has changed", which costs next to nothing."""
        owners = tuple(accounts) or (peek(grant).account,)
        taken_at = time.time()
        at, records = self._listed.get(owners, (0.0, frozenset[bytes]()))
        if taken_at - at < WHOLE_S:
            since = shapes.moment(await self._rest.version(grant), at - CLOCKS_S)
            told = await self._rest.get(grant, "slurm", "jobs", update_time=since)
            if reading.unchanged(told):
                return Sweep(taken_at, records, _read)
        else:
            told = await self._rest.get(grant, "slurm", "jobs")
        records = frozenset(_encode(job) for job in self._ours(told, owners))
        self._listed[owners] = (taken_at, records)
        return Sweep(taken_at, records, _read)

    async def finals(self, grant: bytes, refs: Sequence[BatchRef]) -> Sequence[BatchJob]:
        turn = asyncio.Semaphore(LOOKUPS)

        async def look(ref: BatchRef) -> list[BatchJob]:
            async with turn:
                if not self._settings.accounting:
                    return latest([ref], await self._now(grant, ref))
                rows = latest([ref], await self._rows(grant, f"job/{ref.id}"))
                return [await self._corrected(grant, row) for row in rows]

        found = await asyncio.gather(*(look(ref) for ref in refs))
        return [job for jobs in found for job in jobs]

    async def _now(self, grant: bytes, ref: BatchRef) -> list[BatchJob]:
        """What slurmctld knows under the id, when the name is ours."""
        told = await self._rest.get(grant, "slurm", f"job/{ref.id}")
        return [job for job in self._ours(told, missing=True) if job.ref.name == ref.name]

    async def _corrected(self, grant: bytes, row: BatchJob) -> BatchJob:
        """Accounting takes 128 off exit codes; for MinJobAge slurmctld still knows the true one."""
        if row.cause is not Cause.EXIT:
            return row
        try:
            live = await self._now(grant, row.ref)
        except Unavailable:
            return row
        code = next((job.exit_code for job in live), None)
        return row if code is None else msgspec.structs.replace(row, exit_code=code)

    async def cancel(self, grant: bytes, ref: BatchRef) -> None:
        """By id, once the name was seen to be ours: ids are given out again."""
        mine = await self._now(grant, ref)
        if not mine or mine[0].state.final:
            return
        told = await self._rest.delete(grant, f"job/{ref.id}")
        answer = _decoded(told, reading.Jobs)
        if told.status != 200 and not (answer and any(f.code in INVALID_JOB for f in answer.errors)):
            raise Unavailable(
                "slurmrestd did not cancel", detail=_words(told, answer.errors if answer else [])
            )

    async def site(self, grant: bytes) -> SiteState:
        rows = _must(await self._rest.get(grant, "slurm", "partitions"), _Partitions)
        nodes = _must(await self._rest.get(grant, "slurm", "nodes"), _Nodes)
        return SiteState(
            taken_at=time.time(),
            cluster=self._cluster,
            version=_release(rows.meta),
            partitions=tuple(reading.partitions(rows.partitions, nodes.nodes)),
        )

    async def _live(self, grant: bytes, owners: tuple[str, ...]) -> list[BatchJob]:
        return self._ours(await self._rest.get(grant, "slurm", "jobs"), owners)

    def _ours(
        self, told: Told, owners: tuple[str, ...] | None = None, *, missing: bool = False
    ) -> list[BatchJob]:
        """Jobs with our names that belong to ``owners``: anybody may give a job such a name.

        Without ``owners``: of anybody, for who already knows the job's id.

        ``missing``: an unknown job id is an empty answer.
        """
        answer = _decoded(told, reading.Jobs)
        if missing and answer is not None and any(fault.code in INVALID_JOB for fault in answer.errors):
            return []
        if told.status != 200 or answer is None:
            raise Unavailable(
                "slurmrestd did not answer", detail=_words(told, answer.errors if answer else [])
            )
        found = []
        for job in answer.jobs:
            if job.user_name:
                self._uids[job.user_name] = job.user_id
            if (owners is None or job.user_name in owners) and (job.name or "").startswith(NAME_PREFIX):
                found.append(reading.live(job, self._cluster))
        return found

    async def _rows(self, grant: bytes, path: str, **query: str) -> list[BatchJob]:
        """Jobs as accounting has them. Raises Unavailable."""
        told = await self._rest.get(grant, "slurmdb", path, **query)
        answer = _decoded(told, reading.Remembered)
        if told.status != 200 or answer is None:
            raise Unavailable(
                "accounting did not answer", detail=_words(told, answer.errors if answer else [])
            )
        try:
            return [
                reading.remembered(row, self._cluster, self._uids)
                for row in answer.jobs
                if self._settings.cluster in ("", row.get("cluster"))
            ]
        except (KeyError, TypeError, ValueError) as error:
            raise Unavailable("accounting answers what is no answer", detail=repr(error)) from error


class _Partitions(msgspec.Struct):
    partitions: list[dict[str, object]] = []
    meta: dict[str, object] = {}


class _Nodes(msgspec.Struct):
    nodes: list[reading.Place] = []


def _refusal(told: Told, faults: list[reading.Fault]) -> Exception:
    """What an answer without a job's id proves."""
    words = _words(told, faults)
    texts = {fault.error for fault in faults if fault.error}
    codes = {fault.code for fault in faults}
    if len(texts) == 1:
        text = texts.pop()
        if text in BUSY or text == _LIMITS:
            return Busy(words, retry_after_s=60.0)
        if text in REFUSALS:
            return Refused(words)
    if told.status == 400 and UNKNOWN_KEY in codes:
        return Refused(words)
    if told.status == 401:
        return Busy("slurmrestd did not take our token", retry_after_s=5.0, detail=words)
    return UnknownOutcome("it is not known whether Slurm has the job", detail=words)


def _faults(faults: list[reading.Fault]) -> list[reading.Fault]:
    return [fault for fault in faults if fault.code or fault.error]


def _words(told: Told, faults: list[reading.Fault]) -> str:
    said = "; ".join(f"{fault.error or fault.description} ({fault.code})" for fault in _faults(faults))
    printable = "".join(c if " " <= c <= "~" else "?" for c in said)
    return printable[:500] or f"HTTP {told.status}"


def _decoded(told: Told, kind: type[T]) -> T | None:
    try:
        return msgspec.json.decode(told.body, type=kind)
    except msgspec.MsgspecError:
        return None


def _must(told: Told, kind: type[T]) -> T:
    found = _decoded(told, kind) if told.status == 200 else None
    if found is None:
        raise Unavailable("slurmrestd did not answer", detail=f"HTTP {told.status}")
    return found


def _release(meta: dict[str, object]) -> str:
    """Slurm's own version."""
    about = meta.get("Slurm") or meta.get("slurm")
    return str(about.get("release", "")) if isinstance(about, dict) else ""
