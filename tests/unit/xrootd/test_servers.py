"""A server's directory: what its account may read, and what stays when one of a pair is started again."""

from __future__ import annotations

import os
from pathlib import Path

from edged.config import Config, parse
from services.storage.xrootd import keystore, render
from services.storage.xrootd.installation import Installation
from services.storage.xrootd.plan import plan
from services.storage.xrootd.servers import Prepared

ISSUER = "https://issuer.example.org/"


def configured(directory: Path) -> Config:
    for name in ("cert", "key"):
        (directory / name).write_text(name)
    return parse(
        {
            "site": {"name": "TEST", "host": "edge.example.org"},
            "runtime": {"run": str(directory / "run"), "state": str(directory / "state")},
            "accounts": {"mode": "self"},
            "tls": {"certificate": str(directory / "cert"), "key": str(directory / "key")},
            "issuer": [{"url": ISSUER, "audience": ["https://edge.example.org"], "vo": "cms"}],
            "mapping": [{"issuer": ISSUER, "groups": ["/cms"], "account": "me"}],
            "storage": {"export": [{"prefix": "/cms", "root": "/gpfs/cms", "vo": "cms"}], "xrootd": {}},
        }
    )


def prepared(directory: Path) -> Prepared:
    config = configured(directory)
    found = plan(config, host="edge.example.org", own="me", multiuser=False)
    assert found is not None
    installed = Installation((5, 5, 3), Path("/usr/bin"), directory / "libEdgedGate.so")
    return Prepared(config, found, found.instances[0], installed)


def test_the_account_reads_it_whatever_our_umask(tmp_path: Path) -> None:
    one = prepared(tmp_path)
    before = os.umask(0o077)
    try:
        one.write()
        keystore.write(tmp_path / "keys", {})
    finally:
        os.umask(before)
    directory = one.instance.directory
    for place in (
        directory,
        directory / render.TREE,
        tmp_path / "keys",
        (tmp_path / "keys" / keystore.FILE).parent,
    ):
        assert place.stat().st_mode & 0o777 == 0o755
    for file in (directory / render.CONFIG, directory / render.SCITOKENS, tmp_path / "keys" / keystore.FILE):
        assert file.stat().st_mode & 0o777 == 0o644
    assert (directory / render.KEY).stat().st_mode & 0o777 == 0o400


def test_where_the_pair_meets_stays(tmp_path: Path) -> None:
    """The xrootd of a living cmsd is started again: its sockets are in there."""
    prepared(tmp_path).write()
    socket = prepared(tmp_path).instance.directory / render.ADMIN / "socket"
    socket.write_text("in use")
    prepared(tmp_path).write()
    assert socket.read_text() == "in use"
