"""The wire contract, call by call: statuses, formats, repeats, lost answers, hostile bodies."""

from __future__ import annotations

import asyncio
import socket
import ssl
from collections.abc import AsyncIterator
from xml.etree.ElementTree import fromstring

import pytest

from tests.real.doors.arc.fixtures import ArcSite, Rest

pytestmark = pytest.mark.asyncio(loop_scope="module")

TRUE = "&(executable=/bin/true)"
XML = {"Accept": "text/xml"}


async def test_versions_in_every_format(arc: ArcSite) -> None:
    async with arc.http() as rest:
        root = rest.base.rpartition("/")[0]
        async with rest.session.get(root, headers=XML) as answer:
            document = fromstring(await answer.text())
            assert [one.text for one in document.iter("version")] == ["1.0", "1.1"]
        async with rest.session.get(f"{root}/", headers={"Accept": "text/html"}) as answer:
            assert answer.content_type == "text/html" and "1.1" in await answer.text()


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/nosuch", 404),
        ("POST", "/jobs?action=frobnicate", 501),
        ("POST", "/jobs", 501),
        ("DELETE", "/jobs", 501),
        ("PATCH", "/info", 501),
        ("GET", "/jobs/nosuch/session/x", 404),
        ("GET", "/jobs/nosuch/diagnose/errors", 404),
        ("GET", "/jobs?state=NONSENSE", 400),
        ("POST", "/delegations?action=new&type=jwt", 400),
        ("POST", "/delegations/nosuch?action=get", 404),
    ],
)
async def test_what_does_not_exist(arc: ArcSite, method: str, path: str, status: int) -> None:
    async with arc.http() as rest:
        answer = await rest.call(method, path, status)
        assert answer["error"]["message"]  # HTCondor shows the message at this depth


@pytest.mark.parametrize("action", ["new", "status", "info", "kill", "clean", "restart", "delegations"])
@pytest.mark.parametrize(
    "body", [b"", b"garbage", b"[]", b'{"job":5}', b'{"job":[{"id":7}]}', b"<jobs><job>", b"\xff"]
)
async def test_garbage_is_500(arc: ArcSite, action: str, body: bytes) -> None:
    async with arc.http() as rest:
        await rest.call("POST", f"/jobs?action={action}", 500, data=body)


async def test_bombs_and_depth_and_size(arc: ArcSite) -> None:
    bomb = b'<!DOCTYPE a [<!ENTITY b "c">]><jobs><job><id>&b;</id></job></jobs>'
    async with arc.http() as rest:
        for action in ("new", "status"):
            await rest.call("POST", f"/jobs?action={action}", 500, data=bomb)
            await rest.call("POST", f"/jobs?action={action}", 413, data=b"&" + b"x" * 10_000_000)
        await rest.call("POST", "/jobs?action=status", 500, data=b'{"job":' + b"[" * 100_000)
        await rest.call("POST", "/jobs?action=new", 500, data=b"&" + b"(&" * 10_000)


async def test_unknown_jobs_and_both_shapes_of_the_list(arc: ArcSite) -> None:
    async with arc.http() as rest:
        for body in ({"job": {"id": 'no"such'}}, {"job": [{"id": 'no"such', "state": "x"}], "more": 1}):
            (row,) = (await rest.call("POST", "/jobs?action=status", 201, json=body))["job"]
            assert row == {"status-code": "404", "reason": "Job not found", "id": 'no"such', "state": "None"}
        text = "<jobs><job><id>a&lt;b</id></job><job><id>c</id></job></jobs>"
        answer = await rest.call("POST", "/jobs?action=status", 201, data=text, headers=XML)
        assert [job.findtext("id") for job in fromstring(answer)] == ["a<b", "c"]
        assert [job.findtext("state") for job in fromstring(answer)] == ["None", "None"]


async def test_one_bad_among_a_thousand(arc: ArcSite) -> None:
    jobs = ["(&(executable=/bin/sleep)(arguments=300)(inputfiles=(x '')))"] * 999
    jobs.insert(500, "(&(executable=/bin/true)(nonsense=1))")
    async with arc.http() as rest:
        rows = await rest.submit("+" + "".join(jobs))
        assert [row["status-code"] for row in rows].count("201") == 999
        assert rows[500]["status-code"] == "500" and "nonsense" in rows[500]["reason"]
        ids = [row["id"] for row in rows if "id" in row]
        assert len(set(ids)) == 999
        assert {row["state"] for row in await rest.act("status", *ids)} == {"PREPARING"}
        listed = (await rest.call("GET", "/jobs?state=PREPARING,QUEUING"))["job"]
        assert set(ids) <= {row["id"] for row in listed} and all(row["state"] for row in listed)
        assert {row["status-code"] for row in await rest.act("kill", *ids)} == {"202"}
        async with asyncio.timeout(30):
            while {row["state"] for row in await rest.act("status", *ids)} != {"KILLED"}:
                await asyncio.sleep(0.2)
        assert {row["status-code"] for row in await rest.act("clean", *ids[:500])} == {"202"}
        assert {row["status-code"] for row in await rest.act("clean", *ids[:500])} == {"404"}


async def test_too_many_in_one_call(arc: ArcSite) -> None:
    async with arc.http() as rest:
        await rest.call("POST", "/jobs?action=new", 500, data=("+" + f"({TRUE})" * 1001).encode())
        rows = await rest.submit(TRUE, "&instances=3&queue=short")
        assert [row["status-code"] for row in rows] == ["201"] * 3
        for number in ("0", "-1", "x", "1001"):
            await rest.call("POST", f"/jobs?action=new&instances={number}", 500, data=TRUE.encode())


async def test_htcondors_round(arc: ArcSite) -> None:
    """arc_gahp: the list goes back verbatim to status; everything in info is a string or a list of them."""
    async with arc.http() as rest:
        (made,) = await rest.submit("&(executable=/bin/sh)(arguments=-c 'exit 5')(stdout=_arc_stdout)")
        job = made["id"]
        assert await rest.reached(job) == "FAILED"
        body = await rest.call("GET", "/jobs")
        rows = (await rest.call("POST", "/jobs?action=status", 201, json=body))["job"]
        assert {"status-code": "200", "reason": "OK", "id": job, "state": "FAILED"} in rows
        document = (await rest.act("info", job))[0]["info_document"]["ComputingActivity"]
        assert "arcrest:FAILED" in document["State"] and isinstance(document["Error"], str)
        for field in ("ExitCode", "UsedTotalWallTime", "UsedTotalCPUTime", "SubmissionTime", "EndTime"):
            assert isinstance(document[field], str), field
        assert document["ExitCode"] == "5"
        assert await rest.call("GET", f"/jobs/{job}/session/_arc_stdout") == ""
        for again in range(2):  # brokers repeat themselves
            assert (await rest.act("kill", job))[0]["status-code"] == "202", again
        assert (await rest.act("clean", job))[0]["status-code"] == "202"
        assert (await rest.act("clean", job))[0]["status-code"] == "404"


async def test_an_input_sent_twice_because_the_answer_was_lost(arc: ArcSite) -> None:
    async with arc.http() as rest:
        text = "&(executable=/bin/sleep)(arguments=100)(inputfiles=(a '')(d/b ''))(stdout=o)"
        (made,) = await rest.submit(text)
        job = f"/jobs/{made['id']}/session"
        assert await rest.state(made["id"]) == "PREPARING"
        assert await rest.call("GET", f"{job}/") == {"file": [], "dir": [], "dirs": []}
        await rest.call("PUT", f"{job}/a", data=b"12345")
        await rest.call("PUT", f"{job}/a", data=b"12345")
        await rest.call("PUT", f"{job}/d/b", data=chunks(b"x" * 70_000, b"y"))  # pyarcrest sends chunks
        await rest.reached(made["id"], ("RUNNING",))
        await rest.call("PUT", f"{job}/d/b", data=b"x" * 70_000 + b"y")
        await rest.call("PUT", f"{job}/d/b", 409, data=b"x" * 70_000 + b"z")
        await rest.call("PUT", f"{job}/d/b", 409, data=b"x")
        await rest.call("PUT", f"{job}/new", 409, data=b"x")
        assert (await rest.call("GET", f"{job}/d")) == {"file": ["b"], "dir": [], "dirs": []}
        async with rest.session.get(f"{rest.base}{job}/a", headers={"Range": "bytes=1-2"}) as answer:
            assert (answer.status, await answer.read()) == (206, b"23")
        await rest.call("DELETE", f"{job}/a", 202)
        await rest.call("GET", f"{job}/a", 404)
        await rest.act("kill", made["id"])
        await rest.reached(made["id"], ("KILLED",))
        assert await rest.call("GET", f"{job}/") == {"file": ["o"], "dir": [], "dirs": []}


async def chunks(*parts: bytes) -> AsyncIterator[bytes]:
    for part in parts:
        yield part


@pytest.mark.parametrize(
    "path",
    ["..%2F..%2Fetc%2Fpasswd", "%2e%2e/x", ".edged/run.sh", "a/../../x", ".arc/stdout", "a%00b", ".edged"],
)
async def test_paths_that_lead_out(arc: ArcSite, path: str) -> None:
    async with arc.http() as rest:
        (made,) = await rest.submit("&(executable=/bin/sleep)(arguments=50)(inputfiles=(x ''))")
        from yarl import URL

        for method in ("GET", "PUT", "DELETE"):
            url = URL(f"{rest.base}/jobs/{made['id']}/session/{path}", encoded=True)
            async with rest.session.request(method, url, data=b"" if method == "PUT" else None) as answer:
                assert answer.status == 404, (method, path, answer.status)
        await rest.act("kill", made["id"])


async def test_propfind_and_listings_in_xml(arc: ArcSite) -> None:
    async with arc.http() as rest:
        (made,) = await rest.submit(
            "&(executable=/bin/sh)(arguments=-c 'mkdir d; echo 1 > d/f')(outputfiles=('/' ''))"
        )
        assert await rest.reached(made["id"]) == "FINISHED"
        for depth, count in (("0", 1), ("1", 2)):
            text = await rest.call("PROPFIND", f"/jobs/{made['id']}/session/", 207, headers={"Depth": depth})
            assert len(fromstring(text)) == count
        text = await rest.call("PROPFIND", f"/jobs/{made['id']}/session/d/f", 207, headers={"Depth": "0"})
        assert fromstring(text).findtext(".//{DAV:}getcontentlength") == "2"
        await rest.call("PROPFIND", f"/jobs/{made['id']}/session/", 400, headers={"Depth": "infinity"})
        text = await rest.call("GET", f"/jobs/{made['id']}/session/d", headers=XML)
        assert fromstring(text)[0].attrib == {"size": "2"}


async def test_diagnose_files(arc: ArcSite) -> None:
    async with arc.http() as rest:
        text = '&(executable=/bin/sh)(arguments=-c "exit 9")(priority=3)'
        (made,) = await rest.submit(text)
        assert await rest.reached(made["id"]) == "FAILED"
        base = f"/jobs/{made['id']}/diagnose"
        assert await rest.call("GET", f"{base}/description") == text
        errors = await rest.call("GET", f"{base}/errors")
        assert "exit code 9" in errors and "priority" in errors
        assert await rest.call("GET", f"{base}/status") == "FAILED\n"
        for name in ("failed", "local", "diag", "comment", "xml", "input", "output", "statistics"):
            await rest.call("GET", f"{base}/{name}")
        await rest.call("GET", f"{base}/acl", 404)
        await rest.call("GET", f"{base}/proxy", 404)
        async with rest.session.get(f"{rest.base}{base}/errors", headers={"Range": "bytes=0-3"}) as answer:
            assert (answer.status, await answer.text()) == (206, errors[:4])


async def test_scopes_decide(arc: ArcSite) -> None:
    async with arc.http(arc.site.token("compute.read")) as reader:
        await reader.call("GET", "/jobs")
        for action in ("new", "kill", "clean", "restart"):
            await reader.call("POST", f"/jobs?action={action}", 403, json={"job": [{"id": "x"}]})
        await reader.call("POST", "/delegations?action=new", 403)
    async with arc.http(arc.site.token(aud="https://elsewhere.example.org")) as stranger:
        await stranger.call("GET", "/jobs", 403)


async def test_the_native_api_shows_the_same_job(arc: ArcSite) -> None:
    async with arc.http() as rest, arc.site.api() as native:
        (made,) = await rest.submit("&(executable=/bin/true)(jobname=seen)")
        view = await native.call("GET", f"/v1/jobs/{made['id']}")
        assert view["name"] == "seen"


async def test_absolute_form_and_100_continue(arc: ArcSite) -> None:
    """Byte by byte what arcsub sends: an absolute target, and a PUT that waits to be invited."""
    async with arc.http() as rest:
        (made,) = await rest.submit("&(executable=/bin/cat)(stdin=i)(inputfiles=(i ''))(stdout=o)")
        answer = await asyncio.to_thread(put_with_expect, arc, made["id"], b"hello")
        assert answer.startswith(b"HTTP/1.1 100 Continue\r\n\r\n") and b"HTTP/1.1 200" in answer
        assert await rest.reached(made["id"]) == "FINISHED"
        assert await rest.call("GET", f"/jobs/{made['id']}/session/o") == "hello"


def put_with_expect(arc: ArcSite, job: str, body: bytes) -> bytes:
    """The answers to a PUT whose body is held back until 100 Continue."""
    host, _, port = arc.address.partition(":")
    context = ssl.create_default_context(cafile=str(arc.site.issuer.ca.file))
    with (
        socket.create_connection((host, int(port)), 10) as plain,
        context.wrap_socket(plain, server_hostname=host) as sock,
    ):
        target = f"https://{arc.address}/arex/rest/1.0/jobs/{job}/session/i"
        head = (
            f"PUT {target} HTTP/1.1\r\nHost: {host}\r\nAuthorization: bearer {arc.site.token()}\r\n"
            f"Expect: 100-continue\r\nIf-None-Match: *\r\nContent-Length: {len(body)}\r\nConnection: close\r\n\r\n"
        )
        sock.sendall(head.encode())
        found = sock.recv(4096)
        sock.sendall(body)
        while block := sock.recv(4096):
            found += block
    return found


async def test_the_door_closes_while_the_site_drains(arc: ArcSite) -> None:
    admin = arc.site.token(groups=("/cms", "/site/admins"))
    async with arc.http() as rest, arc.site.api(token=admin) as native:
        await native.call("POST", "/v1/drain", body={"queues": ["*"]})
        try:
            await rest.call("POST", "/jobs?action=new", 503, data=TRUE.encode())
            await submit_mixed(rest)
        finally:
            await native.call("POST", "/v1/drain", body={"queues": []})


async def submit_mixed(rest: Rest) -> None:
    """Of a bulk that is partly wrong every job gets its own answer even then."""
    rows = await rest.submit(f"+({TRUE})(&(nonsense=1))")
    assert "draining" in rows[0]["reason"] and "nonsense" in rows[1]["reason"]
