"""What people and programs see: the https API, ``edged whoami`` and ``edged ban``, and who may ask at all."""

from __future__ import annotations

import asyncio
import json
import os
import socket
import ssl
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from edged.config import parse
from edged.http.server import HttpServer
from edged.identity import feed, wire
from edged.identity.testca import ThrowAwayCa
from edged.identity.testissuer import ThrowAwayIssuer, demo_token_file
from edged.identity.words import AccountName, ServiceName
from edged.services import Context
from services.identity import issuers_wire
from services.identity.service import api
from tests.support.issuer import identity, issuer, tree

NOBODY = 65534


@asynccontextmanager
async def public_api(
    directory: Path, trusted: ThrowAwayIssuer
) -> AsyncIterator[tuple[str, aiohttp.ClientSession]]:
    """The base URL of a running identity API, and a session that trusts its certificate."""
    ca = ThrowAwayCa(directory / "site-ca")
    host = ca.host("localhost")
    config = tree(directory, trusted, listen=["127.0.0.1:0"], admins=["cms/admins"])
    config["tls"] = {"certificate": str(host.certificate), "key": str(host.key)}
    async with identity(config), asyncio.TaskGroup() as tasks:
        client, server = api(parse(config), Context())
        assert isinstance(server, HttpServer)
        context = ssl.create_default_context(cafile=str(ca.file))
        async with (
            client.running(tasks),
            server.running(tasks),
            aiohttp.ClientSession(connector=aiohttp.TCPConnector(ssl=context)) as session,
        ):
            yield f"https://localhost:{server.addresses[0].rpartition(':')[2]}", session


def bearer(token: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {token}"}


async def test_whoami_over_https(tmp_path: Path) -> None:
    async with issuer(tmp_path) as trusted, public_api(tmp_path, trusted) as (url, session):
        token = trusted.token(groups=["/cms/production"], scope="compute.read storage.read:/store")
        async with session.get(f"{url}/v1/whoami", headers=bearer(token)) as answer:
            me = await answer.json()
            assert answer.status == 200
        assert (me["account"], me["vo"], me["subject"]) == ("cmsprd", "cms", "alice")
        assert me["may"] == ["compute.read", "storage.read:/store"]
        async with session.get(f"{url}/v1/whoami") as answer:
            assert answer.status == 401
        async with session.get(f"{url}/v1/whoami", headers=bearer(trusted.token(aud="https://x"))) as answer:
            problem = await answer.text()
            assert answer.status == 401
            assert "another audience" in problem
            assert trusted.url not in problem


async def test_bans_over_https_are_for_admins(tmp_path: Path) -> None:
    async with issuer(tmp_path) as trusted, public_api(tmp_path, trusted) as (url, session):
        boss = bearer(trusted.token(sub="boss", groups=["/cms/admins"]))
        user = bearer(trusted.token(client_id="other"))
        new = {"client": "other", "reason": "lost its secret", "keep_jobs": True}
        async with session.post(f"{url}/v1/bans", json=new, headers=user) as answer:
            assert answer.status == 403
        async with session.post(f"{url}/v1/bans", json=new, headers=boss) as answer:
            assert answer.status == 201
            made = await answer.json()
        async with session.get(f"{url}/v1/whoami", headers=user) as answer:
            text = await answer.text()
            assert answer.status == 403
            assert "banned" in text
            assert "secret" not in text
        async with session.get(f"{url}/v1/bans", headers=boss) as answer:
            assert [one["id"] for one in (await answer.json())["bans"]] == [made["id"]]
        for body in ({}, {"client": "x", "colour": "red"}, {"client": 1}, {"client": "x\n"}):
            async with session.post(f"{url}/v1/bans", json=body, headers=boss) as answer:
                assert answer.status == 400
        for ban_id, status in ((made["id"], 204), (made["id"], 404), ("%0a", 400)):
            async with session.delete(f"{url}/v1/bans/{ban_id}", headers=boss) as answer:
                assert answer.status == status
        async with session.get(f"{url}/v1/whoami", headers=user) as answer:
            assert answer.status == 200


def config_file(directory: Path, config: dict[str, Any]) -> Path:
    """The tree as TOML; JSON's strings and lists are TOML's too."""
    lines: list[str] = []

    def section(name: str, table: dict[str, Any], *, listed: bool = False) -> None:
        lines.append(f"[[{name}]]" if listed else f"[{name}]")
        lines.extend(
            f"{key} = {json.dumps(value)}"
            for key, value in table.items()
            if not (isinstance(value, list) and value and isinstance(value[0], dict))
        )
        for key, value in table.items():
            if isinstance(value, list) and value and isinstance(value[0], dict):
                for item in value:
                    section(f"{name}.{key}", item, listed=True)

    for name, value in config.items():
        for item in value if isinstance(value, list) else [value]:
            section(name, item, listed=isinstance(value, list))
    file = directory / "edged.toml"
    file.write_text("\n".join(lines) + "\n")
    return file


async def edged(file: Path, *words: str, stdin: str = "") -> tuple[int, str]:
    """``edged`` as a user runs it: status and output."""
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-c",
        "import sys; from services.identity.commands import ban, whoami\n"
        "from edged.cli import main\n"
        "main.add_command(ban); main.add_command(whoami); main(prog_name='edged')",
        *words,
        "--config",
        str(file),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )
    out, _ = await process.communicate(stdin.encode())
    return process.returncode or 0, out.decode()


async def test_whoami_explains_each_step(tmp_path: Path) -> None:
    async with issuer(tmp_path) as trusted:
        config = tree(tmp_path, trusted)
        file = config_file(tmp_path, config)
        token = trusted.token(groups=["/cms"])
        async with identity(config):
            status, text = await edged(file, "whoami", "-", stdin=token + "\n")
            assert status == 0, text
            for word in (
                "is trusted for VO cms",
                "signature: ES256",
                "mapping[0]",
                "none of the groups",
                "ACCOUNT cmsuser",
            ):
                assert word in text
            assert token not in text
            status, text = await edged(file, "whoami", "-", "--json", stdin=trusted.token(aud="https://x"))
            found = json.loads(text)
            assert (status, found["live"], found["allowed"], found["code"]) == (
                1,
                True,
                False,
                "unauthenticated",
            )
            status, text = await edged(file, "whoami", token)
            assert status == 2
            assert "standard input" in text
        status, text = await edged(file, "whoami", "-", stdin=token)  # nothing runs: the cached keys
        assert status == 0, text
        assert "identity does not run here" in text
        assert "ACCOUNT cmsuser" in text
        assert demo_token_file(tmp_path, token).stat().st_mode & 0o077 == 0


async def test_ban_from_the_command_line(tmp_path: Path) -> None:
    async with issuer(tmp_path) as trusted:
        config = tree(tmp_path, trusted)
        file = config_file(tmp_path, config)
        async with identity(config) as site, site.client() as client:
            await client.verdict(trusted.token())
            status, text = await edged(file, "ban", "add", "--group", "/cms", "--hours", "1", "--reason", "x")
            assert status == 0, text
            status, listed = await edged(file, "ban", "list")
            assert "group='/cms'" in listed
            status, text = await edged(file, "whoami", "-", stdin=trusted.token(groups=["/cms/production"]))
            assert status == 1
            assert "banned" in text
            status, text = await edged(file, "ban", "remove", listed.split()[0])
            assert status == 0
            status, text = await edged(file, "ban", "add", "--subject", "alice")
            assert status == 1
            assert "needs its issuer" in text
        status, text = await edged(file, "ban", "list")
        assert status == 1
        assert "nobody answers" in text


async def closes(path: Path, packet: bytes) -> bool:
    """Whether identity ends a connection that sends this packet."""
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    sock.setblocking(False)
    loop = asyncio.get_running_loop()
    with sock:
        await loop.sock_connect(sock, str(path))
        await loop.sock_sendall(sock, packet)
        async with asyncio.timeout(5):
            try:
                while await loop.sock_recv(sock, 1 << 17):
                    pass  # the fetcher greets with its keys
            except ConnectionResetError:
                return True
    return True


async def test_nonsense_ends_the_connection_and_nothing_else(tmp_path: Path) -> None:
    async with (
        issuer(tmp_path) as trusted,
        identity(tree(tmp_path, trusted)) as site,
        site.client() as client,
    ):
        run = site.config.runtime.run
        asked_first = wire.encode(wire.Ask(1, wire.ListBans()))
        for packet in (b"x", b"\xc1" * 100, b"\0" * 100_000, asked_first, wire.encode({"type": "Root"})):
            assert await closes(run / wire.SOCKET, packet)
        assert await closes(run / issuers_wire.SOCKET, b"x")
        assert (await client.verdict(trusted.token())).account == "cmsuser"


@pytest.mark.skipif(os.geteuid() != 0, reason="needs uid 0 to be somebody else")
@pytest.mark.root
async def test_another_user_may_neither_ask_nor_listen(tmp_path: Path) -> None:
    async with issuer(tmp_path) as trusted, identity(tree(tmp_path, trusted)) as site:
        run = site.config.runtime.run
        for parent in (run, *run.parents):
            if parent != Path("/tmp") and str(parent).startswith("/tmp"):
                parent.chmod(0o755)
        for name, kind, first in (
            (wire.SOCKET, "SEQPACKET", wire.encode(wire.Hello("jobs"))),  # type: ignore[arg-type]
            (wire.SOCKET, "SEQPACKET", wire.encode(wire.Hello("admin"))),  # type: ignore[arg-type]
            (issuers_wire.SOCKET, "SEQPACKET", b""),
            (feed.SOCKET, "STREAM", b""),
        ):
            assert await as_nobody(run / name, kind, first) == "b''"
        key = site.config.runtime.state / "identity" / "grant.key"
        process = await asyncio.create_subprocess_exec(
            "cat", str(key), user=NOBODY, stderr=subprocess.DEVNULL
        )
        assert await process.wait() != 0


async def as_nobody(path: Path, kind: str, first: bytes) -> str:
    """What an unknown user receives at a socket."""
    code = (
        f"import socket; s = socket.socket(socket.AF_UNIX, socket.SOCK_{kind}); s.settimeout(5)\n"
        f"s.connect({str(path)!r})\n"
        f"first = {first!r}\n"
        "try:\n    first and s.send(first)\n    print(s.recv(65536))\n"
        "except (ConnectionResetError, BrokenPipeError): print(b'')"
    )
    process = await asyncio.create_subprocess_exec(
        "/usr/bin/env", "python3", "-c", code, user=NOBODY, stdout=subprocess.PIPE
    )
    out, _ = await process.communicate()
    return out.decode().strip()


@pytest.mark.skipif(os.geteuid() != 0, reason="needs uid 0 to be somebody else")
@pytest.mark.root
@pytest.mark.parametrize(("users", "held"), [({}, 0), ({"storage": "nobody"}, 128)])
async def test_no_user_shuts_the_fronts_out(tmp_path: Path, users: dict[str, str], held: int) -> None:
    """A stranger holds no connection at all, a service's user at most half of them."""
    async with issuer(tmp_path) as trusted, identity(tree(tmp_path, trusted, service_users=users)) as site:
        run = site.config.runtime.run
        for parent in (run, *run.parents):
            if parent != Path("/tmp") and str(parent).startswith("/tmp"):
                parent.chmod(0o755)
        process = await asyncio.create_subprocess_exec(
            *("/usr/bin/env", "python3", "-c", MANY, str(run / wire.SOCKET)),
            *(wire.encode(wire.Hello(ServiceName("storage"))).hex(),),
            *(wire.encode(wire.Ask(1, wire.ForStandingGrant(AccountName("x")))).hex(),),
            user=NOBODY,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        assert process.stdout is not None
        async with asyncio.timeout(30):
            assert int(await process.stdout.readline()) == held
            async with site.client() as client:
                assert (await client.verdict(trusted.token())).account == "cmsuser"
            await process.communicate(b"")


MANY = """
import socket, sys
path, hello, ask = sys.argv[1], bytes.fromhex(sys.argv[2]), bytes.fromhex(sys.argv[3])
open_ones = []
for _ in range(300):
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    sock.connect(path)
    try:
        sock.send(hello)
        sock.send(ask)
        answered = bool(sock.recv(4096))
    except OSError:
        answered = False
    if answered:
        open_ones.append(sock)
print(len(open_ones), flush=True)
sys.stdin.read()
"""


async def test_no_log_line_holds_a_token(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("DEBUG")
    async with (
        issuer(tmp_path) as trusted,
        identity(tree(tmp_path, trusted)) as site,
        site.client() as client,
    ):
        tokens = [
            trusted.token(),
            trusted.token(aud="x"),
            trusted.token(headers={"kid": "z"}),
            trusted.token(sub="a\nb"),
        ]
        for token in tokens:
            try:
                await client.verdict(token)
            except Exception as refused:
                assert token not in repr(refused)
        lines = [f"{record.getMessage()} {record.__dict__}" for record in caplog.records]
        assert any("edged.audit" in line for line in lines)
        for token in tokens:
            for part in token.split("."):
                assert not any(part in line for line in lines if len(part) > 40)
