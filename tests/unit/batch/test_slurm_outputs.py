"""Parsers against recorded outputs (tests/recorded/slurm/README.md tells which are real)."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edged.errors import BadRequest
from services.jobs.batch.protocol import BatchState, Cause, GpuState
from services.jobs.batch.slurm import accounting, queue, site

RECORDED = Path(__file__).parents[2] / "recorded/slurm"
LATER = ("23.11", "24.05", "24.11", "25.05")


def text(version: str, name: str) -> str:
    return (RECORDED / version / name).read_text()


def test_squeue_22() -> None:
    jobs = [queue.parse(line, "t") for line in text("22.05", "squeue.txt").splitlines()]
    ours = {job.ref.name: job for job in jobs if job and job.ref.name.startswith("edged-")}
    assert ours["edged-two"].nodes == ("c1", "c2")
    assert ours["edged-two"].state is BatchState.FAILED
    assert ours["edged-stuck"].stuck
    assert ours["edged-held"].state is BatchState.HELD
    assert ours["edged-run"].state is BatchState.RUNNING
    assert ours["edged-run"].ref.submitted_at > 1e9


def test_a_sweep_skips_the_jobs_of_others() -> None:
    read = queue.reader("t")
    assert read(b"23|x|y edged-|PENDING|1795223958||JobHeldUser") is None
    assert read(b"23|edged|PENDING|1795223958||JobHeldUser") is None
    assert read(b"") is None
    assert read(b"23|edged-a|PENDING|1795223958||None") is not None


def test_sacct_22() -> None:
    jobs = {job.ref.name: job for job in accounting.read(text("22.05", "sacct.txt"))}
    assert (jobs["edged-a1"].exit_code, jobs["edged-a1"].max_rss) == (3, 2692 << 10)
    assert jobs["edged-d"].cause is Cause.START
    assert jobs["wrap"].cause is Cause.START, "refused, yet written down"
    assert (jobs["edged-p1"].cause, jobs["edged-p1"].signal) == (Cause.SIGNAL, 9)
    assert jobs["edged-e1"].cancelled_by == 20001
    assert jobs["edged-j1"].tres["gres/gpu:h200"] == "2"
    assert jobs["edged-x200"].exit_code == 72, "sacct itself takes 128 off"
    assert jobs["edged-run"].ended_at is None
    assert jobs["x|y edged-"].state is BatchState.HELD


@pytest.mark.parametrize("version", LATER)
def test_squeue_later(version: str) -> None:
    read = queue.reader("alps")
    jobs = {
        job.ref.id: job for line in text(version, "squeue.txt").encode().splitlines() if (job := read(line))
    }
    assert "4719" not in jobs
    assert jobs["4712"].nodes[-1] == "nid001003"
    assert jobs["4713"].state is BatchState.FINISHING
    assert jobs["4716"].state is BatchState.QUEUED and not jobs["4716"].stuck
    assert jobs["4717"].cause is Cause.MEMORY
    assert jobs["4718"].may_still_run
    assert jobs["4720"].state is BatchState.HELD


@pytest.mark.parametrize("version", LATER)
def test_sacct_later(version: str) -> None:
    jobs = {job.ref.id: job for job in accounting.read(text(version, "sacct.txt"))}
    done = jobs["4712"]
    assert (done.state, done.exit_code, len(done.nodes)) == (BatchState.FINISHED, 0, 4)
    assert done.cpu_s == 26 * 3600 + 3 * 60 + 4
    assert done.max_rss == int(2.5 * (1 << 30))
    assert {id_: job.cause for id_, job in jobs.items() if id_ != "4712"} == {
        "4717": Cause.MEMORY,
        "4718": Cause.SITE,
        "4721": Cause.TIME,
        "4722": Cause.CANCELLED,
        "4723": Cause.TIME,
        "4724": Cause.SITE,
    }
    assert jobs["4722"].cancelled_by == 0
    assert jobs["4723"].started_at is None


@pytest.mark.parametrize("version", LATER)
def test_exit_codes_later(version: str) -> None:
    assert queue.exit_codes(text(version, "squeue-exit-codes.txt"))["4725", "edged-aa14"] == 200


def test_exit_codes_22() -> None:
    codes = queue.exit_codes(text("22.05", "squeue-exit-codes.txt"))
    assert codes["20", "edged-two"] == 200


@pytest.mark.parametrize("version", LATER)
def test_sinfo_later(version: str) -> None:
    cpu, gpu, debug = site.Partitions(deadline_s=1).parse(text(version, "sinfo.txt"))
    assert (cpu.nodes, cpu.nodes_usable, cpu.cpus_free, cpu.max_walltime_s) == (2, 1, 128, 172800)
    assert gpu.gpus == (GpuState("gpu:gh200", 12, 5),)
    assert (gpu.max_walltime_s, gpu.nodes_usable) == (1800, 2)
    assert (debug.up, debug.max_walltime_s) == (False, None)


def test_site_22() -> None:
    cpu, gpu = site.Partitions(deadline_s=1).parse(text("22.05", "sinfo.txt"))
    assert (cpu.nodes, cpu.cpus, cpu.cpus_free) == (2, 32, 30)
    assert gpu.gpus == (GpuState("gpu:h200", 4, 2),)
    about = site.About(deadline_s=1).parse(text("22.05", "scontrol-config.txt"))
    assert (about.name, about.version, about.accounting) == ("testbed", "22.05.8", True)
    allocations = site.Allocations(deadline_s=1).parse(text("22.05", "sshare.txt"))
    assert [(one.account, one.tres, one.left_min) for one in allocations] == [
        ("cms", "cpu", 600000),
        ("cms", "gres/gpu", 60000),
    ]


@given(st.text(max_size=300))
def test_any_output_is_survived(output: str) -> None:
    accounting.read(output)
    queue.parse(output, "t")
    queue.exit_codes(output)
    site.Partitions(deadline_s=1).parse(output)
    site.Allocations(deadline_s=1).parse(output)
    site.About(deadline_s=1).parse(output)


def test_addresses_of_nodes() -> None:
    """``scontrol show node -o``: the address may be a name, a number, or what the node is called."""
    verb = site.NodeAddresses(nodes=("g1", "c2"), deadline_s=1)
    output = (
        "NodeName=g1 Arch=x86_64 CoresPerSocket=16 NodeAddr=10.1.2.3 NodeHostName=g1 Version=22.05.8 \n"
        "NodeName=c2 Arch=x86_64 NodeAddr=fd00::2 NodeHostName=vm Version=22.05.8 \n"
        "NodeName=c3 NodeHostName=c3 Comment=nothing \n"
    )
    assert verb.argv() == ["scontrol", "show", "node", "-o", "g1,c2"]
    assert verb.parse(output) == ["10.1.2.3", "fd00::2"]
    for name in ("-a", "g1,g2", "g1\n", "g 1", ""):
        with pytest.raises(BadRequest):
            site.NodeAddresses(nodes=(name,), deadline_s=1).argv()
