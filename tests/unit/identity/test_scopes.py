"""Scopes and their paths, by the tables of the profile and by chance."""

from __future__ import annotations

from dataclasses import dataclass
from urllib.parse import quote

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edged.errors import Unauthenticated
from edged.identity.grants import within
from edged.identity.scopes import compute_scopes, parse_scopes, scope_path, storage_scopes
from edged.identity.words import AccountName, Action, Capability, VoName


@dataclass(frozen=True)
class Export:
    prefix: str
    vo: str = "cms"
    accounts: tuple[str, ...] = ()


CMS, USER = VoName("cms"), AccountName("cmsuser")


def actions_at(scope: str, path: str = "/cms/store/f", *exports: Export) -> set[str]:
    scopes = storage_scopes(parse_scopes(scope).capabilities, exports or (Export("/cms"),), CMS, USER)
    return {a.value.removeprefix("storage.") for s in scopes if within(path, s.root) for a in s.actions}


@pytest.mark.parametrize(
    ("scope", "allowed"),
    [
        ("storage.read:/store", {"read", "stat"}),
        ("storage.create:/store", {"create", "stat"}),
        ("storage.modify:/store", {"modify", "create", "stat"}),
        ("storage.stage:/store", {"stage", "poll", "stat"}),
        ("storage.poll:/store", {"poll"}),
        ("storage.read:/store storage.modify:/store", {"read", "modify", "create", "stat"}),
        ("storage.read:/", {"read", "stat"}),
        ("storage.read:/store/", {"read", "stat"}),
        ("storage.read:/store/f", {"read", "stat"}),
        ("storage.read:/sto", set()),
        ("storage.read:/store/f/g", set()),
        ("storage.read:/cms/store", set()),  # relative to the VO's prefix
        ("storage.later:/store", set()),
        ("compute.create", set()),
        ("", set()),
    ],
)
def test_what_a_storage_scope_allows(scope: str, allowed: set[str]) -> None:
    assert actions_at(scope) == allowed


def test_only_exports_of_the_vo_and_account() -> None:
    exports = (
        Export("/cms"),
        Export("/cms2"),
        Export("/atlas", vo="atlas"),
        Export("/x", accounts=("cmsprd",)),
    )
    scopes = storage_scopes(parse_scopes("storage.read:/a").capabilities, exports, CMS, USER)
    assert {s.root for s in scopes} == {"/cms/a", "/cms2/a"}


@pytest.mark.parametrize(
    ("text", "based", "count"),
    [
        ("openid profile", False, 0),
        ("compute.create compute.read", True, 2),
        ("compute.unheard", True, 0),
        ("storage.unheard:/x", True, 0),
        ("read:/x", False, 0),
        ("computed storage", False, 0),
    ],
)
def test_any_capability_counts_even_an_unknown_one(text: str, based: bool, count: int) -> None:
    found = parse_scopes(text)
    assert (found.capability_based, len(found.capabilities)) == (based, count)


def test_compute_has_no_path() -> None:
    with pytest.raises(Unauthenticated, match="takes no path"):
        parse_scopes("compute.create:/x")
    assert compute_scopes([Capability(Action.STORAGE_READ, "/")]) == ()


def test_number_of_scopes_is_bounded() -> None:
    with pytest.raises(Unauthenticated, match="more than"):
        parse_scopes(" ".join(f"storage.read:/{n}" for n in range(300)))


SEGMENT = st.text(min_size=1, max_size=12).filter(
    lambda s: (
        s not in (".", "..")
        and "/" not in s
        and s.isprintable()
        and s.encode("utf-8", "ignore").decode() == s
    )
)


@given(st.lists(SEGMENT, min_size=1, max_size=6))
def test_encoded_paths_come_back_as_they_were(segments: list[str]) -> None:
    path = "/" + "/".join(segments)
    assert scope_path("storage.read", quote(path)) == path
    assert scope_path("storage.read", quote(path) + "/") == path


@given(st.text(alphabet="/.%2eEfF0aé\\ \0\n~+", max_size=24))
def test_whatever_passes_is_normalised(text: str) -> None:
    try:
        path = scope_path("storage.read", text)
    except Unauthenticated as refused:
        assert text.strip() == "" or text not in refused.message or len(text) < 3
        return
    assert path == "/" or (path.startswith("/") and not path.endswith("/"))
    assert not {"", ".", ".."} & set(path[1:].split("/")) or path == "/"
    assert path.isprintable()


@given(st.text(max_size=60))
def test_parsing_raises_nothing_else(text: str) -> None:
    try:
        parse_scopes(text, scitokens=True)
    except Unauthenticated:
        return
