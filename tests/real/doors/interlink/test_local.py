"""Pods on the local batch system, without containers: the calls, the states, the logs, and hostile pods."""

from __future__ import annotations

import asyncio
import json
import re
import stat
import time
from typing import Any

import pytest
from kubernetes import client as k8s

from tests.real.doors.interlink.fixtures import vk
from tests.support.kubelet import Pod, config_map, container, pod, secret
from tests.support.site import Site

pytestmark = pytest.mark.asyncio(loop_scope="module")

NASTY = "$(touch pwned) `id` \"quoted\" 'single' \n#SBATCH --partition=gpu\n\\ * ; & | é"


async def test_a_pod_runs_and_is_seen_as_kubernetes_expects(local_pods: Site) -> None:
    async with vk(local_pods) as node:
        good = pod(container(script="echo out; echo err >&2"), restart_policy="Never")
        bad = pod(container(script="exit 3"), restart_policy="Never")
        for one in (good, bad):
            await node.created(one)
        done = (await node.ended(good))["main"]
        assert (done["exitCode"], done["reason"]) == (0, "Completed")
        assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ", done["startedAt"])
        assert done["startedAt"] <= done["finishedAt"]
        assert (await node.ended(bad))["main"]["exitCode"] == 3
        assert await node.text(good) == "out\nerr\n"
        (status,) = await node.status(good)
        assert (status["name"], status["UID"]) == (good["metadata"]["name"], good["metadata"]["uid"])


async def test_every_call_may_be_repeated(local_pods: Site) -> None:
    async with vk(local_pods) as node:
        one = pod(container(script="sleep 60"), restart_policy="Never")
        at_once = await asyncio.gather(*(node.created(one) for _ in range(5)))
        assert len({*at_once, await node.created(one)}) == 1
        await node.until(one, lambda s: "running" in s["containers"][0]["state"])
        assert [await node.delete(one) for _ in range(3)] == [(200, b"deleted")] * 3
        ended = (await node.ended(one))["main"]
        assert (ended["exitCode"] != 0, ended["reason"]) == (True, "Error")
        assert "cancelled by owner" in ended["message"]
        assert await node.created(one) == at_once[0]


async def test_what_is_unknown_is_left_out(local_pods: Site) -> None:
    async with vk(local_pods) as node:
        stranger = pod()
        assert await node.status(stranger) == []
        assert await node.delete(stranger) == (200, b"no such pod here")
        assert (await node.logs(stranger))[0] == 404
        assert await node.call("GET", "/status", b"[]") == (200, b"[]")
        assert await node.call("GET", "/status", b"null") == (200, b"[]")


async def test_init_containers_go_first_and_the_others_side_by_side(local_pods: Site) -> None:
    meet = "touch $EDGED_VOLUME_WORK/{0}; until [ -e $EDGED_VOLUME_WORK/{1} ]; do sleep .05; done; exit {2}"
    mounts = [k8s.V1VolumeMount(name="work", mount_path="/work")]
    one = pod(
        container("a", meet.format("a", "b", 0), volume_mounts=mounts),
        container("b", meet.format("b", "a", 7), volume_mounts=mounts),
        init_containers=[
            container("first", "echo 1 >>$EDGED_VOLUME_WORK/order", volume_mounts=mounts),
            container(
                "second",
                "echo 2 >>$EDGED_VOLUME_WORK/order; cat $EDGED_VOLUME_WORK/order",
                volume_mounts=mounts,
            ),
        ],
        volumes=[k8s.V1Volume(name="work", empty_dir=k8s.V1EmptyDirVolumeSource())],
        restart_policy="Never",
    )
    async with vk(local_pods) as node:
        await node.created(one)
        ended = await node.ended(one)
        assert {name: end["exitCode"] for name, end in ended.items()} == {"a": 0, "b": 7}
        assert await node.text(one, "second") == "1\n2\n"
        (status,) = await node.status(one)
        init = [c["state"]["terminated"] for c in status["initContainers"]]
        assert [end["exitCode"] for end in init] == [0, 0]
        assert init[0]["finishedAt"] <= init[1]["finishedAt"] <= ended["a"]["finishedAt"]


async def test_a_failed_init_container_ends_the_pod(local_pods: Site) -> None:
    one = pod(
        container(script="echo never"), init_containers=[container("setup", "exit 4")], restart_policy="Never"
    )
    async with vk(local_pods) as node:
        await node.created(one)
        assert (await node.ended(one))["main"]["exitCode"] != 0
        (status,) = await node.status(one)
        assert status["initContainers"][0]["state"]["terminated"]["exitCode"] == 4
        assert (await node.logs(one))[0] == 404


async def test_a_failing_container_starts_again_and_its_first_log_is_kept(local_pods: Site) -> None:
    script = "[ -e $EDGED_VOLUME_WORK/seen ] && echo again && exit 0; echo first; touch $EDGED_VOLUME_WORK/seen; exit 9"
    one = pod(
        container(script=script, volume_mounts=[k8s.V1VolumeMount(name="work", mount_path="/work")]),
        volumes=[k8s.V1Volume(name="work", empty_dir=k8s.V1EmptyDirVolumeSource())],
        restart_policy="OnFailure",
    )
    async with vk(local_pods) as node:
        await node.created(one)
        assert (await node.ended(one))["main"]["exitCode"] == 0
        (status,) = await node.status(one)
        assert status["containers"][0]["restartCount"] == 1
        assert status["containers"][0]["lastState"]["terminated"]["exitCode"] == 9
        assert (await node.text(one), await node.text(one, Previous=True)) == ("again\n", "first\n")


async def test_words_and_variables_arrive_unharmed(local_pods: Site) -> None:
    program = (
        "import os, sys, json; print(json.dumps([sys.argv[1:], os.environ['NASTY'], os.environ['REF']]))"
    )
    one = pod(
        k8s.V1Container(
            name="main",
            image="localhost/box:1",
            command=["/usr/bin/python3", "-c", program],
            args=[NASTY, "", "$(NAME)-$(NONE)-$$(NAME)"],
            env=[
                k8s.V1EnvVar(name="NASTY", value=NASTY),
                k8s.V1EnvVar(name="NAME", value="it"),
                k8s.V1EnvVar(name="REF", value="<$(NAME)>"),
            ],
        ),
        restart_policy="Never",
    )
    async with vk(local_pods) as node:
        await node.created(one)
        assert (await node.ended(one))["main"]["exitCode"] == 0, await node.text(one)
        assert json.loads(await node.text(one)) == [[NASTY, "", "it-$(NONE)-$(NAME)"], NASTY, "<it>"]


def namespace_as(path: str) -> k8s.V1DownwardAPIVolumeFile:
    """The pod's namespace as a file."""
    return k8s.V1DownwardAPIVolumeFile(
        path=path, field_ref=k8s.V1ObjectFieldSelector(field_path="metadata.namespace")
    )


async def test_objects_become_files_and_are_gone_at_the_end(local_pods: Site) -> None:
    data = local_pods.root / "data"
    (data / "here").write_text("from the node\n")
    one = pod(
        container(
            script="cd $EDGED_VOLUME_SECRET; stat -c '%a %n' *; cat user; cat $EDGED_VOLUME_CONFIG/sub/file; "
            "cat $EDGED_VOLUME_TOKEN/token; cat $EDGED_VOLUME_HOST/here; cat $EDGED_VOLUME_LABELS/name",
            volume_mounts=[
                k8s.V1VolumeMount(name=name, mount_path=f"/{name}")
                for name in ("secret", "config", "token", "host", "labels")
            ],
        ),
        volumes=[
            k8s.V1Volume(name="secret", secret=k8s.V1SecretVolumeSource(secret_name="keys", default_mode=0o644)),
            k8s.V1Volume(
                name="config",
                config_map=k8s.V1ConfigMapVolumeSource(
                    name="settings", items=[k8s.V1KeyToPath(key="k", path="sub/file")]
                ),
            ),
            k8s.V1Volume(name="token", projected=k8s.V1ProjectedVolumeSource(sources=[])),
            k8s.V1Volume(name="host", host_path=k8s.V1HostPathVolumeSource(path=str(data))),
            k8s.V1Volume(
                name="labels",
                downward_api=k8s.V1DownwardAPIVolumeSource(items=[namespace_as("name")]),
            ),
        ],
        restart_policy="Never",
    )  # fmt: skip
    objects: dict[str, Any] = {
        "secrets": [secret("keys", user="alice\nwith lines\n", **{"pass.word": b"\xff\x00"})],
        "configmaps": [config_map("settings", k="configured\n", other="x")],
        "projectedvolumesmaps": [config_map("token", token="a.jwt.token\n")],
    }
    async with vk(local_pods) as node:
        job = await node.created(one, **objects)
        assert (await node.ended(one))["main"]["exitCode"] == 0, await node.text(one)
        assert (await node.text(one)).splitlines() == [
            "600 pass.word", "600 user", "alice", "with lines", "configured", "a.jwt.token", "from the node", "default",
        ]  # fmt: skip
    (session,) = (local_pods.root / "sessions").glob(f"*/{job}")
    left = {str(path.relative_to(session)) for path in session.rglob("*")}
    assert not left & {"pod/pod.pyz", "volumes"}
    holding = [path for path in session.rglob("*") if path.is_file() and b"a.jwt.token" in path.read_bytes()]
    assert [path.name for path in holding] == ["main"], "only the log, where the pod itself wrote it"
    kept = [file.read_bytes() for file in (local_pods.root / "state").rglob("*") if file.is_file()]
    assert any(job.encode() in content for content in kept)
    assert not any(b"a.jwt.token" in content for content in kept)


async def test_secrets_are_for_the_account_only_before_the_pod_runs(local_pods: Site) -> None:
    one = pod(container(script="sleep 30"), restart_policy="Never")
    async with vk(local_pods) as node:
        job = await node.created(one)
        await node.until(one, lambda s: "running" in s["containers"][0]["state"])
        (archive,) = (local_pods.root / "sessions").glob(f"*/{job}/pod/pod.pyz")
        assert stat.S_IMODE(archive.stat().st_mode) == 0o600
        await node.delete(one)
        await node.ended(one)
        assert not archive.exists()


async def test_a_followed_log_ends_with_the_token(local_pods: Site) -> None:
    one = pod(container(script="echo begun; sleep 60"), restart_policy="Never")
    async with vk(local_pods) as node, asyncio.timeout(60):
        await node.created(one)
        await node.until_said(one, "begun")
        async with vk(local_pods, exp=int(time.time()) + 5) as brief:
            assert await brief.text(one, Follow=True) == "begun\n"
        (status,) = await node.status(one)
        assert "running" in status["containers"][0]["state"]
        await node.delete(one)


async def test_logs_as_kubectl_asks_for_them(local_pods: Site) -> None:
    one = pod(
        container(script="echo one; echo two; sleep 2.5; echo three; printf four"), restart_policy="Never"
    )
    async with vk(local_pods) as node:
        started = time.time()
        await node.created(one)
        await node.until(one, lambda s: "running" in s["containers"][0]["state"])
        assert await node.text(one, Follow=True) == "one\ntwo\nthree\nfour"
        assert time.time() - started > 2
        await node.ended(one)
        assert await node.text(one, Tail=2) == "three\nfour"
        assert await node.text(one, Bytes=5) == "one\nt"
        assert await node.text(one, LimitBytes=5) == "one\nt"
        lines = (await node.text(one, Timestamps=True)).splitlines()
        assert [line.split(" ", 1)[1] for line in lines] == ["one", "two", "three", "four"]
        times = [line.split(" ", 1)[0] for line in lines]
        assert times == sorted(times)
        assert times[1] < times[2], "written seconds apart"
        assert await node.text(one, SinceTime=times[2]) == "three\nfour"
        assert await node.text(one, SinceTime="2099-01-01T00:00:00Z") == ""
        assert await node.text(one, SinceSeconds=3600, Tail=1) == "four"
        assert (await node.logs(one, SinceTime="yesterday"))[0] == 400
        assert (await node.logs(one, Previous=True))[0] == 404
        assert (await node.logs(one, "../../etc/passwd"))[0] == 400


async def test_both_shapes_of_create(local_pods: Site) -> None:
    async with vk(local_pods) as node:
        for wrap in (lambda body: body, lambda body: [body]):
            one = pod(container(script="cat $EDGED_VOLUME_C/k"), restart_policy="Never")
            one["spec"]["volumes"] = [{"name": "c", "configMap": {"name": "m"}}]
            one["spec"]["containers"][0]["volumeMounts"] = [{"name": "c", "mountPath": "/c"}]
            parts = [
                {
                    "name": "main",
                    "configMaps": [config_map("m", k="v\n")],
                    "secrets": None,
                    "projectedvolumemaps": None,
                }
            ]
            status, body = await node.call(
                "POST", "/create", wrap({"pod": one, "container": parts, "jobScript": ""})
            )
            assert status == 200, body
            assert (await node.ended(one))["main"]["exitCode"] == 0
            assert await node.text(one) == "v\n"


async def test_a_ping_tells_what_there_is_and_drains(local_pods: Site) -> None:
    claims: dict[str, Any] = {"wlcg.groups": ["/cms", "/site/admins"]}
    admin = local_pods.token(**claims)
    async with vk(local_pods) as node, local_pods.api(token=admin) as boss:
        status, body = await node.call("POST", "/pinglink", b"")
        answer = json.loads(body)
        assert (status, answer["status"], answer["taints"]) == (200, "ok", [])
        assert all(isinstance(answer["resources"][key], str) for key in ("cpu", "pods"))
        await boss.call("POST", "/v1/drain", body={"queues": ["*"]})
        try:
            _, body = await node.call("POST", "/pinglink", b"")
            assert json.loads(body)["taints"] == [
                {"key": "edged/draining", "value": "true", "effect": "NoSchedule"}
            ]
            assert await node.create(pod()) == (503, b"the site is draining: no new jobs for now")
        finally:
            await boss.call("POST", "/v1/drain", body={"queues": []})


async def test_rules_decide_on_namespaces_and_pre_exec(local_pods: Site) -> None:
    before = {"slurm-job.vk.io/pre-exec": "export WHERE=node"}
    trusted = {**before, "trusted": "yes"}
    async with vk(local_pods) as node:
        assert (await node.create(pod(namespace="other")))[0] == 403
        status, text = await node.create(pod(annotations=before))
        assert (status, text) == (403, b"the site does not run pre-exec commands of these pods")
        one = pod(
            container(script="echo $WHERE"), annotations=trusted, namespace="kube-a", restart_policy="Never"
        )
        await node.created(one)
        assert (await node.ended(one))["main"]["exitCode"] == 0
        assert await node.text(one) == "node\n"


def hostile() -> dict[str, Pod]:
    """Pods that must be refused."""
    found = {
        name: pod()
        for name in ("uid", "no containers", "null containers", "gpu", "pvc", "valueFrom", "host", "twice")
    }
    found["uid"]["metadata"]["uid"] = "../../x"
    found["no containers"]["spec"]["containers"] = []
    found["null containers"]["spec"]["containers"] = None
    found["gpu"]["spec"]["containers"][0]["resources"] = {"limits": {"xilinx.com/fpga": "1"}}
    found["pvc"]["spec"]["volumes"] = [{"name": "v", "persistentVolumeClaim": {"claimName": "c"}}]
    found["pvc"]["spec"]["containers"][0]["volumeMounts"] = [{"name": "v", "mountPath": "/v"}]
    found["valueFrom"]["spec"]["containers"][0]["env"] = [
        {"name": "A", "valueFrom": {"secretKeyRef": {"name": "s", "key": "k"}}}
    ]
    found["host"]["spec"]["volumes"] = [{"name": "v", "hostPath": {"path": "/etc"}}]
    found["host"]["spec"]["containers"][0]["volumeMounts"] = [{"name": "v", "mountPath": "/v"}]
    found["twice"]["spec"]["containers"] *= 2
    for name in ("a'b", 'a"b', "a\nb", "..", "a/../b", "A", "", "é", "x" * 64, "a;b"):
        found[f"name {name!r}"] = pod(container("main"))
        found[f"name {name!r}"]["spec"]["containers"][0]["name"] = name
    for flag in (
        "--uid=0",
        "--wrap=id",
        "--output=/x",
        "-D/x",
        "--export-file=/x",
        "--time",
        "$(id)",
        "-p 'a b'",
    ):
        found[f"flag {flag}"] = pod(annotations={"slurm-job.vk.io/flags": flag})
    return found


@pytest.mark.parametrize("name", hostile())
async def test_hostile_pods_are_refused_in_plain_words(local_pods: Site, name: str) -> None:
    async with vk(local_pods) as node:
        status, body = await node.create(hostile()[name])
        assert status in (400, 403), body
        text = body.decode()
        assert 0 < len(text) < 400
        assert str(local_pods.root) not in text
        assert "Traceback" not in text


async def test_malformed_bodies_are_refused_and_nothing_else_happens(local_pods: Site) -> None:
    async with vk(local_pods) as node:
        for path in ("/create", "/delete", "/status", "/getLogs"):
            for body in (b"", b"{", b"[[[[" * 50_000, b'"x"', b"\xff\xfe", b"[1]", b'{"pod": 1}'):
                status, _ = await node.call("POST", path, body)
                assert status == 400, (path, body[:20])
        assert (await node.call("POST", "/create", b"[]"))[0] == 400
        assert (await node.call("POST", "/createX", b"{}"))[0] == 404
        assert (await node.call("PUT", "/create", b"{}"))[0] == 404


async def test_fifty_containers_and_a_large_secret(local_pods: Site) -> None:
    big = "x" * (3 << 19)
    mounts = [k8s.V1VolumeMount(name="big", mount_path="/big")]
    one = pod(
        *(
            container(f"c{n}", f"wc -c <$EDGED_VOLUME_BIG/big; exit {n}", volume_mounts=mounts)
            for n in range(50)
        ),
        volumes=[k8s.V1Volume(name="big", secret=k8s.V1SecretVolumeSource(secret_name="big"))],
        restart_policy="Never",
    )
    async with vk(local_pods) as node:
        await node.created(one, secrets=[secret("big", big=big)])
        ended = await node.ended(one)
        assert {name: end["exitCode"] for name, end in ended.items()} == {f"c{n}": n for n in range(50)}
        assert (await node.text(one, "c49")).strip() == str(len(big))


async def test_tokens_decide(local_pods: Site) -> None:
    async with vk(local_pods, scope="compute.read") as node:
        assert (await node.create(pod()))[0] == 403
        assert (await node.delete(pod()))[0] == 403
        assert (await node.status(pod())) == []
    async with vk(local_pods, aud="https://elsewhere.example.org") as node:
        assert (await node.create(pod()))[0] == 401


async def test_pods_and_their_ends_survive_a_crash(local_pods: Site) -> None:
    running = pod(container("a", "sleep 3; exit 5"), container("b", "exit 6"), restart_policy="Never")
    over = pod(container(script="exit 7"), restart_policy="Never")
    async with vk(local_pods) as node:
        await node.created(over)
        await node.ended(over)
        first = await node.created(running)
        await node.until(running, lambda s: "terminated" in s["containers"][1]["state"])
    local_pods.kill()
    await local_pods.start()
    async with vk(local_pods) as node:
        assert (await node.ended(over))["main"]["exitCode"] == 7
        assert await node.created(running) == first
        assert {n: e["exitCode"] for n, e in (await node.ended(running)).items()} == {"a": 5, "b": 6}


async def test_connections_end_after_the_answer(local_pods: Site) -> None:
    async with (
        vk(local_pods) as node,
        node._session.post(node.url + "/pinglink", headers=node.headers) as response,
    ):
        assert response.headers["Connection"] == "close"
        assert response.status == 200
