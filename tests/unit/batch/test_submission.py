"""What is asked of sbatch, and what the files of a job say."""

from __future__ import annotations

import subprocess
from pathlib import Path, PurePosixPath

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edged.accounts.clients import Finished
from edged.errors import BadRequest
from services.jobs.batch import script
from services.jobs.batch.protocol import BatchRef, Dependency, GpuRequest, Submission
from services.jobs.batch.script import Payload, session_files
from services.jobs.batch.slurm.refusals import Verdict
from services.jobs.batch.slurm.submit import Submit

NO = b"sbatch: error: Batch job submission failed: Invalid qos specification\n"
SESSION = PurePosixPath("/s/cms/j1")


def argv(**asked: object) -> list[str]:
    return Submit(job="j1", submission=Submission(job="j1", **asked), deadline_s=30).argv(SESSION)  # type: ignore[arg-type]


def test_policy_is_always_said() -> None:
    said = argv()
    assert said[:2] == ["sbatch", "--parsable"]
    for option in (
        "--no-requeue",
        "--export=NONE",
        "--job-name=edged-j1",
        "--chdir=/s/cms/j1",
        "--input=/dev/null",
    ):
        assert option in said
    assert all(option.startswith("--") for option in said[1:]), "no file, no positional argument"


def test_everything_asked_for_is_said() -> None:
    said = argv(
        partition="gpu", slurm_account="cms", qos="q", reservation="r", constraint="a&b", nodes=2, tasks=8,
        cpus_per_task=4, memory_per_node=(1 << 30) + 1, walltime_s=61, exclusive=True,
        gpus=GpuRequest("gpu:h200", 4), gres=("fpga:u280",),
        after=(Dependency(BatchRef("c", "7", 0, "x")), Dependency(BatchRef("c", "8", 0, "y"), ok=False)),
    )  # fmt: skip
    for option in (
        "--partition=gpu", "--account=cms", "--qos=q", "--reservation=r", "--constraint=a&b", "--nodes=2",
        "--ntasks=8", "--cpus-per-task=4", "--mem=1025M", "--time=2", "--exclusive",
        "--gres=gpu:h200:4,fpga:u280", "--dependency=afterok:7,afterany:8",
    ):  # fmt: skip
        assert option in said


def test_signs_of_slurm_in_the_path_are_escaped() -> None:
    said = Submit(job="j1", submission=Submission(job="j1"), deadline_s=1).argv(PurePosixPath("/s/%j/j1"))
    assert "--output=/s/%%j/j1/.edged/batch.log" in said


@pytest.mark.parametrize(
    ("done", "verdict", "id_"),
    [
        (Finished(0, b"4711\n", b""), None, "4711"),
        (Finished(0, b"4711;alps\n", b"sbatch: hello from the site\n"), None, "4711"),
        (Finished(0, b"", b""), Verdict.UNKNOWN, ""),
        (Finished(0, b"Submitted\n", b""), Verdict.UNKNOWN, ""),
        (Finished(1, b"", NO), Verdict.REFUSED, ""),
        (Finished(1, b"4711\n", b"odd"), Verdict.UNKNOWN, ""),
        (Finished(-9, b"4711\n", b"", timed_out=True), Verdict.UNKNOWN, ""),
        (Finished(-9, b"", b"", ended=False), Verdict.UNKNOWN, ""),
    ],
)  # fmt: skip
def test_what_an_end_of_sbatch_proves(done: Finished, verdict: Verdict | None, id_: str) -> None:
    answer = Submit(job="j1", submission=Submission(job="j1"), deadline_s=1).parse(done)
    assert (answer.verdict, answer.id) == (verdict, id_)


def test_the_launcher_has_a_command_before_all_else_and_nothing_of_the_user() -> None:
    lines = script.launcher("j1", PurePosixPath("/s/o'dd dir/j1")).decode().splitlines()
    assert lines[:2] == ["#!/bin/bash", ": edged launches j1"]
    assert not any(line.startswith("#SBATCH") for line in lines)
    with pytest.raises(BadRequest):
        script.launcher("j1\n#SBATCH", SESSION)


@pytest.mark.parametrize(
    "payload",
    [
        Payload(),
        Payload(executable="../x"),
        Payload(executable="a", stdout="/etc/x"),
        Payload(executable="a", stdout=".edged/outcome"),
        Payload(executable="a", stderr="a//b"),
        Payload(executable="a", arguments=("nul\0",)),
        Payload(executable="a", environment={"a b": ""}),
        Payload(executable="a", environment={"A\nB": ""}),
        Payload(executable="a", environment={"": ""}),
        Payload(executable="a", mpi="pmix; rm"),
    ],
)
def test_what_cannot_be_said_safely_is_refused(payload: Payload) -> None:
    with pytest.raises(BadRequest):
        session_files("j1", payload)


def test_variables_that_steer_the_batch_system_are_left_out() -> None:
    files = session_files(
        "j1", Payload(executable="a", environment={"SLURM_CONF": "x", "SBATCH_QOS": "x", "OK": "y"})
    )
    payload = files[".edged/payload.sh"][0].decode()
    assert "SLURM" not in payload and "SBATCH" not in payload and "export OK=y" in payload


def test_mpi_goes_through_srun() -> None:
    run = session_files("j1", Payload(executable="a", mpi="pmix"))[".edged/run.sh"][0].decode()
    assert "srun --mpi=pmix" in run


texts = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=40)


@settings(max_examples=10, deadline=None)
@given(arguments=st.lists(texts, max_size=4), value=texts)
def test_any_text_passes_a_real_shell_unchanged(
    tmp_path_factory: pytest.TempPathFactory, arguments: list[str], value: str
) -> None:
    session = tmp_path_factory.mktemp("s")
    text = 'printf "%s\\0" "$V" "$@"'
    payload = Payload(script=text, arguments=tuple(arguments), environment={"V": value}, stdout="out")
    _run(session, payload)
    assert (session / "out").read_bytes().decode().split("\0")[:-1] == [value, *arguments]


def test_a_second_start_exits_at_once(tmp_path: Path) -> None:
    payload = Payload(script="echo ran >>runs", stdout="out")
    assert _run(tmp_path, payload) == 0
    assert _run(tmp_path, payload) == script.EXIT_DUPLICATE
    assert (tmp_path / "runs").read_text() == "ran\n"


def test_a_missing_session_is_told(tmp_path: Path) -> None:
    launcher = script.launcher("j1", PurePosixPath(tmp_path / "gone"))
    done = subprocess.run(["/bin/bash"], input=launcher, check=False, capture_output=True)
    assert done.returncode == script.EXIT_NO_SESSION


def _run(session: Path, payload: Payload) -> int:
    for name, (content, mode) in session_files("j1", payload).items():
        file = session / name
        file.parent.mkdir(exist_ok=True)
        file.write_bytes(content)
        file.chmod(mode)
    launcher = script.launcher("j1", PurePosixPath(session))
    return subprocess.run(["/bin/bash"], input=launcher, check=False, capture_output=True).returncode
