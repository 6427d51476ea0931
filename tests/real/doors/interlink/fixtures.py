"""Sites with the interLink door: on the local batch system, and with podman on a real Slurm."""

from __future__ import annotations

import shutil
import subprocess
import tempfile
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from tests.real.jobs.fixtures import local_jobs, slurm_settings
from tests.support.kubelet import Kubelet, kubelet
from tests.support.site import Site
from tests.support.slurm import SlurmTestbed, missing
from tests.support.waiting import until_async

__all__ = ["image_cache", "local_pods", "pods_on_slurm", "slurm"]

ATLAS: dict[str, Any] = {"wlcg.groups": ["/atlas"], "sub": "atlas-vk"}


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def local_pods() -> AsyncIterator[Site]:
    """Self mode, local batch system, runtime none."""
    with tempfile.TemporaryDirectory(prefix="edged-pods-") as root:
        host = Path(root) / "data"
        host.mkdir()
        settings = {
            "runtime": {"kind": "none", "images": ["localhost/"]},
            "host_paths": [str(host)],
            "restart_s": 0.2,
            "refresh_s": 0.2,
            "flavor": [{"name": "small", "cpus": 2, "memory": "64M", "walltime_s": 120}],
            "rule": [
                {"namespaces": ["kube-*"], "annotations": {"trusted": "yes"}, "pre_exec": True},
                {"namespaces": ["default", "analysis-*"]},
            ],
        }
        async with Site(Path(root), jobs=local_jobs(Path(root), interlink=settings)).running() as site:
            await answering(site)
            yield site


async def answering(site: Site, service: str = "jobs", certificate: tuple[Path, Path] | None = None) -> None:
    """Until the site knows its issuer's keys."""
    async with kubelet(
        site.url(service), site.token(sub="vk"), site.issuer.ca.file, certificate=certificate
    ) as node:

        async def pinged() -> bool:
            return (await node.call("POST", "/pinglink", b""))[0] == 200

        await until_async(pinged, "a ping answered")


@asynccontextmanager
async def vk(site: Site, **claims: Any) -> AsyncIterator[Kubelet]:
    """A virtual kubelet of the site's issuer."""
    async with kubelet(site.url("jobs"), site.token(**{"sub": "vk", **claims}), site.issuer.ca.file) as one:
        yield one


@pytest.fixture(scope="module")
def slurm() -> Iterator[SlurmTestbed]:
    """A real Slurm for one module."""
    if why := missing():
        pytest.skip(why)
    with SlurmTestbed() as testbed:
        yield testbed


BUSYBOX = (
    "sh",
    "echo",
    "sleep",
    "cat",
    "id",
    "env",
    "ls",
    "mkdir",
    "stat",
    "date",
    "printf",
    "test",
    "touch",
    "wc",
    "tr",
)


@pytest.fixture(scope="module")
def image_cache() -> Iterator[Path]:
    """A site's image cache with ``localhost/box:1``: busybox, as podman archives it."""
    for program in ("podman", "busybox", "runc"):
        if shutil.which(program) is None:
            pytest.skip(f"{program} is not installed (see .ci/packages.txt)")
    with tempfile.TemporaryDirectory(prefix="edged-images-") as made:
        root = Path(made)
        tree = root / "tree"
        for name in ("bin", "tmp", "etc", "proc", "dev", "sys"):
            (tree / name).mkdir(parents=True)
        shutil.copy("/bin/busybox", tree / "bin/busybox")
        for name in BUSYBOX:
            (tree / "bin" / name).symlink_to("busybox")
        (tree / "etc/passwd").write_text("root:x:0:0::/:/bin/sh\n")
        cache = root / "cache/localhost"
        cache.mkdir(parents=True)
        podman = ["podman", "--root", f"{root}/store", "--runroot", f"{root}/run", "--storage-driver=vfs",
                  "--runtime=runc", "--events-backend=none", "--cgroup-manager=cgroupfs"]  # fmt: skip
        subprocess.run(["tar", "-C", tree, "-cf", root / "tree.tar", "."], check=True, timeout=20)
        subprocess.run(
            [*podman, "import", f"{root}/tree.tar", "localhost/box:1"],
            check=True,
            timeout=60,
            capture_output=True,
        )
        subprocess.run(
            [*podman, "save", "-o", f"{cache}/box+1.tar", "localhost/box:1"],
            check=True,
            timeout=60,
            capture_output=True,
        )
        for path in (root, root / "cache", cache, cache / "box+1.tar"):
            path.chmod(0o755)
        yield root / "cache"


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def pods_on_slurm(slurm: SlurmTestbed, image_cache: Path) -> AsyncIterator[Site]:
    """accountd mode, real Slurm, podman without root; two VOs, and the plugin form on a unix socket."""
    with tempfile.TemporaryDirectory(prefix="edged-pods-") as made:
        root = Path(made)
        site = Site(root)
        secret = root / "plugin.secret"
        secret.write_text("a-secret-of-some-length\n")
        secret.chmod(0o644)
        settings = {
            "runtime": {
                "kind": "podman",
                "arguments": [
                    "--storage-driver=vfs",
                    "--runtime=runc",
                    "--events-backend=none",
                    "--cgroup-manager=cgroupfs",
                ],
                "images": ["localhost/"],
                "image_cache": str(image_cache),
                "pull": False,
                "gpu_arguments": [],
                "scratch": "/tmp",
            },
            "default_memory": "500M",
            "refresh_s": 0.3,
            "restart_s": 0.2,
            "plugin": {
                "listen": [str(root / "run/plugin.sock"), "127.0.0.1:0"],
                "account": "cmsprd",
                "users": ["root"],
                "secret_file": str(secret),
            },
        }
        site.sections.update(slurm_settings(root, slurm, site.issuer.url, interlink=settings))
        site.sections["identity"] = {
            "listen": ["127.0.0.1:0"],
            "admins": ["/site/admins"],
            "assertions": [{"service": "jobs", "accounts": ["cmsprd"], "class": "production"}],
        }
        async with site.running():
            await answering(site)
            yield site
