"""What each file request needs of a grant."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edged.accounts import rules
from edged.accounts.api import SESSIONS
from edged.accounts.rules import Need
from edged.errors import BadRequest, Denied
from edged.identity.grants import Grant, Scope
from edged.identity.words import AccountName, Action, JobId, ServiceName

READ, CREATE, MODIFY = Action.STORAGE_READ, Action.STORAGE_CREATE, Action.STORAGE_MODIFY


def grant(*scopes: tuple[Action, str], job: str | None = None) -> Grant:
    return Grant(
        kind="job" if job else "access",
        id="g",
        service=ServiceName("storage"),
        account=AccountName("cmsprd"),
        scopes=tuple(Scope(frozenset({action}), root) for action, root in scopes),
        principal=None,
        issued_at=0.0,
        expires_at=1.0,
        job=JobId(job) if job else None,
    )


def allowed(held: Grant, need: Need, path: str, export: str = "cms") -> bool:
    try:
        rules.require(held, need, export, "/cms", path)
    except Denied:
        return False
    return True


@pytest.mark.parametrize(
    ("action", "needs"),
    [
        (READ, {Need.LOOK, Need.LIST, Need.READ, Need.NOTE}),
        (CREATE, {Need.LOOK, Need.LIST, Need.CREATE, Need.MAKE, Need.NOTE}),
        (
            MODIFY,
            {Need.LOOK, Need.LIST, Need.CREATE, Need.MAKE, Need.REPLACE, Need.REMOVE, Need.NOTE},
        ),
        (Action.STORAGE_STAGE, {Need.LOOK, Need.LIST}),
        (Action.STORAGE_POLL, {Need.LOOK, Need.LIST}),
        (Action.COMPUTE_READ, set()),
        (Action.JOB_STAGE, set()),
    ],
)
def test_each_action(action: Action, needs: set[Need]) -> None:
    held = grant((action, "/cms/foo"))
    assert {need for need in Need if allowed(held, need, "foo/x")} == needs
    assert {need for need in Need if allowed(held, need, "foobar/x")} == set()


def test_directories_that_lead_to_the_scope_may_be_made_and_looked_at() -> None:
    held = grant((CREATE, "/cms/a/b/file"))
    assert allowed(held, Need.MAKE, "a")
    assert allowed(held, Need.LOOK, "a/b")
    assert not allowed(held, Need.CREATE, "a/b")
    assert not allowed(held, Need.LIST, "a")
    assert not allowed(held, Need.MAKE, "a/c")
    assert not allowed(grant((READ, "/cms/a/b")), Need.MAKE, "a")


def test_a_temporary_lies_beside_a_file_that_may_be_created() -> None:
    held = grant((CREATE, "/cms/a/file"))
    rules.require_directory_write(held, "cms", "/cms", "a")
    for elsewhere in ("", "a/b", "b"):
        with pytest.raises(Denied):
            rules.require_directory_write(held, "cms", "/cms", elsewhere)


@pytest.mark.parametrize(
    ("scopes", "replace", "may"),
    [
        ([(MODIFY, "/cms")], True, True),
        ([(MODIFY, "/cms/a"), (MODIFY, "/cms/b")], True, True),
        ([(MODIFY, "/cms/a")], False, False),
        ([(CREATE, "/cms")], False, True),
        ([(CREATE, "/cms")], True, False),
        ([(CREATE, "/cms/a"), (CREATE, "/cms/b")], False, False),  # not within one scope
        ([(READ, "/cms")], False, False),
    ],
)
def test_rename(scopes: list[tuple[Action, str]], replace: bool, may: bool) -> None:
    try:
        rules.require_rename(grant(*scopes), "cms", "/cms", "a/x", "b/x", replace=replace)
    except Denied:
        assert not may
    else:
        assert may


@pytest.mark.parametrize(
    ("action", "needs"),
    [
        (
            Action.JOB_STAGE,
            {Need.LOOK, Need.LIST, Need.READ, Need.CREATE, Need.MAKE, Need.REPLACE, Need.NOTE},
        ),
        (Action.JOB_POLL, {Need.LOOK, Need.LIST, Need.READ}),
        (Action.JOB_CLEAN, {Need.LOOK, Need.LIST, Need.REMOVE}),
        (Action.JOB_SUBMIT, {Need.MAKE}),
        (READ, set()),
    ],
)
def test_sessions(action: Action, needs: set[Need]) -> None:
    held = grant((action, "/"), job="job-1")
    assert {need for need in Need if allowed(held, need, "job-1/out", SESSIONS)} == needs
    for other in ("job-2/out", "job-1x/out", "", "job-11"):
        assert not any(allowed(held, need, other, SESSIONS) for need in Need)


def test_a_session_needs_a_job_grant_with_a_sane_job() -> None:
    assert not allowed(grant((Action.JOB_POLL, "/")), Need.LOOK, "job-1", SESSIONS)
    assert not allowed(grant((Action.JOB_POLL, "/"), job=".."), Need.LOOK, "..", SESSIONS)


@given(st.text(alphabet="ab./\0", max_size=12))
def test_paths_are_normal_or_refused(path: str) -> None:
    try:
        rules.checked(path)
    except BadRequest:
        return
    assert path == "" or all(part not in ("", ".", "..") for part in path.split("/"))
    assert "\0" not in path


def test_namespace_paths() -> None:
    assert rules.namespace_path("/cms", "a/b") == "/cms/a/b"
    assert rules.namespace_path("/", "a") == "/a"
    assert rules.namespace_path("/", "") == "/"
    assert rules.namespace_path("/cms", "") == "/cms"
    assert [rules.parent(path) for path in ("/a/b", "/a", "a", "a/b")] == ["/a", "/", "", "a"]


def test_checksums_may_be_noted_by_readers() -> None:
    assert rules.need_of_attributes(["XrdCks.adler32", "edged.md5"]) is Need.NOTE
    assert rules.need_of_attributes(["XrdCks.adler32", "owner"]) is Need.CREATE
