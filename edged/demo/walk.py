"""The walk: a scratch directory, an issuer and a CA of our own, the real daemon, then real requests."""

from __future__ import annotations

import asyncio
import getpass
import json
import os
import pwd
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Awaitable, Callable
from importlib.metadata import entry_points
from pathlib import Path

import click

from edged import config as configuration
from edged.demo.context import Demo
from edged.demo.settings import Scene, settings
from edged.errors import EdgeError, Unavailable
from edged.identity.testca import ThrowAwayCa
from edged.identity.testissuer import ThrowAwayIssuer

READY_S = 20.0
STOP_S = 15.0
ORDER = ("jobs", "storage", "xrootd", "cache", "egress", "portal")
PART_OF = {
    "xrootd": "storage"
}  # shown with the section it belongs to; it tells itself when it is not installed

Steps = Callable[[Demo], Awaitable[None]]


def run(*, keep: bool, batch: str) -> int:
    """Walk the main job; 0 when every step did what it should."""
    scratch = Path(tempfile.mkdtemp(prefix="edged-demo-"))
    scratch.chmod(0o755)
    try:
        return asyncio.run(_walk(scratch, keep=keep, batch=batch))
    except (EdgeError, OSError, AssertionError) as error:
        click.echo(f"edged demo: {error}", err=True)
        _show_log(scratch)
        return 1
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


async def _walk(scratch: Path, *, keep: bool, batch: str) -> int:
    async with ThrowAwayIssuer(ThrowAwayCa(scratch / "ca")).running() as issuer:
        scene = Scene(scratch, issuer, account=_own_account(), batch=batch)
        file = scratch / "edged.toml"
        file.write_text(settings(scene))
        config = configuration.load(file)
        daemon = _start(file, scratch)
        try:
            listening = await _until_ready(config, daemon)
            demo = Demo(scratch, config, listening, scene.ca_file, scene.token, click.echo, batch=batch)
            click.echo(f"edged demo: {config.site.name}, batch system {batch}, everything in {scratch}")
            for name, steps in _steps().items():
                if getattr(config, PART_OF.get(name, name)) is not None:
                    await steps(demo)
            if keep:
                await _stay(demo)
        finally:
            _stop(daemon)
    click.echo("\nEverything worked. Nothing is left behind.")
    return 0


def _steps() -> dict[str, Steps]:
    """What each service shows (entry point group ``edged.demo``), in a sensible order."""
    points = {point.name: point for point in entry_points(group="edged.demo")}
    names = sorted(points, key=lambda name: (ORDER.index(name) if name in ORDER else len(ORDER), name))
    return {name: points[name].load() for name in names}


def _own_account() -> str:
    return pwd.getpwuid(os.geteuid()).pw_name


def _start(file: Path, scratch: Path) -> subprocess.Popen[bytes]:
    log = (scratch / "edged.log").open("wb")
    with log:
        return subprocess.Popen(
            [sys.executable, "-m", "edged", "run", "--config", str(file)], stdout=log, stderr=log, cwd=scratch
        )


async def _until_ready(config: configuration.Config, daemon: subprocess.Popen[bytes]) -> dict[str, list[str]]:
    """The listeners' addresses, once the daemon has told them. Raises Unavailable."""
    told = config.runtime.run / "listening.json"
    try:
        async with asyncio.timeout(READY_S):
            while not told.exists():
                if daemon.poll() is not None:
                    raise Unavailable(f"the daemon ended with status {daemon.returncode}")
                await asyncio.sleep(0.02)
    except TimeoutError:
        raise Unavailable(f"the daemon was not ready within {READY_S:.0f} s") from None
    found: dict[str, list[str]] = json.loads(told.read_text())
    return found


def _stop(daemon: subprocess.Popen[bytes]) -> None:
    daemon.send_signal(signal.SIGTERM)
    try:
        daemon.wait(STOP_S)
    except subprocess.TimeoutExpired:
        daemon.kill()
        daemon.wait()


def _show_log(scratch: Path) -> None:
    log = scratch / "edged.log"
    if log.exists():
        lines = log.read_text(errors="replace").splitlines()
        click.echo("\n".join(["the daemon's last words:", *lines[-15:]]), err=True)


async def _stay(demo: Demo) -> None:
    """Print what to try and wait for Ctrl-C."""
    token_file = demo.scratch / "token"
    token_file.touch(mode=0o600)
    token_file.write_text(demo.token())
    click.echo("\nStill running. Listeners:")
    for name, addresses in demo.listening.items():
        click.echo(f"  {name:14} {', '.join(addresses)}")
    jobs = demo.url("jobs")
    click.echo(
        f"""
Try in another terminal ({getpass.getuser()}@{socket.gethostname()}):
  export BEARER_TOKEN_FILE={token_file} EDGED_URL={jobs} EDGED_CA={demo.ca_file}
  curl --cacert $EDGED_CA -H "Authorization: Bearer $(cat $BEARER_TOKEN_FILE)" {jobs}/v1/jobs
  edged job submit --wait /bin/hostname
  edged job list
Ctrl-C ends it and removes everything."""
    )
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stop.set)
    await stop.wait()
