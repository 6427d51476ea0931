"""A whole site with nothing but SSH, and a slurmrestd, between it and its Slurm: the real daemon, real kills."""

from __future__ import annotations

import asyncio
import copy
import json
import os
import subprocess
import sys
import tempfile
import tomllib
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from edged.errors import BadRequest, Denied
from services.jobs import batch
from tests.real.batch_remote.reaching import Scratch
from tests.support import local_accounts
from tests.support.killing import Killing
from tests.support.site import Site, ended, output, queue, reached
from tests.support.slurm import SlurmTestbed
from tests.support.sshd import Sshd
from tests.support.toml import dumps

OTHER_KEY = "AAAAC3NzaC1lZDI1NTE5AAAAIJdD7y3aLq454yWBdwLWbieU1ebz9/cu7/QEXn9OIeZJ"

pytestmark = [pytest.mark.slurm, pytest.mark.root, pytest.mark.asyncio(loop_scope="module")]


@dataclass
class Far:
    site: Site
    node: Sshd
    scratch: Scratch


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def far(slurm: SlurmTestbed) -> AsyncIterator[Far]:
    """Queue ``far`` by SSH, queue ``rest`` by slurmrestd with its files by SSH, queue ``here`` by local clients."""
    scratch = Scratch()
    with (
        tempfile.TemporaryDirectory(prefix="edged-far-") as name,
        Sshd(environment=slurm.environment) as node,
    ):
        root = Path(name)
        site = Site(root)
        for account in ("cmsprd", "atlprd"):
            scratch.account(account)
        site.sections.update(_sections(site, root, node, scratch, slurm))
        async with site.running():
            node.trust((root / "state/identity/ssh_ca.pub").read_text().strip())
            yield Far(site, node, scratch)
    scratch.remove()


def _sections(site: Site, root: Path, node: Sshd, scratch: Scratch, slurm: SlurmTestbed) -> dict[str, Any]:
    local_accounts.ensure()
    key = root / "jwt.key"
    key.write_bytes(slurm.layout.jwt_key.read_bytes())
    key.chmod(0o644)  # one daemon for all services here; at a site only identity's user reads it
    return {
        "accounts": {"mode": "accountd", "minimum_uid": 1000},
        "mapping": [
            {"issuer": site.issuer.url, "groups": ["/atlas"], "account": "atlprd", "vo": "atlas"},
            {"issuer": site.issuer.url, "groups": ["/cms"], "account": "cmsprd", "class": "production"},
        ],
        "identity": {
            "listen": ["127.0.0.1:0"],
            "admins": ["/site/admins"],
            "ssh": {"accounts": ["cmsprd"], "life_s": 600},
        },
        "jobs": {
            "listen": ["127.0.0.1:0"],
            "batch": "slurm",
            "sessions": str(root / "sessions"),
            "slurm_conf": slurm.environment["SLURM_CONF"],
            "poll_s": 0.5,
            "settle_s": 6,
            "client_deadline_s": 12,
            "cluster": [
                {
                    "name": "login",
                    "kind": "ssh",
                    "login": [node.login],
                    "host_keys": [node.host_key],
                    "sessions": scratch.template,
                    "source_addresses": ["127.0.0.0/8"],
                },
                {
                    "name": "restd",
                    "kind": "slurmrest",
                    "url": f"unix:{slurm.layout.rest_socket}",
                    "jwt_key": str(key),
                    "sessions": scratch.template,
                    "sessions_by": "login",
                },
            ],
            "queue": [
                queue("far", batch="login", partition="cpu"),
                queue("rest", batch="restd", partition="cpu"),
                queue("here", batch="slurm", partition="cpu"),
            ],
        },
    }  # fmt: skip


@pytest.mark.parametrize("queue_name", ["far", "rest", "here"])
async def test_a_queue_chooses_its_way(far: Far, queue_name: str) -> None:
    async with far.site.api() as api:
        body = {
            "script": "#!/bin/sh\ncat data/in; id -un; pwd; exit 4\n",
            "queue": queue_name,
            "inputs": ["data/in"],
        }
        job = await api.call("POST", "/v1/jobs", body=body)
        async with api.request("PUT", f"/v1/jobs/{job['id']}/files/data/in", data=b"sent\n" * 1000):
            pass
        view = await ended(api, job["id"], 90)
        assert (view["state"], view["exit_code"], view["account"]) == ("FAILED", 4, "cmsprd"), view
        text = await output(api, job["id"])
        session = far.scratch.account("cmsprd") if queue_name != "here" else far.site.root / "sessions/cmsprd"
        assert text == "sent\n" * 1000 + f"cmsprd\n{session}/{job['id']}\n"
        async with api.request("GET", f"/v1/jobs/{job['id']}/logs", query={"lines": 1}) as response:
            assert await response.text() == f"{session}/{job['id']}\n"
        async with api.session.get(
            f"{api.url}/v1/jobs/{job['id']}/files/stdout",
            headers={"Authorization": f"Bearer {api.token}", "Range": "bytes=5-8"},
        ) as response:
            assert (response.status, await response.read()) == (206, b"sent")
        files = await api.call("GET", f"/v1/jobs/{job['id']}/files")
        assert sorted(f["name"] for f in files["files"]) == ["data/in", "stderr", "stdout"]
        await api.call("DELETE", f"/v1/jobs/{job['id']}")
        assert not (session / job["id"]).exists()


async def test_links_out_of_the_session_are_not_followed(far: Far) -> None:
    async with far.site.api() as api:
        script = "#!/bin/sh\nln -s /etc/passwd file; ln -s /etc folder; mkdir d; ln -s /etc/hosts d/x\n"
        job = await api.call("POST", "/v1/jobs", body={"script": script, "queue": "far"})
        assert (await ended(api, job["id"], 90))["state"] == "FINISHED"
        for name in ("file", "folder/passwd", "d/x"):
            async with api.session.get(
                f"{api.url}/v1/jobs/{job['id']}/files/{name}",
                headers={"Authorization": f"Bearer {api.token}"},
            ) as response:
                assert response.status in (403, 404, 405), (name, response.status)
        await api.call("DELETE", f"/v1/jobs/{job['id']}")
        assert Path("/etc/passwd").exists()


async def test_cancelling_reaches_the_far_side(far: Far) -> None:
    async with far.site.api() as api:
        for name in ("far", "rest"):
            job = await api.call("POST", "/v1/jobs", body={"script": "#!/bin/sh\nsleep 300\n", "queue": name})
            await reached(api, job["id"], ("RUNNING",))
            await api.call("POST", f"/v1/jobs/{job['id']}/cancel")
            assert (await ended(api, job["id"], 60))["state"] == "KILLED"


async def test_another_account_is_another_login(far: Far) -> None:
    token = far.site.token(groups=("/atlas",))
    async with far.site.api(token=token) as api:
        job = await api.call("POST", "/v1/jobs", body={"script": "#!/bin/sh\nid -un\n", "queue": "far"})
        assert (await ended(api, job["id"], 60))["state"] == "FINISHED"
        assert await output(api, job["id"]) == "atlprd\n"


async def test_the_ten_lines_of_the_readme(slurm: SlurmTestbed) -> None:
    """What the README shows, with this login node for its own: a job runs, and the doctor finds nothing wrong."""
    text = (Path(batch.__file__).parent / "README.md").read_text()
    block = text.partition("## A site with nothing but SSH")[2].partition("```toml\n")[2].partition("```")[0]
    assert len([line for line in block.splitlines() if line]) <= 10
    jobs, scratch = tomllib.loads(block)["jobs"], Scratch()
    scratch.account("cmsprd")
    with (
        tempfile.TemporaryDirectory(prefix="edged-ten-") as name,
        Sshd(environment=slurm.environment) as node,
    ):
        (cluster,), (only,) = jobs["cluster"], jobs["queue"]
        cluster |= {"login": [node.login], "host_keys": [node.host_key], "sessions": scratch.template}
        only |= {"partition": "cpu"}  # as the testbed calls it
        site = Site(Path(name))
        site.sections |= {
            "accounts": {"mode": "accountd", "minimum_uid": 1000},
            "mapping": [{"issuer": site.issuer.url, "groups": ["/cms"], "account": "cmsprd"}],
            "jobs": {"listen": ["127.0.0.1:0"], "poll_s": 0.5, **jobs},
        }
        async with site.running():
            node.trust((site.root / "state/identity/ssh_ca.pub").read_text().strip())
            async with site.api() as api:
                job = await api.call(
                    "POST", "/v1/jobs", body={"script": "#!/bin/sh\nid -un\n", "queue": only["name"]}
                )
                view = await ended(api, job["id"], 60)
                assert view["state"] == "FINISHED", json.dumps(view)
                assert await output(api, job["id"]) == "cmsprd\n"
            code, found = await _examined(site.file)
            assert code == 0 and {one["part"] for one in found} == {cluster["name"]}, found
    scratch.remove()


async def test_people_log_in_with_their_token(far: Far, tmp_path: Path) -> None:
    """Token → certificate → the real ssh client; then revoked, and refused by sshd."""
    site, node = far.site, far.node
    tmp_path.chmod(0o755)
    told = await _edged(site, "ssh", "login", "--url", site.url("identity-api"), "--directory", str(tmp_path))
    serial = told.split()[1]
    key = next(path for path in tmp_path.iterdir() if not path.name.endswith(".pub"))
    assert key.stat().st_mode & 0o077 == 0
    assert await _ssh(node, key, "cmsprd", "id -un") == (0, "cmsprd\n")
    assert (await _ssh(node, key, "atlprd", "id -un"))[0] == 255, "only the mapped account"
    seen = subprocess.run(
        ["ssh-keygen", "-L", "-f", f"{key}-cert.pub"], capture_output=True, text=True, check=True
    )
    assert "source-address 127.0.0.1/32" in seen.stdout and "permit-pty" in seen.stdout
    assert f"Serial: {serial}" in seen.stdout and "alice of" in seen.stdout
    async with site.api("identity-api", site.token(groups=("/cms", "/site/admins"))) as admin:
        await admin.call("DELETE", f"/v1/ssh/certificates/{serial}")
        async with admin.request("GET", "/v1/ssh/revoked") as response:
            node.revoke(await response.read())
    assert (await _ssh(node, key, "cmsprd", "id -un"))[0] == 255
    again = await _edged(
        site, "ssh", "login", "--url", site.url("identity-api"), "--directory", str(tmp_path)
    )
    assert int(again.split()[1]) > int(serial)
    assert await _ssh(node, key, "cmsprd", "id -un") == (0, "cmsprd\n")
    shown = await _edged(site, "ssh-ca", "show", "--config", str(site.file))
    assert "TrustedUserCAKeys" in shown and "ssh-ed25519" in shown


async def test_the_doctor_tries_every_cluster(far: Far) -> None:
    _, found = await _examined(far.site.file)
    tried = {(one["part"], one["ok"], one["text"].partition(": ")[0]) for one in found}
    for cluster in ("login", "restd"):
        for account in ("cmsprd", "atlprd"):
            assert (cluster, True, account) in tried, found
    assert ("login", True, far.node.login) in tried, found
    assert any("; API v0.0.38" in one["text"] for one in found if one["part"] == "restd"), found


async def test_the_check_tries_what_the_doctor_tries(far: Far) -> None:
    """Only when it is told to; the configuration's errors come first, and then nothing is tried."""
    code, told = await _checked(far.site.file)
    assert code == 0 and "tried" not in told, told
    code, told = await _checked(far.site.file, "--connect")
    assert code == 0 and told["errors"] == [], told
    assert {one["part"] for one in told["tried"]} == {"login", "restd"}
    settings = copy.deepcopy(far.site.settings())
    settings["jobs"]["cluster"][0]["host_kees"] = 1
    wrong = far.site.root / "wrong.toml"
    wrong.write_text(dumps(settings))
    code, told = await _checked(wrong, "--connect")
    assert code == 2 and told["errors"] and told["tried"] == [], told


async def test_the_check_before_edged_runs_tries_what_needs_no_login(far: Far) -> None:
    """Host keys and whether slurmrestd is there; it says what it could not try, and that is no success."""
    settings = copy.deepcopy(far.site.settings())
    settings["runtime"] |= {
        "run": str(far.site.root / "run-not-yet"),
        "state": str(far.site.root / "not-yet"),
    }
    settings["jobs"]["cluster"][0]["login"].append("127.0.0.1:1")
    file = far.site.root / "before.toml"
    file.write_text(dumps(settings))
    code, told = await _checked(file, "--connect")
    found = {(one["part"], one["ok"], one["text"].partition(": ")[2]) for one in told["tried"]}
    assert code == 1, told
    assert ("login", True, "a login node with the right host key") in found, told
    assert ("restd", True, "answers (HTTP 401, asked without a token)") in found, told
    refused = [one for one in told["tried"] if one["text"].startswith("127.0.0.1:1:")]
    assert len(refused) == 1 and not refused[0]["ok"] and "firewall" in refused[0]["advice"], told
    assert [one["advice"] for one in told["tried"] if one["part"] == "clusters"] == [
        "start identity: it signs for them"
    ]


@pytest.mark.parametrize(
    ("cluster", "key", "value", "told", "advice"),
    [
        (
            "login",
            "host_keys",
            [f"ssh-ed25519 {OTHER_KEY}"],
            "its host key is not the pinned one",
            "host_keys",
        ),
        ("login", "python", "python-that-is-not", "python-that-is-not", "Python 3.6"),
        ("login", "login", ["127.0.0.1:1"], "Connect", "firewall"),
        ("login", "slurm_conf", "/no/such/slurm.conf", "scontrol", "slurm_conf"),
        ("restd", "url", "unix:/no/such/socket", "cannot be reached", "is slurmrestd running"),
        ("restd", "url", "http://127.0.0.1:1", "cannot be reached", "is slurmrestd running"),
    ],
)
async def test_the_doctor_says_what_is_wrong(
    far: Far, tmp_path: Path, cluster: str, key: str, value: object, told: str, advice: str
) -> None:
    """In the words of who has to mend it, about this cluster only."""
    settings = copy.deepcopy(far.site.settings())
    wrong = next(one for one in settings["jobs"]["cluster"] if one["name"] == cluster)
    wrong[key] = value
    file = tmp_path / "examined.toml"
    file.write_text(dumps(settings))
    code, found = await _examined(file)
    bad = [one for one in found if not one["ok"] and one["part"] in ("login", "restd")]
    assert code == 1 and {one["part"] for one in bad} == {cluster}, found
    assert len(bad) == (1 if key in ("host_keys", "login") else 2), "for the node, or for each account"
    for one in bad:
        assert told in one["text"] and advice in one["advice"], one


async def _examined(file: Path) -> tuple[int | None, list[dict[str, Any]]]:
    """Exit status and findings of ``edged doctor jobs``."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "edged", "doctor", "jobs", "--json", "--config", str(file),
        stdout=asyncio.subprocess.PIPE,
    )  # fmt: skip
    out, _ = await asyncio.wait_for(process.communicate(), 60)
    return process.returncode, json.loads(out)


async def _checked(file: Path, *options: str) -> tuple[int | None, dict[str, Any]]:
    """Exit status and what ``edged check`` found."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "edged", "check", "--json", *options, "--config", str(file),
        stdout=asyncio.subprocess.PIPE,
    )  # fmt: skip
    out, _ = await asyncio.wait_for(process.communicate(), 60)
    return process.returncode, json.loads(out)


async def test_people_without_leave_get_no_certificate(far: Far) -> None:
    body = {"public_key": far.node.host_key}
    async with far.site.api("identity-api", far.site.token(groups=("/atlas",))) as api:
        with pytest.raises(Denied):
            await api.call("POST", "/v1/ssh/certificate", body=body)
        with pytest.raises(Denied):
            await api.call("DELETE", "/v1/ssh/certificates/1")
    async with far.site.api("identity-api") as api:
        for wrong in ("ssh-rsa AAAA and more", "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5", "x" * 300):
            with pytest.raises(BadRequest):
                await api.call("POST", "/v1/ssh/certificate", body={"public_key": wrong})
        with pytest.raises(BadRequest):
            await api.call("POST", "/v1/ssh/certificate", body={**body, "principal": "root"})


async def _edged(site: Site, *argv: str) -> str:
    environment = {**os.environ, "BEARER_TOKEN": site.token()}
    if argv[0] == "ssh":
        argv = (*argv, "--ca-file", str(site.issuer.ca.file))
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "edged", *argv, env=environment, stdout=asyncio.subprocess.PIPE
    )
    out, _ = await asyncio.wait_for(process.communicate(), 30)
    assert process.returncode == 0
    return out.decode()


async def _ssh(node: Sshd, key: Path, user: str, command: str) -> tuple[int, str]:
    known = key.parent / "known_hosts"
    known.write_text(f"[127.0.0.1]:{node.port} {node.host_key}\n")
    options = [
        "-F",
        "none",
        "-o",
        f"UserKnownHostsFile={known}",
        "-o",
        "BatchMode=yes",
        "-o",
        "IdentitiesOnly=yes",
    ]
    process = await asyncio.create_subprocess_exec(
        "ssh", *options, "-i", str(key), "-p", str(node.port), f"{user}@127.0.0.1", command,
        stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.DEVNULL,
    )  # fmt: skip
    out, _ = await asyncio.wait_for(process.communicate(), 30)
    return process.returncode or 0, out.decode()


class KillingTheFarSideToo(Killing):
    """Beside edged's processes: the connections, slurmrestd, and a slurmctld that is restarted."""

    def __init__(self, far: Far, slurm: SlurmTestbed, **how: Any) -> None:
        super().__init__(far.site, **how)
        self._far = far
        self._slurm = slurm

    async def _kill(self) -> None:
        victim = self.random.choice(("edged", "edged", "connections", "slurmrestd", "slurmctld"))
        if victim == "edged":
            await super()._kill()
            return
        self.killed[victim] += 1
        match victim:
            case "connections":
                self._far.node.cut()
            case "slurmrestd":
                self._slurm.rest.kill()
                await asyncio.to_thread(self._slurm.start_rest)
            case _:
                await asyncio.to_thread(self._slurm.restart_controller)


@pytest.mark.timeout(280)
async def test_kills_lose_and_double_nothing(far: Far, slurm: SlurmTestbed) -> None:
    """kill -9 of whatever stands between a broker and its job, while jobs are submitted by both ways."""
    killing = KillingTheFarSideToo(far, slurm, seed=9, points=10, per_point=3, queues=("far", "rest"))
    found = await killing.run()
    assert (found.lost, found.doubled) == ([], []), found
    async with far.site.api() as api:
        views = [await api.call("GET", f"/v1/jobs/{job}") for job in killing.ids.values()]
    assert [view for view in views if view["state"] != "FINISHED"] == []
    assert len(found.killed) >= 4, found.killed
