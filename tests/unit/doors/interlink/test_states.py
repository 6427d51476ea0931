"""What Kubernetes is told of a job: each end with its cause, and records that a job could have written."""

from __future__ import annotations

import ast
from importlib.resources import files
from typing import Any

import msgspec
import pytest

from edged.identity.words import AccountName, IssuerUrl, JobClass, JobId, Principal, VoName
from services.jobs.doors.interlink.pods import AskedPod
from services.jobs.doors.interlink.records import ContainerRecord, PodRecord
from services.jobs.doors.interlink.status import pod_status
from services.jobs.model import Job, State

ASKED = msgspec.convert(
    {"metadata": {"name": "p", "namespace": "ns", "uid": "u"}, "spec": {"containers": [{"name": "main"}]}},
    type=AskedPod,
)
OWNER = Principal(issuer=IssuerUrl("https://issuer.test/"), subject="vk", vo=VoName("cms"))


def job(state: State, **facts: Any) -> Job:
    known: dict[str, Any] = {"started_at": 1000.0, "ended_at": 4600.0, "nodes": ("n1",), **facts}
    return Job(
        id=JobId("j"), owner=OWNER, account=AccountName("a"), vo=VoName("cms"), job_class=JobClass.CHAOTIC,
        queue="cpu", batch="slurm", state=state, **known,
    )  # fmt: skip


def state_of(of: Job, record: PodRecord | None = None) -> dict[str, dict[str, object]]:
    found = pod_status(ASKED, of, record)
    assert found is not None
    decoded: dict[str, dict[str, object]] = msgspec.json.decode(
        msgspec.json.encode(found.containers[0].state)
    )
    assert len(decoded) == 1, "exactly one state"
    return decoded


@pytest.mark.parametrize(
    ("cause", "raw", "facts", "code", "reason"),
    [
        ("time", "TIMEOUT", {}, 143, "DeadlineExceeded"),
        ("memory", "OUT_OF_MEMORY", {"exit_code": 0}, 137, "OOMKilled"),
        ("site", "NODE_FAIL", {"exit_code": 0}, 143, "NodeLost"),
        ("signal", "FAILED", {"signal": 11}, 139, "Error"),
        ("refused", "", {"started_at": None}, 1, "Refused"),
        ("exit", "FAILED", {"exit_code": 7}, 7, "Error"),
    ],
)
def test_ends_that_the_container_did_not_tell(
    cause: str, raw: str, facts: dict[str, object], code: int, reason: str
) -> None:
    ended = state_of(job(State.FAILED, cause=cause, raw_state=raw, reason="because", **facts))["terminated"]
    assert (ended["exitCode"], ended["reason"]) == (code, reason)
    assert "because" in str(ended["message"])
    assert raw in str(ended["message"])


def test_the_nodes_and_the_time_are_told() -> None:
    ended = state_of(job(State.FAILED, cause="time", raw_state="TIMEOUT", reason="over its walltime"))[
        "terminated"
    ]
    assert ended["message"] == "TIMEOUT: over its walltime, after 3600 s on n1"


def test_waiting_says_why() -> None:
    found = state_of(job(State.QUEUED, reason="Priority", started_at=None, ended_at=None))
    assert found == {"waiting": {"reason": "Pending", "message": "queued in cpu: Priority"}}


def test_a_job_that_runs_is_not_yet_its_container() -> None:
    running = job(State.RUNNING, ended_at=None)
    assert "waiting" in state_of(running)
    record = PodRecord({"main": ContainerRecord(state="running", started=1001.0)})
    assert state_of(running, record) == {"running": {"startedAt": "1970-01-01T00:16:41Z"}}


def test_what_a_job_wrote_is_not_believed() -> None:
    record = ContainerRecord(
        state="terminated", exit=-(1 << 40), started=1e300, ended=-1e300, restarts=1 << 60
    )
    found = pod_status(ASKED, job(State.FINISHED), PodRecord({"main": record}))
    assert found is not None
    one = found.containers[0]
    assert one.state.terminated is not None
    assert 0 <= one.state.terminated.exit_code <= 255
    assert one.state.terminated.started_at == "1970-01-01T00:00:00Z"
    assert one.restart_count < 1 << 31


def test_a_question_without_containers_gets_no_answer() -> None:
    asked = msgspec.convert({"metadata": {"name": "p"}, "spec": {"containers": None}}, type=AskedPod)
    assert pod_status(asked, job(State.RUNNING), None) is None


def test_the_nodes_part_is_python_3_6_and_its_library() -> None:
    allowed = {
        "json",
        "os",
        "select",
        "shutil",
        "signal",
        "subprocess",
        "sys",
        "tempfile",
        "time",
        "typing",
        "zipfile",
    }
    for file in (files("services.jobs.doors.interlink") / "node").iterdir():
        if not file.name.endswith(".py"):
            continue
        tree = ast.parse(file.read_text(), feature_version=(3, 6))
        for node in ast.walk(tree):
            if isinstance(node, ast.Import):
                assert {alias.name for alias in node.names} <= allowed, file.name
            elif isinstance(node, ast.ImportFrom):
                assert node.level == 1 or node.module in allowed, file.name


@pytest.mark.parametrize("field", ["exit", "restarts"])
def test_numbers_that_clients_cannot_read_are_no_record(field: str) -> None:
    """One answer holds many pods: theirs must not be lost with this one's."""
    written = f'{{"containers": {{"main": {{"state": "terminated", "{field}": 4294967296}}}}}}'
    with pytest.raises(msgspec.ValidationError):
        msgspec.json.decode(written, type=PodRecord)
