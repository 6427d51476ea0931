"""The words of each runtime's command: what is asked is there, and no value of a variable is in them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from services.jobs.doors.interlink.node.runtimes import Apptainer, Node, NoImage, Podman

SECRET = "hush\nhush"


def settings(kind: str, **more: Any) -> dict[str, Any]:
    return {
        "kind": kind,
        "program": "",
        "arguments": ["--quiet"],
        "run_arguments": ["--contain"],
        "gpu": ["--nv"],
        "pull": True,
        **more,
    }


def container(**more: Any) -> dict[str, Any]:
    mount = {"volume": "keys", "source": "/s/volumes/keys", "path": "/etc/keys", "read_only": True}
    return {
        "name": "main",
        "image": {"file": "", "reference": "docker://docker.io/library/alpine", "cached": ""},
        "command": ["/bin/sh", "-c"],
        "args": ["echo; $(id)"],
        "env": {"PASSWORD": SECRET, "HOME": "/nowhere", "LD_PRELOAD": "x.so"},
        "directory": "/work",
        "mounts": [mount],
        "options": ["--cleanenv"],
        **more,
    }


def test_apptainer_runs_and_executes(tmp_path: Path) -> None:
    runtime = Apptainer(settings("apptainer"), str(tmp_path))
    one = container()
    assert runtime.argv(one) == [
        "apptainer", "--quiet", "exec", "--contain", "--cleanenv", "--nv", "--bind", "/s/volumes/keys:/etc/keys:ro",
        "--pwd", "/work", "docker://docker.io/library/alpine", "/bin/sh", "-c", "echo; $(id)",
    ]  # fmt: skip
    assert runtime.argv(container(command=[]))[2] == "run"
    variables = runtime.environment(one)
    assert (variables["APPTAINERENV_PASSWORD"], variables["SINGULARITYENV_PASSWORD"]) == (SECRET, SECRET)
    assert "PASSWORD" not in variables


def test_the_cache_goes_before_the_registry(tmp_path: Path) -> None:
    cached = tmp_path / "alpine.sif"
    image = {"file": "", "reference": "docker://docker.io/library/alpine", "cached": str(cached)}
    runtime = Apptainer(settings("apptainer", pull=False), str(tmp_path))
    with pytest.raises(NoImage, match="cache"):
        runtime.prepare(container(image=image))
    cached.touch()
    runtime.prepare(container(image=image))
    assert str(cached) in runtime.argv(container(image=image))


def test_podman_takes_values_from_its_environment(tmp_path: Path) -> None:
    runtime = Podman(settings("podman"), str(tmp_path))
    one = container()
    one["image"]["id"] = "abc"
    argv = runtime.argv(one)
    assert SECRET not in " ".join(argv)
    assert runtime.environment(one)["PASSWORD"] == SECRET
    assert argv[argv.index("--entrypoint") + 1] == '["/bin/sh", "-c"]'
    assert argv[-2:] == ["abc", "echo; $(id)"]
    # podman needs its own HOME, so the container's is told by value
    assert runtime.environment(one).get("HOME") != "/nowhere"
    assert "LD_PRELOAD" not in runtime.environment(one)
    assert {"HOME=/nowhere", "LD_PRELOAD=x.so"} <= set(argv)


def test_none_needs_a_command(tmp_path: Path) -> None:
    runtime = Node(settings("none"), str(tmp_path))
    assert runtime.argv(container()) == ["/bin/sh", "-c", "echo; $(id)"]
    assert runtime.environment(container())["EDGED_VOLUME_KEYS"] == "/s/volumes/keys"
    with pytest.raises(NoImage):
        runtime.argv(container(command=[], args=[]))
