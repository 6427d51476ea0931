"""What the jobs service shows in ``edged demo``: a token becomes a job, and its output comes back."""

from __future__ import annotations

from typing import Any

from edged.client import ApiClient
from edged.demo.context import Demo
from edged.errors import Unavailable

FINAL = ("FINISHED", "FAILED", "KILLED", "LOST")
SCRIPT = """#!/bin/sh
echo "hello from $(hostname) as $(id -un), job $EDGED_JOB_ID"
test -n "$CUDA_VISIBLE_DEVICES" && echo "GPUs: $CUDA_VISIBLE_DEVICES"
exit 0
"""


async def steps(demo: Demo) -> None:
    """Token → who am I → submit → follow → output → accounting."""
    demo.heading("jobs: a token becomes a job under the right account")
    async with demo.step("get a token") as step:
        token = demo.token()
        step.result = f"{len(token)} characters, signed by the demo's issuer"
    async with demo.api("identity-api", token) as api, demo.step("who am I") as step:
        me = await demo.until(lambda: _whoami(api), "the issuer's keys")
        step.result = f"VO {me['vo']} → account {me['account']}, class {me['job_class']}"
    async with demo.api("jobs", token) as api:
        async with demo.step("what does the site offer") as step:
            site = await api.call("GET", "/v1/site")
            step.result = f"queues {', '.join(queue['name'] for queue in site['queues'])}"
        gpu = next((queue for queue in site["queues"] if queue["gpus"]), None)
        async with demo.step("submit a job" + (" with a GPU" if gpu else "")) as step:
            made = await api.call("POST", "/v1/jobs", body=_description(gpu))
            step.result = f"{made['id']} {made['state']} in queue {made['queue']}"
        async with demo.step("follow it to its end") as step:
            view = made
            seen = [made["state"]]
            while view["state"] not in FINAL:
                view = await api.call("GET", f"/v1/jobs/{made['id']}", wait=30, seen=repr(view["changed_at"]))
            seen = [state for _, state, _ in view["history"]]
            step.result = " → ".join(seen)
            step.expect(view["state"] == "FINISHED", f"the job ended {view['state']}: {view.get('reason')}")
        output = f"/v1/jobs/{made['id']}/files/stdout"
        async with demo.step("read its output") as step, api.request("GET", output) as response:
            step.result = (await response.text()).strip().replace("\n", " | ")
        async with demo.step("see the accounting") as step:
            row = await demo.until(lambda: _usage(api), "the job's usage")
            step.result = (
                f"{row['jobs']} job, {row['cpu_allocated_s']:.1f} CPU s, {row['gpu_allocated_s']:.1f} GPU s"
            )
        async with demo.step("clean it") as step:
            await api.call("DELETE", f"/v1/jobs/{made['id']}")
            step.result = "files and record removed, usage kept"


async def _whoami(api: ApiClient) -> Any:
    """Nothing while the daemon is still fetching the issuer's keys."""
    try:
        return await api.call("GET", "/v1/whoami")
    except Unavailable:
        return None


async def _usage(api: ApiClient) -> Any:
    """The first row; it is written a moment after the job's end is shown."""
    rows = (await api.call("GET", "/v1/usage"))["rows"]
    return rows[0] if rows else None


def _description(gpu: dict[str, object] | None) -> dict[str, object]:
    resources: dict[str, object] = {"walltime_s": 60}
    if gpu:
        resources["gpus"] = {"count": 1}
    return {"name": "demo", "script": SCRIPT, "resources": resources}
