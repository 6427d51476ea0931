"""xrdcp, xrdfs, XRootD for Python and webdavclient3 on the files of two VOs, through one redirector."""

from __future__ import annotations

import os
import time
import zlib
from pathlib import Path

import pytest
from webdav3.client import Client as WebDav  # type: ignore[import-untyped]

from services.storage.xrootd import probe
from services.storage.xrootd.probe import Wish
from tests.support.local_accounts import ATLPRD, CMSPRD
from tests.support.xrootd import HOST, XrootdSite, needs_xrootd

pytestmark = [pytest.mark.root, needs_xrootd]


def test_a_file_s_life_by_xrdcp_and_xrdfs(site: XrootdSite, source: Path, tmp_path: Path) -> None:
    token, path = site.token(), "/cms/life/a/b/file"
    assert site.put(token, source, path)
    assert site.get(token, path, tmp_path / "back")
    assert (tmp_path / "back").read_bytes() == source.read_bytes()
    assert f"{zlib.adler32(source.read_bytes()):08x}" in site.fs(token, "query", "checksum", path).text
    assert path in site.fs(token, "ls", "/cms/life/a/b").text
    assert f"Size:   {source.stat().st_size}" in site.fs(token, "stat", path).text
    assert site.fs(token, "mkdir", "-p", "/cms/life/c/d")
    assert site.fs(token, "mv", path, "/cms/life/c/d/moved")
    assert not site.fs(token, "stat", path)
    assert site.fs(token, "rm", "/cms/life/c/d/moved")
    assert site.fs(token, "rmdir", "/cms/life/c/d")
    assert list(site.root("cms").rglob("moved")) == []


def test_copies_of_directories(site: XrootdSite, tmp_path: Path) -> None:
    token, tree = site.token(), tmp_path / "tree"
    for name in ("one", "sub/two", "sub/three"):
        (tree / name).parent.mkdir(parents=True, exist_ok=True)
        (tree / name).write_text(name)
    assert site.fs(token, "mkdir", "/cms/recursive")
    assert site.run(token, "xrdcp", "-s", "-r", tree, f"{site.url}//cms/recursive/")
    assert (site.root("cms") / "recursive/tree/sub/two").read_text() == "sub/two"
    # 5.5.3's xrdcp cannot fetch a directory over roots://; root:// has its login and, here, its data in TLS too
    (tmp_path / "back").mkdir()
    back = site.run(token, "xrdcp", "-s", "-r", f"{site.plain_url}//cms/recursive/tree", tmp_path / "back")
    assert back, back
    assert (tmp_path / "back/tree/sub/three").read_text() == "sub/three"


@pytest.mark.parametrize("pages", ["0", "1"])
def test_with_and_without_page_checksums(site: XrootdSite, source: Path, pages: str, tmp_path: Path) -> None:
    token = site.token()
    for url in (site.url, site.plain_url):
        path = f"{url}//cms/pages-{pages}"
        assert site.run(token, "xrdcp", "-s", "-f", source, path, XRD_CPUSEPGWRTRD=pages)
        assert site.run(token, "xrdcp", "-s", "-f", path, tmp_path / "back", XRD_CPUSEPGWRTRD=pages)
        assert (tmp_path / "back").read_bytes() == source.read_bytes()


async def test_the_python_client(site: XrootdSite) -> None:
    for url in (site.url, site.plain_url):
        wish = Wish(
            url=url,
            token=site.token(),
            path="/cms",
            directory="/cms/python",
            ca_directory=str(site.ca_directory),
        )
        outcomes = await probe.ask(wish, deadline_s=30)
        assert [one.step for one in outcomes] == ["make", "write", "checksum", "vector", "remove"]
        assert all(one.ok for one in outcomes), outcomes


async def test_the_python_client_is_refused(site: XrootdSite) -> None:
    wish = Wish(url=site.url, token=site.token("storage.read:/"), path="/cms", directory="/cms/python",
                ca_directory=str(site.ca_directory))  # fmt: skip
    outcomes = await probe.ask(wish, deadline_s=30)
    assert not outcomes[-1].ok and "denied" in outcomes[-1].said


def test_two_vos_through_one_redirector(site: XrootdSite, source: Path) -> None:
    for vo, account in (("cms", CMSPRD), ("atlas", ATLPRD)):
        token = site.token(vo=vo)
        for url in (site.url, site.plain_url):  # root:// turns to TLS before a token is sent
            assert site.run(token, "xrdcp", "-s", "-f", source, f"{url}//{vo}/owned/file")
        found = (site.root(vo) / "owned/file").stat()
        assert (found.st_uid, found.st_mode & 0o777) == (account.uid, 0o640)
    assert not site.put(site.token(vo="atlas"), source, "/cms/intruder")
    assert not site.get(site.token(vo="atlas"), "/cms/owned/file", "/dev/null")
    assert not (site.root("cms") / "intruder").exists()


def test_the_data_server_itself_decides_too(site: XrootdSite, source: Path) -> None:
    """Nobody gains by going around the redirector."""
    direct = f"roots://{HOST}:{site.data_port}"
    assert site.run(site.token(), "xrdcp", "-s", "-f", source, f"{direct}//cms/direct")
    for token in (site.token("storage.read:/"), site.token(vo="atlas"), site.token("storage.modify:/else")):
        assert not site.run(token, "xrdcp", "-s", "-f", source, f"{direct}//cms/direct")


def test_creating_costs_no_wait(site: XrootdSite, source: Path) -> None:
    """Without the distributed look-up each new name costs 5 s: the redirector tells the client to wait.

    How long it does take: tests/bench/xrootd_view.py.
    """
    name, loud = time.time_ns(), {"XRD_LOGLEVEL": "Dump"}
    made = (
        site.put(site.token(), source, f"/cms/new-{name}", **loud),
        site.fs(site.token(), "mkdir", f"/cms/newdir-{name}", **loud),
    )
    for one in made:
        assert one and "kXR_redirect" in one.text and "kXR_wait" not in one.text, one.text


def test_checksums_are_shared(site: XrootdSite, source: Path) -> None:
    token, data = site.token(), source.read_bytes()
    adler = f"{zlib.adler32(data):08x}"
    assert site.curl(token, "/cms/sums/dav", "-T", str(source)).text == "201"
    written = _attribute(site.root("cms") / "sums/dav")
    assert written[-64:-60].hex() == adler
    assert adler in site.fs(token, "query", "checksum", "/cms/sums/dav").text
    assert _attribute(site.root("cms") / "sums/dav") == written, "the server believed it"
    # and the other way: what xrootd noted is what WebDAV tells, without looking at the bytes
    assert site.put(token, source, "/cms/sums/root")
    assert adler in site.fs(token, "query", "checksum", "/cms/sums/root").text
    head = site.run("", "curl", "-sSI", "--cacert", site.ca.file, "-H", f"Authorization: Bearer {token}",
                    "-H", "Want-Digest: adler32", f"{site.dav_url}/cms/sums/root")  # fmt: skip
    assert f"adler32={adler}" in head.text
    # a changed file is read again, by both
    (site.root("cms") / "sums/dav").write_bytes(b"changed")
    os.utime(site.root("cms") / "sums/dav", (1e9, 1e9))  # xrootd looks at whole seconds, and both were in one
    changed = f"{zlib.adler32(b'changed'):08x}"
    assert changed in site.fs(token, "query", "checksum", "/cms/sums/dav").text


def _attribute(file: Path) -> bytes:
    return os.getxattr(file, "user.XrdCks.adler32")


def test_webdavclient_sees_the_same_file(site: XrootdSite, source: Path, tmp_path: Path) -> None:
    client = WebDav({"webdav_hostname": site.dav_url, "webdav_token": site.token(), "webdav_timeout": 20})
    client.session.verify = str(site.ca.file)
    client.verify = str(site.ca.file)
    assert site.put(site.token(), source, "/cms/both/file")
    assert "file" in client.list("/cms/both")
    client.download_sync("/cms/both/file", str(tmp_path / "back"))
    assert (tmp_path / "back").read_bytes() == source.read_bytes()
    client.upload_sync("/cms/both/other", str(source))
    assert site.get(site.token(), "/cms/both/other", tmp_path / "again")
    assert (tmp_path / "again").read_bytes() == source.read_bytes()


def test_the_server_tells_how_it_is(site: XrootdSite) -> None:
    import urllib.request

    with urllib.request.urlopen(f"http://127.0.0.1:{site.observe}/metrics", timeout=5) as page:
        text = page.read().decode()
    for name in ("redirector", "cms-cmsprd", "atlas-atlprd"):
        assert f'edged_xrootd_probe_up{{server="{name}"}} 1.0' in text


def test_doctor_and_commands(site: XrootdSite, tmp_path: Path) -> None:
    first = site.edged("xrootd", "render")
    assert first and first.text == site.edged("xrootd", "render").text
    assert site.edged("xrootd", "render", "--to", str(tmp_path / "out"))
    name = "cms-cmsprd"
    rendered = (tmp_path / "out" / name / "xrootd.cfg").read_text()
    assert rendered == (site.servers / name / "xrootd.cfg").read_text(), "what runs is what is shown"
    said = site.edged("doctor").text
    assert "cms-cmsprd at roots://" in said and "make, write, checksum, vector, remove in" in said, said
    assert "atlas-atlprd  data  atlprd" in site.edged("xrootd", "list").text
    assert site.edged("check")
