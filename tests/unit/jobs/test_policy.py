"""Choice of queue, limits and what a description may say."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edged.config.jobs import GpuKind, Jobs, Limit, Queue
from edged.errors import BadRequest, Busy, Denied, EdgeError, NotFound
from edged.identity.words import AccountName, IssuerUrl, JobClass, JobId, Principal, VoName
from services.jobs import policy
from services.jobs.model import Description, Gpus, Job, Resources, State

CALLER = policy.Caller("cms", "cmsprd", JobClass.PRODUCTION)
CPU = Queue(name="cpu", max_nodes=4, max_cpus_per_node=16)
GPU = Queue(name="gpu", gpus=(GpuKind(kind="h200", per_node=4), GpuKind(kind="mi300", gres="gpu:mi300x")))
ATLAS = Queue(name="atlas", vos=("atlas",))


def job(state: State = State.ACCEPTED, vo: str = "cms") -> Job:
    owner = Principal(issuer=IssuerUrl("https://i/"), subject="s", vo=VoName(vo))
    return Job(
        id=JobId("j"),
        owner=owner,
        account=AccountName("cmsprd"),
        vo=VoName(vo),
        job_class=JobClass.PRODUCTION,
        queue="gpu",
        batch="slurm",
        state=state,
        resources=Resources(gpus=Gpus(count=2, kind="mi300")),
    )


@pytest.mark.parametrize(
    ("description", "queue"),
    [
        (Description(), "cpu"),
        (Description(resources=Resources(gpus=Gpus(count=1))), "gpu"),
        (Description(resources=Resources(gpus=Gpus(count=4, kind="mi300"))), "gpu"),
        (Description(queue="gpu"), "gpu"),
        (Description(resources=Resources(nodes=5, tasks=5)), "gpu"),
    ],
)
def test_the_queue_that_fits_is_chosen(description: Description, queue: str) -> None:
    assert policy.choose_queue((CPU, GPU, ATLAS), description, CALLER).name == queue


@pytest.mark.parametrize(
    ("description", "error"),
    [
        (Description(queue="atlas"), NotFound),
        (Description(queue="none"), NotFound),
        (Description(resources=Resources(gpus=Gpus(count=5))), BadRequest),
        (Description(resources=Resources(gpus=Gpus(count=1, kind="a100"))), BadRequest),
        (Description(queue="cpu", resources=Resources(cpus_per_task=17)), BadRequest),
        (Description(resources=Resources(nodes=2, tasks=1)), BadRequest),
        (Description(resources=Resources(mpi="evil")), BadRequest),
        (Description(resources=Resources(gres=("fpga:1",))), BadRequest),
    ],
)
def test_what_does_not_fit_is_refused(description: Description, error: type[EdgeError]) -> None:
    with pytest.raises(error):
        policy.choose_queue((CPU, GPU, ATLAS), description, CALLER)


def test_no_queue_open_is_a_denial() -> None:
    with pytest.raises(Denied):
        policy.choose_queue((ATLAS,), Description(), CALLER)


def test_a_gpu_kind_becomes_the_sites_gres() -> None:
    asked = policy.submission(job(), GPU, None)
    assert asked.gpus is not None
    assert (asked.gpus.gres, asked.gpus.count) == ("gpu:mi300x", 2)
    assert asked.partition == "gpu"


def test_limits_answer_busy_and_say_when() -> None:
    load = policy.Load((Limit(vo="cms", queued=2), Limit(per_minute=3)), max_jobs=100)
    load.admit(CALLER, 2, 0, now=0.0)
    for _ in range(2):
        load.moved(job(), None, State.ACCEPTED)
    with pytest.raises(Busy, match="queued"):
        load.admit(CALLER, 1, 2, now=1.0)
    load.moved(job(), State.ACCEPTED, State.RUNNING)
    load.admit(CALLER, 1, 2, now=1.0)
    with pytest.raises(Busy, match="a minute") as caught:
        load.admit(policy.Caller("atlas", "a", JobClass.PILOT), 1, 2, now=2.0)
    assert caught.value.retry_after_s == pytest.approx(58.0)
    load.admit(policy.Caller("atlas", "a", JobClass.PILOT), 1, 2, now=61.0)


def test_a_bulk_counts_whole() -> None:
    load = policy.Load((Limit(queued=5),), max_jobs=100)
    with pytest.raises(Busy):
        load.admit(CALLER, 6, 0, now=0.0)
    with pytest.raises(Busy):
        policy.Load((), max_jobs=5).admit(CALLER, 6, 0, now=0.0)


@given(st.text(max_size=40))
def test_no_accepted_name_leaves_the_session(name: str) -> None:
    try:
        policy.check_name(name)
    except BadRequest:
        return
    parts = name.split("/")
    assert ".." not in parts
    assert "" not in parts
    assert not name.startswith((".edged", "/"))
    assert all(ord(c) >= 32 for c in name)


def test_control_characters_are_refused_everywhere() -> None:
    config = Jobs()
    for bad in (
        Description(executable="a\nb"),
        Description(executable="true", name="x\n"),
        Description(executable="true", environment={"A\n": "1"}),
        Description(executable="true", queue="q\n"),
        Description(executable="true", resources=Resources(gres=("a:1\n",))),
    ):
        with pytest.raises(BadRequest):
            policy.check_description(bad, config)


def test_the_names_a_job_keeps_in_memory_are_limited_together() -> None:
    config = Jobs()
    names = tuple(f"{number:04}-{'x' * 195}" for number in range(400))
    policy.check_description(Description(executable="true", inputs=names), config)
    with pytest.raises(BadRequest, match="together"):
        policy.check_description(Description(executable="true", inputs=names, outputs=names), config)
