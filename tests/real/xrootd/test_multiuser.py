"""One server for several accounts (xrootd-multiuser): each request is its account's, in the files and to the kernel.

The plugin is a package of EPEL and OSG, not of Debian: where it is not installed this is not tried, and says so.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from edged.config.xrootd import Xrootd
from services.storage.xrootd import installation
from tests.support.local_accounts import ATLPRD, CMSPRD, LocalAccount
from tests.support.waiting import until
from tests.support.xrootd import XrootdSite, needs_xrootd, scratch

pytestmark = [pytest.mark.root, needs_xrootd]

SECRET = "somebody else's"
STATS = """
import os, sys
from XRootD import client
system = client.FileSystem(sys.argv[1])
print(*(system.stat(path)[0].ok for path in sys.argv[2:]), flush=True)
os._exit(0)
"""


@pytest.fixture(scope="module")
def site() -> Iterator[XrootdSite]:
    """One VO, one export, two accounts chosen by group."""
    major = installation.ask_version(Xrootd().bin / "xrootd")[0]
    if installation.library(f"libXrdMultiuser-{major}.so") is None:
        pytest.skip(
            "UNPROVEN HERE: xrootd-multiuser is not installed (a package of EPEL and OSG, not of Debian)"
        )
    with scratch() as directory:
        made = XrootdSite(directory, vos=("cms",))
        url = made.issuers["cms"].url
        made._sections["mapping"] = [
            {"issuer": url, "groups": ["/cms/production"], "account": CMSPRD.name},
            {"issuer": url, "groups": ["/cms/analysis"], "account": ATLPRD.name},
        ]
        made.root("cms").mkdir(parents=True)
        made.root("cms").chmod(0o1777)
        with made:
            yield made


def production(site: XrootdSite, scope: str = "storage.read:/ storage.modify:/") -> str:
    return site.token(scope, groups=["/cms/production"])


def analysis(site: XrootdSite, scope: str = "storage.read:/ storage.modify:/", **claims: str) -> str:
    return site.token(scope, groups=["/cms/analysis"], **claims)


def owned(file: Path) -> tuple[int, int]:
    facts = file.stat()
    return facts.st_uid, facts.st_mode & 0o777


def as_account(account: LocalAccount, path: Path) -> None:
    os.chown(path, account.uid, account.uid, follow_symlinks=False)


def test_files_belong_to_their_accounts(site: XrootdSite, source: Path, tmp_path: Path) -> None:
    for token, account in ((production(site), CMSPRD), (analysis(site), ATLPRD)):
        path = f"/cms/of-{account.name}/file"
        assert site.put(token, source, path)
        assert owned(site.root("cms") / path.removeprefix("/cms/")) == (account.uid, 0o640)
        assert (site.root("cms") / f"of-{account.name}").stat().st_uid == account.uid
        assert site.get(token, path, tmp_path / "back")
        assert (tmp_path / "back").read_bytes() == source.read_bytes()
        assert site.fs(token, "mv", path, f"{path}-moved")
        assert site.fs(token, "query", "checksum", f"{path}-moved")
        assert site.curl(token, f"{path}-moved").text == "200", "both views"
        assert site.fs(token, "rm", f"{path}-moved")


def test_the_kernel_keeps_accounts_apart(site: XrootdSite) -> None:
    """A scope over everything, but the file is somebody else's."""
    file = site.root("cms") / "private"
    file.write_text(SECRET)
    file.chmod(0o600)
    as_account(CMSPRD, file)
    assert site.get(production(site), "/cms/private", "/dev/null")
    assert not site.get(analysis(site), "/cms/private", "/dev/null")
    assert not site.fs(analysis(site), "rm", "/cms/private")


def test_no_link_leads_out_of_a_closed_directory(site: XrootdSite) -> None:
    """The server's own user cannot look into it, so the gate looks as the account."""
    closed = site.root("cms") / "closed"
    closed.mkdir()
    (closed / "out").symlink_to("/etc")
    (closed / "file").write_text("inside")
    closed.chmod(0o700)
    for path in (closed, closed / "out", closed / "file"):
        as_account(ATLPRD, path)
    assert site.get(analysis(site), "/cms/closed/file", "/dev/null")
    assert not site.get(analysis(site), "/cms/closed/out/passwd", "/dev/null")
    assert not site.get(production(site), "/cms/closed/file", "/dev/null")


def test_a_connection_is_one_account_s(site: XrootdSite) -> None:
    """Whom the plugin becomes hangs on the connection: another account's token in a request is refused there."""
    file = site.root("cms") / "theirs"
    file.write_text("content")
    as_account(CMSPRD, file)
    for token, answers in ((production(site), ["True", "True"]), (analysis(site), ["True", "False"])):
        asks = ["/cms/theirs", f"/cms/theirs?authz=Bearer%20{production(site)}"]
        done = site.run(token, sys.executable, "-c", STATS, site.url, *asks)
        assert done.text.split() == answers, done


def test_a_banned_subject_is_cut(site: XrootdSite) -> None:
    token = analysis(site, sub="mallory")
    assert site.fs(token, "stat", "/cms")
    before = site.server("multiuser")
    said = site.edged("ban", "add", "--issuer", site.issuers["cms"].url, "--subject", "mallory")
    assert said and "multiuser" in said.text, said
    until(lambda: site.server("multiuser") not in (0, before), "its server was ended and started", 10)
    until(lambda: site.fs(production(site), "stat", "/cms"), "others are served", 20)
    assert not site.fs(token, "stat", "/cms")
