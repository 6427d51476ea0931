"""The native API on the local batch system: the main path and what callers do wrong."""

from __future__ import annotations

import asyncio
import json
import os
import ssl
import sys
import time
from pathlib import Path

import pytest

from edged.errors import BadRequest, Conflict, Denied, EdgeError, NotFound, Unauthenticated
from tests.support.site import Site, ended, output, reached

pytestmark = pytest.mark.asyncio(loop_scope="module")

NASTY = "$(touch pwned) `id` \"quoted\" 'single' \n#SBATCH --partition=gpu\n\\ * ; & | é"


async def test_a_script_runs_and_its_output_comes_back(local_site: Site) -> None:
    async with local_site.api() as api:
        job = await api.call(
            "POST", "/v1/jobs", body={"script": "#!/bin/sh\necho out; echo err >&2; exit 3\n"}
        )
        view = await ended(api, job["id"])
        assert (view["state"], view["exit_code"], view["cause"]) == ("FAILED", 3, "exit")
        assert await output(api, job["id"]) == "out\n"
        assert await output(api, job["id"], "stderr") == "err\n"


async def test_arguments_and_environment_reach_the_program_unharmed(local_site: Site) -> None:
    program = "import os, sys, json; json.dump([sys.argv[1:], os.environ['NASTY']], sys.stdout)"
    async with local_site.api() as api:
        body = {
            "executable": "/usr/bin/python3",
            "arguments": ["-c", program, NASTY, ""],
            "environment": {"NASTY": NASTY, "SBATCH_PARTITION": "gpu", "BASH_ENV": "/tmp/x"},
            "name": "nasty é",
        }
        job = await api.call("POST", "/v1/jobs", body=body)
        assert (await ended(api, job["id"]))["state"] == "FINISHED"
        assert json.loads(await output(api, job["id"])) == [[NASTY, ""], NASTY]
        files = await api.call("GET", f"/v1/jobs/{job['id']}/files")
        assert sorted(f["name"] for f in files["files"]) == ["stderr", "stdout"]


async def test_inputs_are_awaited(local_site: Site) -> None:
    async with local_site.api() as api:
        body = {"executable": "/bin/cat", "stdin": "data/in.txt", "inputs": ["data/in.txt"]}
        job = await api.call("POST", "/v1/jobs", body=body)
        assert (await api.call("GET", f"/v1/jobs/{job['id']}"))["inputs_missing"] == ["data/in.txt"]
        async with api.request("PUT", f"/v1/jobs/{job['id']}/files/data/in.txt", data=b"hello"):
            pass
        assert (await ended(api, job["id"]))["state"] == "FINISHED"
        assert await output(api, job["id"]) == "hello"
        with pytest.raises(Conflict):
            async with api.request("PUT", f"/v1/jobs/{job['id']}/files/late", data=b"x"):
                pass


async def test_software_array_and_order(local_site: Site) -> None:
    async with local_site.api() as api:
        first = await api.call(
            "POST",
            "/v1/jobs",
            body={
                "script": "#!/bin/sh\necho $HELLO $EDGED_ARRAY_INDEX",
                "software": ["hello/1"],
                "array": {"count": 3, "at_once": 1},
            },
        )
        family = (await api.call("GET", "/v1/jobs", array=first["array"]))["jobs"]
        last = await api.call(
            "POST", "/v1/jobs", body={"executable": "true", "after": [{"job": j["id"]} for j in family]}
        )
        assert len(family) == 3
        assert (await ended(api, last["id"]))["state"] == "FINISHED"
        outputs = {await output(api, job["id"]) for job in family}
        assert outputs == {"world 0\n", "world 1\n", "world 2\n"}


async def test_a_dependency_that_failed_fails_the_dependent(local_site: Site) -> None:
    async with local_site.api() as api:
        bad = await api.call("POST", "/v1/jobs", body={"executable": "false"})
        after = await api.call("POST", "/v1/jobs", body={"executable": "true", "after": [{"job": bad["id"]}]})
        view = await ended(api, after["id"])
        assert (view["state"], view["cause"]) == ("FAILED", "dependency")


async def test_cancel_wait_logs_and_clean(local_site: Site) -> None:
    async with local_site.api() as api:
        job = await api.call("POST", "/v1/jobs", body={"script": "#!/bin/sh\necho begun\nsleep 100\n"})
        await reached(api, job["id"], ("RUNNING",))
        with pytest.raises(Conflict):
            await api.call("DELETE", f"/v1/jobs/{job['id']}")
        await api.call("POST", f"/v1/jobs/{job['id']}/cancel")
        view = await ended(api, job["id"])
        assert (view["state"], view["reason"]) == ("KILLED", "cancelled by owner")
        async with api.request("GET", f"/v1/jobs/{job['id']}/logs") as response:
            assert await response.text() == "begun\n"
        await api.call("DELETE", f"/v1/jobs/{job['id']}")
        with pytest.raises(NotFound):
            await api.call("GET", f"/v1/jobs/{job['id']}")


async def test_following_a_log_ends_with_the_job(local_site: Site) -> None:
    async with local_site.api() as api:
        script = "#!/bin/sh\nfor i in 1 2 3; do echo line $i; sleep .3; done\n"
        job = await api.call("POST", "/v1/jobs", body={"script": script})
        async with api.request("GET", f"/v1/jobs/{job['id']}/logs", query={"follow": "true"}) as response:
            assert await response.text() == "line 1\nline 2\nline 3\n"


async def test_events_tell_changes(local_site: Site) -> None:
    async with local_site.api() as api, api.request("GET", "/v1/events") as events:
        job = await api.call("POST", "/v1/jobs", body={"executable": "true"})
        seen: list[str] = []
        async with asyncio.timeout(30):
            async for line in events.content:
                if line.startswith(b"data: "):
                    view = json.loads(line[6:])
                    if view["id"] == job["id"]:
                        seen.append(view["state"])
                        if view["state"] == "FINISHED":
                            break
        assert "SUBMITTING" in seen


async def test_a_key_makes_a_repeat_harmless(local_site: Site) -> None:
    async with local_site.api() as api:
        body = {"executable": "true", "key": "one"}
        first, again = [await api.call("POST", "/v1/jobs", body=body) for _ in range(2)]
        assert first["id"] == again["id"]
        with pytest.raises(Conflict):
            await api.call("POST", "/v1/jobs", body={"executable": "false", "key": "one"})
        at_once = await asyncio.gather(
            *(api.call("POST", "/v1/jobs", body={"executable": "true", "key": "two"}) for _ in range(8)),
            return_exceptions=True,
        )
        ids = {answer["id"] for answer in at_once if isinstance(answer, dict)}
        assert len(ids) == 1
        assert all(isinstance(answer, dict | EdgeError) for answer in at_once)


async def test_bulk_has_one_outcome_each(local_site: Site) -> None:
    async with local_site.api() as api:
        bad = [
            {"executable": ""},
            {"executable": "true", "unknown": 1},
            {"executable": "true", "queue": "none"},
        ]
        body = {"jobs": [{"executable": "true"}, *bad, {"executable": "true"}]}
        outcomes = (await api.call("POST", "/v1/jobs/bulk", body=body))["jobs"]
        assert [outcome["status"] for outcome in outcomes] == [201, 400, 400, 404, 201]
        good = [outcome["job"]["id"] for outcome in outcomes if outcome["status"] == 201]
        for job in good:
            assert (await ended(api, job))["state"] == "FINISHED"


async def test_pages_and_filters(local_site: Site) -> None:
    async with local_site.api() as api:
        made = [
            (await api.call("POST", "/v1/jobs", body={"executable": "true", "name": "page"}))["id"]
            for _ in range(5)
        ]
        found: list[str] = []
        cursor = ""
        while True:
            page = await api.call("GET", "/v1/jobs", name="page", limit=2, cursor=cursor)
            found += [job["id"] for job in page["jobs"]]
            if not (cursor := page["next"]):
                break
        assert found == made
        newest = await api.call("GET", "/v1/jobs", name="page", limit=1, newest="true")
        assert newest["jobs"][0]["id"] == made[-1]


@pytest.mark.parametrize(
    "body",
    [
        {},
        {"executable": "true", "script": "#!/bin/sh"},
        {"script": "echo no interpreter"},
        {"executable": "true", "name": "two\nlines"},
        {"executable": "true", "environment": {"A\n": "x"}},
        {"executable": "true", "environment": {"A": "nul\0"}},
        {"executable": "true", "environment": {"1A": "x"}},
        {"executable": "true", "inputs": ["../up"]},
        {"executable": "true", "stdout": "/etc/passwd"},
        {"executable": "true", "stdout": ".edged/run.sh"},
        {"executable": "true", "resources": {"nodes": 0}},
        {"executable": "true", "resources": {"gpus": {"count": 1}}},
        {"executable": "true", "resources": {"walltime_s": 601}, "queue": "short"},
        {"executable": "true", "resources": {"gres": ["fpga:1"]}},
        {"executable": "true", "software": ["none/1"]},
        {"executable": "true", "typo": 1},
        [],
        "text",
    ],
)
async def test_what_cannot_be_is_refused_before_it_is_accepted(local_site: Site, body: object) -> None:
    async with local_site.api() as api:
        with pytest.raises(BadRequest):
            await api.call("POST", "/v1/jobs", body=body)


async def test_tokens_decide(local_site: Site) -> None:
    async with local_site.api(token=local_site.token(scope="compute.read")) as api:
        with pytest.raises(Denied):
            await api.call("POST", "/v1/jobs", body={"executable": "true"})
    async with local_site.api(token=local_site.token(aud="https://elsewhere.example.org")) as api:
        with pytest.raises(Unauthenticated):
            await api.call("GET", "/v1/jobs")
    async with local_site.api(token="not.a.token") as api:
        with pytest.raises(Unauthenticated):
            await api.call("GET", "/v1/jobs")


async def test_bodies_have_a_limit(local_site: Site) -> None:
    async with local_site.api() as api:
        async with api.session.post(
            f"{api.url}/v1/jobs", data=b"[" * (9 << 20), headers={"Authorization": f"Bearer {api.token}"}
        ) as response:
            assert response.status == 413
        async with api.session.post(
            f"{api.url}/v1/jobs", data=b"[" * 100_000, headers={"Authorization": f"Bearer {api.token}"}
        ) as response:
            assert response.status == 400


async def test_a_drained_site_refuses_new_and_finishes_old(local_site: Site) -> None:
    admin = local_site.token(groups=("/cms", "/site/admins"))
    async with local_site.api(token=admin) as boss, local_site.api() as api:
        with pytest.raises(Denied):
            await api.call("POST", "/v1/drain", body={"queues": ["*"]})
        running = await api.call("POST", "/v1/jobs", body={"executable": "sleep", "arguments": ["1"]})
        await boss.call("POST", "/v1/drain", body={"queues": ["*"]})
        with pytest.raises(EdgeError, match="draining"):
            await api.call("POST", "/v1/jobs", body={"executable": "true"})
        assert (await ended(api, running["id"]))["state"] == "FINISHED"
        await boss.call("POST", "/v1/drain", body={"queues": []})
        again = await api.call("POST", "/v1/jobs", body={"executable": "true"})
        assert (await ended(api, again["id"]))["state"] == "FINISHED"


async def test_a_ban_cancels_jobs_and_refuses_the_token(local_site: Site) -> None:
    admin = local_site.token(sub="boss", groups=("/cms", "/site/admins"))
    async with (
        local_site.api("identity-api", admin) as bans,
        local_site.api(token=local_site.token(sub="mallory")) as api,
        local_site.api() as other,
    ):
        job = await api.call("POST", "/v1/jobs", body={"executable": "sleep", "arguments": ["60"]})
        await reached(api, job["id"], ("RUNNING",))
        ban = await bans.call(
            "POST", "/v1/bans", body={"issuer": local_site.issuer.url, "subject": "mallory", "reason": "test"}
        )
        view = await ended(other, job["id"])
        assert (view["state"], view["reason"]) == ("KILLED", "cancelled by ban")
        with pytest.raises(EdgeError):
            await api.call("GET", "/v1/jobs")
        await bans.call("DELETE", f"/v1/bans/{ban['id']}")
        assert (await api.call("GET", "/v1/jobs"))["jobs"]


async def test_tokens_are_never_logged(local_site: Site) -> None:
    token = local_site.token(sub="secretive")
    async with local_site.api(token=token) as api:
        await api.call("GET", "/v1/jobs")
        with pytest.raises(EdgeError):
            await api.call("GET", f"/v1/jobs/{token[:64]}")
    assert token.rpartition(".")[2] not in local_site.log()


async def test_a_job_outlives_its_token(local_site: Site) -> None:
    now = int(time.time())
    brief = local_site.token(iat=now - 10, nbf=now - 10, exp=now + 3)
    async with local_site.api(token=brief) as api:
        job = await api.call("POST", "/v1/jobs", body={"script": "#!/bin/sh\nsleep 4; echo done\n"})
    async with local_site.api() as later:
        assert (await ended(later, job["id"]))["state"] == "FINISHED"
        assert await output(later, job["id"]) == "done\n"
    async with local_site.api(token=brief) as api:
        with pytest.raises(Unauthenticated):
            await api.call("GET", "/v1/jobs")


async def test_the_command_line_submits_waits_and_fetches(local_site: Site, tmp_path: Path) -> None:
    token = tmp_path / "token"
    token.write_text(local_site.token())
    environment = {
        **os.environ,
        "BEARER_TOKEN_FILE": str(token),
        "EDGED_URL": local_site.url("jobs"),
        "EDGED_CA": str(local_site.issuer.ca.file),
    }
    data = tmp_path / "data.txt"
    data.write_text("42\n")

    async def edged(*argv: str) -> tuple[int, str]:
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            "edged",
            "job",
            *argv,
            env=environment,
            cwd=tmp_path,
            stdout=asyncio.subprocess.PIPE,
        )
        out, _ = await process.communicate()
        return process.returncode or 0, out.decode()

    code, _ = await edged("submit", "--wait", "--input", str(data), "--", "/bin/cp", "data.txt", "copy.txt")
    assert code == 0
    code, listed = await edged("--json", "list", "--limit", "1")
    job = json.loads(listed)["jobs"][0]["id"]
    assert code == 0
    assert await edged("get", job, "copy.txt", "--to", "got") == (0, "copy.txt\n")
    assert (tmp_path / "got" / "copy.txt").read_text() == "42\n"
    code, shown = await edged("show", job)
    assert "FINISHED" in shown
    assert (await edged("submit", "--wait", "false"))[0] == 1
    assert (await edged("clean", job))[0] == 0
    assert (await edged("show", job))[0] == 1


async def test_names_of_files_are_decoded_once_and_stay_names(local_site: Site) -> None:
    """A percent-encoded name is the name; what would decode into other directories is refused."""
    async with local_site.api() as api:
        body = {"script": "#!/bin/sh\ncat 'a b %41 é.txt'\n", "inputs": ["a b %41 é.txt"]}
        job = await api.call("POST", "/v1/jobs", body=body)
        files = f"/v1/jobs/{job['id']}/files"
        for name in (
            "..%2f..%2fetc%2fpasswd",
            "%2e%2e/%2e%2e/x",
            "x%2Fy",
            "%2eedged/run.sh",
            "a%00b",
            "a%0ab",
        ):
            assert await _put(local_site, f"{files}/{name}") == 400, name
        assert await _put(local_site, f"{files}/a%20b%20%2541%20%C3%A9.txt") == 201
        assert (await ended(api, job["id"]))["state"] == "FINISHED"
        assert await output(api, job["id"]) == "data"


async def _put(site: Site, raw_path: str) -> int:
    """The status of an upload of ``data`` to a path that no client library has touched."""
    host, _, port = site.listening["jobs"][0].rpartition(":")
    context = ssl.create_default_context(cafile=str(site.issuer.ca.file))
    reader, writer = await asyncio.open_connection(host, int(port), ssl=context, server_hostname="localhost")
    head = f"PUT {raw_path} HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {site.token()}\r\n"
    writer.write(f"{head}Content-Length: 4\r\n\r\ndata".encode())
    async with asyncio.timeout(10):
        status = int((await reader.readline()).split()[1])
    writer.close()
    return status
