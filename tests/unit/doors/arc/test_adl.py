"""ADL, as ARC 6.17's own library writes it, and as nobody should."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from edged.errors import BadRequest
from services.jobs.doors.arc.from_adl import wishes
from services.jobs.doors.arc.languages import read
from services.jobs.doors.arc.wish import Wish

WRITTEN_BY_ARC = Path(__file__).with_name("arc-6.17.adl")
MINIMAL = (
    "<ActivityDescription><Application><Executable><Path>a</Path></Executable>{}</Application>{}"
    "</ActivityDescription>"
)


def test_what_arc_writes_is_understood() -> None:
    ((wish, _),) = wishes(WRITTEN_BY_ARC.read_bytes())
    assert isinstance(wish, Wish), wish
    assert (wish.name, wish.executable, wish.arguments) == ("full", "run.sh", ("a b", "c"))
    assert wish.environment == {"A": "1", "B": "x y"} and (wish.stdin, wish.stdout, wish.stderr) == (
        "in",
        "o",
        "e",
    )
    assert (wish.slots, wish.slots_per_node, wish.exclusive, wish.memory) == (8, 4, True, 2097152000)
    assert (wish.cpu_s, wish.wall_s, wish.keep_s, wish.reruns, wish.queue) == (7200, 5400, 259200, 2, "cpu")
    assert [(e.name, e.options) for e in wish.environments] == [
        ("ENV/PROXY", ()),
        ("APPS/X-1.2", ()),
        ("ENV/GPU", ("h200", "2")),
    ]
    assert wish.node_access == {"inbound", "outbound"}
    assert wish.inputs == [("run.sh", ""), ("in", ""), ("prog", ""), ("u", "https://x.y:443/z")]
    assert wish.programs == ["run.sh", "prog"]
    assert wish.outputs == [("d/", ""), ("x", ""), ("y", "https://a.b:443/c")]
    assert any("Priority" in note for note in wish.notes)


def test_several_each_with_its_own_outcome_and_text() -> None:
    good, bad = MINIMAL.format("", ""), MINIMAL.format("<Frob/>", "")
    first, second, third = wishes(f"<ActivityDescriptions>{good}{bad}{good}</ActivityDescriptions>".encode())
    assert isinstance(first[0], Wish) and "<Path>a</Path>" in first[1]
    assert isinstance(second[0], BadRequest) and "Frob" in second[0].message
    assert isinstance(third[0], Wish)


def test_the_languages_rule_for_what_is_not_known() -> None:
    text = MINIMAL.format('<Frob optional="true"/><PreExecutable optional="true"/>', "")
    ((wish, _),) = wishes(text.encode())
    assert isinstance(wish, Wish) and len(wish.notes) == 2


BOMB = "<!DOCTYPE x [" + '<!ENTITY a "' + "b" * 100 + '">' + "".join(
    f'<!ENTITY a{n} "{"&a;" if n == 0 else f"&a{n - 1};"}{"&a;" if n == 0 else f"&a{n - 1};"}">' for n in range(30)
) + "]><ActivityDescription>&a29;</ActivityDescription>"  # fmt: skip


@pytest.mark.parametrize(
    ("text", "why"),
    [
        (BOMB, "entities"),
        ('<!DOCTYPE x SYSTEM "file:///etc/passwd"><x/>', "document type"),
        ("<ActivityDescription>", "well-formed"),
        ("<jobs/>", "is expected"),
        ("<ActivityDescriptions/>", "no ActivityDescription"),
        ("<a>" * 100_000 + "</a>" * 100_000, ""),
        ('<?xml version="1.0" encoding="utf-99"?><a/>', ""),
        ("\x00<a/>", ""),
    ],
)
def test_what_is_no_description_is_refused_soon(text: str, why: str) -> None:
    started = time.process_time()
    with pytest.raises(BadRequest) as caught:
        wishes(text.encode())
    assert why in caught.value.message
    assert time.process_time() - started < 2


@pytest.mark.parametrize(
    ("inside", "why"),
    [
        ("<Executable><Path>a</Path><Frob/></Executable>", "Frob"),
        ("<PreExecutable><Path>b</Path></PreExecutable>", "not supported"),
        ("<WipeTime>soon</WipeTime>", "duration"),
        ("<DryRun>true</DryRun>", "not supported"),
    ],
)
def test_what_a_job_may_not_say(inside: str, why: str) -> None:
    ((found, _),) = wishes(MINIMAL.format(inside, "").encode())
    assert isinstance(found, BadRequest) and why in found.message


def test_an_empty_argument_stays() -> None:
    text = MINIMAL.replace("<Path>a</Path>", "<Path>a</Path><Argument/><Argument> x </Argument>").format(
        "", ""
    )
    ((wish, _),) = wishes(text.encode())
    assert isinstance(wish, Wish) and wish.arguments == ("", " x ")


@pytest.mark.parametrize("body", [b"", b"  ", b"{}", b"#!/bin/sh", b"\xff\xfe", b"&(a=\xff)"])
def test_what_is_neither_language(body: bytes) -> None:
    with pytest.raises(BadRequest):
        read(body)
