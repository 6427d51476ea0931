"""A replay of interLink's virtual kubelet: the same methods, bodies and habits, from contract and source.

GET and DELETE with bodies, null for empty slices, the trace header, and with ``fresh`` a new connection
for every call that is never closed by the client, as its TLS client does.
"""

from __future__ import annotations

import asyncio
import base64
import json
import ssl
import uuid
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
from kubernetes import client as k8s

Pod = dict[str, Any]
TERMINAL_S = 60.0


class Kubelet:
    """One virtual kubelet with its token."""

    def __init__(
        self, url: str, token: str | None, session: aiohttp.ClientSession, *, plugin: bool = False
    ) -> None:
        self.url = url
        self.headers = {"Content-Type": "application/json"}
        if token:
            self.headers["Authorization"] = f"Bearer {token}"
        self._session = session
        self._plugin = plugin

    async def call(self, method: str, path: str, body: Any, **headers: str) -> tuple[int, bytes]:
        """One call; status and body."""
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        async with self._session.request(
            method, self.url + path, data=data, headers={**self.headers, **headers}
        ) as response:
            return response.status, await response.read()

    async def create(self, pod: Pod, **objects: Any) -> tuple[int, bytes]:
        """Both forms of /create: a virtual kubelet's, or an API server's."""
        if self._plugin:
            containers = [*(pod["spec"].get("initContainers") or []), *pod["spec"]["containers"]]
            kept = {
                "configMaps": objects.get("configmaps"),
                "secrets": objects.get("secrets"),
                "projectedvolumemaps": objects.get("projectedvolumesmaps"),
                "emptyDirs": None,
            }
            return await self.call(
                "POST",
                "/create",
                {"pod": pod, "container": [{"name": c["name"], **kept} for c in containers]},
            )
        body = {
            "pod": pod,
            "configmaps": None,
            "secrets": None,
            "projectedvolumesmaps": None,
            "jobscriptURL": "",
            **objects,
        }
        return await self.call("POST", "/create", body, **{"InterLink-Http-Session": "CreatePod#4711"})

    async def created(self, pod: Pod, **objects: Any) -> str:
        """A create that must succeed; the job's id."""
        status, body = await self.create(pod, **objects)
        assert status == 200, body
        answer = json.loads(body)
        assert answer["PodUID"] == pod["metadata"]["uid"]
        return str(answer["PodJID"])

    async def status(self, *pods: Pod) -> list[dict[str, Any]]:
        status, body = await self.call("GET", "/status", list(pods))
        assert status == 200, body
        found: list[dict[str, Any]] = json.loads(body)
        for one in found:
            assert one["containers"], "a virtual kubelet would call this Succeeded"
        return found

    async def delete(self, pod: Pod) -> tuple[int, bytes]:
        return await self.call("POST" if self._plugin else "DELETE", "/delete", pod)

    async def logs(self, pod: Pod, container: str = "main", **options: Any) -> tuple[int, bytes]:
        opts = {"Tail": 0, "Bytes": 0, "Timestamps": False, "Follow": False, "Previous": False, "SinceSeconds": 0,
                "SinceTime": "0001-01-01T00:00:00Z"}  # fmt: skip
        body = {
            "Namespace": pod["metadata"]["namespace"],
            "PodUID": pod["metadata"]["uid"],
            "PodName": pod["metadata"]["name"],
            "ContainerName": container,
            "Opts": {**opts, **options},
        }
        return await self.call("GET", "/getLogs", body)

    async def text(self, pod: Pod, container: str = "main", **options: Any) -> str:
        """A log that must be there."""
        status, body = await self.logs(pod, container, **options)
        assert status == 200, body
        return body.decode()

    async def until_said(self, pod: Pod, line: str, deadline_s: float = TERMINAL_S) -> None:
        """Until the main container has written ``line``: it runs for a while before it says anything."""
        said = ""
        try:
            async with asyncio.timeout(deadline_s):
                while line not in said.splitlines():
                    await asyncio.sleep(0.1)
                    said = (await self.logs(pod, "main"))[1].decode()
        except TimeoutError:
            raise AssertionError(f"not within {deadline_s} s: {line!r}, but {said!r}") from None

    async def until(self, pod: Pod, holds: Any, deadline_s: float = TERMINAL_S) -> dict[str, Any]:
        """The first status for which ``holds(status)``."""
        found: list[dict[str, Any]] = []
        try:
            async with asyncio.timeout(deadline_s):
                while True:
                    found = await self.status(pod)
                    if found and holds(found[0]):
                        return found[0]
                    await asyncio.sleep(0.1)
        except TimeoutError:
            raise AssertionError(f"not within {deadline_s} s: {found}") from None

    async def ended(self, pod: Pod, deadline_s: float = TERMINAL_S) -> dict[str, dict[str, Any]]:
        """``terminated`` of each main container, once all have ended."""
        last = await self.until(
            pod, lambda s: all("terminated" in c["state"] for c in s["containers"]), deadline_s
        )
        return {c["name"]: c["state"]["terminated"] for c in last["containers"]}


@asynccontextmanager
async def kubelet(
    url: str,
    token: str | None,
    ca: Path | None = None,
    *,
    certificate: tuple[Path, Path] | None = None,
    plugin: bool = False,
    unix: str | None = None,
) -> AsyncIterator[Kubelet]:
    """A virtual kubelet, or with ``plugin`` an API server."""
    context = ssl.create_default_context(cafile=str(ca)) if ca else False
    if certificate is not None and isinstance(context, ssl.SSLContext):
        context.load_cert_chain(*map(str, certificate))
    connector = aiohttp.UnixConnector(unix) if unix else aiohttp.TCPConnector(ssl=context)
    timeout = aiohttp.ClientTimeout(total=None, sock_connect=10, sock_read=60)
    async with aiohttp.ClientSession(connector=connector, timeout=timeout) as session:
        yield Kubelet(url, token, session, plugin=plugin)


def container(name: str = "main", script: str = "true", **more: Any) -> k8s.V1Container:
    """A container that runs a shell script."""
    return k8s.V1Container(
        **{"name": name, "image": "localhost/box:1", "command": ["/bin/sh", "-c"], "args": [script], **more}
    )


def pod(
    *containers: k8s.V1Container,
    annotations: Mapping[str, str] | None = None,
    namespace: str = "default",
    **spec: Any,
) -> Pod:
    """A pod as kubernetes' own models write it."""
    uid = str(uuid.uuid4())
    meta = k8s.V1ObjectMeta(
        name=f"p-{uid[:8]}", namespace=namespace, uid=uid, annotations=dict(annotations or {})
    )
    made = k8s.V1Pod(
        api_version="v1", kind="Pod", metadata=meta,
        spec=k8s.V1PodSpec(**{"containers": list(containers) or [container()], **spec}),
    )  # fmt: skip
    found: Pod = k8s.ApiClient().sanitize_for_serialization(made)  # type: ignore[no-untyped-call]
    found["metadata"]["creationTimestamp"] = None  # as Go writes it
    found["status"] = {"phase": "Pending"}  # an API server asks for such pods only
    return found


def config_map(name: str, **data: str) -> dict[str, Any]:
    return {"metadata": {"name": name, "creationTimestamp": None}, "data": data}


def secret(name: str, **data: str | bytes) -> dict[str, Any]:
    encoded = {
        key: base64.b64encode(value if isinstance(value, bytes) else value.encode()).decode()
        for key, value in data.items()
    }
    return {"metadata": {"name": name, "creationTimestamp": None}, "data": encoded, "type": "Opaque"}
