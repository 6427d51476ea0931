"""Policy: the WLCG profile's storage scopes as a table."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edged.config.storage import Export
from edged.identity.words import (
    AccountName,
    Action,
    Capability,
    IssuerUrl,
    JobClass,
    Principal,
    Verdict,
    VoName,
)
from services.storage.access import CREATE, MODIFY, READ, STAT, may, may_rename, member


def capabilities(*scopes: str) -> tuple[Capability, ...]:
    return tuple(Capability(Action(s.split(":")[0]), s.split(":")[1]) for s in scopes)


@pytest.mark.parametrize(
    ("scope", "action", "path", "allowed"),
    [
        ("storage.read:/", READ, "/a", True),
        ("storage.read:/data", READ, "/data", True),
        ("storage.read:/data", READ, "/data/x", True),
        ("storage.read:/data", READ, "/database", False),  # scitokens-cpp 0.7.3 allows it
        ("storage.read:/data/", READ, "/data/x", True),
        ("storage.read:/data", READ, "/", False),
        ("storage.read:/", CREATE, "/a", False),
        ("storage.create:/up", CREATE, "/up/f", True),
        ("storage.create:/up", MODIFY, "/up/f", False),
        ("storage.create:/up", READ, "/up/f", False),
        ("storage.create:/up", STAT, "/up/f", True),
        ("storage.create:/a/b", CREATE, "/a", True),  # a missing leading directory
        ("storage.create:/a/b", CREATE, "/a/c", False),
        ("storage.create:/a/b", CREATE, "/", False),
        ("storage.modify:/m", CREATE, "/m/f", True),
        ("storage.modify:/m", MODIFY, "/m/f", True),
        ("storage.modify:/m", READ, "/m/f", False),
        ("storage.modify:/dat", MODIFY, "/datb", False),
        ("storage.modify:/m", STAT, "/m/f", True),
        ("storage.stage:/", READ, "/f", False),  # since profile 1.3
        ("storage.stage:/", STAT, "/f", True),
        ("storage.poll:/", STAT, "/f", True),
        ("storage.poll:/", READ, "/f", False),
    ],
)
def test_table(scope: str, action: Action, path: str, allowed: bool) -> None:
    assert may(capabilities(scope), action, path).allowed is allowed


@pytest.mark.parametrize(
    ("scope", "source", "target", "replaces", "allowed"),
    [
        ("storage.modify:/", "/a", "/b", True, True),
        ("storage.modify:/x", "/x/a", "/y/b", False, False),
        ("storage.create:/x", "/x/a", "/x/b", False, True),
        ("storage.create:/x", "/x/a", "/x/b", True, False),
        ("storage.create:/x", "/x/a", "/y/b", False, False),
        ("storage.create:/x", "/x", "/x/b", False, False),
        ("storage.read:/", "/a", "/b", False, False),
    ],
)
def test_renames(scope: str, source: str, target: str, replaces: bool, allowed: bool) -> None:
    assert may_rename(capabilities(scope), source, target, replaces=replaces).allowed is allowed


names = st.lists(st.sampled_from(["a", "ab", "b", "store", "stor"]), max_size=4)


@given(names, names, st.sampled_from([READ, MODIFY]))
def test_a_scope_never_reaches_beside_its_own_segments(
    root: list[str], path: list[str], action: Action
) -> None:
    scope = Capability(action, "/" + "/".join(root))
    assert may((scope,), action, "/" + "/".join(path)).allowed is (path[: len(root)] == root)


def test_membership() -> None:
    principal = Principal(issuer=IssuerUrl("https://i/"), subject="s", vo=VoName("cms"))
    verdict = Verdict(
        principal=principal,
        account=AccountName("cmsprd"),
        job_class=JobClass.CHAOTIC,
        vo=VoName("cms"),
        capabilities=(),
        grant=b"",
        expires_at=0.0,
        token_expires_at=0.0,
    )
    assert member(verdict, Export(prefix="/cms", root=Path("/x"), vo="cms")).allowed
    assert not member(verdict, Export(prefix="/a", root=Path("/x"), vo="atlas")).allowed
    assert not member(verdict, Export(prefix="/c", root=Path("/x"), vo="cms", accounts=("other",))).allowed
