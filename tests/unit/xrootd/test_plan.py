"""From configuration to servers, their files and what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from edged.config import Config, parse
from edged.errors import ConfigError
from services.storage.xrootd import render
from services.storage.xrootd.installation import Installation, parse_version
from services.storage.xrootd.plan import Plan, Role, plan

ISSUER = "https://cms.example.org/"
OTHER = "https://atlas.example.org/"
PLUGIN = Path("/usr/lib/libXrdMultiuser-5.so")
INSTALLED = Installation((5, 5, 3), Path("/usr/bin"), Path("/usr/local/lib/edged/libEdgedGate.so"), PLUGIN)


def configured(*, atlas: bool = False, xrootd: dict[str, Any] | None = None, **more: Any) -> Config:
    """A site of one or two VOs."""
    exports = [{"prefix": "/cms", "root": "/gpfs/cms", "vo": "cms"}]
    issuers = [{"url": ISSUER, "audience": ["https://edge.example.org"], "vo": "cms"}]
    mappings = [{"issuer": ISSUER, "groups": ["/cms"], "account": "cmsprd"}]
    if atlas:
        exports.append({"prefix": "/atlas", "root": "/gpfs/atlas", "vo": "atlas"})
        issuers.append({"url": OTHER, "audience": ["https://edge.example.org"], "vo": "atlas"})
        mappings.append({"issuer": OTHER, "account": "atlprd"})
    tree = {
        "site": {"name": "TEST", "host": "edge.example.org"},
        "tls": {"certificate": "/etc/edged/host.pem", "key": "/etc/edged/host.key"},
        "issuer": issuers,
        "mapping": mappings,
        "storage": {"export": exports, "xrootd": xrootd or {}},
        **more,
    }
    return parse(tree)


def made(config: Config, *, multiuser: bool = False) -> Plan:
    found = plan(config, host=config.site.host, own="me", multiuser=multiuser)
    assert found is not None
    return found


def text(config: Config, name: str, *, multiuser: bool = False) -> str:
    found = made(config, multiuser=multiuser)
    instance = found.named(name)
    assert instance is not None
    return render.files(config, found, instance, INSTALLED, report="127.0.0.1:9931")["xrootd.cfg"]


def test_one_export_needs_no_redirector() -> None:
    (only,) = made(configured()).instances
    assert (only.role, only.account, only.port, only.programs) == (Role.ALONE, "cmsprd", 1094, ("xrootd",))


def test_several_stand_behind_one() -> None:
    manager, cms, atlas = made(configured(atlas=True)).instances
    assert (manager.role, manager.account, manager.port) == (Role.MANAGER, "edged", 1094)
    assert [(one.name, one.account, one.port) for one in (cms, atlas)] == [
        ("cms-cmsprd", "cmsprd", 10940), ("atlas-atlprd", "atlprd", 10941),
    ]  # fmt: skip
    assert cms.programs == ("cmsd", "xrootd")


def test_an_export_of_several_accounts() -> None:
    config = configured(
        mapping=[
            {"issuer": ISSUER, "groups": [f"/cms/{one}"], "account": one} for one in ("cmsprd", "cmsusr")
        ]
    )
    found = made(config)
    assert found.instances == () and "several accounts" in found.refused["cms"]
    (only,) = made(config, multiuser=True).instances
    assert only.role is Role.MULTIUSER and only.exports[0].accounts == ("cmsprd", "cmsusr")
    rendered = text(config, "multiuser", multiuser=True)
    assert f"ofs.osslib ++ {PLUGIN}" in rendered
    assert " several=1\n" in rendered, "the gate looks as the account"


def test_the_plugin_must_be_there_when_asked_for() -> None:
    with pytest.raises(ConfigError, match="multiuser"):
        made(configured(xrootd={"backend": "multiuser"}))


def test_rendering_is_the_same_each_time() -> None:
    assert text(configured(atlas=True), "cms-cmsprd") == text(configured(atlas=True), "cms-cmsprd")


def test_a_data_server_s_configuration() -> None:
    lines = text(configured(atlas=True), "cms-cmsprd").splitlines()
    for line in (
        "all.role server",
        "all.manager edge.example.org:1213",
        "cms.dfs lookup distrib redirect immed",
        "all.export /cms",
        "oss.localroot /run/edged-xrootd/cms-cmsprd/tree",
        "xrootd.tls capable all",
        "sec.protbind * only ztn",
        "ofs.authorize 1",
        "ofs.authlib ++ /usr/local/lib/edged/libEdgedGate.so instance=cms-cmsprd "
        "socket=/run/edged/xrootd/gate.sock export=/cms:/gpfs/cms",
    ):
        assert line in lines
    assert not any("XrdHttp" in line or "ofs.tpc" in line or "ofs.persist" in line for line in lines)


def test_data_in_the_clear_is_a_choice() -> None:
    assert "xrootd.tls capable all -data" in text(configured(xrootd={"data_tls": False}), "cms-cmsprd")


@pytest.mark.parametrize(
    ("xrootd", "problem"),
    [
        ({"exports": ["nothing"]}, "no [[storage.export]] is named"),
        ({"port": 1213}, "must differ"),
        ({"port": 10941}, "must differ"),
        ({"proxy": {"cache": "/cache"}}, "needs [egress]"),
        ({"gate": "/a b"}, "no blank"),
    ],
)
def test_check_knows(xrootd: dict[str, Any], problem: str) -> None:
    with pytest.raises(ConfigError, match=problem.replace("[", r"\[").replace("]", r"\]")):
        configured(atlas=True, xrootd=xrootd)


def test_versions() -> None:
    assert parse_version("v5.5.3\n") == (5, 5, 3)
    assert parse_version("xrootd v6.0 (x)") == (6, 0, 0)


# --- the forwarding proxy


def proxied(**more: Any) -> Config:
    egress: dict[str, Any] = {
        "source": [{"name": "nodes", "networks": ["10.77.0.0/24", "10.9.8.7/32"]}],
        "destination": [{"name": "far", "hosts": ["*.cern.ch"], "ports": [1094]}],
        "rule": [{"name": "all", "to": ["far"]}],
        **more,
    }
    return configured(xrootd={"proxy": {"cache": "/var/cache/pfc"}}, egress=egress)


def test_the_proxy_s_configuration() -> None:
    lines = text(proxied(), "proxy").splitlines()
    assert not any(line.startswith("pss.permit") for line in lines), "it would open what it refuses"
    assert "ofs.authorize 1" in lines
    assert [line for line in lines if line.startswith("ofs.authlib")] == [
        "ofs.authlib /usr/local/lib/edged/libEdgedGate.so instance=proxy"
    ]
    assert "pss.namelib -lfncachesrc /usr/local/lib/edged/libEdgedGate.so" in lines
    assert "xrd.allow host [::ffff:10.77.0.*" in lines and "xrd.allow host 10.9.8.7" in lines
    assert "all.export /root:/ r/o" in lines and "pss.origin =" in lines


def test_a_changed_policy_starts_the_proxy_anew() -> None:
    one = text(proxied(), "proxy")
    other = text(proxied(destination=[{"name": "far", "hosts": ["*.infn.it"], "ports": [1094]}]), "proxy")
    assert one != other


def test_nodes_it_cannot_be_told_are_edged_s_to_judge() -> None:
    lines = text(proxied(source=[{"name": "nodes", "networks": ["10.64.0.0/10"]}]), "proxy").splitlines()
    assert not any(line.startswith("xrd.allow") for line in lines)


def test_a_policy_without_it_is_refused() -> None:
    with pytest.raises(ConfigError, match="speaks of the way"):
        text(proxied(rule=[{"name": "nat", "to": ["far"], "ways": ["nat"]}]), "proxy")
