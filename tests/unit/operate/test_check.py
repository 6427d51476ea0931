"""``edged check``: a second edge, and a file tried among those that stay."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from edged import config as configuration
from edged.cli import main
from edged.errors import ConfigError

TWO = {"name": "T", "edges": ["edge1.example.org", "edge2.example.org"]}


def test_a_second_edge_on_sqlite_is_refused() -> None:
    with pytest.raises(ConfigError) as refused:
        configuration.parse({"site": TWO})
    (problem,) = refused.value.problems
    assert problem.startswith("runtime.database: 2 edges (edge1.example.org, edge2.example.org)")


def test_one_edge_or_postgresql_is_well() -> None:
    configuration.parse({"site": {"name": "T", "edges": ["edge1.example.org", "edge1.example.org"]}})
    configuration.parse({"site": TWO, "runtime": {"database": "postgresql+psycopg://edged@db/edged"}})


@pytest.fixture
def site(tmp_path: Path) -> Path:
    file = tmp_path / "edged.toml"
    file.write_text('[site]\nname = "T"\n[jobs]\nlisten = ["0.0.0.0:8444"]\n')
    (tmp_path / "conf.d").mkdir()
    (tmp_path / "conf.d/site.toml").write_text('[[jobs.queue]]\nname = "short"\n')
    return file


def check(*words: str | Path) -> tuple[int, list[str]]:
    done = CliRunner().invoke(main, ["check", "--json", *map(str, words)])
    return done.exit_code, json.loads(done.output)["errors"]


def test_a_candidate_is_checked_in_its_place(site: Path, tmp_path: Path) -> None:
    place, candidate = site.parent / "conf.d/site.toml", tmp_path / "candidate"
    candidate.write_text('[[jobs.queue]]\nname = "short"\n[[jobs.queue]]\nname = "long"\n')
    assert check("--config", site, "--replacing", place, candidate) == (0, [])
    candidate.write_text('[[jobs.queue]]\nname = "long"\nmax_waltime_s = 1\n')
    code, errors = check("--config", site, "--replacing", place, candidate)
    assert code == 2
    assert [error.partition(":")[0] for error in errors] == ["jobs.queue[0].max_waltime_s"]


def test_a_candidate_for_a_file_that_is_not_there_yet(site: Path, tmp_path: Path) -> None:
    candidate = tmp_path / "candidate"
    candidate.write_text('[[jobs.queue]]\nname = "short"\n')
    code, errors = check("--config", site, "--replacing", site.parent / "conf.d/more.toml", candidate)
    assert code == 2
    assert errors == ["jobs.queue[1].name: the same as jobs.queue[0].name"]


def test_the_main_file_is_tried_with_its_conf_d(site: Path, tmp_path: Path) -> None:
    candidate = tmp_path / "candidate"
    candidate.write_text('[site]\nname = "T"\n')
    code, errors = check("--config", site, "--replacing", site, candidate)
    assert (code, errors) == (0, []), "a queue alone makes the section"
