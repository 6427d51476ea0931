"""interLink's status calls: what one costs, and many pods polled one by one with TLS for every call.

    python tests/bench/interlink_status.py [pods] [rounds]

There are only a few real jobs, each asked for many times: an answer comes from a table in memory, whose
size does not matter, and running hundreds of jobs would be what is measured.

A virtual kubelet asks for one pod per call, every 5 s, with a new TLS connection each time that it never
closes. The peer in the same run is a bare aiohttp server which answers the same bytes to the same client,
with TLS and without any of our layers: it shows what of the cost is the handshake and the HTTP library.
CPU is that of all processes of the server, from /proc; the client's is not counted.
"""

from __future__ import annotations

import asyncio
import json
import os
import pwd
import ssl
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import aiohttp

from tests.real.doors.interlink.fixtures import answering
from tests.real.jobs.fixtures import local_jobs
from tests.support.kubelet import Pod, container, kubelet, pod
from tests.support.site import Site, queue

TICK = os.sysconf("SC_CLK_TCK")
PEER = """
import asyncio, ssl, sys
from aiohttp import web
async def main(cert, key, body):
    async def answer(request):
        await request.read()
        response = web.Response(body=body, content_type="application/json")
        response.force_close()
        return response
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(cert, key)
    server = await asyncio.get_running_loop().create_server(web.Server(answer, access_log=None), "127.0.0.1", 0, ssl=context)
    print(server.sockets[0].getsockname()[1], flush=True)
    await server.serve_forever()
import uvloop
uvloop.run(main(sys.argv[1], sys.argv[2], sys.argv[3].encode()))
"""  # noqa: E501


def processes(root: int) -> Iterator[int]:
    """A process and all below it."""
    yield root
    for task in Path(f"/proc/{root}/task").iterdir():
        for child in map(int, (task / "children").read_text().split()):
            yield from processes(child)


def cpu_s(root: int) -> float:
    """CPU seconds used by a process and all below it."""
    total = 0
    for pid in processes(root):
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        total += int(fields[11]) + int(fields[12])
    return total / TICK


def sockets(root: int) -> int:
    """Open sockets of a process."""
    found = 0
    for link in Path(f"/proc/{root}/fd").iterdir():
        try:
            found += os.readlink(link).startswith("socket:")
        except FileNotFoundError:
            continue
    return found


async def polled(url: str, token: str, ca: Path, bodies: list[bytes], period_s: float) -> list[float]:
    """Each body asked once over a connection of its own, spread over the period; seconds of each call."""
    context = ssl.create_default_context(cafile=str(ca))
    headers = {"Authorization": f"Bearer {token}", "Content-Type": "application/json"}
    took: list[float] = []
    start = time.perf_counter()
    for index, body in enumerate(bodies):
        delay = start + index * period_s / len(bodies) - time.perf_counter()
        if delay > 0:
            await asyncio.sleep(delay)
        connector = aiohttp.TCPConnector(ssl=context)
        async with aiohttp.ClientSession(connector=connector) as session:
            begun = time.perf_counter()
            async with session.get(url + "/status", data=body, headers=headers) as response:
                answer = await response.read()
                assert response.status == 200, answer
            took.append(time.perf_counter() - begun)
    return took


async def kept(unix: str, bodies: list[bytes]) -> list[float]:
    """The same over one connection, as the API server beside us asks."""
    took: list[float] = []
    async with aiohttp.ClientSession(connector=aiohttp.UnixConnector(unix)) as session:
        for body in bodies:
            begun = time.perf_counter()
            async with session.get("http://plugin/status", data=body) as response:
                await response.read()
            took.append(time.perf_counter() - begun)
    return took


JOBS = 20


async def submitted(site: Site, count: int) -> list[Pod]:
    """Pods that are there and stay: most wait, some run."""
    async with kubelet(site.url("interlink"), site.token(sub="vk"), site.issuer.ca.file) as node:
        pods = [pod(container(script="sleep 900"), restart_policy="Never") for _ in range(min(count, JOBS))]
        for one in pods:
            await node.created(one)
        return [pods[index % len(pods)] for index in range(count)]


async def main(count: int, rounds: int) -> None:
    with tempfile.TemporaryDirectory(prefix="edged-bench-", ignore_cleanup_errors=True) as made:
        root = Path(made)
        own = pwd.getpwuid(os.geteuid()).pw_name
        door = {
            "listen": ["127.0.0.1:0"],
            "runtime": {"kind": "none"},
            "default_memory": "10M",
            "plugin": {"listen": [f"{root}/run/plugin.sock"], "account": own, "users": [own]},
        }
        settings = {
            **local_jobs(root, interlink=door),
            "poll_s": 5.0,
            "queue": [queue("short", max_walltime_s=3600)],
        }
        site = Site(root, jobs=settings, log={"level": "warning"})
        site.sections["identity"] = {
            "listen": ["127.0.0.1:0"],
            "assertions": [{"service": "jobs", "accounts": [own]}],
        }
        async with site.running():
            assert site.process is not None
            await answering(site, "interlink")
            pods = await submitted(site, count)
            await asyncio.sleep(5)
            await report(site, site.process.pid, pods, rounds)
            async with kubelet(site.url("interlink"), site.token(sub="vk"), site.issuer.ca.file) as node:
                for one in pods[:JOBS]:
                    await node.delete(one)
                for one in pods[:JOBS]:
                    await node.ended(one)


async def report(site: Site, pid: int, pods: list[Pod], rounds: int) -> None:
    token, ca = site.token(sub="vk"), site.issuer.ca.file
    bodies = [json.dumps([one]).encode() for one in pods]
    base = sockets(pid)
    idle = await used(pid, asyncio.sleep(5.0 * rounds))
    share = idle / (5 * rounds) * 100
    print(f"pods {len(pods)}, sockets {base}, without calls {share:.1f} % of a core, not counted below")
    ours, ours_cpu = await loops(site.url("interlink"), token, ca, bodies, rounds, pid)
    at_end, begun = sockets(pid), time.monotonic()
    while sockets(pid) > base + 2 and time.monotonic() - begun < 20:
        await asyncio.sleep(0.1)
    print(
        f"sockets after {len(ours)} calls {at_end}, back to {sockets(pid)} in {time.monotonic() - begun:.1f} s"
    )
    host = site.issuer.ca.host("127.0.0.1", "localhost")
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(ssl=False)) as session:
        headers = {"Authorization": f"Bearer {token}"}
        async with session.get(
            site.url("interlink") + "/status", data=bodies[0], headers=headers
        ) as response:
            sample = (await response.read()).decode()
    peer = subprocess.Popen(
        [sys.executable, "-c", PEER, host.certificate, host.key, sample], stdout=subprocess.PIPE, text=True
    )
    try:
        assert peer.stdout is not None
        port = peer.stdout.readline().strip()
        theirs, theirs_cpu = await loops(f"https://127.0.0.1:{port}", token, ca, bodies, rounds, peer.pid)
    finally:
        peer.kill()
        peer.wait()
    net = max(0.0, ours_cpu - idle)
    tell("edged, new TLS each", ours, net, rounds)
    tell("bare aiohttp, the same", theirs, theirs_cpu, rounds)
    print(f"CPU per call to the peer's: {net / max(theirs_cpu, 1e-9):.2f}")
    took = sorted(await kept(site.listening["interlink-plugin"][0], bodies * 4))
    p99 = took[int(len(took) * 0.99)]
    print(
        f"one connection kept, plugin form: p50 {statistics.median(took) * 1e3:.2f} ms, p99 {p99 * 1e3:.2f} ms"
    )


async def loops(
    url: str, token: str, ca: Path, bodies: list[bytes], rounds: int, pid: int
) -> tuple[list[float], float]:
    before, took = cpu_s(pid), list[float]()
    for _ in range(rounds):
        took += await polled(url, token, ca, bodies, 5.0)
    return took, cpu_s(pid) - before


async def used(pid: int, work: object) -> float:
    before = cpu_s(pid)
    await work  # type: ignore[misc]
    return cpu_s(pid) - before


def tell(name: str, took: list[float], cpu: float, rounds: int) -> None:
    took = sorted(took)
    print(
        f"{name}: p50 {statistics.median(took) * 1e3:.2f} ms, p99 {took[int(len(took) * 0.99)] * 1e3:.2f} ms, "
        f"CPU {cpu / len(took) * 1e3:.2f} ms a call, {cpu / (5 * rounds) * 100:.1f} % of a core"
    )


if __name__ == "__main__":
    asyncio.run(
        main(int(sys.argv[1]) if len(sys.argv) > 1 else 500, int(sys.argv[2]) if len(sys.argv) > 2 else 3)
    )
