"""Servers that die, keys that go, people who are banned, configurations that change."""

from __future__ import annotations

import json
import os
import signal
import sqlite3
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from edged.identity.testissuer import AUDIENCE
from services.storage.xrootd import keystore
from tests.support.waiting import until
from tests.support.xrootd import XrootdSite, needs_xrootd, scratch

pytestmark = [pytest.mark.root, needs_xrootd]

CMS, ATLAS, MANAGER = "cms-cmsprd", "atlas-atlprd", "redirector"


@pytest.fixture(scope="module")
def own() -> Iterator[XrootdSite]:
    """A site of this module's: it is ill-treated."""
    with scratch() as directory, XrootdSite(directory) as site:
        yield site


def answers(site: XrootdSite, vo: str = "cms") -> bool:
    """Whether a fresh client gets an answer at once."""
    token = site.token(vo=vo)
    quick = {
        "XRD_CONNECTIONRETRY": "1",
        "XRD_CONNECTIONWINDOW": "1",
        "XRD_REQUESTTIMEOUT": "3",
        "XRD_STREAMTIMEOUT": "3",
    }
    return bool(site.fs(token, "stat", f"/{vo}", **quick))


def recovery_s(site: XrootdSite, instance: str, program: str, vo: str = "cms") -> float:
    """Kill one process, and how long until a client of ``vo`` is answered again."""
    pid = site.server(instance, program)
    assert pid
    os.kill(pid, signal.SIGKILL)
    began = time.monotonic()
    until(lambda: site.server(instance, program) not in (0, pid), "started again", 20, 0.02)
    until(lambda: answers(site, vo), "an answer", 30, 0.02)
    return time.monotonic() - began


def test_first_request_after_a_start() -> None:
    """Counted from the moment the servers are started: how long Python takes to load is the machine's."""
    with scratch() as directory:
        site = XrootdSite(directory).start(ready=False)
        try:
            until(lambda: site.log.exists() and site.events("server started"), "servers", 40)
            began = time.monotonic()
            until(lambda: answers(site), "the first answer", 40)
            assert time.monotonic() - began < 15  # 12 is the aim; a loaded machine is no news
        finally:
            site.stop()


def test_a_killed_data_server_comes_back(own: XrootdSite) -> None:
    assert recovery_s(own, CMS, "xrootd") < 6
    assert answers(own, "atlas")


def test_a_killed_cmsd_of_a_data_server_comes_back(own: XrootdSite) -> None:
    assert (
        recovery_s(own, CMS, "cmsd") < 40
    )  # xrootd sleeps 10 s before it looks for its cmsd, at times twice


def test_a_killed_redirector_comes_back(own: XrootdSite) -> None:
    assert recovery_s(own, MANAGER, "xrootd") < 16
    assert recovery_s(own, MANAGER, "cmsd") < 20


def test_readiness_tells_which_server_is_missing(own: XrootdSite) -> None:
    pid = own.server(ATLAS)
    os.kill(pid, signal.SIGSTOP)
    try:
        until(lambda: ATLAS in own.not_ready().get("xrootd", ""), "readiness names it", 45)
    finally:
        os.kill(pid, signal.SIGKILL)
    until(own.ready, "ready again", 45)


def test_a_banned_subject_is_cut(own: XrootdSite, tmp_path: Path) -> None:
    """A transfer under way ends, the token opens nothing, others go on after an interruption."""
    big = own.root("cms") / "big"
    with big.open("wb") as file:
        file.truncate(400 << 20)
    os.chown(big, own.accounts["cms"].uid, own.accounts["cms"].uid)
    mallory, alice = own.token(sub="mallory"), own.token()
    assert own.get(mallory, "/cms/big", "/dev/null") and own.get(alice, "/cms/big", "/dev/null")
    environment = {**os.environ, **own.client_environment, "BEARER_TOKEN": mallory}
    slow = subprocess.Popen(
        ["xrdcp", "-s", "-f", "-X", "1m", f"{own.url}//cms/big", str(tmp_path / "copy")], env=environment
    )  # fmt: skip
    os.kill(slow.pid, signal.SIGSTOP)
    before = own.server(CMS)
    said = own.edged("ban", "add", "--issuer", own.issuers["cms"].url, "--subject", "mallory")
    assert said, said
    assert "root://" in said.text and CMS in said.text, "the command says who else is cut"
    until(lambda: own.server(CMS) not in (0, before), "its server was ended and started", 10)
    os.kill(slow.pid, signal.SIGCONT)
    assert slow.wait(60) != 0, "the transfer did not end well"
    until(lambda: answers(own), "others are served", 20)
    assert not own.get(mallory, "/cms/big", "/dev/null")
    assert own.get(alice, "/cms/big", "/dev/null")
    ban = said.text.split(":")[0].split()[-1]
    assert own.edged("ban", "remove", ban)
    until(lambda: own.fs(mallory, "stat", "/cms"), "let in again", 10)


def test_keys_are_edged_s(own: XrootdSite) -> None:
    """The issuers here serve nothing at all: all keys come from edged, in a file the servers cannot write."""
    file = own.directory / "run/xrootd/keys" / keystore.FILE
    facts = file.stat()
    assert (
        facts.st_uid not in (account.uid for account in own.accounts.values()) and facts.st_mode & 0o022 == 0
    )
    rows = dict(
        sqlite3.connect(f"file:{file}?mode=ro", uri=True).execute("SELECT issuer, keys FROM keycache")
    )
    kept = json.loads(rows[own.issuers["cms"].url])
    assert kept["next_update"] == kept["expires"] > time.time() + 86400
    assert all(not issuer.requests for issuer in own.issuers.values())


def test_a_rotated_key_is_known_and_the_old_one_forgotten(own: XrootdSite) -> None:
    old = own.token()
    assert own.fs(old, "stat", "/cms")
    own.issuers["cms"].rotate(keep_old=False)
    (own.directory / "cms.jwks").write_text(json.dumps(own.issuers["cms"].jwks()))
    until(lambda: own.fs(own.token(), "stat", "/cms"), "the new key counts", 20)
    other = own.issuers["cms"].token(scope="storage.read:/", groups=["/cms"])
    assert own.fs(other, "stat", "/cms")


def test_a_change_restarts_only_what_changed(own: XrootdSite) -> None:
    pids = {name: own.server(name) for name in (CMS, ATLAS, MANAGER)}
    changed = own.tree()
    for issuer in changed["issuer"]:
        if issuer["vo"] == "atlas":
            issuer["audience"] = [AUDIENCE, "https://more.example.org"]
    own._sections["issuer"] = changed["issuer"]
    own.reload()
    until(lambda: own.server(ATLAS) not in (0, pids[ATLAS]), "the changed one was started anew", 20)
    until(own.ready, "ready", 40)
    assert own.server(CMS) == pids[CMS]
    more = own.token(vo="atlas", aud="https://more.example.org")
    assert own.fs(more, "stat", "/atlas")


def test_a_removed_issuer_is_out(own: XrootdSite) -> None:
    token = own.token(vo="atlas")
    assert own.fs(token, "stat", "/atlas")
    tree: dict[str, Any] = own.tree()
    own._sections["issuer"] = [issuer for issuer in tree["issuer"] if issuer["vo"] != "atlas"]
    own._sections["mapping"] = [rule for rule in tree["mapping"] if rule["account"] != "atlprd"]
    began = time.monotonic()
    own.reload()
    until(lambda: not own.fs(token, "stat", "/atlas", XRD_CONNECTIONRETRY="1"), "refused", 60)
    assert time.monotonic() - began < 60
    until(lambda: answers(own), "the other VO is served", 30)


def test_nothing_is_left_when_edged_ends(own: XrootdSite) -> None:
    pids = [own.server(name) for name in (CMS, MANAGER)]
    own.stop()
    assert not any(own.server(name) for name in (CMS, MANAGER))
    assert pids
