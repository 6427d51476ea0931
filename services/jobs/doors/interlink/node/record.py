"""What becomes of each container, written to ``pod/status.json`` at every change, whole or not at all."""

import json
import os
import time
from typing import Any, Dict, List

FILE = "pod/status.json"


class Record:
    """The states of all containers, in the order of the pod."""

    def __init__(self, names: List[str]) -> None:
        self._containers: Dict[str, Dict[str, Any]] = {
            name: {"state": "waiting", "reason": "PodInitializing", "restarts": 0} for name in names
        }
        self.write()

    def waiting(self, name: str, reason: str, message: str = "") -> None:
        """It cannot run yet, or not again yet."""
        self._set(name, {"state": "waiting", "reason": reason, "message": message})

    def running(self, name: str) -> None:
        """It was started now."""
        self._set(name, {"state": "running", "started": time.time()})

    def ended(self, name: str, code: int, reason: str = "", message: str = "") -> None:
        """It ended now. ``code`` as a shell would tell it."""
        before = self._containers[name]
        now = time.time()
        ended = {
            "state": "terminated",
            "exit": code,
            "reason": reason or ("Error" if code else "Completed"),
            "message": message[-1000:],
            "started": before.get("started", now),
            "ended": now,
        }
        self._set(name, ended)

    def restarts(self, name: str) -> None:
        """It is about to be started again; how it ended is kept as the last state."""
        before = self._containers[name]
        self._containers[name]["restarts"] = before["restarts"] + 1
        self._containers[name]["last"] = {
            key: before[key] for key in ("exit", "reason", "message", "started", "ended") if key in before
        }

    def code(self, name: str) -> int:
        """The exit code; 0 while there is none."""
        return int(self._containers[name].get("exit", 0))

    def _set(self, name: str, state: Dict[str, Any]) -> None:
        before = self._containers[name]
        for key in ("restarts", "last"):
            if key in before:
                state[key] = before[key]
        self._containers[name] = state
        self.write()

    def write(self) -> None:
        """Replace the file."""
        with open(FILE + ".new", "w") as file:
            json.dump({"containers": self._containers}, file)
        os.replace(FILE + ".new", FILE)


class Logs:
    """When which part of each log was written: ``<log>.times`` has lines of milliseconds and size.

    Containers write their logs themselves; looking once a second costs nothing, however much they say.
    """

    def __init__(self) -> None:
        self._sizes: Dict[str, int] = {}

    def watch(self, log: str) -> None:
        """A log that begins, or begins anew."""
        self._sizes[log] = 0

    def look(self) -> None:
        """Note what grew."""
        for log, before in self._sizes.items():
            try:
                size = os.stat(log).st_size
            except OSError:
                continue
            if size != before:
                self._sizes[log] = size
                with open(log + ".times", "a") as times:
                    times.write("%d %d\n" % (time.time() * 1000, size))
