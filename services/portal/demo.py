"""The portal's part of ``edged demo``: the page that shows what the parts before it did."""

from __future__ import annotations

import secrets
from typing import TYPE_CHECKING, Any

import aiohttp

if TYPE_CHECKING:
    from edged.demo.context import Demo
    from edged.demo.settings import Scene


def settings(scene: Scene) -> str:
    """The [portal] section of the demo, and the audit log that it searches: TOML."""
    token = scene.scratch / "portal.token"
    token.touch(mode=0o600)
    token.write_text(secrets.token_hex(32) + "\n")
    return f"""
[portal]
listen = ["127.0.0.1:0"]
admin_token_file = "{token}"
refresh_s = 0.5

[log]
audit_file = "{scene.scratch}/audit.log"
"""


async def steps(demo: Demo) -> None:
    """Sign in as a browser does, and read."""
    assert demo.config.portal is not None
    assert demo.config.portal.admin_token_file is not None
    token_file = demo.config.portal.admin_token_file
    token = token_file.read_text().strip()
    demo.heading("portal: one page, is it working and who uses it")
    connector = aiohttp.TCPConnector(ssl=demo.tls())
    jar = aiohttp.CookieJar(unsafe=True)  # an address as host
    async with aiohttp.ClientSession(
        demo.url("portal"), connector=connector, cookie_jar=jar, headers={"Accept": "text/html"}
    ) as session:
        async with demo.step("refused: nobody signed in") as step, session.get("/usage.json") as answer:
            step.expect("demo" not in await answer.text(), "it told without a sign-in")
            step.result = "asks to sign in"
        form = {"token": token}
        async with (
            demo.step("sign in with the admin token") as step,
            session.post("/signin", data=form) as answer,
        ):
            step.expect(answer.status == 200, f"status {answer.status}")
            step.result = f"{len(await answer.text())} characters, no script; the token is in {token_file}"
            step.expect("<script" not in await answer.text(), "a script")
        async with demo.step("is everything ready") as step:
            await demo.until(lambda: _says(session, "Everything is ready."), "all parts ready")
            step.result = "Everything is ready."
        async with demo.step("who used what") as step:
            jobs = await demo.until(lambda: _jobs(session), "usage of VO demo")
            step.result = f"VO demo: {jobs} jobs"
        async with demo.step("what happened to one subject") as step:
            lines = (await _text(session, "/search?q=operator")).count("<tr>") - 1
            step.expect(lines > 0, "the audit log knows nothing of it")
            step.result = f"{lines} lines of the audit log"


async def _text(session: aiohttp.ClientSession, path: str) -> str:
    async with session.get(path) as answer:
        answer.raise_for_status()
        return await answer.text()


async def _says(session: aiohttp.ClientSession, words: str) -> bool:
    return words in await _text(session, "/")


async def _jobs(session: aiohttp.ClientSession) -> int:
    """Jobs of the demo's VO, as far as the portal has heard."""
    async with session.get("/usage.json") as answer:
        answer.raise_for_status()
        rows: list[dict[str, Any]] = await answer.json()
    return sum(int(row["jobs"] or 0) for row in rows if row["vo"] == "demo")
