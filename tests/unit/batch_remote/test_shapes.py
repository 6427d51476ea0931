"""slurmrestd's requests and answers, by version, and the clusters' configuration."""

from __future__ import annotations

from pathlib import Path, PurePosixPath
from typing import Any

import pytest

from edged.config import warnings
from edged.config.load import parse
from edged.errors import ConfigError
from services.jobs.batch.protocol import BatchState, Cause, GpuRequest, Submission
from services.jobs.batch.slurmrest import reading, shapes
from services.jobs.batch.slurmrest.wire import Told
from services.jobs.batch.ssh.logins import address

ASKED = Submission(
    job="j1", partition="gpu", memory_per_node=(100 << 20) + 1, walltime_s=61, exclusive=True,
    gpus=GpuRequest("gpu:h200", 2), nodes=2,
)  # fmt: skip
SESSION = PurePosixPath("/scratch/a%b/j1")


@pytest.mark.parametrize("version", shapes.KNOWN)
def test_every_version_asks_for_the_same(version: str) -> None:
    body = shapes.request(version, ASKED, SESSION, "cmsprd")
    job: dict[str, Any] = body["job"]
    assert (job["name"], job["partition"]) == ("edged-j1", "gpu")
    assert job["standard_output"] == "/scratch/a%%b/j1/.edged/batch.log"
    assert reading.number(job["time_limit"]) == 2 and reading.number(job["memory_per_node"]) == 101
    text = body.get("script") or job["script"]
    assert text.startswith("#!/bin/bash\n") and "/scratch/a%b/j1" in text
    new = shapes.number(version) >= 39
    assert isinstance(job["environment"], list if new else dict)
    assert ("requeue" in job, job.get("requeue" if new else "no_requeue")) == (new, not new)
    assert job["tres_per_node" if new else "gres"] == ("gres/gpu:h200:2" if new else "gpu:h200:2")


def test_the_newest_version_of_both() -> None:
    assert shapes.newest(["/slurm/v0.0.37/jobs", "/slurm/v0.0.38/jobs", "/slurmdb/v0.0.40/jobs"]) == "v0.0.38"
    assert shapes.newest(["/slurm/v0.0.44/jobs", "/slurm/v0.0.99/jobs"]) == "v0.0.44"
    assert shapes.newest(["/slurm/v0.0.36/jobs"]) is None


@pytest.mark.parametrize(
    ("told", "unchanged"),
    [
        (Told(304, b""), True),  # v0.0.38
        (Told(200, b'{"jobs":[],"warnings":[{"description":"No job changes since"}],"errors":[]}'), True),
        (Told(200, b'{"jobs":[],"last_update":{"set":true,"number":0},"errors":[]}'), True),
        (Told(200, b'{"jobs":[],"last_update":{"set":true,"number":1795234672},"errors":[]}'), False),
        (Told(200, b'{"jobs":[{"job_id":1}],"last_update":{"set":true,"number":5},"errors":[]}'), False),
        (Told(200, b'{"jobs":[],"errors":[{"error_number":5004}]}'), False),
        (Told(500, b'{"jobs":[]}'), False),
        (Told(200, b"not JSON"), False),
    ],
)
def test_nothing_new_is_not_nothing_there(told: Told, unchanged: bool) -> None:
    """As slurmrestd 22.05, 23.11, 24.11 and 26.05 answer ``update_time``."""
    assert reading.unchanged(told) is unchanged


def test_times_are_asked_for_as_each_version_takes_them() -> None:
    assert [shapes.moment(f"v0.0.{n}", 5.9) for n in (38, 39, 40, 45)] == ["5", "5", "uts5", "uts5"]


@pytest.mark.parametrize(
    ("told", "expected"),
    [
        (768, (3, 0)),  # v0.0.38: a wait status
        ({"set": True, "infinite": False, "number": 9}, (0, 9)),  # v0.0.39
        (
            {"return_code": {"set": True, "number": 255}, "signal": {"id": {"set": False}}},
            (255, 0),
        ),  # v0.0.40
        (None, (None, 0)),
    ],
)
def test_exit_codes_of_live_jobs(told: Any, expected: tuple[int | None, int]) -> None:
    found = reading.live(reading.Live(job_id=1, job_state="FAILED", exit_code=told), "x")
    assert (found.exit_code, found.signal) == expected


@pytest.mark.parametrize(
    ("state", "exit_code", "expected"),
    [
        ("COMPLETED", {"return_code": 0}, (BatchState.FINISHED, Cause.NONE, 0)),
        (["FAILED"], {"return_code": {"set": True, "number": 3}}, (BatchState.FAILED, Cause.EXIT, 3)),
        (["TIMEOUT"], {"return_code": {"set": True, "number": 0}}, (BatchState.FAILED, Cause.TIME, 0)),
        (
            "FAILED",
            {"signal": {"signal_id": 9}, "return_code": None},
            (BatchState.FAILED, Cause.SIGNAL, None),
        ),
        (["CANCELLED"], {}, (BatchState.KILLED, Cause.CANCELLED, None)),
        (["RUNNING", "COMPLETING"], {}, (BatchState.FINISHING, Cause.NONE, None)),
    ],
)
def test_ends_of_every_version(state: Any, exit_code: Any, expected: Any) -> None:
    row = {
        "job_id": 5, "name": "edged-j1", "state": {"current": state, "reason": "None"}, "exit_code": exit_code,
        "time": {"submission": 1, "start": {"set": True, "number": 2}, "end": 3}, "nodes": "c[1-2]",
        "kill_request_user": "cmsprd",
    }  # fmt: skip
    found = reading.remembered(row, "x", {"cmsprd": 20001})
    assert (found.state, found.cause, found.exit_code) == expected
    assert found.cancelled_by == (20001 if found.cause is Cause.CANCELLED else None)


def test_login_addresses() -> None:
    assert [address(text) for text in ("a.b", "a:23", "[::1]:24", "[::1]")] == [
        ("a.b", 22), ("a", 23), ("::1", 24), ("::1", 22)
    ]  # fmt: skip


SSH = {
    "name": "far",
    "kind": "ssh",
    "login": ["l1"],
    "host_keys": ["ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIJdD7y3aLq454yWBdwLWbieU1ebz9/cu7/QEXn9OIeZJ"],
    "sessions": "/s/{account}",
}
REST = {"name": "r", "kind": "slurmrest", "url": "unix:/x", "jwt_key": "/k", "sessions": "/s/{account}"}


@pytest.mark.parametrize(
    ("cluster", "told"),
    [
        ({**SSH, "host_keys": []}, "jobs.cluster[0]: host_keys: pin them"),
        ({**SSH, "sessions": "/shared"}, "jobs.cluster[0].sessions: needs {account}"),
        ({**SSH, "login": ["two words"]}, "jobs.cluster[0].login[0]: not a login node"),
        ({**SSH, "logins": []}, "jobs.cluster[0].logins: unknown key"),
        (
            {**SSH, "host_keys": ["ssh-ed25519 AAAA"]},
            "jobs.cluster[0].host_keys[0]: not a whole ssh-ed25519 key",
        ),
        (
            {**SSH, "host_keys": ["ssh-rsa AAAAC3NzaC1lZDI1NTE5AAAA"]},
            "jobs.cluster[0].host_keys[0]: not a whole",
        ),
        ({**SSH, "source_addresses": ["10.0.0.0/33"]}, "jobs.cluster[0].source_addresses[0]: not an address"),
        ({**SSH, "known_hosts": "/no/such"}, "jobs.cluster[0].known_hosts: no such file"),
        ({**REST, "ca_file": "/no/such"}, "jobs.cluster[0].ca_file: not PEM certificates"),
        ({**REST, "ca_file": "/etc/hostname"}, "jobs.cluster[0].ca_file: not PEM certificates"),
        ({**REST, "url": "http://far:6820"}, "jobs.cluster[0].url: write unix:"),
        ({**REST, "sessions_by": "nobody"}, "jobs.cluster[0].sessions_by: no [[jobs.cluster]]"),
    ],
)
def test_wrong_clusters_are_told_by_path(cluster: dict[str, Any], told: str) -> None:
    with pytest.raises(ConfigError) as error:
        parse({"site": {"name": "X"}, "jobs": {"cluster": [cluster]}})
    assert any(problem.startswith(told) for problem in error.value.problems), error.value.problems


def test_what_will_not_work_yet_is_warned_of() -> None:
    """A jwt_key that is not there, keys without a directory: a service can start, its cluster cannot work."""
    clusters = [REST, {**SSH, "keys": "/no/such/directory/{account}"}]
    config = parse({"site": {"name": "X"}, "jobs": {"cluster": clusters}})
    told = [text for text in warnings(config) if text.startswith("jobs.cluster")]
    assert [text.partition(":")[0] for text in told] == [
        "jobs.cluster[0].jwt_key", "jobs.cluster[1].keys", "jobs.cluster[1].keys"
    ]  # fmt: skip


def test_a_site_with_nothing_but_ssh() -> None:
    """The example of the README."""
    import tomllib

    text = (Path(shapes.__file__).parents[1] / "README.md").read_text()
    example = text.partition("```toml\n")[2].partition("```")[0]
    config = parse({"site": {"name": "X"}, **tomllib.loads(example)})
    assert config.jobs is not None and [one.kind for one in config.jobs.clusters] == ["ssh"]
