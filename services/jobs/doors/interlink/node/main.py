"""The order of a pod's life: volumes, pre-exec, init containers one by one, all others side by side."""

import json
import os
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import zipfile
from typing import Any, Callable, Dict, List, Optional

from .containers import Container
from .record import Logs, Record
from .runtimes import KINDS

PLAN = "plan.json"
LOOK_S = 1.0
KILL_S = 5.0
EXIT_TERMINATED = 143


class Pod:
    """One pod, in the session directory of its job."""

    def __init__(self, archive: str) -> None:
        with zipfile.ZipFile(archive) as source:
            self.plan: Dict[str, Any] = json.loads(source.read(PLAN).decode())
            self._unpack(source)
        os.makedirs("logs", exist_ok=True)
        self._scratch = tempfile.mkdtemp(prefix="edged-pod-", dir=self.plan["runtime"]["scratch"])
        self._runtime = KINDS[self.plan["runtime"]["kind"]](self.plan["runtime"], self._scratch)
        self._logs = Logs()
        everyone = self.plan["init"] + self.plan["containers"]
        self._record = Record([what["name"] for what in everyone])
        self._here = os.getcwd()
        self._stopping = False
        self._sidecars: List[Container] = []
        self._wake, self._wakes = os.pipe()

    def _unpack(self, source: zipfile.ZipFile) -> None:
        """The volumes' files. They are made with nobody else's rights before anything is in them."""
        shutil.rmtree("volumes", ignore_errors=True)
        os.mkdir("volumes", 0o700)
        for volume in self.plan["volumes"]:
            home = "volumes/" + volume["name"]
            os.makedirs(home, exist_ok=True)
            for file in volume["files"]:
                path = home + "/" + file["path"]
                os.makedirs(os.path.dirname(path), exist_ok=True)
                fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
                with os.fdopen(fd, "wb") as target:
                    target.write(source.read(file["entry"]))
                    os.fchmod(fd, file["mode"])

    def run(self) -> int:
        """The exit code of the pod: the highest of its containers."""
        self._listen()
        try:
            if not self._before() or not self._init():
                return self._worst() or 1
            containers = [self._container(what) for what in self.plan["containers"]]
            for container in containers:
                container.start()
            self._until(lambda: all(container.over for container in containers), containers)
            self._finish(self._sidecars)
            return self._worst() or (EXIT_TERMINATED if self._stopping else 0)
        finally:
            self._logs.look()
            self._runtime.clean([self._here + "/volumes"])

    def _worst(self) -> int:
        return max(
            [self._record.code(what["name"]) for what in self.plan["init"] + self.plan["containers"]
             if what["restart"] != "Always" or what in self.plan["containers"]] or [0]
        )  # fmt: skip

    # -- signals ------------------------------------------------------------------------------------

    def _listen(self) -> None:
        os.set_blocking(self._wakes, False)
        signal.set_wakeup_fd(self._wakes)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._stop)

    def _stop(self, *_: object) -> None:
        self._stopping = True

    def _until(self, done: Callable[[], bool], containers: List[Container]) -> None:
        """Look after the containers until ``done``; a TERM of the batch system ends them in good time."""
        told_at: Optional[float] = None
        while not done():
            delays = [delay for delay in (c.due_s() for c in containers) if delay is not None]
            if select.select([self._wake], [], [], min([LOOK_S, *delays]))[0]:
                os.read(self._wake, 512)
            for container in containers + self._sidecars:
                container.look()
            self._logs.look()
            if self._stopping and told_at is None:
                told_at = time.monotonic()
                self._tell(containers, signal.SIGTERM)
            elif told_at is not None and time.monotonic() - told_at > self.plan["grace_s"]:
                self._tell(containers, signal.SIGKILL)

    def _tell(self, containers: List[Container], number: int) -> None:
        for container in containers:
            container.tell(number)

    def _finish(self, containers: List[Container]) -> None:
        """End sidecars, which nobody waits for."""
        self._tell(containers, signal.SIGTERM)
        deadline = time.monotonic() + KILL_S
        while any(c.alive for c in containers) and time.monotonic() < deadline:
            select.select([self._wake], [], [], 0.2)
            for container in containers:
                container.look()
        self._tell([c for c in containers if c.alive], signal.SIGKILL)
        for container in containers:
            container.look()

    # -- before the containers ----------------------------------------------------------------------

    def _before(self) -> bool:
        """The pre-exec text; what it exports is the containers' environment."""
        text = self.plan["pre_exec"]
        if not text:
            return True
        with tempfile.TemporaryFile() as told:
            done = subprocess.run(
                ["/bin/bash", "-c", "%s\nenv -0 >&%d\n" % (text, told.fileno())],
                stdin=subprocess.DEVNULL,
                pass_fds=[told.fileno()],
            )
            told.seek(0)
            variables = [word.partition("=") for word in told.read().decode("utf-8", "replace").split("\0")]
        if done.returncode == 0:
            os.environ.update({name: value for name, equals, value in variables if equals})
            return True
        for what in self.plan["init"] + self.plan["containers"]:
            self._record.ended(what["name"], done.returncode % 256 or 1, "PreExecFailed", "pre-exec failed")
        return False

    def _init(self) -> bool:
        for what in self.plan["init"]:
            container = self._container(what)
            container.start()
            if what["restart"] == "Always":
                self._sidecars.append(container)
                continue
            self._until(lambda: container.over, [container])  # noqa: B023 - waited for right here
            if self._stopping or self._record.code(container.name):
                self._finish(self._sidecars)
                for later in self.plan["containers"]:
                    self._record.ended(
                        later["name"], 1, "InitFailed", "init container %s failed" % container.name
                    )
                return False
        return True

    def _container(self, what: Dict[str, Any]) -> Container:
        for mount in what["mounts"]:
            source = mount["host"] or self._here + "/volumes/" + mount["volume"]
            mount["source"] = source + ("/" + mount["sub_path"] if mount["sub_path"] else "")
            if mount["sub_path"] and not os.path.exists(mount["source"]) and not mount["host"]:
                os.makedirs(mount["source"])
        return Container(what, self.plan, self._runtime, self._record, self._logs)


def main(archive: str) -> int:
    """Run the pod of an archive, which goes afterwards: it holds the pod's secrets."""
    os.umask(0o077)
    pod = Pod(archive)
    try:
        return pod.run()
    finally:
        os.unlink(archive)


if __name__ == "__main__":
    sys.exit(main(sys.argv[0]))
