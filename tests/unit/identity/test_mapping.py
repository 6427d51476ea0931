"""Rules, entitlements, bans: who becomes whom, and who does not."""

from __future__ import annotations

from typing import Any

import pytest

from edged.config.identity import Mapping
from edged.errors import Denied
from edged.identity.claims import Claims
from edged.identity.entitlements import groups_of, holds
from edged.identity.grants import Ban
from edged.identity.mapping import Rules
from edged.identity.scopes import parse_scopes
from edged.identity.words import IssuerUrl, JobClass, Principal, VoName

ISSUER = "https://issuer.example/"


def claims(scope: str = "", **words: Any) -> Claims:
    principal = Principal(**{"issuer": IssuerUrl(ISSUER), "subject": "alice", "vo": VoName("cms"), **words})
    return Claims(principal, parse_scopes(scope), 1e9)


def rule(**words: Any) -> Mapping:
    return Mapping(**{"issuer": ISSUER, "account": "cmsuser", **words})


@pytest.mark.parametrize(
    ("words", "who", "fits"),
    [
        ({}, claims(), True),
        ({"issuer": "https://other.example/"}, claims(), False),
        ({"subjects": ("alice", "bob")}, claims(), True),
        ({"subjects": ("bob",)}, claims(), False),
        ({"groups": ("/cms/production",)}, claims(groups=("/cms/production",)), True),
        ({"groups": ("cms/production",)}, claims(groups=("/cms/production",)), True),
        ({"groups": ("/cms",)}, claims(groups=("/cms/production",)), False),  # a child is not its parent
        ({"groups": ("/cms/production",)}, claims(groups=("/cms",)), False),
        ({"clients": ("broker",)}, claims(client="broker"), True),
        ({"clients": ("broker",)}, claims(), False),
        ({"scopes": ("compute.create",)}, claims("compute.create openid"), True),
        ({"scopes": ("compute.create", "x")}, claims("compute.create"), False),
        (
            {"entitlements": ("urn:geant:x:group:vo#a",)},
            claims(entitlements=("urn:geant:x:group:vo:role=m#b",)),
            True,
        ),
        ({"entitlements": ("urn:geant:x:group:vo",)}, claims(entitlements=("urn:geant:y:group:vo",)), False),
    ],
)
def test_conditions(words: dict[str, Any], who: Claims, fits: bool) -> None:
    rules = Rules([rule(**words)])
    if fits:
        assert rules.choose(who).account == "cmsuser"
    else:
        with pytest.raises(Denied):
            rules.choose(who)


def test_the_first_rule_that_fits_decides() -> None:
    rules = Rules(
        [
            rule(groups=("/cms/production",), account="cmsprd", **{"class": "production"}),
            rule(clients=("pilot",), account="cmspilot", **{"class": "pilot"}),
            rule(),
        ]
    )
    assert rules.choose(claims(groups=("/cms/production",), client="pilot")).account == "cmsprd"
    assert rules.choose(claims(client="pilot")).job_class is JobClass.PILOT
    notes: list[str] = []
    assert rules.choose(claims(), notes.append).rule == 2
    assert len(notes) == 3
    assert "none of the groups /cms/production" in notes[0]
    assert "every condition holds" in notes[2]


def test_groups_choose_the_account_but_add_no_right() -> None:
    rules = Rules(
        [rule(groups=("/cms/production",), account="cmsprd", grants=("compute.create", "storage.read:/"))]
    )
    without = rules.choose(claims(groups=("/cms/production",)))
    assert {c.action.value for c in without.capabilities} == {"compute.create", "storage.read"}
    carrying = rules.choose(claims("storage.poll:/x", groups=("/cms/production",)))
    assert {c.action.value for c in carrying.capabilities} == {"storage.poll"}
    assert carrying.account == "cmsprd"
    assert rules.choose(claims("compute.unheard", groups=("/cms/production",))).capabilities == ()


URN = "urn:mace:egi.eu:group:vo.example.org"


@pytest.mark.parametrize(
    ("required", "present", "authority", "satisfied"),
    [
        (f"{URN}#aai.egi.eu", f"{URN}#aai.egi.eu", False, True),
        (f"{URN}#aai.egi.eu", f"{URN}#elsewhere", False, True),
        (f"{URN}#aai.egi.eu", f"{URN}#elsewhere", True, False),
        (URN, f"{URN}:role=member#aai.egi.eu", False, True),
        (f"{URN}:role=admin", f"{URN}:role=member", False, False),
        (f"{URN}:role=admin", URN, False, False),
        (URN, f"{URN}:sub:role=member", False, True),
        (f"{URN}:sub", URN, False, False),
        (f"{URN}:role=admin", f"{URN}:sub:role=admin", False, False),  # a role is of its own group only
        (URN, f"{URN}.evil", False, False),
        (URN, URN.replace("urn:mace", "URN:MACE"), False, True),
        (f"{URN}:a%20b", f"{URN}:a b", False, True),
        (f"{URN}:x%3ay", f"{URN}:x%3Ay", False, True),
        (f"{URN}:x%3Ay", f"{URN}:x:y", False, False),
        ("urn:geant:x:res:cluster", "urn:geant:x:res:cluster", False, True),
        ("urn:geant:x:res:cluster", "urn:geant:x:res:cluster:sub", False, False),
    ],
)
def test_entitlements(required: str, present: str, authority: bool, satisfied: bool) -> None:
    assert holds(required, (present,), authority=authority) is satisfied


def test_entitlements_as_groups() -> None:
    assert groups_of((f"{URN}:sub:role=m#a", "urn:geant:x:res:y")) == ("/vo.example.org/sub",)


ALICE = claims(groups=("/cms/production",), client="broker", token_id="t1").principal


@pytest.mark.parametrize(
    ("words", "covers"),
    [
        ({"issuer": ISSUER, "subject": "alice"}, True),
        ({"issuer": "https://other.example/", "subject": "alice"}, False),
        ({"group": "/cms"}, True),
        ({"group": "cms/production"}, True),
        ({"group": "/cms/prod"}, False),
        ({"client": "broker"}, True),
        ({"token_id": "t1"}, True),
        ({"token_id": "t2"}, False),
        ({"client": "broker", "token_id": "t2"}, False),
        ({}, False),
    ],
)
def test_whom_a_ban_covers(words: dict[str, str], covers: bool) -> None:
    assert Ban(id="b", **words).covers(ALICE) is covers  # type: ignore[arg-type]
