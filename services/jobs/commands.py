"""``edged job``: submit, follow and fetch from the command line."""

from __future__ import annotations

import asyncio
import json
import sys
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import click
from rich.console import Console
from rich.table import Table

from edged.client import ApiClient, connected
from edged.errors import BadRequest

FINAL = ("FINISHED", "FAILED", "KILLED", "LOST")
EXIT_OF = {"FINISHED": 0, "FAILED": 1, "KILLED": 2, "LOST": 3}


class Site:
    """Which site, and whether a program reads the output."""

    def __init__(self, url: str, ca_file: Path | None, as_json: bool) -> None:
        self.url, self.ca_file, self.as_json = url, ca_file, as_json

    def run(self, work: Callable[[ApiClient], Awaitable[Any]]) -> Any:
        """Run ``work`` with a connected client."""

        async def inner() -> Any:
            async with connected(self.url, self.ca_file) as client:
                return await work(client)

        return asyncio.run(inner())

    def show(self, value: Any, people: Callable[[Any], None]) -> None:
        """JSON for programs, ``people`` for people."""
        if self.as_json:
            click.echo(json.dumps(value, indent=2))
        else:
            people(value)


@click.group()
@click.option(
    "--url", envvar="EDGED_URL", default="https://localhost:8443", show_default=True, help="The site."
)
@click.option(
    "--ca", "ca_file", envvar="EDGED_CA", type=click.Path(path_type=Path, exists=True), help="CA bundle."
)
@click.option("--json", "as_json", is_flag=True, help="For programs.")
@click.pass_context
def job(context: click.Context, url: str, ca_file: Path | None, as_json: bool) -> None:
    """Jobs on the site's batch system. The token is found as WLCG Bearer Token Discovery says."""
    context.obj = Site(url, ca_file, as_json)


@job.command()
@click.argument("executable", required=False)
@click.argument("arguments", nargs=-1)
@click.option("--script", type=click.Path(path_type=Path, exists=True), help="Run this script file.")
@click.option("--file", "description", type=click.File("rb"), help="A JSON description ('-': stdin).")
@click.option("--name", default="")
@click.option("--queue", default="")
@click.option("--nodes", type=int, default=1)
@click.option("--tasks", type=int, default=0, help="Default: one a node.")
@click.option("--cpus", type=int, default=1, help="CPUs per task.")
@click.option("--memory", default="0", help="Per node, e.g. 4G.")
@click.option("--walltime", default="0", help="Seconds, or H:MM:SS.")
@click.option("--gpus", default="", help="COUNT or KIND:COUNT, on each node.")
@click.option("--env", "environment", multiple=True, metavar="NAME=VALUE")
@click.option("--input", "inputs", multiple=True, type=click.Path(path_type=Path, exists=True))
@click.option("--wait", is_flag=True, help="Wait for its end; the exit status tells how it ended.")
@click.pass_obj
def submit(site: Site, /, **given: Any) -> None:
    """Submit a job: EXECUTABLE with ARGUMENTS, a --script, or a JSON --file."""
    description, files = _described(given)

    async def work(client: ApiClient) -> Any:
        made = await client.call("POST", "/v1/jobs", body=description)
        for path in files:
            with path.open("rb") as content:
                async with client.request("PUT", f"/v1/jobs/{made['id']}/files/{path.name}", data=content):
                    pass
        return await _until_end(client, made, quiet=site.as_json) if given["wait"] else made

    made = site.run(work)
    site.show(made, lambda value: click.echo(value["id"]) if not given["wait"] else _print_job(value))
    if given["wait"]:
        sys.exit(EXIT_OF[made["state"]])


def _described(given: dict[str, Any]) -> tuple[dict[str, Any], list[Path]]:
    """The description the options mean, and the files to upload."""
    if given["description"] is not None:
        return json.load(given["description"]), list(given["inputs"])
    description: dict[str, Any] = {"name": given["name"], "queue": given["queue"]}
    if given["script"]:
        description["script"] = given["script"].read_text()
    elif given["executable"]:
        description["executable"] = given["executable"]
    else:
        raise click.UsageError("name an EXECUTABLE, a --script or a --file")
    description["arguments"] = list(given["arguments"])
    description["environment"] = dict(pair.partition("=")[::2] for pair in given["environment"])
    description["inputs"] = [path.name for path in given["inputs"]]
    description["resources"] = _resources(given)
    return description, list(given["inputs"])


def _resources(given: dict[str, Any]) -> dict[str, Any]:
    resources: dict[str, Any] = {
        "nodes": given["nodes"],
        "tasks": given["tasks"] or given["nodes"],
        "cpus_per_task": given["cpus"],
        "memory": parse_size(given["memory"]),
        "walltime_s": parse_seconds(given["walltime"]),
    }
    if given["gpus"]:
        kind, _, count = given["gpus"].rpartition(":")
        if not count.isdigit():
            raise click.UsageError("--gpus COUNT or KIND:COUNT")
        resources["gpus"] = {"kind": kind, "count": int(count)}
    return resources


def parse_size(text: str) -> int:
    """``4G`` → bytes."""
    unit = text[-1:].upper()
    power = " KMGT".find(unit) if unit and not unit.isdigit() else 0
    number = text[:-1] if power > 0 else text
    if power < 0 or not number.replace(".", "", 1).isdigit():
        raise BadRequest(f"not a size: {text!r}")
    return int(float(number) * 1024**power)


def parse_seconds(text: str) -> int:
    """``90``, ``1:30`` or ``1:00:00`` → seconds."""
    parts = text.split(":")
    if not all(part.isdigit() for part in parts) or len(parts) > 3:
        raise BadRequest(f"not a time: {text!r}")
    seconds = 0
    for part in parts:
        seconds = seconds * 60 + int(part)
    return seconds


@job.command("list")
@click.option("--state", default="", help="Comma-separated states.")
@click.option("--limit", type=int, default=50)
@click.pass_obj
def list_jobs(site: Site, state: str, limit: int) -> None:
    """Your jobs, newest first."""
    page = site.run(lambda client: client.call("GET", "/v1/jobs", state=state, limit=limit, newest="true"))
    site.show(page, lambda value: _print_table(value["jobs"]))


@job.command()
@click.argument("job_id")
@click.pass_obj
def show(site: Site, job_id: str) -> None:
    """One job with its history."""
    site.show(site.run(lambda client: client.call("GET", f"/v1/jobs/{job_id}")), _print_job)


@job.command()
@click.argument("job_id")
@click.pass_obj
def wait(site: Site, job_id: str) -> None:
    """Wait for a job's end: exit status 0 FINISHED, 1 FAILED, 2 KILLED, 3 LOST."""

    async def work(client: ApiClient) -> Any:
        return await _until_end(client, await client.call("GET", f"/v1/jobs/{job_id}"), quiet=site.as_json)

    ended = site.run(work)
    site.show(ended, _print_job)
    sys.exit(EXIT_OF[ended["state"]])


async def _until_end(client: ApiClient, view: dict[str, Any], *, quiet: bool) -> dict[str, Any]:
    """Follow a job to its end, telling each change on stderr."""
    started = time.monotonic()
    said = ""
    while True:
        line = f"{view['state']}  {view.get('reason', '')}".strip()
        if line != said and not quiet:
            click.echo(f"{time.monotonic() - started:7.1f} s  {line}", err=True)
            said = line
        if view["state"] in FINAL:
            return view
        view = await client.call("GET", f"/v1/jobs/{view['id']}", wait=60, seen=repr(view["changed_at"]))


@job.command()
@click.argument("job_id")
@click.option("--stderr", is_flag=True)
@click.option("--lines", type=int, default=100, help="0: all.")
@click.option("--follow", "-f", is_flag=True)
@click.pass_obj
def logs(site: Site, job_id: str, stderr: bool, lines: int, follow: bool) -> None:
    """The end of a job's output; --follow until the job ends."""
    query = {"stream": "stderr" if stderr else "stdout", "lines": lines, "follow": str(follow).lower()}

    async def work(client: ApiClient) -> None:
        async with client.request("GET", f"/v1/jobs/{job_id}/logs", query=query) as response:
            async for block in response.content.iter_any():
                sys.stdout.buffer.write(block)
                sys.stdout.buffer.flush()

    site.run(work)


@job.command()
@click.argument("job_id")
@click.argument("names", nargs=-1)
@click.option("--to", type=click.Path(path_type=Path), default=Path(), help="Directory; made when missing.")
@click.pass_obj
def get(site: Site, job_id: str, names: tuple[str, ...], to: Path) -> None:
    """Download a job's files: the named ones, or all."""

    async def work(client: ApiClient) -> list[str]:
        wanted = names or [f["name"] for f in (await client.call("GET", f"/v1/jobs/{job_id}/files"))["files"]]
        for name in wanted:
            await _download(client, f"/v1/jobs/{job_id}/files/{name}", to / name)
        return list(wanted)

    site.show(site.run(work), lambda value: click.echo("\n".join(value)))


async def _download(client: ApiClient, path: str, target: Path) -> None:
    """Into a file that appears only when it is whole."""
    if ".." in target.parts:
        raise BadRequest(f"the site named a file {target} that leaves the directory")
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = target.with_name(f".{target.name}.part")
    async with client.request("GET", path) as response:
        with partial.open("wb") as out:
            async for block in response.content.iter_any():
                out.write(block)
    partial.replace(target)


@job.command()
@click.argument("job_ids", nargs=-1, required=True)
@click.pass_obj
def cancel(site: Site, job_ids: tuple[str, ...]) -> None:
    """Cancel jobs."""

    async def work(client: ApiClient) -> list[Any]:
        return [await client.call("POST", f"/v1/jobs/{one}/cancel") for one in job_ids]

    site.show(site.run(work), _print_table)


@job.command()
@click.argument("job_ids", nargs=-1, required=True)
@click.pass_obj
def clean(site: Site, job_ids: tuple[str, ...]) -> None:
    """Remove ended jobs and their files."""

    async def work(client: ApiClient) -> list[str]:
        for one in job_ids:
            await client.call("DELETE", f"/v1/jobs/{one}")
        return list(job_ids)

    site.show(site.run(work), lambda value: click.echo("\n".join(value)))


@job.command()
@click.argument("queues", nargs=-1)
@click.pass_obj
def drain(site: Site, queues: tuple[str, ...]) -> None:
    """Take no new jobs in QUEUES ('*': all); without QUEUES open all again. For the site's admins."""
    done = site.run(lambda client: client.call("POST", "/v1/drain", body={"queues": list(queues)}))
    site.show(done, lambda value: click.echo("draining: " + (", ".join(value["queues"]) or "nothing")))


def _print_table(jobs: list[dict[str, Any]]) -> None:
    table = Table(box=None, header_style="bold")
    for column in ("id", "state", "queue", "age", "exit", "name", "reason"):
        table.add_column(column)
    now = time.time()
    for one in jobs:
        table.add_row(
            one["id"],
            one["state"],
            one.get("queue", ""),
            f"{int(now - one['created_at'])} s",
            str(one.get("exit_code", "")),
            one.get("name", ""),
            one.get("reason", ""),
        )
    Console().print(table)


def _print_job(one: dict[str, Any]) -> None:
    table = Table(box=None, show_header=False)
    for key, value in one.items():
        if key != "history":
            table.add_row(key, _moment(value) if key.endswith(("_at", "_until")) else str(value))
    for at, state, reason in one.get("history", ()):
        table.add_row("history", f"{_moment(at)}  {state}  {reason}".rstrip())
    Console().print(table)


def _moment(value: object) -> str:
    if not isinstance(value, int | float):
        return str(value)
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(value))
