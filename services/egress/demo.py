"""What egress shows in ``edged demo``: an allowed and a refused connection, and a job's byte count."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import time

from edged.demo.context import Demo
from edged.demo.settings import Scene
from services.egress.ledger import store_of, usage

_DEADLINE_S = 15.0
SCRIPT = """#!/bin/sh
if [ -z "$HTTP_PROXY" ]; then echo "no proxy in my environment"; exit 0; fi
curl -sS -m 10 -o /dev/null -w 'http %{http_code}, %{size_download} bytes' PLACE
"""


def settings(scene: Scene) -> str:
    """The demo's [egress]: loopback plays the nodes, and one port of it the outside."""
    with socket.socket() as probe:  # a port that jobs can be told beforehand
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    return f"""
[egress]
listen = ["127.0.0.1:{port}"]
host = "127.0.0.1"
inside = ["127.0.0.2/32"]
accounts_s = 0.5
[egress.api]
listen = ["127.0.0.1:0"]
[[egress.source]]
name = "demo-nodes"
networks = ["127.0.0.0/8"]
[[egress.destination]]
name = "demo-outside"
networks = ["127.0.0.2/32"]
ports = ["1024-65535"]
[[egress.rule]]
name = "demo"
to = ["demo-outside"]
"""


async def steps(demo: Demo) -> None:
    """Through the gate where a rule allows it, not where none does; then who used what."""
    demo.heading("egress: nodes reach out through one gate")
    outside = await asyncio.start_server(_answer, "127.0.0.2", 0)
    port = outside.sockets[0].getsockname()[1]
    try:
        async with demo.step("a connection that a rule allows") as step:
            step.result = await _through(demo, f"127.0.0.2:{port}")
            step.expect(step.result.startswith("200 "), step.result)
        for target in ("169.254.169.254:80", "192.0.2.7:443"):
            async with demo.step(f"refused: {target}") as step:
                step.result = await _through(demo, target)
                step.expect(step.result.startswith("403 "), step.result)
        async with demo.step("a job downloads through it") as step:
            job, said = await _job(demo, f"http://127.0.0.2:{port}/")
            step.expect("http 200" in said, f"the job did not get through: {said}")
            step.result = f"{job}: {said}"
        async with demo.step("who sent what where") as step:
            step.result = await _counted(demo, job)
    finally:
        outside.close()


async def _answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with contextlib.suppress(OSError, asyncio.IncompleteReadError):
        await reader.readuntil(b"\r\n\r\n")
        body = b"x" * 100_000
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\nConnection: close\r\n\r\n" % len(body) + body)
        await writer.drain()
    writer.close()


async def _through(demo: Demo, target: str) -> str:
    host, _, port = demo.listening["egress"][0].rpartition(":")
    async with asyncio.timeout(_DEADLINE_S):
        reader, writer = await asyncio.open_connection(host, int(port))
        try:
            writer.write(f"CONNECT {target} HTTP/1.1\r\nHost: {target}\r\n\r\n".encode())
            head = await reader.readuntil(b"\r\n\r\n")
            status = head.decode().splitlines()[0]
            if " 200 " not in status:
                return f"{status.partition(' ')[2]}: {(await reader.read()).decode().strip()}"
            writer.write(b"GET / HTTP/1.1\r\nHost: outside\r\n\r\n")
            return f"{status.partition(' ')[2]}, {len(await reader.read())} bytes came through"
        finally:
            writer.close()


async def _job(demo: Demo, place: str) -> tuple[str, str]:
    async with demo.api("jobs", demo.token()) as api, asyncio.timeout(60):
        body = {
            "name": "reach-out",
            "script": SCRIPT.replace("PLACE", place),
            "resources": {"walltime_s": 60},
        }
        made = await api.call("POST", "/v1/jobs", body=body)
        view = made
        while view["state"] not in ("FINISHED", "FAILED", "KILLED", "LOST"):
            view = await api.call("GET", f"/v1/jobs/{made['id']}", wait=30, seen=repr(view["changed_at"]))
        async with api.request("GET", f"/v1/jobs/{made['id']}/files/stdout") as response:
            return str(made["id"]), (await response.text()).strip()


async def _counted(demo: Demo, job: str) -> str:
    """The ledger's line of the job."""
    store = store_of(demo.config)
    try:
        async with asyncio.timeout(_DEADLINE_S):
            while True:
                with store.engine.connect() as connection:
                    lines = usage(connection, time.time() - 7200, time.time() + 1, ("job", "destination"))
                for line in lines:
                    if line.group["job"] == job and line.connections:
                        return (
                            f"job {job} → {line.group['destination']}: "
                            f"{line.bytes_out} bytes out, {line.bytes_in} in, {line.connections} connections"
                        )
                await asyncio.sleep(0.2)
    finally:
        store.engine.dispose()
