"""The configuration: every error with its dotted path, merging, and what is only unwise."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from edged import config
from edged.config import given
from edged.config.sockets import sockets
from edged.errors import ConfigError

ISSUER = {"url": "https://i.example.org/", "audience": ["https://edge"], "vo": "cms"}
RULE = {"issuer": "https://i.example.org/", "account": "cmsprd"}


def tree(**more: Any) -> dict[str, Any]:
    return {"site": {"name": "X"}, "issuer": [ISSUER], "mapping": [RULE], **more}


def problems(**more: Any) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        config.parse(tree(**more))
    return caught.value.problems


def test_the_smallest_one_is_enough() -> None:
    assert config.parse({"site": {"name": "X"}}).jobs is None


def test_all_errors_come_at_once_with_their_paths() -> None:
    found = problems(
        storage={"export": [{"prefix": "/cms", "root": "relative", "vo": "cms"}]},
        jobs={"queue": [{"name": "a", "max_nodes": 0}], "typo": 1},
    )
    assert "storage.export[0].root: not an absolute path" in found
    assert any(line.startswith("jobs.queue[0].max_nodes: ") for line in found)
    assert "jobs.typo: unknown key (a spelling mistake, or a newer edged's)" in found


@pytest.mark.parametrize(
    ("more", "start"),
    [
        ({"issuer": [ISSUER, ISSUER]}, "issuer[1].url: the same as"),
        ({"issuer": [{**ISSUER, "url": "http://i"}]}, "issuer[0].url: an issuer is an https"),
        ({"issuer": [{**ISSUER, "audience": []}]}, "issuer[0].audience: "),
        ({"mapping": [{**RULE, "issuer": "https://else"}]}, "mapping[0].issuer: no [[issuer]]"),
        ({"mapping": [{**RULE, "account": "Bad Name"}]}, "mapping[0].account: not a local account"),
        ({"mapping": [{**RULE, "grants": ["storage.read"]}]}, "mapping[0].grants: 'storage.read'"),
        ({"mapping": [RULE, {**RULE, "vo": "atlas"}]}, "mapping: account 'cmsprd' serves several VOs"),
        ({"accounts": {"allowed": ["other"]}}, "accounts.allowed: lacks 'cmsprd'"),
        ({"jobs": {"workers": 2}}, "jobs.workers: "),
        ({"jobs": {"listen": "0.0.0.0:8444"}}, 'jobs.listen: write a list: ["0.0.0.0:8444"]'),
        ({"jobs": [{}]}, "jobs: is one table: write [jobs], not [[jobs]]"),
        ({"issuer": ISSUER}, "issuer: is a list of tables: write [[issuer]], not [issuer]"),
        ({"jobs": {"lisen": []}}, "jobs.lisen: unknown key; is it listen?"),
        ({"storag": {}}, "storag: unknown key; is it storage?"),
        ({"jobs": {"queue": [{"nam": "a"}]}}, "jobs.queue[0].nam: unknown key; is it name?"),
        (
            {"jobs": {"interlink": {"plugin": {"acount": "a"}}}},
            "jobs.interlink.plugin.acount: unknown key; is it",
        ),
        ({"jobs": {"max_jobs": "many"}}, "jobs.max_jobs: write a whole number, without quotes or unit"),
        ({"mapping": [{**RULE, "class": "prod"}]}, "mapping[0].class: must be 'production', 'pilot' or"),
        ({"mapping": [{**RULE, "account": "root"}]}, "mapping[0].account: root: nobody"),
        (
            {"jobs": {"batch": "slrum"}},
            "jobs.batch: no driver and no [[jobs.cluster]] is named 'slrum'; there are",
        ),
        ({"jobs": {"queue": [{"name": "a", "batch": "far"}]}}, "jobs.queue[0].batch: no driver and no"),
        ({"jobs": {"listen": ["edge:443"]}}, "jobs.listen[0]: not an IP address"),
        ({"jobs": {"max_body": "lots"}}, "jobs.max_body: not a size"),
        ({"runtime": {"database": "garbage"}}, "runtime.database: write postgresql"),
        ({"runtime": {"database": "sqlite:////tmp/x"}}, "runtime.database: write postgresql"),
        ({"runtime": {"database": "postgresql://[::1"}}, "runtime.database: not a URL"),
        ({"runtime": {"database": "postgresql://u:hush@h/d"}}, "runtime.database: a password here"),
        ({"runtime": {"database": "postgresql://h/d?password=hush"}}, "runtime.database: a password here"),
    ],
)
def test_each_mistake_names_its_place(more: dict[str, Any], start: str) -> None:
    found = problems(**more)
    assert any(line.startswith(start) for line in found), found
    assert "hush" not in "".join(found)


CMS = [{"prefix": "/cms", "root": "/data", "vo": "cms"}]


@pytest.mark.parametrize(
    ("one", "other", "says"),
    [
        ("0.0.0.0:8444", "0.0.0.0:8444", "0.0.0.0:8444: jobs.listen[0] has it already"),
        ("0.0.0.0:8444", "10.0.0.1:8444", "10.0.0.1:8444: jobs.listen[0] has 0.0.0.0:8444 already"),
        ("10.0.0.1:8444", "0.0.0.0:8444", "0.0.0.0:8444: jobs.listen[0] has 10.0.0.1:8444 already"),
        ("[::]:8444", "[::1]:8444", "[::1]:8444: jobs.listen[0] has [::]:8444 already"),
        ("/run/edged/x.sock", "/run/edged/x.sock", "/run/edged/x.sock: jobs.listen[0] has it already"),
        ("0.0.0.0:8444", "[::]:8444", ""),
        ("10.0.0.1:8444", "10.0.0.2:8444", ""),
        ("0.0.0.0:8444", "0.0.0.0:8445", ""),
        ("127.0.0.1:0", "127.0.0.1:0", ""),
    ],
)
def test_two_services_on_one_address(one: str, other: str, says: str) -> None:
    more = {"jobs": {"listen": [one]}, "storage": {"listen": [other], "export": CMS}}
    if says:
        assert problems(**more) == [f"storage.listen[0]: {says}"]
    else:
        config.parse(tree(**more))


def test_listeners_below_a_section_count_too() -> None:
    relay = {"name": "r", "listen": ["10.0.0.1:8444"], "to": ["db.example.org:5432"]}
    found = problems(jobs={"listen": ["0.0.0.0:8444"]}, egress={"relay": [relay]})
    assert [line for line in found if line.startswith("egress.relay[0].listen[0]: 10.0.0.1:8444: jobs.")], (
        found
    )
    found = problems(jobs={"listen": ["0.0.0.0:1094"]}, storage={"export": CMS, "xrootd": {}}, tls=TLS)
    assert found == ["storage.xrootd.port: 0.0.0.0:1094: jobs.listen[0] has it already"]
    found = problems(jobs={"listen": ["0.0.0.0:9468"]})
    assert found == ["observe.services.storage: 127.0.0.1:9468: jobs.listen[0] has 0.0.0.0:9468 already"]


ROOM = [  # longest directory for the sockets of a configuration
    ({}, 88, "identity-feed.sock"),
    ({"cache": {}}, 88, "identity-feed.sock"),
    ({"cache": {"workers": 64}}, 85, "workers/cache-63.sock"),
    ({"storage": {"export": CMS}}, 88, "identity-feed.sock"),
    ({"storage": {"workers": 101, "export": CMS}}, 82, "workers/storage-100.sock"),
]


@pytest.mark.parametrize(("more", "room", "longest"), ROOM)
def test_the_longest_socket_s_path_fits(more: dict[str, Any], room: int, longest: str) -> None:
    run = "/run/".ljust(room, "x")
    loaded = config.parse(tree(runtime={"run": run}, **more))
    paths = [len(f"{directory}/{name}") for _, directory, name in sockets(loaded)]
    assert max(paths) == 107  # unix(7)
    (problem,) = problems(runtime={"run": run + "x"}, **more)
    assert problem.startswith(
        f"runtime.run: {room + 1} bytes: at most {room}, or the path of the socket {longest} "
    )


def test_a_socket_in_another_directory_is_judged_there() -> None:
    cache = {"admin": "/run/".ljust(100, "x")}
    config.parse(tree(cache=cache))
    cache["admin"] += "x"
    assert problems(cache=cache) == [
        "cache.admin: 101 bytes: at most 100, or the path of the socket 0.sock in it is too long for Linux"
    ]


TLS = {"certificate": "/etc/edged/cert.pem", "key": "/etc/edged/key.pem"}


def test_given_files_that_are_not_there_are_named(tmp_path: Path) -> None:
    (tmp_path / "key.pem").write_text("")
    tls = {"certificate": str(tmp_path / "cert.pem"), "key": str(tmp_path / "key.pem")}
    keys = [str(tmp_path / "cern.pub")]
    loaded = config.parse(
        tree(
            tls=tls,
            issuer=[{**ISSUER, "jwks_file": str(tmp_path / "jwks.json")}],
            log={"audit_file": str(tmp_path / "written/by/us.log")},
            cache={"repository": [{"name": "*.cern.ch", "stratums": ["http://s1:8000"], "keys": keys}]},
        )
    )
    assert list(given.missing(loaded)) == [
        f"tls.certificate: {tmp_path}/cert.pem: No such file or directory",
        f"issuer[0].jwks_file: {tmp_path}/jwks.json: No such file or directory",
        f"cache.repository[0].keys[0]: {tmp_path}/cern.pub: No such file or directory",
    ]


def test_an_export_of_nobody_is_unwise() -> None:
    loaded = config.parse(tree(storage={"export": [*CMS, {**CMS[0], "prefix": "/ska", "vo": "sak"}]}))
    assert "storage.export[1].vo: no issuer or mapping is of VO 'sak': nobody reaches it" in config.warnings(
        loaded
    )


def test_conf_d_adds_and_replaces(tmp_path: Path) -> None:
    (tmp_path / "conf.d").mkdir()
    main = tmp_path / "edged.toml"
    main.write_text('[site]\nname = "A"\n[[issuer]]\nurl="https://a/"\naudience=["x"]\nvo="a"\n')
    (tmp_path / "conf.d" / "b.toml").write_text(
        '[site]\nname = "B"\n[[issuer]]\nurl="https://b/"\naudience=["x"]\nvo="b"\n'
    )
    loaded = config.load(main)
    assert loaded.site.name == "B"
    assert [issuer.vo for issuer in loaded.issuers] == ["a", "b"]


def test_a_broken_file_says_the_line(tmp_path: Path) -> None:
    (tmp_path / "edged.toml").write_text("[site\n")
    with pytest.raises(ConfigError, match="line 1"):
        config.load(tmp_path / "edged.toml")
    (tmp_path / "edged.toml").write_text("[site]\nname = EXAMPLE\n")
    with pytest.raises(ConfigError, match=r"line 2, column 8\): name = EXAMPLE; text stands in quotes"):
        config.load(tmp_path / "edged.toml")
    with pytest.raises(ConfigError, match="No such file"):
        config.load(tmp_path / "none.toml")


def test_sizes_are_powers_of_1024() -> None:
    loaded = config.parse(tree(jobs={"max_body": "2M", "max_input": "1.5G"}))
    assert loaded.jobs is not None
    assert loaded.jobs.max_body == 2 << 20
    assert loaded.jobs.max_input == 3 << 29


def test_warnings_tell_what_is_unwise() -> None:
    loaded = config.parse(tree(issuer=[{**ISSUER, "audience_optional": True}], accounts={"mode": "self"}))
    said = "\n".join(config.warnings(loaded))
    assert "audience_optional" in said
    assert "accounts.mode" in said
