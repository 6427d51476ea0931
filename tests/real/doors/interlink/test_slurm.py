"""Pods as containers of a real podman inside jobs of a real Slurm: two VOs, GPUs, ends with their causes."""

from __future__ import annotations

import base64
import json

import pytest
from kubernetes import client as k8s

from tests.real.doors.interlink.fixtures import ATLAS, vk
from tests.support.kubelet import config_map, container, kubelet, pod, secret
from tests.support.site import Site, ended
from tests.support.slurm import SlurmTestbed
from tests.support.waiting import until_async

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.slurm, pytest.mark.root]


async def test_containers_with_everything(pods_on_slurm: Site) -> None:
    mounts = [
        k8s.V1VolumeMount(name="work", mount_path="/work"),
        k8s.V1VolumeMount(name="keys", mount_path="/etc/keys", read_only=True),
        k8s.V1VolumeMount(name="settings", mount_path="/etc/one.conf", sub_path="one.conf"),
    ]
    show = 'cat /etc/keys/password /etc/one.conf /work/made; id -u; pwd; echo "$GREETING"'
    one = pod(
        container(
            script=f"{show}; touch /etc/keys/x || exit 5",
            volume_mounts=mounts,
            working_dir="/tmp",
            env=[
                k8s.V1EnvVar(name="GREETING", value='it\'s "two"\nlines'),
                k8s.V1EnvVar(name="HOME", value="/work"),
            ],
        ),
        container(
            "other", "until [ -e /work/made ]; do sleep .1; done; ls /bin/busybox", volume_mounts=mounts
        ),
        init_containers=[container("make", "echo made >/work/made", volume_mounts=mounts)],
        volumes=[
            k8s.V1Volume(name="work", empty_dir=k8s.V1EmptyDirVolumeSource()),
            k8s.V1Volume(name="keys", secret=k8s.V1SecretVolumeSource(secret_name="k")),
            k8s.V1Volume(name="settings", config_map=k8s.V1ConfigMapVolumeSource(name="s")),
        ],
        restart_policy="Never",
    )
    objects = {
        "secrets": [secret("k", password="hush\n")],
        "configmaps": [config_map("s", **{"one.conf": "conf\n"})],
    }
    async with vk(pods_on_slurm) as node:
        await node.created(one, **objects)
        ended = await node.ended(one)
        log = await node.text(one)
        assert {name: end["exitCode"] for name, end in ended.items()} == {"main": 5, "other": 0}, log
        assert log.splitlines()[:7] == ["hush", "conf", "made", "0", "/tmp", 'it\'s "two"', "lines"]
        assert await node.text(one, "other") == "/bin/busybox\n"


async def test_a_gpu_pod_gets_gpus_or_is_refused(pods_on_slurm: Site) -> None:
    def asking(resource: str, count: int) -> k8s.V1Container:
        limits = {resource: str(count), "cpu": "1500m", "memory": "512Mi"}
        return container(
            script="echo $CUDA_VISIBLE_DEVICES", resources=k8s.V1ResourceRequirements(limits=limits)
        )

    async with vk(pods_on_slurm) as node:
        one = pod(asking("nvidia.com/gpu", 2), restart_policy="Never")
        job = await node.created(one)
        assert (await node.ended(one))["main"]["exitCode"] == 0
        assert len((await node.text(one)).strip().split(",")) == 2
        async with pods_on_slurm.api() as api:
            view = await ended(api, job)
            assert view["queue"] == "gpu"
            assert view["allocated"]["gres/gpu:h200"] == "2"
            assert view["resources"]["cpus_per_task"] == 2
        for resource, count in (("amd.com/gpu", 1), ("nvidia.com/gpu", 5)):
            status, body = await node.create(pod(asking(resource, count)))
            assert status == 400, body


async def test_a_ping_tells_free_gpus(pods_on_slurm: Site) -> None:
    async with vk(pods_on_slurm) as node:
        _, body = await node.call("POST", "/pinglink", b"")
        found = json.loads(body)["resources"]
        assert found["cpu"] == "48"
        assert found["accelerators"] == [{"resourceType": "nvidia.com/gpu", "available": "4"}]


async def test_slurms_cause_is_in_the_message(pods_on_slurm: Site, slurm: SlurmTestbed) -> None:
    forever = container(
        script="echo begun; sleep 600", resources=k8s.V1ResourceRequirements(limits={"memory": "400Mi"})
    )
    async with vk(pods_on_slurm) as node:
        stopped, deleted = pod(forever), pod(forever)
        impossible = pod(container(), annotations={"slurm-job.vk.io/flags": "--cpus-per-task=200"})
        job = await node.created(stopped)
        for one in (deleted, impossible):
            await node.created(one)
        for one in (stopped, deleted):
            await node.until(one, lambda s: "running" in s["containers"][0]["state"])
        await node.until_said(deleted, "begun")
        async with pods_on_slurm.api() as api:
            slurm.output("scancel", (await api.call("GET", f"/v1/jobs/{job}"))["batch_id"])
        await node.delete(deleted)
        end = (await node.ended(stopped))["main"]
        assert end["exitCode"] != 0
        assert "CANCELLED" in end["message"]
        assert "by the site" in end["message"]
        assert "cancelled by owner" in (await node.ended(deleted))["main"]["message"]
        assert (await node.text(deleted)).startswith("begun\n")
        end = (await node.ended(impossible))["main"]
        assert (end["reason"], end["exitCode"]) == ("Unschedulable", 1)
        assert "it could never start" in end["message"]


async def test_the_batch_systems_term_reaches_the_container(pods_on_slurm: Site, slurm: SlurmTestbed) -> None:
    """As Slurm sends it to all processes of a job at its time limit."""
    script = "trap 'echo caught; exit 0' TERM; echo up; sleep 600 & wait"
    one = pod(container(script=script), restart_policy="Never")
    async with vk(pods_on_slurm) as node:
        job = await node.created(one)

        async def up() -> bool:
            return b"up" in (await node.logs(one))[1]

        await until_async(up, "the container up")
        async with pods_on_slurm.api() as api:
            batch = (await api.call("GET", f"/v1/jobs/{job}"))["batch_id"]
        slurm.output("scancel", "--full", "--signal=TERM", batch)
        end = (await node.ended(one))["main"]
        assert (end["exitCode"], end["reason"]) == (143, "Terminated")
        assert "caught" in await node.text(one)


async def test_two_vos_cannot_see_each_other(pods_on_slurm: Site) -> None:
    one = pod(container(script="echo secret; sleep 1"), restart_policy="Never")
    async with vk(pods_on_slurm) as cms, vk(pods_on_slurm, **ATLAS) as atlas:
        await cms.created(one)
        assert await atlas.status(one) == []
        assert (await atlas.logs(one))[0] == 404
        assert await atlas.delete(one) == (200, b"no such pod here")
        assert (await cms.ended(one))["main"]["exitCode"] == 0
        theirs = await atlas.created(one)
        assert (await atlas.ended(one))["main"]["exitCode"] == 0
        (status,) = await cms.status(one)
        assert status["JID"] != theirs


async def test_images_are_those_of_the_site(pods_on_slurm: Site) -> None:
    async with vk(pods_on_slurm) as node:
        for image in (
            "docker.io/library/alpine",
            "/etc/passwd",
            "docker://localhost/../x",
            "oras://localhost/box:1",
            "-x",
        ):
            status, _ = await node.create(pod(container(image=image)))
            assert status in (400, 403), image
        one = pod(container(image="localhost/none:1"), restart_policy="Never")
        await node.created(one)
        end = (await node.ended(one))["main"]
        assert (end["reason"], end["exitCode"]) == ("ErrImagePull", 125)
        assert "cache" in end["message"]


async def test_the_plugin_form_needs_its_secret_or_its_user(pods_on_slurm: Site) -> None:
    unix, tcp = pods_on_slurm.listening["interlink-plugin"]
    basic = "Basic " + base64.b64encode(b"edged:a-secret-of-some-length").decode()
    one = pod(container(script="echo plugin"), restart_policy="Never")
    async with kubelet("http://plugin", None, plugin=True, unix=unix) as server:
        job = await server.created(one)
        assert (await server.ended(one))["main"]["exitCode"] == 0
        _, body = await server.call("GET", "/status", b"[]")
        assert json.loads(body)["status"] == "ok"
        assert await server.delete(one) == (200, b"deleted")
    async with kubelet(f"http://{tcp}", None, plugin=True) as server:
        assert (await server.create(one))[0] == 401
        server.headers["Authorization"] = basic
        assert await server.created(one) == job
        server.headers["Authorization"] = basic[:-4] + "xxxx"
        assert (await server.create(one))[0] == 401
