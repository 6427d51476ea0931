"""Slurm's states, reasons, host lists and refusals: tables."""

from __future__ import annotations

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from services.jobs.batch.protocol import BatchState, Cause
from services.jobs.batch.slurm.hostlist import expand
from services.jobs.batch.slurm.refusals import Verdict, clean, judge
from services.jobs.batch.slurm.states import Standing, standing

S, C = BatchState, Cause


@pytest.mark.parametrize(
    ("raw", "reason", "code", "signal", "expected"),
    [
        ("PENDING", "Priority", None, 0, Standing(S.QUEUED)),
        ("PENDING", "", None, 0, Standing(S.QUEUED)),
        ("PENDING", "Dependency", None, 0, Standing(S.QUEUED)),
        ("PENDING", "ReqNodeNotAvail, UnavailableNodes:c[1-2]", None, 0, Standing(S.QUEUED)),
        ("PENDING", "JobHeldUser", None, 0, Standing(S.HELD)),
        ("PENDING", "JobHeldAdmin", None, 0, Standing(S.HELD)),
        ("PENDING", "launch failed requeued held", None, 0, Standing(S.HELD)),
        ("PENDING", "PartitionTimeLimit", None, 0, Standing(S.QUEUED, stuck=True)),
        ("PENDING", "DependencyNeverSatisfied", None, 0, Standing(S.QUEUED, stuck=True)),
        ("PENDING", "AssocMaxWallDurationPerJobLimit", None, 0, Standing(S.QUEUED, stuck=True)),
        ("PENDING", "QOSMaxGRESPerJob", None, 0, Standing(S.QUEUED, stuck=True)),
        ("PENDING", "AssocGrpCPUMinutesLimit", None, 0, Standing(S.QUEUED, stuck=True)),
        ("PENDING", "AssocGrpCPURunMinutesLimit", None, 0, Standing(S.QUEUED)),
        ("PENDING", "AssocMaxJobsLimit", None, 0, Standing(S.QUEUED)),
        ("PENDING", "QOSMaxCpuPerUserLimit", None, 0, Standing(S.QUEUED)),
        ("REQUEUE_HOLD", "", None, 0, Standing(S.HELD)),
        ("RESV_DEL_HOLD", "", None, 0, Standing(S.HELD)),
        ("SPECIAL_EXIT", "", None, 0, Standing(S.HELD)),
        ("CONFIGURING", "None", None, 0, Standing(S.QUEUED)),
        ("REQUEUED", "", None, 0, Standing(S.QUEUED)),
        ("RUNNING", "", None, 0, Standing(S.RUNNING)),
        ("RESIZING", "", None, 0, Standing(S.RUNNING)),
        ("SIGNALING", "", None, 0, Standing(S.RUNNING)),
        ("SUSPENDED", "", None, 0, Standing(S.SUSPENDED)),
        ("STOPPED", "", None, 0, Standing(S.SUSPENDED)),
        ("COMPLETING", "", 3, 0, Standing(S.FINISHING)),
        ("STAGE_OUT", "", None, 0, Standing(S.FINISHING)),
        ("COMPLETED", "", 0, 0, Standing(S.FINISHED)),
        ("FAILED", "NonZeroExitCode", 3, 0, Standing(S.FAILED, C.EXIT)),
        ("FAILED", "", 0, 9, Standing(S.FAILED, C.SIGNAL)),
        ("FAILED", "", 0, 53, Standing(S.FAILED, C.START)),
        ("FAILED", "BadConstraints", 1, 0, Standing(S.FAILED, C.START)),
        ("OUT_OF_MEMORY", "", 0, 125, Standing(S.FAILED, C.MEMORY)),
        ("TIMEOUT", "TimeLimit", 0, 0, Standing(S.FAILED, C.TIME)),
        ("DEADLINE", "", 0, 0, Standing(S.FAILED, C.TIME)),
        ("NODE_FAIL", "", 0, 0, Standing(S.FAILED, C.SITE, may_still_run=True)),
        ("BOOT_FAIL", "", 0, 0, Standing(S.FAILED, C.SITE)),
        ("PREEMPTED", "", 0, 0, Standing(S.FAILED, C.SITE)),
        ("REVOKED", "", 0, 0, Standing(S.FAILED, C.SITE)),
        ("CANCELLED by 20001", "", 0, 0, Standing(S.KILLED, C.CANCELLED, cancelled_by=20001)),
        ("CANCELLED by 0", "", 0, 0, Standing(S.KILLED, C.CANCELLED, cancelled_by=0)),
        ("CANCELLED", "", 0, 0, Standing(S.KILLED, C.CANCELLED)),
        ("A_STATE_OF_TOMORROW", "", None, 0, Standing(S.RUNNING)),
    ],
)
def test_states(raw: str, reason: str, code: int | None, signal: int, expected: Standing) -> None:
    assert standing(raw, reason, code, signal) == expected


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("", ()),
        ("None assigned", ()),
        ("(null)", ()),
        ("vm", ("vm",)),
        ("c[1-3,07],g1", ("c1", "c2", "c3", "c07", "g1")),
        ("nid[000998-001001]", ("nid000998", "nid000999", "nid001000", "nid001001")),
        ("r[1-2]n[01-02]", ("r1n01", "r1n02", "r2n01", "r2n02")),
        ("a[1-2]-ib,b", ("a1-ib", "a2-ib", "b")),
    ],
)
def test_host_lists(text: str, names: tuple[str, ...]) -> None:
    assert expand(text) == names


@example("a[0--]")
@given(st.text(alphabet="abc019-,[]", max_size=30))
def test_any_host_list_is_survived(text: str) -> None:
    assert all(isinstance(name, str) for name in expand(text))


FAILED = "sbatch: error: Batch job submission failed: "
POLICY = "Job violates accounting/QOS policy (job submit limit, user's size and/or time limits)"


@pytest.mark.parametrize(
    ("stderr", "verdict"),
    [
        (
            f"sbatch: error: invalid partition specified: x\n{FAILED}Invalid partition name specified\n",
            "refused",
        ),
        (f"{FAILED}Requested node configuration is not available\n", "refused"),
        (f"sbatch: error: AssocGrpSubmitJobsLimit\n{FAILED}{POLICY}\n", "busy"),
        (f"sbatch: error: QOSMaxSubmitJobPerUserLimit\n{FAILED}{POLICY}\n", "busy"),
        (f"sbatch: error: AssocMaxWallDurationPerJobLimit\n{FAILED}{POLICY}\n", "refused"),
        (f"{FAILED}MaxJobCount limit reached\n", "busy"),
        (f"{FAILED}Socket timed out on send/recv operation\n", "unknown"),
        (f"{FAILED}Unable to contact slurm controller (connect failure)\n", "unknown"),
        (f"{FAILED}Zero Bytes were transmitted or received\n", "unknown"),
        (f"{FAILED}Unspecified error\n", "unknown"),
        (f"{FAILED}Something new\n", "unknown"),
        (f"{FAILED}Invalid qos specification\n{FAILED}Socket timed out on send/recv operation\n", "unknown"),
        ("sbatch: error: Slurm temporarily unable to accept job, sleeping and retrying\n", "unknown"),
        ("Invalid partition name specified\n", "unknown"),
        ("", "unknown"),
    ],
)
def test_only_a_proven_refusal_counts(stderr: str, verdict: str) -> None:
    assert judge(stderr) is Verdict(verdict)


def test_words_are_cleaned() -> None:
    assert clean("sbatch: error: a\x1b[2J\nsbatch: b\n") == "a?[2J; b"
    assert len(clean("x" * 10000)) == 500
