"""Ansible's filters: what people write in the inventory becomes the configuration."""

from __future__ import annotations

import importlib.util
import tomllib
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

ROLES = Path(__file__).parents[3] / "ansible/roles"


def _plugin(role: str, name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, ROLES / role / f"filter_plugins/{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


toml = _plugin("edged", "edged_toml").edged_toml
site = _plugin("edged_site", "edged_site")

VALUES = st.one_of(
    st.text(), st.integers(-(2**62), 2**62), st.booleans(), st.floats(allow_nan=False, allow_infinity=False)
)
TREES = st.recursive(
    st.dictionaries(st.text(), VALUES | st.lists(VALUES, max_size=3), max_size=4),
    lambda below: st.dictionaries(st.text(), below | VALUES | st.lists(below, max_size=2), max_size=4),
    max_leaves=12,
)


@given(TREES)
def test_toml_reads_back_as_it_was(tree: dict[str, Any]) -> None:
    assert tomllib.loads(toml(tree)) == tree


def test_what_is_null_is_left_out() -> None:
    assert toml({"a": None, "b": {"c": None, "d": 1}}) == "[b]\nd = 1\n"


VO = {
    "issuer": "https://cms-auth.cern.ch/",
    "audience": ["https://edge.example.org"],
    "mappings": [{"groups": ["/cms/production"], "account": "cmsprd", "class": "production"}],
    "exports": [{"prefix": "/cms", "root": "/gpfs/cms"}],
    "limits": [{"running": 5}],
}


def test_a_vo_becomes_issuer_mapping_and_export() -> None:
    tree = site.edged_site({"cms": VO}, [{"name": "gpu"}], {"cache": {"disk": "1G"}})
    assert tree["issuer"] == [
        {"url": "https://cms-auth.cern.ch/", "audience": ["https://edge.example.org"], "vo": "cms"}
    ]
    assert tree["mapping"][0]["issuer"] == "https://cms-auth.cern.ch/"
    assert tree["storage"]["export"] == [{"vo": "cms", "prefix": "/cms", "root": "/gpfs/cms"}]
    assert tree["jobs"] == {"queue": [{"name": "gpu"}], "limit": [{"vo": "cms", "running": 5}]}
    assert tree["cache"] == {"disk": "1G"}
    assert site.edged_accounts({"cms": VO}) == ["cmsprd"]


def test_a_vo_without_an_issuer_is_an_error() -> None:
    with pytest.raises(KeyError):
        site.edged_site({"cms": {"mappings": []}})


def test_nobody_is_an_empty_site() -> None:
    assert site.edged_site({}) == {}
