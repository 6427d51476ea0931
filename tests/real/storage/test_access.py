"""Who may: tokens, scopes, VOs, anonymous readers, bans."""

from __future__ import annotations

import json
import urllib.request

import pytest

from edged.config import load
from edged.identity.client import IdentityClient
from edged.identity.grants import Ban
from edged.identity.words import ServiceName
from tests.support.dav import Dav, read_until
from tests.support.storage import StorageSite


def test_no_token_and_bad_tokens_are_401(dav: Dav) -> None:
    dav("PUT", "f", b"x")
    nobody = dav.with_scope(None)
    for answer in (
        nobody("GET", "f"),
        nobody("PUT", "g", b"x"),
        nobody("GET", "/nowhere"),
        dav("GET", "f", Authorization="Bearer rubbish"),
        dav("GET", "f", Authorization="Basic eDp5"),
        dav.with_scope("storage.read:/", aud="https://other.example")("GET", "f"),
        dav.with_scope("storage.read:/", exp=1)("GET", "f"),
    ):
        assert (answer.status, answer.headers["www-authenticate"][:6]) == (401, "Bearer")


@pytest.mark.parametrize("scope", ["storage.read", "storage.read:/../x"])
def test_scopes_that_break_the_profile(dav: Dav, scope: str) -> None:
    assert dav.with_scope(scope)("GET", "f").status in (401, 403)


def test_two_identical_authorization_headers_are_one(dav: Dav) -> None:
    dav("PUT", "f", b"x")
    with dav.raw() as sock:
        head = dav.head_of("GET", "f")
        line = f"Authorization: Bearer {dav.token}\r\n".encode()
        sock.sendall(head.replace(b"\r\n\r\n", b"\r\n" + line + b"\r\n"))
        assert b" 200 " in read_until(sock, b"\r\n")
    with dav.raw() as sock:
        sock.sendall(head.replace(b"\r\n\r\n", b"\r\nAuthorization: Bearer other\r\n\r\n"))
        assert b" 400 " in read_until(sock, b"\r\n")


def test_scopes_count_by_segment(dav: Dav) -> None:
    dav("PUT", "data/f", b"x")
    dav("PUT", "database/f", b"x")
    reader = dav.with_scope(f"storage.read:/{dav.root.name}/data")
    assert reader("GET", "data/f").status == 200
    assert reader("GET", "database/f").status == 403
    assert reader("GET", "none").status == 403  # outside the scope, existence is not told
    assert reader("PROPFIND", "data", Depth="1").status == 207
    assert reader("PROPFIND", "", Depth="1").status == 403


def test_modify_does_not_read_and_stage_neither(dav: Dav) -> None:
    dav("PUT", "f", b"x")
    for scope in ("storage.modify:/", "storage.stage:/", "storage.create:/"):
        client = dav.with_scope(scope)
        assert client("GET", "f").status == 403, scope
        assert client("HEAD", "f").status == 200, scope
        assert client("PROPFIND", "f", Depth="0").status == 207, scope


def test_groups_count_only_without_capabilities(dav: Dav) -> None:
    dav("PUT", "f", b"x")
    groups = {"wlcg.groups": ["/cms/readers"]}
    assert dav.with_scope("openid", **groups)("GET", "f").status == 200
    assert dav.with_scope("openid", **groups)("PUT", "g", b"x").status == 403
    assert dav.with_scope("openid compute.read", **groups)("GET", "f").status == 403
    assert dav.with_scope("openid")("GET", "f").status == 403


def test_exports_of_other_vos(dav: Dav) -> None:
    for method in ("GET", "HEAD", "DELETE", "PROPFIND", "MKCOL"):
        assert dav(method, "/atlas/f").status == 403, method
    assert "/atlas/" not in dav("PROPFIND", "/", Depth="1").hrefs
    assert "/cms/" in dav("PROPFIND", "/", Depth="1").hrefs
    assert dav("PUT", "/x", b"").status in (403, 404)


def test_anonymous_reading_only_where_the_export_says_so(dav: Dav) -> None:
    dav("PUT", "/open/f", b"free")
    anyone = dav.with_scope(None)
    assert anyone("GET", "/open/f").body == b"free"
    assert anyone("PROPFIND", "/open", Depth="1").status == 207
    assert anyone("PUT", "/open/g", b"x").status == 401
    assert anyone("DELETE", "/open/f").status == 401
    assert anyone("GET", "f").status == 401


def test_well_known(site: StorageSite, dav: Dav) -> None:
    anyone = dav.with_scope(None)
    for name in ("wlcg-tape-rest-api", "oauth-authorization-server", "openid-configuration"):
        assert anyone("GET", f"/.well-known/{name}").status == 404
    dav("PROPFIND", "", Depth="0")
    report = json.loads(anyone("GET", "/.well-known/wlcg-storage-report").body)["storageservice"]
    assert {"implementation", "implementationversion", "storageendpoints", "storageshares"} <= set(report)
    share = next(s for s in report["storageshares"] if s["name"] == "cms")
    assert share["path"] == ["/cms"]
    assert share["totalsize"] > share["usedsize"] > 0


def test_metrics(site: StorageSite, dav: Dav) -> None:
    dav("PUT", "f", b"x" * 100_000)
    dav("PROPFIND", "", Depth="0")
    page = site.metrics()
    assert 'edged_storage_bytes_total{kind="write",vo="cms"}' in page
    assert 'edged_storage_space_used_bytes{export="cms"}' in page
    assert str(dav.token) not in site.log.read_text()


async def test_a_ban_closes_running_transfers_within_a_second(site: StorageSite, dav: Dav) -> None:
    dav.site.put_file(f"{dav.root.name}/big", size=1 << 30)
    victim = dav.with_scope("storage.read:/", sub="mallory")
    with victim.raw() as sock:
        sock.sendall(victim.head_of("GET", "big"))
        assert b" 200 " in read_until(sock, b"\r\n")
        admin = IdentityClient(load(site.directory / "edged.toml"), ServiceName("admin"))
        ban = await admin.add_ban(Ban(id="", issuer=site.issuer.url, subject="mallory"), by="test")
        sock.settimeout(5)
        received = 0
        try:
            while block := sock.recv(1 << 20):
                received += len(block)
        except OSError:
            pass
        assert received < 1 << 30
    assert victim("GET", "big").status in (401, 403)
    assert dav("HEAD", "big").status == 200
    await admin.lift_ban(ban.id, by="test")


def test_observe_is_apart(site: StorageSite) -> None:
    with urllib.request.urlopen(f"http://127.0.0.1:{site.observe}/healthz", timeout=5) as answer:
        assert answer.status == 200
