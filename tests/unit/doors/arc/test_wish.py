"""From a wish to what the engine is asked for."""

from __future__ import annotations

from typing import Any

import pytest

from edged.config.doors import Arc
from edged.config.jobs import Software
from edged.errors import BadRequest
from services.jobs.doors.arc.languages import descriptions
from services.jobs.doors.arc.wish import Environment, Wish, description, split_source
from services.jobs.model import Description, Gpus

SOFTWARE = (
    Software(name="ROOT", version="6.28.4"),
    Software(name="ROOT", version="6.30.10"),
    Software(name="APPS/SITE"),
)


def asked(arc: Arc | None = None, **fields: Any) -> Description:
    return description(Wish(executable="/bin/x", **fields), "text", arc or Arc(), SOFTWARE)


@pytest.mark.parametrize(
    ("slots", "per_node", "nodes", "memory"), [(1, 0, 1, 100), (8, 0, 1, 800), (8, 4, 2, 400), (9, 4, 3, 300)]
)
def test_slots_become_tasks_on_nodes(slots: int, per_node: int, nodes: int, memory: int) -> None:
    need = asked(slots=slots, slots_per_node=per_node, memory=100).resources
    assert (need.nodes, need.tasks, need.cpus_per_task, need.memory) == (nodes, slots, 1, memory)


def test_cpu_time_bounds_the_walltime_unless_that_is_given() -> None:
    assert asked(cpu_s=7200, slots=4).resources.walltime_s == 1800
    assert asked(cpu_s=7200, wall_s=60).resources.walltime_s == 60


@pytest.mark.parametrize(
    ("name", "operator", "found"),
    [
        ("ROOT", "=", "ROOT/6.30.10"),
        ("root-6.28.4", "=", "ROOT/6.28.4"),
        ("ROOT/6.28.4", "=", "ROOT/6.28.4"),
        ("ROOT-6.28", ">=", "ROOT/6.30.10"),
        ("ROOT-6.30", "<", "ROOT/6.28.4"),
        ("APPS/SITE", "=", "APPS/SITE"),
    ],
)
def test_runtime_environments(name: str, operator: str, found: str) -> None:
    assert asked(environments=[Environment(name, operator)]).software == (found,)


@pytest.mark.parametrize(("name", "operator"), [("ROOT-7", ">="), ("GEANT", "="), ("ROOT-6", "=")])
def test_an_environment_that_is_not_offered(name: str, operator: str) -> None:
    with pytest.raises(BadRequest, match="is not offered"):
        asked(environments=[Environment(name, operator)])


@pytest.mark.parametrize(
    ("options", "gpus"),
    [
        ((), Gpus(count=1)),
        (("2",), Gpus(count=2)),
        (("h200", "2"), Gpus(count=2, kind="h200")),
        (("gpu:h200:4",), Gpus(count=4, kind="h200")),
    ],
)
def test_gpus_by_environment_and_by_coprocessor(options: tuple[str, ...], gpus: Gpus) -> None:
    assert asked(environments=[Environment("ENV/GPU", "=", options)]).resources.gpus == gpus
    assert asked(coprocessor=":".join(options) or "CUDA").resources.gpus == gpus


def test_the_credential_reaches_only_jobs_that_ask_for_it() -> None:
    proxy = [Environment("ENV/PROXY")]
    assert not asked(delegation="d").credential_in_job
    assert asked(delegation="d", environments=proxy).credential_in_job
    assert asked(Arc(proxy_always=True), delegation="d").credential_in_job
    without = asked(environments=proxy)
    assert without.software == () and "no credential" in split_source(without.source)[1]


def test_outputs() -> None:
    assert asked(stdout="o", stderr="e", outputs=[("d/", ""), ("./x", "")]).outputs == ("d", "x", "o", "e")
    assert asked(outputs=[("/", "")], stdout="o").outputs is None
    assert asked().outputs == () and asked().stdout.startswith(".arc/")
    assert asked(stdout="o", stderr="o").join


@pytest.mark.parametrize(
    "fields",
    [
        {"inputs": [("x", "https://example.org/x")]},
        {"inputs": [("x", "srm://example.org/x")]},
        {"outputs": [("x", "gsiftp://example.org/x")]},
        {"node_access": {"inbound"}},
        {"stdout": "/etc/x"},
        {"name": "a\nb"},
        {"slots": 0},
        {"environment": {"A B": "c"}},
        {"coprocessor": "gpu:0"},
    ],
)
def test_what_this_site_does_not_do(fields: dict[str, Any]) -> None:
    with pytest.raises(BadRequest):
        asked(**fields)


def test_local_sources_are_the_clients_to_send() -> None:
    found = asked(inputs=[("a", ""), ("b", "/home/me/b"), ("c", "file:///home/me/c"), ("a", "")])
    assert found.inputs == ("a", "b", "c")


def test_queue_and_delegation_of_the_call_serve_jobs_that_name_none() -> None:
    body = b"+(&(executable=a)(queue=own))(&(executable=b))"
    first, second = descriptions(body, Arc(), (), queue="given", delegation="d")
    assert isinstance(first, Description) and isinstance(second, Description)
    assert (first.queue, second.queue, second.delegation) == ("own", "given", "d")
