"""From pods to plans: sizes, flags, images, volumes, quantities; tables of cases."""

from __future__ import annotations

import contextlib
import json
from decimal import Decimal
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from kubernetes import client as k8s

from edged.config.doors import InterLink, PodRule, Runtime
from edged.errors import BadRequest, Denied, EdgeError
from services.jobs.doors.interlink import images
from services.jobs.doors.interlink.callers import distinguished, rule_for
from services.jobs.doors.interlink.contents import Contents
from services.jobs.doors.interlink.environment import expanded
from services.jobs.doors.interlink.logs import Times
from services.jobs.doors.interlink.plan import Planned, plan
from services.jobs.doors.interlink.pods import Create, Pod
from services.jobs.doors.interlink.quantities import quantity, whole
from services.jobs.doors.interlink.sizes import memory_of, seconds_of
from tests.support.kubelet import container, pod, secret

NONE: dict[str, Any] = {"runtime": {"kind": "none"}}


def planned(body: dict[str, Any], **settings: Any) -> Planned:
    create = msgspec.json.decode(json.dumps(body).encode(), type=Create)
    config = InterLink.model_validate({**NONE, **settings})
    return plan(create.pod, Contents.of(create), config)


def sized(annotations: dict[str, str] | None = None, *, limits: Any = None, **settings: Any) -> Any:
    made = pod(container(), annotations=annotations)
    made["spec"]["containers"][0]["resources"] = {"limits": limits, "requests": None}
    return planned({"pod": made}, **settings).size


@pytest.mark.parametrize(
    ("text", "value"),
    [("1", 1), ("500m", Decimal("0.5")), ("2Gi", 2 << 30), ("1.5", Decimal("1.5")), ("1e3", 1000), ("1E", 10**18),
     ("100k", 100_000), (2, 2), (0.5, Decimal("0.5")), ("12E-1", Decimal("1.2"))],
)  # fmt: skip
def test_quantities(text: str | float, value: Decimal) -> None:
    assert quantity(text) == value


@given(st.text(max_size=12))
def test_anything_is_a_quantity_or_refused(text: str) -> None:
    with contextlib.suppress(BadRequest):
        whole(text)


def test_sizes_add_up_side_by_side_and_not_one_by_one() -> None:
    def using(name: str, cpu: str, memory: str) -> Any:
        found = container(name)
        found.resources = k8s.V1ResourceRequirements(limits={"cpu": cpu, "memory": memory})
        return found

    made = pod(using("a", "500m", "1Gi"), using("b", "1", "1Gi"), init_containers=[using("c", "4", "512Mi")])
    resources = planned({"pod": made}).size.resources
    assert (resources.cpus_per_task, resources.memory) == (4, 2 << 30)


def test_pods_without_limits_get_the_sites_default() -> None:
    resources = sized(default_memory="3G").resources
    assert (resources.cpus_per_task, resources.memory) == (1, 3 << 30)


@pytest.mark.parametrize(
    ("flags", "field", "value"),
    [("--time=1-02:00:00", "walltime_s", 93600), ("-t 90", "walltime_s", 5400), ("--mem=4G", "memory", 4 << 30),
     ("-c8", "cpus_per_task", 8), ("--nodes 2 --ntasks-per-node=4", "tasks", 8), ("--exclusive", "exclusive", True)],
)  # fmt: skip
def test_flags_are_translated(flags: str, field: str, value: object) -> None:
    assert getattr(sized({"slurm-job.vk.io/flags": flags}).resources, field) == value


def test_gpus_by_resource_flag_and_flavor() -> None:
    gpus = {"nvidia.com/gpu": "h200"}
    by_limit = sized(limits={"nvidia.com/gpu": "2"}, gpus=gpus).resources.gpus
    assert (by_limit.kind, by_limit.count) == ("h200", 2)
    by_flag = sized({"slurm-job.knoc.io/flags": "--gres=gpu:a100:3"}).resources.gpus
    assert (by_flag.kind, by_flag.count) == ("a100", 3)
    flavors = [{"name": "big", "gpus": 4, "gpu_kind": "h200", "queue": "gpu", "memory": "64G"}]
    found = sized({"slurm-job.vk.io/flavor": "big"}, limits={"memory": "1Gi"}, flavor=flavors)
    assert (found.resources.gpus.count, found.queue, found.resources.memory) == (4, "gpu", 1 << 30)
    with pytest.raises(BadRequest, match=r"no amd\.com/gpu"):
        sized(limits={"amd.com/gpu": 1})
    with pytest.raises(EdgeError, match="no flavor"):
        sized({"slurm-job.vk.io/flavor": "huge"})


@pytest.mark.parametrize(
    ("text", "seconds"), [("30", 1800), ("1:30", 90), ("1:00:00", 3600), ("2-12", 216000), ("1-1:1", 90060)]
)
def test_times_of_sbatch(text: str, seconds: int) -> None:
    assert seconds_of(text) == seconds


def test_memory_of_sbatch() -> None:
    assert (memory_of("100"), memory_of("2G")) == (100 << 20, 2 << 30)


@pytest.mark.parametrize(
    ("image", "root", "file", "reference"),
    [
        ("alpine:3", "", "", "docker://docker.io/library/alpine:3"),
        ("docker://docker.io/library/alpine", "", "", "docker://docker.io/library/alpine"),
        ("ghcr.io/cms/run:1", "", "", "docker://ghcr.io/cms/run:1"),
        ("/cvmfs/images/a.sif", "", "/cvmfs/images/a.sif", ""),
        ("a.sif", "/cvmfs/images/", "/cvmfs/images/a.sif", ""),
        ("oras://ghcr.io/cms/run:1", "", "", "oras://ghcr.io/cms/run:1"),
    ],
)
def test_images(image: str, root: str, file: str, reference: str) -> None:
    allowed = ("docker.io/library/", "ghcr.io/cms/", "oras://ghcr.io/cms/", "/cvmfs/images/")
    found = images.resolve(image, root, Runtime(images=allowed))
    assert (found.file, found.reference) == (file, reference)


@pytest.mark.parametrize(
    "image", ["", "evil.io/x", "/etc/passwd", "/cvmfs/images/../../etc/x", "docker://-x", "http://x/y", "a b"]
)
def test_images_that_are_refused(image: str) -> None:
    with pytest.raises((BadRequest, Denied)):
        images.resolve(
            image, "", Runtime(images=("docker.io/library/", "/cvmfs/images/"), image_prefix="quay.io/")
        )


def test_options_and_mounts_are_those_of_the_list() -> None:
    settings = {"runtime": {"kind": "apptainer", "images": ["docker.io/"]}, "host_paths": ["/cvmfs"]}

    def asked(**annotations: str) -> Planned:
        made = pod(
            container(image="alpine"),
            annotations={f"slurm-job.vk.io/{k.replace('_', '-')}": v for k, v in annotations.items()},
        )
        return planned({"pod": made}, **settings)

    found = asked(
        singularity_options="--nv --cleanenv", singularity_mounts="--bind /cvmfs/cms:/cms:ro,/cvmfs"
    ).plan.containers[0]
    assert found.options == ("--nv", "--cleanenv")
    assert [(m.host, m.path, m.read_only) for m in found.mounts] == [
        ("/cvmfs/cms", "/cms", True),
        ("/cvmfs", "/cvmfs", False),
    ]
    for bad in ({"singularity_options": "--fakeroot"}, {"singularity_mounts": "/etc:/x"}, {"singularity_options": "x"},
                {"mpi_flags": "--hostfile /etc/passwd"}, {"singularity_mounts": "/cvmfs/../etc:/x"}):  # fmt: skip
        with pytest.raises((BadRequest, Denied)):
            asked(**bad)
    assert asked(mpi_flags="--bind-to core").plan.containers[0].mpi == ["mpiexec", "--bind-to", "core"]


def test_a_secret_is_never_in_the_plan() -> None:
    made = pod(container())
    made["spec"]["volumes"] = [{"name": "v", "secret": {"secretName": "s", "defaultMode": 0o777}}]
    made["spec"]["containers"][0]["volumeMounts"] = [{"name": "v", "mountPath": "/v"}]
    found = planned({"pod": made, "secrets": [secret("s", key="hush")]})
    assert b"hush" not in msgspec.json.encode(found.plan)
    assert (found.plan.volumes[0].files[0].mode, list(found.files.values())) == (0o700, [b"hush"])


@pytest.mark.parametrize("key", ["../x", "a/b", "..", "a\nb", "", "é"])
def test_keys_that_would_leave_the_volume(key: str) -> None:
    made = pod(container())
    with pytest.raises(BadRequest):
        planned({"pod": made, "configmaps": [{"metadata": {"name": "m"}, "data": {key: "x"}}]})


@given(
    st.text(max_size=40), st.dictionaries(st.from_regex(r"[A-Z]{1,3}", fullmatch=True), st.text(max_size=5))
)
def test_expansion_never_fails(text: str, variables: dict[str, str]) -> None:
    assert isinstance(expanded(text, variables), str)


def test_times_of_logs() -> None:
    times = Times(b"1000 10\n3000 20\nnonsense\n5000 x\n" + b"9" * 40 + b" 30\n")
    assert [times.of(0), times.of(9), times.of(10), times.of(20)] == [1.0, 1.0, 3.0, None]
    assert [times.since(0), times.since(2), times.since(3), times.since(4)] == [0, 10, 10, None]


def test_rules_are_tried_in_order() -> None:
    made = msgspec.convert({"metadata": {"namespace": "cms-a", "annotations": {"x": "1"}}}, type=Pod)
    first = PodRule(callers=("other",))
    second = PodRule(namespaces=("cms-*",), annotations={"x": "1"}, account="cmsana")
    assert rule_for(made, "vk", [first, second]).account == "cmsana"
    with pytest.raises(Denied):
        rule_for(made, "vk", [first])


def test_subjects_are_written_as_the_certificate_has_them() -> None:
    peer = {"subject": ((("organizationName", "example"),), (("commonName", "vk"),))}
    assert distinguished(peer) == "O=example,CN=vk"
    assert distinguished(None) == ""
