"""A server's directory: what its account may read, and what stays when one of a pair is started again."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from edged.config import Config, parse
from edged.errors import ConfigError
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
    return of(configured(directory), directory)


def of(config: Config, directory: Path) -> Prepared:
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


def test_a_server_is_stale_when_what_it_started_from_would_be_another_now(tmp_path: Path) -> None:
    one = prepared(tmp_path)
    assert one.stale() == ["xrootd"], "never written"
    one.write()
    one.started("xrootd")
    assert not prepared(tmp_path).stale()
    for name in ("cert", "key"):  # the same bytes in another file, as a unit has them
        (tmp_path / name).unlink()
    assert not prepared(tmp_path).stale()
    (tmp_path / "libEdgedGate.so").write_bytes(b"rebuilt")
    assert prepared(tmp_path).stale()
    prepared(tmp_path).write()
    assert prepared(tmp_path).stale(), "written for its pair; it runs with what was before"
    prepared(tmp_path).started("xrootd")
    config = configured(tmp_path)
    (tmp_path / "key").write_text("renewed")
    assert of(config, tmp_path).stale()
    of(config, tmp_path).write()
    of(config, tmp_path).started("xrootd")
    assert not of(config, tmp_path).stale()
    export = config.storage.exports[0].model_copy(update={"root": Path("/gpfs/elsewhere")})  # type: ignore[union-attr]
    storage = config.storage.model_copy(update={"exports": (export,)})  # type: ignore[union-attr]
    assert of(config.model_copy(update={"storage": storage}), tmp_path).stale()


def test_a_key_that_cannot_be_read_is_said(tmp_path: Path) -> None:
    config = configured(tmp_path)
    (tmp_path / "key").unlink()
    with pytest.raises(ConfigError) as refused:
        of(config, tmp_path)
    assert refused.value.problems == [f"tls: {tmp_path}/key: No such file or directory"]
