"""Container runtimes: each turns a container of the plan into the words of one command."""

import json
import os
import shutil
import signal
import subprocess
import sys
from typing import Any, Dict, List

# the job's own, which a container should know; what else the node's environment has stays outside
PASSED = ("CUDA_VISIBLE_DEVICES", "ROCR_VISIBLE_DEVICES", "GPU_DEVICE_ORDINAL", "ZE_AFFINITY_MASK",
          "OMP_NUM_THREADS", "http_proxy", "https_proxy", "no_proxy")  # fmt: skip
PASSED_PREFIXES = ("SLURM_", "PMI_", "PMIX_", "EDGED_", "OSG_", "FRONTIER_")
# what would steer podman itself; such variables of a container are told on its command line instead
PODMANS = ("HOME", "PATH", "TMPDIR", "USER", "LOGNAME", "SHELL", "IFS")
PODMANS_PREFIXES = (
    "LD_",
    "XDG_",
    "CONTAINER",
    "PODMAN_",
    "STORAGE_",
    "REGISTRY_",
    "BUILDAH",
    "DOCKER_",
    "GO",
    "_",
)
PULL_S = 3600
CLEAN_S = 10  # a podman whose conmon was killed waits for ever


class NoImage(Exception):
    """The image cannot be had; the text is for the pod's owner."""


class Node:
    """Runtime ``none``: the command on the node itself. Volumes are told by variables."""

    def __init__(self, settings: Dict[str, Any], scratch: str) -> None:
        self.settings = settings
        self.scratch = scratch
        self.program = settings["program"] or settings["kind"]
        self.gpu = list(settings["gpu"])

    def prepare(self, container: Dict[str, Any]) -> None:
        """Bring the image here. Raises NoImage."""

    def argv(self, container: Dict[str, Any]) -> List[str]:
        """The command."""
        argv = container["command"] + container["args"]
        if not argv:
            raise NoImage("this site runs no images: the container needs a command")
        return list(argv)

    def environment(self, container: Dict[str, Any]) -> Dict[str, str]:
        """What the command is started with."""
        volumes = {
            "EDGED_VOLUME_" + mount["volume"].upper().replace("-", "_"): mount["source"]
            for mount in container["mounts"]
        }
        return dict(os.environ, **dict(volumes, **container["env"]))

    def directory(self, container: Dict[str, Any]) -> str:
        """Where the command is started."""
        return str(container["directory"] or ".")

    def end(self, container: Dict[str, Any]) -> None:
        """Whatever is left of it after its process was killed."""

    def clean(self, directories: List[str]) -> None:
        """Remove these directories and all of the runtime's own."""
        for directory in directories + [self.scratch]:
            shutil.rmtree(directory, ignore_errors=True)


class Apptainer(Node):
    """apptainer, or singularity."""

    def prepare(self, container: Dict[str, Any]) -> None:
        image = container["image"]
        if image["file"] or os.path.exists(image["cached"]):
            return
        if not self.settings["pull"]:
            raise NoImage("the image is not in the site's cache, and nodes may not fetch images")

    def argv(self, container: Dict[str, Any]) -> List[str]:
        image = container["image"]
        file = image["file"] or (image["cached"] if os.path.exists(image["cached"]) else image["reference"])
        argv: List[str] = [self.program, *self.settings["arguments"]]
        argv.append("exec" if container["command"] else "run")
        argv += self.settings["run_arguments"] + container["options"] + self.gpu
        for mount in container["mounts"]:
            argv += ["--bind", mount["source"] + ":" + mount["path"] + (":ro" if mount["read_only"] else "")]
        if container["directory"]:
            argv += ["--pwd", container["directory"]]
        return [*argv, file, *container["command"], *container["args"]]

    def environment(self, container: Dict[str, Any]) -> Dict[str, str]:
        """By prefix and not by --env: values would be seen in the list of processes."""
        own = {"APPTAINERENV_" + name: value for name, value in container["env"].items()}
        own.update({"SINGULARITYENV_" + name: value for name, value in container["env"].items()})
        own.setdefault("APPTAINER_TMPDIR", self.scratch)
        return dict(os.environ, **own)

    def directory(self, container: Dict[str, Any]) -> str:
        return "."


class Podman(Node):
    """podman without root, with a storage of the job's own."""

    def __init__(self, settings: Dict[str, Any], scratch: str) -> None:
        super().__init__(settings, scratch)
        self._images: Dict[str, str] = {}
        self._base = [self.program, "--root", scratch + "/storage", "--runroot", scratch + "/run"]
        self._base += settings["arguments"]
        self._own = dict(os.environ, XDG_RUNTIME_DIR=scratch + "/xdg", TMPDIR=scratch)
        os.mkdir(scratch + "/xdg", 0o700)

    def prepare(self, container: Dict[str, Any]) -> None:
        image = container["image"]
        archive = image["file"] or (image["cached"] if os.path.exists(image["cached"]) else "")
        if not archive and not self.settings["pull"]:
            raise NoImage("the image is not in the site's cache, and nodes may not fetch images")
        source = "docker-archive:" + archive if archive else image["reference"]
        if source not in self._images:
            done = subprocess.run(
                self._base + ["pull", "--quiet", source], env=self._own, stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE, stderr=subprocess.PIPE, universal_newlines=True, timeout=PULL_S,
            )  # fmt: skip
            sys.stderr.write(done.stderr)
            if done.returncode != 0 or not done.stdout.split():
                raise NoImage(done.stderr.strip().splitlines()[-1] if done.stderr.strip() else "no image")
            self._images[source] = done.stdout.split()[-1]
        container["image"]["id"] = self._images[source]

    def argv(self, container: Dict[str, Any]) -> List[str]:
        argv = self._base + ["run", "--rm", "--network=host", "--log-driver=none", "--pull=never"]
        argv += ["--cidfile", self._id_file(container)]
        argv += self.settings["run_arguments"] + container["options"] + self.gpu
        for mount in container["mounts"]:
            argv += [
                "--volume",
                mount["source"] + ":" + mount["path"] + (":ro" if mount["read_only"] else ""),
            ]
        if container["directory"]:
            argv += ["--workdir", container["directory"]]
        for name, value in self._variables(container).items():
            # by name alone the value is taken from podman's environment, where nobody else sees it
            argv += ["--env", name + "=" + value if _is_podmans(name) else name]
        if container["command"]:
            argv += ["--entrypoint", json.dumps(container["command"])]
        return [*argv, container["image"]["id"], *container["args"]]

    def environment(self, container: Dict[str, Any]) -> Dict[str, str]:
        variables = self._variables(container)
        return dict(self._own, **{name: value for name, value in variables.items() if not _is_podmans(name)})

    def _variables(self, container: Dict[str, Any]) -> Dict[str, str]:
        passed = {
            name: value
            for name, value in os.environ.items()
            if name in PASSED or name.startswith(PASSED_PREFIXES)
        }
        return dict(passed, **container["env"])

    def _id_file(self, container: Dict[str, Any]) -> str:
        return str(self.scratch + "/" + container["name"] + ".cid")

    def directory(self, container: Dict[str, Any]) -> str:
        return "."

    def end(self, container: Dict[str, Any]) -> None:
        """Killing podman leaves its container running."""
        if os.path.exists(self._id_file(container)):
            self._quietly(["rm", "--force", "--time", "0", "--cidfile", self._id_file(container)])
            os.unlink(self._id_file(container))

    def clean(self, directories: List[str]) -> None:
        """Files of other users of a container belong to the account's other user ids."""
        self._quietly(["rm", "--all", "--force", "--time", "0"])
        pause = self._pause()
        self._quietly(["unshare", "rm", "-rf", "--"] + directories + [self.scratch])
        if pause:
            os.kill(pause, signal.SIGKILL)
        super().clean(directories)

    def _pause(self) -> int:
        """The process that holds podman's user namespace: it would stay for ever."""
        try:
            with open(self.scratch + "/xdg/libpod/tmp/pause.pid") as file:
                pid = int(file.read())
            os.kill(pid, 0)
            return pid
        except (OSError, ValueError):
            return 0

    def _quietly(self, words: List[str]) -> None:
        try:
            subprocess.run(
                self._base + words,
                env=self._own,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                timeout=CLEAN_S,
            )
        except subprocess.TimeoutExpired:
            sys.stderr.write("no end of: %s\n" % words)


def _is_podmans(name: str) -> bool:
    return name in PODMANS or name.startswith(PODMANS_PREFIXES)


KINDS = {"none": Node, "apptainer": Apptainer, "podman": Podman}
