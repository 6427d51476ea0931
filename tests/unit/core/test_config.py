"""The configuration: every error with its dotted path, merging, and what is only unwise."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from edged import config
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
