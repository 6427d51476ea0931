"""Every state of the engine has ARC's word, and nothing else is ever said."""

from __future__ import annotations

import pytest

from edged.identity.words import AccountName, IssuerUrl, JobClass, JobId, Principal, VoName
from services.jobs.doors.arc import formats
from services.jobs.doors.arc.activity import activity
from services.jobs.doors.arc.formats import Format
from services.jobs.doors.arc.states import STATES, arc_state, info_states
from services.jobs.model import Job, State

WHO = Principal(issuer=IssuerUrl("https://i/"), subject="alice", vo=VoName("cms"))


def job(state: State, **more: object) -> Job:
    return Job(
        id=JobId("j"), owner=WHO, account=AccountName("a"), vo=VoName("cms"), job_class=JobClass.PILOT, queue="q",
        batch="b", state=state, **more,  # type: ignore[arg-type]
    )  # fmt: skip


@pytest.mark.parametrize("state", State)
@pytest.mark.parametrize("cancel", ["", "owner"])
def test_every_state_has_a_word(state: State, cancel: str) -> None:
    one = job(state, cancel=cancel)
    assert arc_state(one) in STATES
    assert [word.partition(":")[0] for word in info_states(one)] == ["nordugrid", "emies", "arcrest"]
    assert arc_state(one) == "KILLING" if cancel and not state.final else True


@pytest.mark.parametrize("state", State)
def test_documents_hold_strings_only(state: State) -> None:
    found = activity(
        job(state, started_at=1.0, ended_at=2.5, exit_code=3, cpu_s=1.5, max_rss=4096), "https://h/x"
    )
    for key, value in found.items():
        assert isinstance(value, str) or all(isinstance(item, str) for item in value), key
    assert ("ExitCode" in found) == (state in (State.FINISHED, State.FAILED))
    assert state in (State.FINISHED,) or not state.final or isinstance(found["Error"], str)


def test_a_job_that_waits_for_files_may_be_sent_them_again() -> None:
    assert arc_state(job(State.ACCEPTED, missing=("x",))) == "PREPARING"


@pytest.mark.parametrize(
    ("accept", "form"),
    [
        ("application/json", Format.JSON),
        ("text/xml", Format.XML),
        ("application/xml;q=0.9", Format.XML),
        ("text/html,application/xhtml+xml,application/xml;q=0.9", Format.HTML),
        ("", Format.JSON),
        ("*/*", Format.JSON),
    ],
)
def test_format_by_accept(accept: str, form: Format) -> None:
    assert formats.wanted(accept) is form


def test_what_xml_cannot_hold_becomes_a_question_mark() -> None:
    assert formats.element("a", "<b>\x00\x1b&") == "<a>&lt;b&gt;??&amp;</a>"
