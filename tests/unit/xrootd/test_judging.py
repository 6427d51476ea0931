"""Verdicts for the gate, keys for the servers, their reports."""

from __future__ import annotations

import json
import sqlite3
from pathlib import Path

import pytest

from edged.config.identity import Issuer
from edged.identity.keycache import KeyCache, KeyDocument
from edged.identity.testissuer import new_key
from edged.identity.words import (
    AccountName,
    Action,
    Capability,
    IssuerUrl,
    JobClass,
    Principal,
    Verdict,
    VoName,
)
from services.storage.xrootd import judging, keystore, reports
from services.storage.xrootd.plan import Instance, Role, Shown
from services.storage.xrootd.probekey import ProbeKey

URL = IssuerUrl("https://cms.example.org/")
SHOWN = Shown("cms", "/cms", Path("/gpfs/cms"), "cms", "cmsprd", ("cmsprd",))
SERVER = Instance("cms-cmsprd", Role.DATA, "cmsprd", 1094, (SHOWN,), Path("/run/x"))


def verdict(*capabilities: Capability, vo: str = "cms", account: str = "cmsprd") -> Verdict:
    return Verdict(
        principal=Principal(issuer=URL, subject="alice", vo=VoName(vo)), account=AccountName(account),
        job_class=JobClass.CHAOTIC, vo=VoName(vo), capabilities=capabilities, grant=b"",
        expires_at=100.0, token_expires_at=200.0,
    )  # fmt: skip


def test_scopes_as_letters() -> None:
    read = Capability(Action.STORAGE_READ, "/")
    write = Capability(Action.STORAGE_MODIFY, "/store")
    said = judging.answer(verdict(read, write, Capability(Action.COMPUTE_READ)), SERVER).decode().splitlines()
    assert said == ["ok 100 cmsprd", "lrs /cms", "cms /cms/store"]


@pytest.mark.parametrize("other", [{"vo": "atlas"}, {"account": "cmsusr"}])
def test_of_others_nothing(other: dict[str, str]) -> None:
    read = Capability(Action.STORAGE_READ, "/")
    assert judging.answer(verdict(read, **other), SERVER).startswith(b"no ")


def test_probes_open_their_directory_only() -> None:
    assert judging.probe(SERVER, 5.0).decode().splitlines() == ["ok 5 cmsprd", "cmrsl /cms/.edged-probe"]


def test_probe_tokens() -> None:
    key, other = ProbeKey.make(), ProbeKey.make()
    assert key.verify(key.token("aud")) and not other.verify(key.token("aud")) and not key.verify("x.y.z")


def test_keys_as_the_server_reads_them(tmp_path: Path) -> None:
    issuer = Issuer(url=URL, audience=("a",), vo="cms", keep_s=1000)
    good, weak = new_key().public_jwk(), {"kty": "oct", "k": "AAAA", "kid": "w"}
    cache = KeyCache(tmp_path / "issuers")
    cache.write(KeyDocument(URL, json.dumps({"keys": [good, weak]}), 5000.0))
    keys = keystore.current(cache, [issuer], 5500.0)
    keystore.write(tmp_path / "keys", keys)
    with sqlite3.connect(tmp_path / "keys" / keystore.FILE) as database:
        ((url, text),) = database.execute("SELECT issuer, keys FROM keycache").fetchall()
    row = json.loads(text)
    assert url == URL and row["jwks"]["keys"] == [good]
    assert row["expires"] == row["next_update"] == 6000
    assert keystore.current(cache, [issuer], 6001.0) == {}, (
        "a key too old for edged is too old for the servers"
    )


def test_reports() -> None:
    packet = (
        b'<statistics tod="1000" ver="v5.5.3" src="x:1" tos="1" pgm="xrootd" ins="cms-cmsprd" pid="1" site="">'
        b'<stats id="link"><num>3</num><in>10</in><out>20</out></stats>'
        b'<stats id="sched"><threads>7</threads></stats>'
        b'<stats id="xrootd"><lgn><num>5</num><af>2</af></lgn></stats></statistics>'
    )
    found = reports.parse(packet)
    assert found == reports.Summary("cms-cmsprd", "xrootd", 1000.0, 3, 10, 20, 7, 5, 2)


@pytest.mark.parametrize("packet", [b"", b"<x/>", b"<statistics", b'<!DOCTYPE a [<!ENTITY b "c">]><a/>'])
def test_what_is_no_report(packet: bytes) -> None:
    assert reports.parse(packet) is None
