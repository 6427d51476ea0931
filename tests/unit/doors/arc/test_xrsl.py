"""xRSL as text."""

from __future__ import annotations

from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edged.errors import BadRequest
from services.jobs.doors.arc import xrsl
from services.jobs.doors.arc.from_xrsl import wishes
from services.jobs.doors.arc.times import period, seconds
from services.jobs.doors.arc.wish import Wish


def test_quoting_comments_joining_and_case() -> None:
    text = (
        "& (* a (comment) *) (Executable = '/bin/it''s') "
        '(arguments="say ""hi""" plain ^;semi;;colon; # "-tail" "")(stdOut = o)'
    )
    (job,) = xrsl.read(text)
    assert [(r.attribute, r.values) for r in job] == [
        ("executable", ("/bin/it's",)),
        ("arguments", ('say "hi"', "plain", "semi;colon-tail", "")),
        ("stdout", ("o",)),
    ]


def test_several_jobs_and_nested_conjunctions() -> None:
    first, second = xrsl.read("+(&(executable=a)(&(count=2)))( (executable=b) )")
    assert [r.attribute for r in first] == ["executable", "count"]
    assert [r.values for r in second] == [("b",)]


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("&(executable=$(HOME))", "variables"),
        ("|(executable=a)(executable=b)", "alternatives"),
        ("&(|(executable=a))", "alternatives"),
        ("&(executable=a", "the text ends"),
        ("&(executable=a)) ", "nothing more"),
        ("&(executable)", "an operator"),
        ("&", "expected"),
        ("+", "no job"),
        ('&(executable="a)', "unexpected"),
        ("&(executable=a)trailing", "line 1, column 16"),
        ("&" + "(&" * 50 + "(a=b)" + ")" * 50, "nested deeper"),
        ("&(a=" + "(" * 50 + ")" * 50 + ")", "nested deeper"),
    ],
)
def test_what_cannot_be_read_is_refused_with_its_place(text: str, why: str) -> None:
    with pytest.raises(BadRequest, match="xRSL") as caught:
        xrsl.read(text)
    assert why in caught.value.message


@given(st.text(alphabet="&|+()=<>!\"'^#$ ab\n*", max_size=60))
def test_any_text_is_read_or_refused(text: str) -> None:
    with suppress(BadRequest):
        xrsl.read(text)


@given(st.lists(st.text(), min_size=1, max_size=5))
def test_every_string_survives_quoting(words: list[str]) -> None:
    quoted = " ".join('"' + word.replace('"', '""') + '"' for word in words)
    ((relation,),) = xrsl.read(f"&(arguments={quoted})")
    assert relation.values == tuple(words)


def test_ten_megabytes_are_read_in_linear_time() -> None:
    word = "x" * 1_000_000
    (job,) = xrsl.read(f"&(executable=a)(arguments={' '.join([word] * 10)})")
    assert sum(map(len, job[1].words())) == 10_000_000


def test_a_million_words_are_too_many() -> None:
    with pytest.raises(BadRequest, match="more than"):
        xrsl.read("&(arguments=" + "a " * 250_000 + ")")


def one(text: str) -> Wish:
    (found,) = wishes(text)
    assert isinstance(found, Wish), found
    return found


def test_every_attribute_has_its_place() -> None:
    wish = one(
        '&(executable="run")(arguments="a b" c)(environment=(A 1)(B "x y"))(stdin=i)(stdout=o)(stderr=e)(join=no)'
        '(inputfiles=(run "")(i "/local/i"))(executables=run)(outputfiles=(o "")("d/" ""))(jobname=n)(count=8)'
        '(countpernode=4)(exclusiveexecution=yes)(memory=2000)(cputime="2 hours")(walltime="1 hour 30 minutes")'
        '(lifetime=3)(queue=cpu)(runtimeenvironment="ENV/PROXY")(runtimeenvironment>="APPS/X-1.2")'
        '(nodeaccess=outbound)(rerun=2)(delegationid=abc)(acl="<x/>")(queue!=gpu)'
    )
    assert (wish.executable, wish.arguments, wish.environment) == (
        "run",
        ("a b", "c"),
        {"A": "1", "B": "x y"},
    )
    assert (wish.slots, wish.slots_per_node, wish.exclusive, wish.memory) == (8, 4, True, 2000 << 20)
    assert (wish.cpu_s, wish.wall_s, wish.keep_s, wish.reruns) == (7200, 5400, 3 * 86400, 2)
    assert wish.inputs == [("run", ""), ("i", "/local/i")] and wish.outputs == [("o", ""), ("d/", "")]
    assert [(e.name, e.operator) for e in wish.environments] == [("ENV/PROXY", "="), ("APPS/X-1.2", ">=")]
    assert (wish.queue, wish.delegation, wish.node_access) == ("cpu", "abc", {"outbound"})
    assert len(wish.notes) == 2  # acl and the queue that is not wanted


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("&(stdout=o)", "executable: missing"),
        ("&(executable=a)(executable=b)", "given twice"),
        ("&(executable=a)(frobnicate=yes)", "frobnicate"),
        ("&(executable=a)(count=-1)", "not a number"),
        ("&(executable=a)(count=1e9)", "not a number"),
        ("&(executable=a)(count>2)", "only ="),
        ("&(executable=a)(memory=9999999999999)", "not a number"),
        ("&(executable=a)(walltime=soon)", "not a time"),
        ("&(executable=a)(walltime=3 fortnights)", "unit of time"),
        ("&(executable=a)(join=perhaps)", "yes or no"),
        ("&(executable=a)(inputfiles=x)", "lists"),
        ("&(executable=a)(environment=(A))", "NAME value"),
        ("&(executable=a)(gridtime=10)", "not supported"),
        ("&(executable=a)(dryrun=yes)", "not supported"),
        ("&(executable=(a b))", "a list where a string"),
    ],
)
def test_what_a_job_may_not_say(text: str, why: str) -> None:
    (found,) = wishes(text)
    assert isinstance(found, BadRequest) and why in found.message


def test_one_bad_job_leaves_the_others_alone() -> None:
    good, bad, last = wishes("+(&(executable=a))(&(nonsense=1))(&(executable=c))")
    assert isinstance(good, Wish) and isinstance(bad, BadRequest) and isinstance(last, Wish)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("90", 5400),
        ("2 hours", 7200),
        ("1 day, 1 hour", 90000),
        ("30s", 30),
        ("PT1H30M", 5400),
        ("1w", 604800),
    ],
)
def test_times(text: str, expected: int) -> None:
    assert seconds([text], 60) == expected


@pytest.mark.parametrize(
    "text", ["", "P", "PT", "P1S", "1H", "P99999999999999999999999999999999999999999999999999D"]
)
def test_what_is_no_duration(text: str) -> None:
    with pytest.raises(BadRequest):
        period(text)
