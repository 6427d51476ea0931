"""What each token may do, asked of both views: they must agree, whatever the server's own rule would say.

Without edged's gate xrootd 5.5.3 answers many of these otherwise; ``storage.read:/../`` even ends it.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from tests.support.xrootd import XrootdSite, needs_xrootd

pytestmark = [pytest.mark.root, needs_xrootd]

OK = {"200", "201", "204"}


@dataclass(frozen=True)
class Case:
    """A token, and whether it may read /cms/data/file in both views. ``login``: xrootd refuses it earlier."""

    name: str
    allowed: bool
    scope: str | None = "storage.read:/"
    claims: dict[str, Any] = field(default_factory=dict)
    only_dav: bool = False


READS = [
    Case("everything", True),
    Case("its directory", True, "storage.read:/data"),
    Case("its directory with a slash", True, "storage.read:/data/"),
    Case("escaped", True, "storage.read:/d%61ta", only_dav=False),
    Case("the file", True, "storage.read:/data/file"),
    Case("a sibling with the same beginning", False, "storage.read:/dat"),
    Case("another directory", False, "storage.read:/other"),
    Case("no path", False, "storage.read"),
    Case("an empty path", False, "storage.read:"),
    Case("a relative path", False, "storage.read:data"),
    Case("not normalised", False, "storage.read:/x/../data"),
    Case("above the root", False, "storage.read:/../"),
    Case("one bad scope spoils all", False, "storage.read:/ storage.modify"),
    Case("modify gives no read", False, "storage.modify:/"),
    Case("create gives no read", False, "storage.create:/"),
    Case("stage gives no read", False, "storage.stage:/"),
    Case("compute only", False, "compute.create"),
    Case("SciTokens words in a WLCG token", False, "read:/"),
    Case("capabilities elsewhere, right group", False, "storage.read:/other"),
    Case("no mapping for its groups", False, claims={"groups": ["/nobody"]}),
    Case("other audience", False, claims={"aud": "https://elsewhere.example.org"}),
    Case("any audience, which is not configured", False, claims={"aud": "https://wlcg.cern.ch/jwt/v1/any"}),
    Case("no audience", False, claims={"aud": None}),
    Case("expired", False, claims={"exp": int(time.time()) - 10}),
    Case("lives a month", False, claims={"exp": int(time.time()) + 30 * 86400}),
    Case("no jti", False, claims={"jti": None}),
    Case("no version", False, claims={"wlcg.ver": None}),
    Case("SciTokens profile", False, "read:/", {"wlcg.ver": None, "ver": "scitoken:2.0"}),
    Case("critical header", False, claims={"headers": {"crit": ["x"], "x": 1}}),
    Case("key by header", False, claims={"headers": {"jku": "https://x.example/"}}),
    Case("an id token", False, claims={"headers": {"typ": "id_token"}}),
]


@pytest.fixture(scope="module")
def files(site: XrootdSite, tmp_path_factory: pytest.TempPathFactory) -> Path:
    source = tmp_path_factory.mktemp("files") / "source"
    source.write_text("content")
    for path in ("/cms/data/file", "/cms/database/file"):
        assert site.put(site.token(), source, path)
    return source


@pytest.mark.parametrize("case", READS, ids=lambda case: case.name)
def test_reading(site: XrootdSite, files: Path, case: Case) -> None:
    token = site.token(case.scope, **case.claims)
    by_dav = site.curl(token, "/cms/data/file").text in OK
    by_root = bool(site.get(token, "/cms/data/file", "/dev/null", XRD_CONNECTIONRETRY="1"))
    assert (by_dav, by_root) == (case.allowed, case.allowed)


def test_no_read_outside_its_segment(site: XrootdSite, files: Path) -> None:
    token = site.token("storage.read:/data storage.modify:/data")
    for path in ("/cms/database/file", "/cms/dat", "/cms"):
        assert not site.get(token, path, "/dev/null")
    assert not site.put(token, files, "/cms/database/new")
    assert site.curl(token, "/cms/database/file").text == "403"
    assert not site.fs(token, "rm", "/cms/database/file")


WRITES = [
    ("modify makes", "storage.modify:/w", "/cms/w/modify", False, True),
    ("modify replaces", "storage.modify:/w", "/cms/w/there", True, True),
    ("create makes", "storage.create:/w", "/cms/w/create", False, True),
    ("create does not replace", "storage.create:/w", "/cms/w/there", True, False),
    ("read does not make", "storage.read:/", "/cms/w/read", False, False),
    ("stage does not make", "storage.stage:/", "/cms/w/stage", False, False),
    ("outside", "storage.modify:/w", "/cms/v/outside", False, False),
    ("sibling", "storage.modify:/w", "/cms/wx", False, False),
]


@pytest.mark.parametrize(
    ("name", "scope", "path", "replace", "allowed"), WRITES, ids=lambda value: str(value)[:24]
)
def test_writing(
    site: XrootdSite, files: Path, name: str, scope: str, path: str, replace: bool, allowed: bool
) -> None:
    if replace:
        assert site.put(site.token(), files, path, "-f")
    by_root = bool(site.put(site.token(scope), files, path, *(["-f"] if replace else [])))
    dav = path if replace else f"{path}-dav"
    by_dav = site.curl(site.token(scope), dav, "-T", str(files)).text in OK
    assert (by_root, by_dav) == (allowed, allowed)


def test_renaming_with_create(site: XrootdSite, files: Path) -> None:
    token = site.token("storage.create:/r")
    assert site.put(token, files, "/cms/r/a") and site.put(token, files, "/cms/r/b")
    assert not site.fs(token, "mv", "/cms/r/a", "/cms/r/b"), "it would replace"
    assert not site.fs(token, "mv", "/cms/r/a", "/cms/outside")
    assert site.fs(token, "mv", "/cms/r/a", "/cms/r/c")
    assert not site.fs(token, "rm", "/cms/r/c")
    two = site.token("storage.create:/r storage.create:/s")
    assert site.put(two, files, "/cms/s/x")
    assert not site.fs(two, "mv", "/cms/s/x", "/cms/r/x"), "from one scope to another"
    moved = ("-X", "MOVE", "-H", f"Destination: {site.dav_url}/cms/r/x")
    assert site.curl(two, "/cms/s/x", *moved).text == "403"


def test_a_request_s_own_token_counts(site: XrootdSite, files: Path) -> None:
    narrow = site.token("storage.read:/other")
    url = f"{site.url}//cms/data/file?authz=Bearer%20"
    assert not site.run(site.token(), "xrdcp", "-s", "-f", f"{url}{narrow}", "/dev/null")
    assert site.run(narrow, "xrdcp", "-s", "-f", f"{url}{site.token()}", "/dev/null")


def test_groups_instead_of_capabilities(site: XrootdSite, files: Path) -> None:
    """A token without capabilities has what the mapping grants; here nothing."""
    token = site.token(None)
    assert site.curl(token, "/cms/data/file").text == "403"
    assert not site.get(token, "/cms/data/file", "/dev/null")


def test_no_link_leads_out(site: XrootdSite, files: Path) -> None:
    root = site.root("cms")
    (root / "out").symlink_to("/etc")
    (root / "dangling").symlink_to(root.parent / "made-outside")
    (root / "inside").symlink_to("data")
    (root / "nowhere").symlink_to(root.parent / "made-outside")
    token = site.token()
    for path in ("/cms/out/passwd", "/cms/out", "/cms/dangling"):
        assert not site.get(token, path, "/dev/null")
        assert site.curl(token, path).text in ("403", "404")
    for made in ("/cms/dangling", "/cms/nowhere/below/file", "/cms/out/edged-made"):
        assert not site.put(token, files, made, "-f"), made
    assert not site.fs(token, "mkdir", "-p", "/cms/nowhere/below")
    for made in ("/cms/new/below/file", "/cms/inside/new"):
        assert site.put(token, files, made, "-f"), made
    assert not (root.parent / "made-outside").exists()
    assert site.get(token, "/cms/inside/file", "/dev/null")


def test_no_token_is_in_any_log(site: XrootdSite, files: Path) -> None:
    token = site.token()
    site.run(token, "xrdcp", "-s", "-f", f"{site.url}//cms/nothing?authz=Bearer%20{token}", "/dev/null")
    assert token.rpartition(".")[2] not in site.log.read_text()
