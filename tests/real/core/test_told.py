"""What the service manager is told of us, and what is said when we cannot start."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.support.toml import dumps

SITE = {"site": {"name": "T"}, "accounts": {"mode": "self"}}


@contextmanager
def manager(directory: Path) -> Iterator[socket.socket]:
    """Where a service manager hears of its units."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as heard:
        heard.bind(str(directory / "notify"))
        heard.settimeout(30)
        yield heard


def command(directory: Path, **settings: object) -> tuple[list[str], dict[str, str]]:
    file = directory / "edged.toml"
    places = {"runtime": {"run": str(directory / "run"), "state": str(directory / "state")}}
    file.write_text(dumps({**SITE, **places, "observe": {"listen": "127.0.0.1:0"}, **settings}))
    words = [sys.executable, "-m", "edged", "run", "issuers", "identity", "--config", str(file)]
    return words, {**os.environ, "NOTIFY_SOCKET": str(directory / "notify"), "WATCHDOG_USEC": "200000"}


def status(heard: socket.socket) -> tuple[str, str]:
    """State and status line of the next word of a unit."""
    state, _, line = heard.recv(4096).decode().partition("\nSTATUS=")
    return state, line


def test_the_status_line_says_what_is_not_ready(tmp_path: Path) -> None:
    issuer = {"url": "https://127.0.0.1:1/", "audience": ["x"], "vo": "ops"}
    words, environment = command(tmp_path, issuer=[issuer])
    with (
        manager(tmp_path) as heard,
        subprocess.Popen(words, env=environment, stderr=subprocess.DEVNULL) as one,
    ):
        try:
            state, line = status(heard)
            assert (state, line[:9]) == ("READY=1", "not ready") or "no key" in line
            while state != "WATCHDOG=1":
                state, line = status(heard)
            assert "issuers: no keys yet of https://127.0.0.1:1/" in line
        finally:
            one.terminate()
        while state != "STOPPING=1":
            state, line = status(heard)
        assert line == "finishing what was accepted"


def test_a_broken_configuration_is_in_the_status_line(tmp_path: Path) -> None:
    words, environment = command(tmp_path, site={"nam": "T"})
    with manager(tmp_path) as heard:
        done = subprocess.run(words, env=environment, capture_output=True, text=True, timeout=60, check=False)
        assert done.returncode == 2
        assert "site.nam: unknown key; is it name?" in status(heard)[1]
    assert done.stderr.splitlines() == [
        "edged: site.name: missing: this key is required",
        "edged: site.nam: unknown key; is it name?",
    ]


def test_a_port_that_is_taken_is_one_line(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken, manager(tmp_path) as heard:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        words, environment = command(tmp_path, observe={"listen": address})
        done = subprocess.run(words, env=environment, capture_output=True, text=True, timeout=60, check=False)
        said = f"cannot listen on {address}: Address already in use; `ss -ltnp` shows by whom"
        assert status(heard)[1] == said
    assert done.returncode == 2
    assert f"edged: {said}" in done.stderr and "Traceback" not in done.stderr
