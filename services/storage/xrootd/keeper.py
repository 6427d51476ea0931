"""Runs the servers in embedded mode: what systemd's units do otherwise.

A small process that keeps root while `edged run` gives it up. It reads root-owned configuration, speaks
to nobody, and ends with the pipe that `edged run` holds. Data servers outlive every token, so no grant
can stand for them: the configuration does.
"""

from __future__ import annotations

import asyncio
import logging
import os
import re
import signal
import subprocess
import sys
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from edged import config as configuration
from edged import logs
from edged.config import Config
from edged.errors import EdgeError
from services.storage.xrootd import installation, planning
from services.storage.xrootd.plan import Plan
from services.storage.xrootd.render import ADMIN
from services.storage.xrootd.servers import Prepared

log = logs.get_logger("services.storage.xrootd.keeper")

LOOK_S = 0.5  # how often the wish to reload, and renewed certificates, are looked for
STOP_S = 5.0
STEADY_S = 5.0
LONGEST_PAUSE_S = 5.0
LINE_BYTES = 16384
_BANAL = re.compile(
    r"edged-probe|TLS error rc=0 ec=6|error:0A000126|^=====>|^ {7}|^$"
)  # probes, ordinary ends, echoes
_TOKEN = re.compile(r"eyJ[\w-]+\.[\w-]+\.?[\w-]*")


# --- for `edged run`


@dataclass(slots=True)
class Keeping:
    """The keeper as its parent holds it."""

    process: subprocess.Popen[bytes]
    lifeline: int

    def stop(self) -> None:
        """End the servers and await it. May be called twice."""
        if self.lifeline >= 0:
            os.close(self.lifeline)
            self.lifeline = -1
            self.process.wait(STOP_S + 10)


def start(config: Config, config_file: Path) -> Keeping | None:
    """Start the keeper, when there are servers to keep. What is missing is logged: WebDAV works without."""
    if config.storage is None or config.storage.xrootd is None:
        return None
    ours, theirs = os.pipe()
    argv = [sys.executable, "-P", "-m", __spec__.name, str(config_file), str(ours)]
    try:
        process = subprocess.Popen(
            argv, pass_fds=(ours,), stdin=subprocess.DEVNULL, cwd="/", start_new_session=True
        )
    finally:
        os.close(ours)
    return Keeping(process, theirs)


# --- the process


class Keeper:
    """All servers of the plan, each program in a task of its own."""

    def __init__(self, config_file: Path) -> None:
        self._file = config_file
        self._kept: dict[str, tuple[str, asyncio.Task[None]]] = {}  # instance → stamp, task

    async def keep(self, lifeline: int) -> None:
        """Until the lifeline is closed."""
        stopped = asyncio.Event()
        loop = asyncio.get_running_loop()
        loop.add_reader(lifeline, stopped.set)
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, stopped.set)
        try:
            async with asyncio.TaskGroup() as tasks:
                await self._until(stopped, tasks)
                for _, task in self._kept.values():
                    task.cancel()
        finally:
            loop.remove_reader(lifeline)

    async def _until(self, stopped: asyncio.Event, tasks: asyncio.TaskGroup) -> None:
        plan, seen = None, None
        while not stopped.is_set():
            wished = _wish(plan)
            if plan is None or wished != seen:
                plan = self._renew(tasks) or plan
                seen = _wish(plan)
            with suppress(TimeoutError):
                async with asyncio.timeout(LOOK_S):
                    await stopped.wait()

    def _renew(self, tasks: asyncio.TaskGroup) -> Plan | None:
        """Read the configuration and start, restart and stop what changed."""
        try:
            config = configuration.load(self._file)
            found = planning.make(config)
        except EdgeError as error:
            log.error("root:// view not started", extra={"reason": str(error)})  # noqa: TRY400
            return None
        plan, installed = found
        for label, why in plan.refused.items():
            log.error("export not shown as root://", extra={"export": label, "reason": why})
        self._settle(tasks, config, plan, installed)
        return plan

    def _settle(
        self, tasks: asyncio.TaskGroup, config: Config, plan: Plan, installed: installation.Installation
    ) -> None:
        wanted: dict[str, Prepared] = {}
        for instance in plan.instances:
            try:
                wanted[instance.name] = Prepared(config, plan, instance, installed)
            except (EdgeError, OSError) as error:
                log.error("server not started", extra={"instance": instance.name, "reason": str(error)})  # noqa: TRY400
        for name, (stamp, task) in list(self._kept.items()):
            if name not in wanted or wanted[name].stamp != stamp:
                task.cancel()
                del self._kept[name]
                wait_for = task
                log.info("server changed", extra={"instance": name})
                if name in wanted:
                    one = wanted[name]
                    self._kept[name] = one.stamp, tasks.create_task(_instance(one, after=wait_for))
        for name, one in wanted.items():
            if name not in self._kept:
                self._kept[name] = one.stamp, tasks.create_task(_instance(one))


def _wish(plan: Plan | None) -> tuple[object, ...]:
    """What makes us look at the configuration again: the front's word at SIGHUP, a renewed certificate."""
    if plan is None:
        return (time.monotonic() // LONGEST_PAUSE_S,)
    files = (plan.directory / planning.RELOAD, *plan.watched)
    return tuple(_mtime(file) for file in files)


def _mtime(file: Path) -> int:
    try:
        return file.stat().st_mtime_ns
    except OSError:
        return 0


async def _instance(one: Prepared, after: asyncio.Task[None] | None = None) -> None:
    """Its programs, for as long as this task lives."""
    if after is not None:
        await asyncio.wait([after])
    one.write()
    async with asyncio.TaskGroup() as programs:
        for program in one.instance.programs:
            programs.create_task(_program(one, program))


async def _program(one: Prepared, program: str) -> None:
    """Run it for ever; at once again when it had been steady, else with a growing pause."""
    pause = 0.0
    who = {"instance": one.instance.name, "program": program}
    while True:
        began = time.monotonic()
        try:
            code = await _once(one, program)
        except (OSError, subprocess.SubprocessError) as error:
            log.error("server not started", extra={**who, "reason": str(error)})  # noqa: TRY400
            code = -1
        steady = time.monotonic() - began > STEADY_S
        pause = 0.0 if steady else min(pause * 2 or 0.1, LONGEST_PAUSE_S)
        log.error("server ended; starting it again", extra={**who, "code": code, "pause_s": pause})
        await asyncio.sleep(pause)


async def _once(one: Prepared, program: str) -> int:
    process = await asyncio.create_subprocess_exec(
        *one.argv(program),
        env=one.environment(),
        cwd=one.instance.directory / ADMIN,
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
        preexec_fn=one.become_it,
        start_new_session=True,
        limit=LINE_BYTES,
    )
    log.info("server started", extra={"instance": one.instance.name, "program": program, "pid": process.pid})
    try:
        assert process.stdout is not None
        await _tell(process.stdout, one.instance.name, program)
        return await process.wait()
    finally:
        await _end(process)


async def _tell(output: asyncio.StreamReader, instance: str, program: str) -> None:
    """Its lines into our log, without tokens."""
    while True:
        try:
            line = await output.readline()
        except ValueError:  # longer than the limit: dropped
            continue
        if not line:
            return
        text = _TOKEN.sub("[token]", line.decode("utf-8", "replace").rstrip())
        level = logging.DEBUG if _BANAL.search(text) else logging.INFO
        log.log(level, "server says", extra={"instance": instance, "program": program, "line": text})


async def _end(process: asyncio.subprocess.Process) -> None:
    if process.returncode is not None:
        return
    with suppress(ProcessLookupError):
        process.terminate()
    try:
        async with asyncio.timeout(STOP_S):
            await process.wait()
    except TimeoutError:
        with suppress(ProcessLookupError):
            process.kill()
        await process.wait()


def main(config_file: Path, lifeline: int) -> None:
    """Keep the servers until the lifeline closes."""
    config = configuration.load(config_file)
    logs.setup(level=config.log.level, form=config.log.format)
    # no thread for each child: what forks here has one thread, so that the code before exec is safe
    asyncio.set_child_watcher(asyncio.PidfdChildWatcher())
    asyncio.run(Keeper(config_file).keep(lifeline))


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
